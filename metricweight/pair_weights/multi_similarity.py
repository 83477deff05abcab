"""Multi-similarity loss. Wang et al., CVPR 2019, arXiv:1904.06627."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metricweight.checks import InputError
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms, exponential_, only


@dataclass(eq=False, repr=False)
class MultiSimilarityLoss(PairLoss):
    """A pair counts by its own similarity, and by what it is compared with the anchor's other pairs of its kind.

        L = 1/B sum_i ( 1/alpha log(1 + sum_p exp( -alpha (s_ip - base) ))
                      + 1/beta  log(1 + sum_n exp(  beta  (s_in - base) )) )                               (15)
        w_ip = exp( -alpha (s_ip - base) ) / (1 + sum_p exp( -alpha (s_ip - base) )),     w_in alike, with beta

    Coordinate: similarity, here the cosine. Not normalised: weights are complete, rows are averaged. Scores are the
    weights. Both members of a pair move.

    alpha    2 in the paper
    beta     50 in the paper
    base     lambda: 0.5 in the authors' code; the paper prints 1
    epsilon  None: all pairs. A number, 0.1 in the paper, mines first: of an anchor's negatives those with
             s_in > min_p s_ip - epsilon (11), of its positives those with s_ip < max_n s_in + epsilon (12).
             **Which are left is a constant**

    An anchor without positives is pushed alone, as in pytorch-metric-learning; with epsilon such an anchor is zero, as
    is one without negatives. The value of `base` in the paper, and in the code, is from memory.
    """

    coordinate: ClassVar[Literal["similarity"]] = "similarity"
    normalised: ClassVar[Literal["no"]] = "no"

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    epsilon: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 0 or self.beta <= 0:
            raise InputError(f"alpha and beta are more than 0, got {self.alpha} and {self.beta}.")

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        if self.epsilon is not None:
            largest = torch.finfo(x.dtype).max  # not inf, for empty rows
            farthest = only(x, positive, largest).amin(1, keepdim=True)
            nearest = only(x, negative, -largest).amax(1, keepdim=True)
            positive = positive * (x < nearest + self.epsilon)
            negative = negative * (x > farthest - self.epsilon)
        pull, pulled = _soft_hardest(self.base - x, positive, self.alpha)
        push, pushed = _soft_hardest(x - self.base, negative, self.beta)
        scores = PairWeights(pull, push)
        return Terms(scores, scores, PairWeights(pulled, pushed))


def _soft_hardest(wrong: Tensor, mask: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """1/sharpness log(1 + sum_j exp(sharpness wrong_ij)) of each row, and its derivative."""
    masked = only(wrong, mask, torch.finfo(wrong.dtype).min)
    top = masked.amax(1, keepdim=True).clamp_(min=0)
    exponentials = exponential_(masked.sub_(top).mul_(sharpness)).mul_(mask)
    total = exponentials.sum(1, keepdim=True).add_((-sharpness * top).exp())
    return exponentials.div_(total), (top + total.log() / sharpness)[:, 0]
