"""Contrastive loss. Hadsell, Chopra and LeCun, CVPR 2006."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms


@dataclass(eq=False, repr=False)
class ContrastiveLoss(PairLoss):
    """Positives are pulled together, negatives pushed apart up to a margin.

        h+_ij = [ d_ij - positive_margin ]_+,      h-_ij = [ negative_margin - d_ij ]_+
        squared:      L = 1/A+ sum 1/2 h+^2  +  1/A- sum 1/2 h-^2       A the number of pairs with h > 0
        not squared:  L = 1/A+ sum h+        +  1/A- sum h-

    Coordinate: distance. Normalised over the batch. A score is 1 where h > 0: no pair is mined but for the margin.
    Weights are the slopes, h or 1. Both members of a pair move.

    positive_margin  positives nearer than this are left alone; the paper has none
    negative_margin  m of the paper, which gives no number; 1 is usual for embeddings of unit length
    squared          True is the paper's; False is the default of pytorch-metric-learning, where the farthest
                     positive and the nearest negative weigh no more than others

    A batch without pairs that break a margin is zero on that side. The paper sums over pairs; that they are averaged,
    each kind over its violating pairs, is the reduction of pytorch-metric-learning.
    """

    coordinate: ClassVar[Literal["distance"]] = "distance"
    normalised: ClassVar[Literal["batch"]] = "batch"
    symmetric: ClassVar[bool] = True

    positive_margin: float = 0.0
    negative_margin: float = 1.0
    squared: bool = True

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        pull = (x - self.positive_margin).relu_().mul_(positive)
        push = (self.negative_margin - x).relu_().mul_(negative)
        scores = PairWeights(pull.sign(), push.sign())
        if not self.squared:
            return Terms(scores, scores, PairWeights(pull.sum(1), push.sum(1)))
        halves = PairWeights(0.5 * torch.linalg.vecdot(pull, pull), 0.5 * torch.linalg.vecdot(push, push))
        return Terms(scores, PairWeights(pull, push), halves)
