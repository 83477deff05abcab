"""Binomial deviance. Yi, Lei and Li, Deep Metric Learning for Practical Person Re-Identification, arXiv:1407.4979."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metricweight.checks import InputError
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms


@dataclass(eq=False, repr=False)
class BinomialDevianceLoss(PairLoss):
    """Each pair is a yes-or-no question to its similarity.

        L = 1/P sum log(1 + exp( -alpha (s_ij - beta) ))  +  1/N sum log(1 + exp( alpha cost (s_ij - beta) ))
            over the P positive                              over the N negative pairs of the batch

    Coordinate: similarity, here the cosine. Normalised over the batch. Every pair has score 1: none is mined. Weights
    are the slopes, alpha sigmoid(-alpha (s - beta)) and alpha cost sigmoid(alpha cost (s - beta)): bounded, so an
    outlier counts little more than a pair that is merely wrong. Both members of a pair move.

    alpha  how sharply wrong is told from right; 2
    beta   the similarity between positives and negatives; 0.5
    cost   C of the paper: negatives are the many, and few of them are near beta; 25 as in the deep metric learning
           that took the loss up (BIER, arXiv:1801.04815), 1 treats both kinds the same

    A batch without pairs of a kind has nothing from that side. The paper was not at hand: formula and alpha and beta
    are from memory, and agree with other implementations.
    """

    coordinate: ClassVar[Literal["similarity"]] = "similarity"
    normalised: ClassVar[Literal["batch"]] = "batch"
    symmetric: ClassVar[bool] = True

    alpha: float = 2.0
    beta: float = 0.5
    cost: float = 25.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 0 or self.cost <= 0:
            raise InputError(f"alpha and cost are more than 0, got {self.alpha} and {self.cost}.")

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        scores = PairWeights(positive, negative)
        wrong = (self.alpha * self.cost * negative).sub_(positive, alpha=self.alpha).mul_(x - self.beta)
        slope = wrong.sigmoid()
        deviance = -F.logsigmoid(wrong.neg_())
        weights = PairWeights(self.alpha * scores.positive * slope, self.alpha * self.cost * scores.negative * slope)
        values = (torch.linalg.vecdot(kind, deviance) for kind in scores)
        return Terms(scores, weights, PairWeights(*values))
