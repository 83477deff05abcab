"""Weightings made of weightings: a function of p, then links that map weights to weights."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metricweight.checks import InputError
from metricweight.emphasis.density import area
from metricweight.emphasis.functions import Weighting, largest


@dataclass(frozen=True)
class Clip:
    """No weight above `most`."""

    most: float

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise InputError(f"Clip most is a weight above 0, got {self.most}.")

    def __call__(self, w: Tensor) -> Tensor:
        return w.clamp(max=self.most)


@dataclass(frozen=True)
class Power:
    """w^exponent: below 1 evens the weights out, above 1 sharpens them."""

    exponent: float

    def __post_init__(self) -> None:
        if not self.exponent > 0:
            raise InputError(f"Power exponent is a number above 0, got {self.exponent}.")

    def __call__(self, w: Tensor) -> Tensor:
        return largest(w**self.exponent)


@dataclass(frozen=True)
class UnitMean:
    """w_i / mean_k w_k: the batch's weights have mean 1; where all are 0 they stay 0.

    In a loss that is a mean over the batch, this is the derivative normalisation of the authors' released code,
    the weighted average  sum_i w_i g_i / sum_k w_k  of directions g. The scale of what stands before it is lost.
    """

    def __call__(self, w: Tensor) -> Tensor:
        mean = largest((w / max(w.numel(), 1)).sum())  # the sum of w itself may be too large
        return w / torch.where(mean > 0, mean, 1.0)


@dataclass(frozen=True)
class BatchSum:
    """w_i / sum_k w_k: the batch's weights sum to 1; where all are 0 they stay 0.

    The released derivative normalisation where gradients are summed over the batch. The losses here take their
    mean: there, this is `UnitMean` with a step smaller by the batch size, and `UnitMean` is the released one.
    """

    def __call__(self, w: Tensor) -> Tensor:
        return UnitMean()(w) / max(w.numel(), 1)


@dataclass(frozen=True)
class Density:
    """w / integral_0^1 w dp: what stands before it in the chain, scaled to unit area.

    The derivative normalisation of the paper: a constant, known before the first batch. Only a link of a chain can
    be it, and only before `UnitMean` and `BatchSum`, which depend on the batch. arXiv:1905.11233.
    """


Link = Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class Chain:
    """What `chain` makes."""

    first: Weighting
    links: tuple[Link | Density, ...]
    _steps: tuple[Link | float, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        steps: list[Link | float] = []
        for i, link in enumerate(self.links):
            if not isinstance(link, Density):
                steps.append(link)
                continue
            before = Chain(self.first, self.links[:i]) if i else self.first
            if not 0 < (unit := area(before)) < float("inf"):
                raise InputError(
                    f"Density needs weights whose integral is above 0 and finite, got {unit} of {before!r}."
                )
            steps.append(unit)
        object.__setattr__(self, "_steps", tuple(steps))

    @property
    def of_batch(self) -> bool:
        """Whether an example's weight depends on the others in its batch."""
        return getattr(self.first, "of_batch", False) or any(isinstance(x, (UnitMean, BatchSum)) for x in self.links)

    def __call__(self, p: Tensor) -> Tensor:
        w = self.first(p)
        for step in self._steps:
            w = largest(w / step) if isinstance(step, float) else step(w)
        return w

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, (self.first, *self.links)))})"


def chain(first: Weighting, *links: Link | Density) -> Chain:
    """A weighting that applies `first` to p, then each link to the weights.

        chain(f, g, h)(p) = h(g(f(p)))

    first  a function of p
    links  `Clip`, `Power`, `UnitMean`, `BatchSum`, `Density`, or any function from weights to weights

    Compares, prints as what makes it and pickles, where its parts do. Raises `InputError` where `Density` stands
    after a link that depends on the batch.
    """
    fits = [callable(first), *(callable(link) or isinstance(link, Density) for link in links)]
    for part, fit in zip((first, *links), fits, strict=True):
        if isinstance(part, type) or not fit:
            raise InputError(f"chain takes a weighting, then links, each made with its arguments; got {part!r}.")
    return Chain(first, links)
