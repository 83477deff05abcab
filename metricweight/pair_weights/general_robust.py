"""A contrastive loss with Barron's general robust function. Barron, CVPR 2019, arXiv:1701.03077."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metricweight.checks import InputError
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms


@dataclass(eq=False, repr=False)
class GeneralRobustLoss(PairLoss):
    """A pair counts by how far it is from where it belongs, and one number says what becomes of outliers.

        h+_ij = [ d_ij - (boundary - margin) ]_+,      h-_ij = [ boundary - d_ij ]_+
        rho(h) = |alpha - 2| / alpha ( ((h / scale)^2 / |alpha - 2| + 1)^(alpha / 2) - 1 )
        w = rho'(h) = h / scale^2 ((h / scale)^2 / |alpha - 2| + 1)^(alpha / 2 - 1)
        L = 1/A+ sum rho(h+_ij)  +  1/A- sum rho(h-_ij)                A the number of pairs with h > 0

    Coordinate: distance. Normalised over the batch. A score is 1 where h > 0: no pair is mined but for the margin.
    Weights are the influence rho'. Both members of a pair move.

    alpha     2: half the square, weights grow with h. 1: they level off at 1 / scale (Charbonnier). 0: log((h /
              scale)^2 / 2 + 1), and below 1 they fall again once h is past about scale: -2 is Geman-McClure, and
              towards minus infinity rho is 1 - exp(-(h / scale)^2 / 2)
    scale     c: where the square ends
    margin    positives belong within boundary - margin, negatives beyond boundary
    boundary  from it negatives are counted

    A batch without pairs that break a boundary is zero on that side. The paper has regression residuals: to use hinges
    of distances for them, and all defaults, is ours. alpha = 1 is the paper's smooth absolute value, 0.2 is half the
    margin, margin and boundary are those of Ranked List Loss. The adaptive alpha of the paper is not built.
    """

    coordinate: ClassVar[Literal["distance"]] = "distance"
    normalised: ClassVar[Literal["batch"]] = "batch"
    symmetric: ClassVar[bool] = True

    alpha: float = 1.0
    scale: float = 0.2
    margin: float = 0.4
    boundary: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha > 2:
            raise InputError(f"alpha is at most 2, where the loss is the square, got {self.alpha}.")
        if self.scale <= 0:
            raise InputError(f"scale is a distance, more than 0, got {self.scale}.")

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        h = (x - (self.boundary - self.margin)).relu_().mul_(positive)
        h += (self.boundary - x).relu_().mul_(negative)
        violated = h.sign()
        scores = [kind * violated for kind in (positive, negative)]
        rho, influence = _general_robust(h.div_(self.scale), self.alpha)
        influence /= self.scale
        weights = (kind * influence for kind in scores)
        values = (torch.linalg.vecdot(kind, rho) for kind in scores)
        return Terms(PairWeights(*scores), PairWeights(*weights), PairWeights(*values))


def _general_robust(z: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """rho and rho' at scale 1. Powers are exponentials of a log1p, which has the limits at 2 and minus infinity."""
    small = torch.finfo(z.dtype).eps
    alpha = max(alpha, -1 / small)
    bend = max(2 - alpha, small)
    log = (z.square() / bend).log1p_()
    influence = (log * (alpha / 2 - 1)).exp_().mul_(z)
    if math.fabs(alpha) < small:
        return log, influence
    return log.mul_(alpha / 2).expm1_().mul_(bend / alpha), influence
