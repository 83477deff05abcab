"""Where on [0, 1] a weighting puts its emphasis."""

import math
from typing import overload

import numpy as np
import torch
from torch import Tensor

from metricweight.checks import InputError
from metricweight.emphasis.functions import Beta, FeatureLearningAttention, Weighting, largest


def area(weighting: Weighting) -> float:
    """The integral of w(p) over p in [0, 1]."""
    return _moments(weighting)[0]


def density(weighting: Weighting, points: int = 1001) -> tuple[Tensor, Tensor]:
    """The emphasis density: the weighting scaled to unit area.

        h(p) = w(p) / integral_0^1 w

    points  how many p, evenly spaced from 0 to 1

    Returns p and h, [points], in float64. Raises `InputError` for a chain that depends on the batch. Wang et al.,
    arXiv:1905.11233.
    """
    p = torch.linspace(0, 1, points, dtype=torch.float64)
    return p, largest(_of_p(weighting)(p) / area(weighting))


def emphasis_mode(weighting: Weighting) -> float:
    """The p that counts most, found by looking: to about 1e-8, the lowest where several count the same."""
    low, high = 0.0, 1.0
    for _ in range(6):
        p = torch.linspace(low, high, 1001, dtype=torch.float64)
        best = int(weighting(p).argmax())
        low, high = float(p[max(best - 1, 0)]), float(p[min(best + 1, 1000)])
    return float(p[best])


@overload
def emphasis_variance(weights: Tensor) -> Tensor: ...
@overload
def emphasis_variance(weights: Weighting) -> float: ...
def emphasis_variance(weights: Tensor | Weighting) -> Tensor | float:
    """How unequally examples count:  E[ (w - E w)^2 ].

    weights  [B], a batch of weights: the variance that is measured, a scalar, NaN without weights; or
             a weighting: its variance for p spread evenly over [0, 1], as the papers quote it

    It grows with the square of the weights' scale; that of `chain(weighting, Density())` does not depend on it.
    Infinite where the integral of w^2 is. Raises `InputError` for a chain that depends on the batch. Wang et al.,
    arXiv:1905.11233, definition 2.
    """
    if isinstance(weights, Tensor):
        return (weights - weights.mean()).square().mean()
    return _moments(weights)[1]


def _moments(weighting: Weighting) -> tuple[float, float]:
    """The mean and the variance of the weights for p spread evenly over [0, 1]."""
    weighting = _of_p(weighting)
    if isinstance(weighting, Beta):  # its ends may be infinite
        mean = _beta(weighting.a, weighting.eta)
        return mean, _beta(2 * weighting.a - 1, 2 * weighting.eta - 1) - mean**2
    mean = _integral(weighting)
    return mean, _integral(lambda p: (weighting(p) - mean) ** 2)


def _of_p(weighting: Weighting) -> Weighting:
    """The weighting as a function of p alone: what depends on the batch, in a batch whose p are spread evenly."""
    if isinstance(weighting, FeatureLearningAttention):
        return weighting.even
    if getattr(weighting, "of_batch", False):
        raise InputError(
            f"an integral over p needs a weighting of p alone, got {weighting!r}, which depends on a batch."
        )
    return weighting


def _beta(a: float, b: float) -> float:
    return math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)) if min(a, b) > 0 else math.inf


def _integral(f: Weighting) -> float:
    """Over [0, 1], by panels that are halved until halving changes nothing: peaks, corners and jumps are found."""
    node, share = (torch.from_numpy(x) / 2 for x in np.polynomial.legendre.leggauss(10))

    def panels(left: Tensor, width: float) -> Tensor:
        p = left[:, None] + width * (node + 0.5)
        return width * (f(p.clamp(max=1 - 2**-53)) @ share)  # w may be infinite at 1

    left, width, total = torch.arange(128, dtype=torch.float64) / 128, 1 / 128, 0.0
    whole = panels(left, width)
    for _ in range(45):
        width /= 2
        halves = torch.stack([left, left + width], 1)
        parts = panels(halves.flatten(), width).view(-1, 2)
        rough = (parts.sum(1) - whole).abs() > 1e-13 * (abs(total) + parts.abs().sum())
        total += float(parts[~rough].sum())
        left, whole = halves[rough].flatten(), parts[rough].flatten()
    return total + float(whole.sum())
