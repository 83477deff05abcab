"""Lifted structure. Song et al., CVPR 2016, arXiv:1511.06452; in the generalised form of Hermans et al., 1703.07737."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms, exponentials


@dataclass(eq=False, repr=False)
class LiftedStructureLoss(PairLoss):
    """All positives of an anchor against all its negatives, the hardest most: a soft form of batch-hard triplets.

        L = 1/B sum_a [ log sum_p exp( d_ap )  +  log sum_n exp( margin - d_an ) ]_+
        w_ap = exp(d_ap) / sum_p exp(d_ap),      w_an = exp(-d_an) / sum_n exp(-d_an),      0 where [.]_+ is

    Coordinate: distance. Not normalised: weights are complete, rows are averaged; they sum to 1 over the positives of
    an anchor and over its negatives. Scores are the weights. Both members of a pair move.

    margin  1 in the paper of 2016

    An anchor without positives, or without negatives, is zero. **This is the form of Hermans et al.**, a function of
    one anchor. That of Song et al., 1/(2 P) sum over positive pairs (i, j) of [ d_ij + log( sum_n exp(margin - d_in)
    + sum_n exp(margin - d_jn) ) ]_+^2, needs the negatives of both members, that is two rows of the matrix, and is
    not built.
    """

    coordinate: ClassVar[Literal["distance"]] = "distance"
    normalised: ClassVar[Literal["no"]] = "no"

    margin: float = 1.0

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        pull, pull_sum, farthest = exponentials(x, positive)
        push, push_sum, nearest = exponentials(-x, negative)
        hinge = (farthest + pull_sum.log() + nearest + push_sum.log() + self.margin).relu_()
        violated = hinge.sign()
        scores = PairWeights(pull.mul_(violated / pull_sum), push.mul_(violated / push_sum))
        return Terms(scores, scores, PairWeights(hinge[:, 0], torch.zeros_like(hinge[:, 0])))
