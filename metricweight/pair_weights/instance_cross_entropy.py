"""Instance Cross Entropy. Wang et al., arXiv:1911.09976."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metricweight.checks import InputError
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms, exponentials


@dataclass(eq=False, repr=False)
class InstanceCrossEntropyLoss(PairLoss):
    """Each positive is to be picked from among all negatives.

        p(i|a) = exp(scale s_ai) / ( exp(scale s_ai) + sum_n exp(scale s_an) )       i positive, n the negatives of a
        L = 1/B sum_a sum_i -log p(i|a)
        w_ai = scale ( 1 - p(i|a) ),      w_an = scale sum_i p(n|a, i) = softmax_n(scale s_an) sum_i w_ai

    Coordinate: similarity. Not normalised: weights are complete, rows are averaged. Scores are the weights without
    the factor `scale`: 1 - p and sum_i p(n|a, i), so the positives of an anchor weigh as much as its negatives.
    Both members of a pair move.

    scale      how sharply the hard count more: two negatives differ by a factor exp(scale (s_n - s_m)), at most
               exp(2 scale), which for 1 is 7.4: hardly a choice. On the built-in glyphs (R@1 and MAP@R of validation
               classes, benchmarks/results/instance_scale.md) 1 is far behind, 4 to 64 are within a point or two of
               each other; the hardest of 124 negatives has 2 % of the push at 1, 42 % at 16 and 61 % at 64
    normalise  leave out the factor `scale` of the whole: weights are the scores, L is divided by scale

    An anchor without positives, or without negatives, is zero.

    The abstract was at hand, the paper was not: the formula, and that positives are left out of each other's
    denominators, is from memory and agrees with NT-Xent, which its authors call an application of it; that it is a
    sum over positives and a mean over anchors is a choice. The paper's own scale is not known (64 from memory).
    """

    coordinate: ClassVar[Literal["similarity"]] = "similarity"
    normalised: ClassVar[Literal["no"]] = "no"

    scale: float = 16.0
    normalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0:
            raise InputError(f"scale is more than 0, got {self.scale}.")

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        pull, push, value = matched(self.scale * x, positive, negative)
        scores = PairWeights(pull, push)
        factor = 1 / self.scale if self.normalise else 1.0
        weights = scores if self.normalise else PairWeights(self.scale * pull, self.scale * push)
        return Terms(scores, weights, PairWeights(factor * value, torch.zeros_like(value)))


def matched(logits: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 - p(i|a), sum_i p(n|a, i) and sum_i -log p(i|a), where p(i|a) is the share of exp(logit) of positive i among
    itself and all negatives."""
    push, total, top = exponentials(logits, negative)
    log_odds = (top + total.log()).sub(logits).clamp_(min=torch.finfo(logits.dtype).min)  # of the negatives
    log_p = F.logsigmoid(log_odds.mul_(positive).neg_())
    pull = log_p.expm1().neg_().mul_(positive)
    return pull, push.mul_(pull.sum(1, keepdim=True) / total), -torch.linalg.vecdot(log_p, positive)
