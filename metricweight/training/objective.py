"""What a network is trained by."""

from typing import Literal

import torch
from torch import Tensor, nn

from metricweight.checks import InputError
from metricweight.confidence import match_probability, own_probability
from metricweight.models.heads import classifier


class Objective(nn.Module):
    """A loss, with what it needs beside the network: a loss on logits gets a classifier of its own, which learns too.

    loss            any row of `LOSSES`
    kind            of that row; "pair" is a function of embeddings, "example" and "target" are of logits
    embedding_size  D
    labels          of everything that is trained on: each of the C numbers among them is a class

    Its `state_dict` holds the state of the loss, the classifier, and which label each of its outputs stands for.
    """

    labels: Tensor

    def __init__(
        self, loss: nn.Module, kind: Literal["pair", "example", "target"], embedding_size: int, labels: Tensor
    ) -> None:
        super().__init__()
        self.loss = loss
        self.classifier: nn.Linear | None = None
        if kind != "pair":  # nothing random is drawn where it is not needed
            self.register_buffer("labels", torch.unique(labels))
            if len(self.labels) < 2:
                raise InputError(
                    f"a loss of kind {kind} tells classes apart, and there is {len(self.labels)} to train on; "
                    "give it two or more, or choose a loss on pairs."
                )
            self.classifier = classifier(embedding_size, len(self.labels))

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of embeddings [B, D] with labels [B], and what it judged, detached: embeddings or logits [B, C]."""
        if self.classifier is None:
            return self.loss(embeddings, labels), embeddings.detach()
        logits = self.classifier(embeddings)
        return self.loss(logits, self._outputs(labels)), logits.detach()

    def confidence(self, judged: Tensor, labels: Tensor) -> Tensor:
        """p, how sure the network is of each label: of the classifier's softmax, or of one over neighbours.

        judged  what `forward` gave beside the loss
        """
        if self.classifier is None:
            return match_probability(judged, labels)
        return own_probability(judged, self._outputs(labels))

    def _outputs(self, labels: Tensor) -> Tensor:
        """Which output of the classifier stands for each label."""
        return torch.searchsorted(self.labels, labels)
