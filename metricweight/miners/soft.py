"""Miners that know how much each pair counts."""

import inspect
from typing import Literal

import torch
from torch import Tensor, nn

from metricweight.checks import check_gallery
from metricweight.pair_weights.class_aware_attention import ClassAwareAttention
from metricweight.pair_weights.instance_cross_entropy import InstanceCrossEntropyLoss
from metricweight.pair_weights.online_soft_mining import OnlineSoftMiningLoss
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pair_weights.ranked_list import RankedListLoss
from metricweight.pairs import PairWeights, from_labels


class SoftMiner(nn.Module):
    """A miner that knows how much each pair counts.

    Called as `miner(embeddings [B, D], labels [B], ref_emb=None, ref_labels=None)` it returns the pairs whose score
    is not zero as (anchors, positives, anchors, negatives), which losses take as `indices_tuple`. How much each
    counts is in `scores`: `mw.pml.attach(loss, pair=miner)` puts it into a loss of pytorch-metric-learning.
    Everything is a constant; an empty batch has no pairs.
    """

    def scores(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> PairWeights:
        """How much each pair counts, [B, G] each: the mining factor alone, 0 where a pair is not used."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scores = self.scores(embeddings, labels, ref_emb, ref_labels)
        return *scores.positive.nonzero(as_tuple=True), *scores.negative.nonzero(as_tuple=True)  # type: ignore[return-value]


class PairMiner(SoftMiner):
    """Mines as a loss weighs."""

    def __init__(self, loss: PairLoss) -> None:
        super().__init__()
        self.loss = loss

    def scores(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> PairWeights:
        return self.loss.matrices(embeddings, labels, ref_emb, ref_labels)[0]

    def weights(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> PairWeights:
        """The complete |dL/dd_ij| or |dL/ds_ij| of the method's own loss, [B, G] each, before it is normalised."""
        return self.loss.matrices(embeddings, labels, ref_emb, ref_labels)[1]

    def __repr__(self) -> str:
        if type(self) is PairMiner:
            return f"PairMiner({self.loss!r})"
        names = inspect.signature(type(self)).parameters
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self.loss, name)!r}' for name in names)})"


class RankedListMiner(PairMiner):
    """The pairs that break a query's ranking, scored exp(temperature x violation), 1 at the row's worst.

    Arguments and source: `losses.RankedListLoss`.
    """

    def __init__(
        self,
        margin: float = 0.4,
        alpha: float | None = None,
        positive_temperature: float = 0.0,
        negative_temperature: float = 10.0,
    ) -> None:
        super().__init__(RankedListLoss(margin, alpha, positive_temperature, negative_temperature))


class OnlineSoftMiner(PairMiner):
    """All positives, scored exp(-d^2 / sigma^2) a_ij, and the negatives nearer than margin, (margin - d) a_ij.

    Arguments and source: `losses.OnlineSoftMiningLoss`.
    """

    def __init__(
        self,
        margin: float = 1.2,
        sigma: float = 0.8,
        attention: ClassAwareAttention | Tensor | None = None,
        form: Literal["poster", "released"] = "poster",
    ) -> None:
        super().__init__(OnlineSoftMiningLoss(margin, sigma, attention=attention, form=form))


class InstanceMiner(PairMiner):
    """All pairs, scored by their relative weights: 1 - p(i|a) for positives, sum_i p(n|a, i) for negatives.

    Arguments and source: `losses.InstanceCrossEntropyLoss`.
    """

    def __init__(self, scale: float = 16.0) -> None:
        super().__init__(InstanceCrossEntropyLoss(scale))


class ClassAwareMiner(SoftMiner):
    """All pairs, scored by the class-aware attention a_ij = min(a_i, a_j) alone.

    attention  the `losses.ClassAwareAttention` that knows a_i; its class contexts learn by calling it as a loss
    """

    def __init__(self, attention: ClassAwareAttention) -> None:
        super().__init__()
        self.attention = attention

    def scores(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> PairWeights:
        check_gallery(ref_emb, ref_labels)
        labels = labels.to(embeddings.device)
        query = gallery = self.attention.attention(embeddings, labels)
        if ref_emb is None or ref_labels is None or ref_emb is embeddings:
            pairs = from_labels(labels)
        else:
            gallery = self.attention.attention(ref_emb, ref_labels)
            pairs = from_labels(labels, ref_labels.to(embeddings.device))
        both = torch.minimum(query[:, None], gallery)
        return PairWeights(both * pairs.positive, both * pairs.negative)

    def __repr__(self) -> str:
        return f"ClassAwareMiner({self.attention!r})"
