"""Ranked List Loss. Wang et al., CVPR 2019, arXiv:1903.03238; extended in TPAMI 2021."""

import torch
from torch import Tensor

from metricweight.pairs import PairWeights


def violations(distance: Tensor, positive: Tensor, negative: Tensor, *, margin: float, alpha: float) -> PairWeights:
    """How far each pair breaks the ranking, [Q, G]; zero where it does not.

    h+_ij = [ d_ij - (alpha - margin) ]_+        positives belong within alpha - margin
    h-_ij = [ alpha - d_ij ]_+                   negatives belong beyond alpha
    """
    return PairWeights(
        torch.where(positive, distance - (alpha - margin), 0.0).relu(),
        torch.where(negative, alpha - distance, 0.0).relu(),
    )


def ranked_list(
    distance: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 0.4,
    alpha: float = 1.2,
    positive_temperature: float = 0.0,
    negative_temperature: float = 10.0,
    balance: float = 0.5,
) -> PairWeights:
    """Of the pairs that break a query's ranking, the worse the more.

        w+_ij = (1 - balance) softmax_j( positive_temperature * h+_ij )      over j with h+_ij > 0
        w-_ij =      balance  softmax_j( negative_temperature * h-_ij )      over j with h-_ij > 0

    with the violations h above. This is |dL_i/dd_ij|: coordinate distance, normalised per row, so a query's
    positives share 1 - balance and its negatives share balance. A row without violations is all zeros.

    margin, alpha         m and alpha of the paper
    positive_temperature  0 in the paper: all violating positives count the same
    negative_temperature  10 in the paper; 0 counts all violating negatives the same, larger picks the nearest
    balance               lambda of the paper

    The exponent is measured from the row's largest, so no temperature overflows. Slides of the CVPR paper,
    p. 9-12; the (1 - lambda, lambda) form and T_p are the TPAMI paper's (from its released settings: its text
    was not at hand).
    """
    h = violations(distance.detach(), positive, negative, margin=margin, alpha=alpha)
    return PairWeights(
        (1 - balance) * _softmax_of_violations(h.positive, positive_temperature),
        balance * _softmax_of_violations(h.negative, negative_temperature),
    )


def _softmax_of_violations(h: Tensor, temperature: float) -> Tensor:
    violated = h > 0
    lowest = torch.finfo(h.dtype).min  # not -inf: a row without violations must be zeros, not NaN
    return (temperature * h).masked_fill(~violated, lowest).softmax(-1) * violated
