"""Ranked List Loss. Wang et al., CVPR 2019, arXiv:1903.03238; extended in TPAMI 2021."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metricweight.checks import InputError
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms, exponential_, only


@dataclass(eq=False, repr=False)
class RankedListLoss(PairLoss):
    """Of the pairs that break a query's ranking, the worse the more.

        h+_ij = [ d_ij - (alpha - margin) ]_+        positives belong within alpha - margin
        h-_ij = [ alpha - d_ij ]_+                   negatives belong beyond alpha
        w+_ij = exp( positive_temperature h+_ij ),   w-_ij = exp( negative_temperature h-_ij ),  0 where h_ij = 0

        L = 1/B sum_i ( (1 - balance) sum_j w+_ij h+_ij / sum_j w+_ij  +  balance sum_j w-_ij h-_ij / sum_j w-_ij )

    Coordinate: distance. Normalised by row. The potential is the hinge h, of slope 1, so weights and scores are the
    same w. **They are constants**: an easy negative is never pulled in to make a hard one weigh less.

    margin                positives belong within alpha - margin of a query, negatives beyond alpha
    alpha                 None is 1 + margin / 2, the setting called RLL-Simpler
    positive_temperature  0 in the paper: all violating positives count the same
    negative_temperature  10 in the paper; 0 counts all violating negatives the same, larger picks the nearest
    balance               lambda: the negatives' share; the CVPR form L_P + L_N is twice balance = 0.5
    gallery               "fixed": an embedding moves as a query only, by its own ranked list (the paper);
                          "free": it also moves as a member of the lists of others
    anchors               "mean": queries count the same, those without violations too (the paper); "released":
                          query i counts (sum_j w+_ij + w-_ij) / sum_ij (w+_ij + w-_ij), as in the code of 2020

    A row without violations is all zeros. Exponents are measured from the row's largest, so that no temperature
    overflows. On a collapsed batch the value is that of its violations (`balance * alpha`), and classes move apart
    in the directions that streaming.py gives to coincident pairs.

    Slides of the CVPR paper, p. 9-12; the form (1 - lambda, lambda) and positive_temperature are the TPAMI
    paper's, known from its released settings: its text was not at hand. The released code adds 1e-8 to its sums,
    which is left out here.
    """

    coordinate: ClassVar[Literal["distance"]] = "distance"
    normalised: ClassVar[Literal["row"]] = "row"

    margin: float = 0.4
    alpha: float | None = None
    positive_temperature: float = 0.0
    negative_temperature: float = 10.0
    balance: float = 0.5
    gallery: Literal["fixed", "free"] = "fixed"
    anchors: Literal["mean", "released"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gallery not in ("fixed", "free"):
            raise InputError(f"gallery is 'fixed' or 'free', got {self.gallery!r}.")
        if self.anchors not in ("mean", "released"):
            raise InputError(f"anchors is 'mean' or 'released', got {self.anchors!r}.")
        if not 0 <= self.balance <= 1:
            raise InputError(f"balance is the negatives' share, from 0 to 1, got {self.balance}.")

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        alpha = 1 + self.margin / 2 if self.alpha is None else self.alpha
        pull, pulled, pull_scale = _weighted(x - (alpha - self.margin), positive, self.positive_temperature)
        push, pushed, push_scale = _weighted(alpha - x, negative, self.negative_temperature)
        scores = PairWeights(pull, push)
        return Terms(scores, scores, PairWeights(pulled, pushed), PairWeights(pull_scale, push_scale))

    def shares(self, pairs: int | Tensor) -> tuple[float | Tensor, float | Tensor]:
        return 1 - self.balance, self.balance


def _weighted(residual: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """w = exp(temperature h - scale) of the violations, sum_j w h, and the row's scale."""
    h = residual.relu_().mul_(mask)
    violated = h.sign()
    if temperature == 0:
        return violated, h.sum(1), torch.zeros_like(h[:, 0])
    exponent = only(temperature * h, violated, torch.finfo(h.dtype).min)
    scale = exponent.amax(1)
    w = exponential_(exponent.sub_(scale[:, None])).mul_(violated)
    return w, torch.linalg.vecdot(w, h), scale
