"""N-pair loss. Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, NIPS 2016."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metricweight.pair_weights.instance_cross_entropy import matched
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms


@dataclass(eq=False, repr=False)
class NPairLoss(PairLoss):
    """A positive is picked from among the negatives, by inner products of embeddings of any length.

        L = 1/B sum_a 1/P sum_p log( 1 + sum_n exp( s_an - s_ap ) ),      P the positives of a
        w_ap = 1/P p_ap,      w_an = softmax_n(s_an) sum_p w_ap,      p_ap = 1 / (1 + exp(s_ap) / sum_n exp(s_an))

    Coordinate: similarity, of embeddings that are **not** scaled to unit length. Not normalised: weights are complete,
    rows are averaged. Scores are the weights. Both members of a pair move.

    Lengths grow without bound if nothing holds them: the paper adds the mean of ||f||^2 to the loss. That is left to
    you, as in `loss(f, y) + 0.002 * f.square().sum(1).mean()`, whose factor is yours as well.

    The paper takes one pair per class, of which one member is always the anchor: give the others as `ref_emb`. With
    all pairs of a batch, as by default, each anchor has the mean of its positives, which are not in each other's sums.

    An anchor without positives, or without negatives, is zero.
    """

    coordinate: ClassVar[Literal["similarity"]] = "similarity"
    normalised: ClassVar[Literal["no"]] = "no"
    unit_length: ClassVar[bool] = False

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        pull, push, value = matched(x, positive, negative)
        share = positive.sum(1, keepdim=True).clamp_(min=1).reciprocal_()
        pull, push, value = pull * share, push * share, value * share[:, 0]
        scores = PairWeights(pull, push)
        return Terms(scores, scores, PairWeights(value, torch.zeros_like(value)))
