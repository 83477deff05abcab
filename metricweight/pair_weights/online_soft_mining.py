"""Online soft mining, with class-aware attention. Wang et al., AAAI 2019, arXiv:1811.01459."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metricweight.checks import InputError
from metricweight.pair_weights.class_aware_attention import ClassAwareAttention
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms, exponential_


@dataclass(eq=False, repr=False)
class OnlineSoftMiningLoss(PairLoss):
    """A contrastive loss in which close positives and close negatives count more, and outliers less.

        s+_ij = exp( -d_ij^2 / sigma^2 ) a_ij,      s-_ij = [ margin - d_ij ]_+ a_ij,      a_ij = min(a_i, a_j)
        L = (1 - balance) 1/2 sum s+ d^2 / sum s+  +  balance 1/2 sum s- [ margin - d ]_+^2 / sum s-

    Coordinate: distance. Normalised over the batch. Scores are s; weights are s+ d and s- [margin - d]_+, the slopes
    of the half squares included. **They are constants**: no far positive is pushed away and no far negative pulled
    in to change what others count. Both members of a pair move.

    margin     alpha of the paper, 1.2 in all released settings
    sigma      0.8 for CUB and Cars; the released settings for video are 1.0 (MARS) and 0.6 (LPW)
    balance    lambda: the negatives' share
    attention  a_i: how typical of its class an item is. A `ClassAwareAttention`, which then needs a loss of its own
               to learn its class contexts: add `attention(embeddings, labels)` to this one. Or a tensor [B] for
               one batch, which says nothing of a `ref_emb`. None: 1 for all
    form       "poster", as above. "released": exp(-d^2 / (2 sigma^2)), and the whole divided by the number of pairs
               compared, B (B - 1) / 2 in a batch, as read in (and not run from) the authors' code

    A batch without positives, or without negatives nearer than margin, has nothing from that side.

    Poster of the paper; how the sums are normalised is known from the released code.
    """

    coordinate: ClassVar[Literal["distance"]] = "distance"
    normalised: ClassVar[Literal["batch"]] = "batch"
    symmetric: ClassVar[bool] = True
    not_plain: ClassVar[tuple[str, ...]] = ("attention",)

    margin: float = 1.2
    sigma: float = 0.8
    balance: float = 0.5
    attention: ClassAwareAttention | Tensor | None = None
    form: Literal["poster", "released"] = "poster"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attention, (ClassAwareAttention, Tensor, type(None))):
            raise InputError(f"attention is a ClassAwareAttention or a tensor [B], got {self.attention!r}.")
        if self.form not in ("poster", "released"):
            raise InputError(f"form is 'poster' or 'released', got {self.form!r}.")
        if self.sigma <= 0:
            raise InputError(f"sigma is a width, more than 0, got {self.sigma}.")
        if not 0 <= self.balance <= 1:
            raise InputError(f"balance is the negatives' share, from 0 to 1, got {self.balance}.")

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        hinge = (self.margin - x).relu_().mul_(negative)
        width = self.sigma**2 * (2 if self.form == "released" else 1)
        near = exponential_(x.square().mul_(-1 / width)).mul_(positive)
        soft = hinge
        if query is not None and gallery is not None:
            attention = torch.minimum(query[:, None], gallery)
            near, soft = near.mul_(attention), hinge * attention
        pull, push = near * x, soft * hinge
        value = PairWeights(0.5 * torch.linalg.vecdot(pull, x), 0.5 * torch.linalg.vecdot(push, hinge))
        return Terms(PairWeights(near, soft), PairWeights(pull, push), value)

    def shares(self, pairs: int | Tensor) -> tuple[float | Tensor, float | Tensor]:
        parts = pairs + (pairs == 0) if self.form == "released" else 1
        return (1 - self.balance) / parts, self.balance / parts

    def items(self, embeddings: Tensor, labels: Tensor, of_gallery: bool = False) -> Tensor | None:
        if isinstance(self.attention, ClassAwareAttention):
            return self.attention.attention(embeddings, labels)
        if self.attention is not None and of_gallery:
            raise InputError("attention is of the batch; where there is a gallery, give a ClassAwareAttention.")
        if self.attention is not None and self.attention.shape != labels.shape:
            raise InputError(f"attention must be a number per item, [{len(labels)}], got {list(self.attention.shape)}.")
        return None if self.attention is None else self.attention.detach().to(embeddings.device)


delattr(OnlineSoftMiningLoss, "attention")  # its default, which would hide a Module of that name
