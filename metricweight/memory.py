"""Cross-batch memory: embeddings of earlier batches as a gallery. Wang et al., CVPR 2020, arXiv:1912.06798."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from metricweight.checks import InputError, check_embeddings
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import IndicesTuple, listed


class CrossBatchMemory(nn.Module):
    """A loss of each batch against itself and the `size` embeddings before it.

    loss   a loss on pairs of this library, or one of pytorch-metric-learning that takes `ref_emb` and goes by its
           `indices_tuple`, as losses on pairs and triplets do
    dim    D of the embeddings
    size   how many embeddings are remembered; the oldest are forgotten

    Called as `memory(embeddings [B, D], labels [B], indices_tuple=None)`. The gallery is the batch followed by the
    memory, so the indices of a miner that saw the batch mean the same here, from the first call to the last: they
    choose among the pairs of the batch, while those with the memory all count. Nobody is paired with himself. The
    memory is a constant; the first call, with nothing in it, is the plain loss.

    After each call in training mode the batch is remembered, detached. The state (embeddings, labels, which are
    there, where the next goes) is all in `state_dict`. With a loss of this library nothing waits for the GPU and
    shapes never change, so it compiles. Wrap the memory, not the loss, when training on several GPUs: each
    remembers its own batches.
    """

    embeddings: Tensor
    labels: Tensor
    filled: Tensor
    next: Tensor

    def __init__(self, loss: nn.Module, dim: int, size: int) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module) or "ref_emb" not in inspect.signature(loss.forward).parameters:
            raise InputError(f"loss must be a loss on pairs, which takes ref_emb, got {loss!r}.")
        if dim < 1 or size < 1:
            raise InputError(f"dim and size are counts, at least 1, got {dim} and {size}.")
        self.loss, self.dim, self.size = loss, dim, size
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.long))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: IndicesTuple | None = None) -> Tensor:
        check_embeddings(embeddings, labels)
        if embeddings.shape[1] != self.dim:
            raise InputError(f"embeddings must be [B, {self.dim}] to match dim, got {list(embeddings.shape)}.")
        labels = labels.to(embeddings.device)
        gallery = torch.cat([embeddings, self.embeddings])
        gallery_labels = torch.cat([labels, self.labels])
        chosen = torch.cat([torch.ones_like(labels, dtype=torch.bool), self.filled]).expand(len(labels), -1)
        if indices_tuple is not None:
            among_batch = listed(indices_tuple, labels, labels)
            chosen = chosen & torch.cat([among_batch, among_batch.new_ones(len(labels), self.size)], dim=1)
        if isinstance(self.loss, PairLoss):
            value: Tensor = self.loss.against(embeddings, labels, gallery, gallery_labels, chosen, own=True)
        else:
            indices = _indices(labels, gallery_labels, chosen)
            value = self.loss(embeddings.to(gallery.dtype), labels, indices, gallery, gallery_labels)
        if self.training:
            self.remember(embeddings, labels)
        return value

    @torch.no_grad()
    def remember(self, embeddings: Tensor, labels: Tensor) -> None:
        """Puts a batch [B, D] with its labels [B] in place of the oldest, as each call in training mode does."""
        embeddings, labels = embeddings[-self.size :], labels[-self.size :]
        where = (self.next + torch.arange(len(labels), device=self.next.device)) % self.size
        self.embeddings.index_copy_(0, where, embeddings.detach().to(self.embeddings))
        self.labels.index_copy_(0, where, labels.to(self.labels))
        self.filled.index_fill_(0, where, True)
        self.next.copy_((self.next + len(labels)) % self.size)

    def __repr__(self) -> str:
        return f"CrossBatchMemory({self.loss!r}, dim={self.dim}, size={self.size})"


def _indices(labels: Tensor, gallery_labels: Tensor, chosen: Tensor) -> tuple[Any, ...]:
    """The chosen pairs as pytorch-metric-learning has them, without those of an item with itself."""
    chosen = chosen.clone()
    chosen.diagonal().fill_(False)
    same = labels[:, None] == gallery_labels
    return *(same & chosen).nonzero(as_tuple=True), *(~same & chosen).nonzero(as_tuple=True)
