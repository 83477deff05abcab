"""Deep metric learning in which a loss is a direction times an example weight.

    derivative of a loss  =  direction (unit length, shared by many losses)  x  weight (a number per pair or example)

    losses, miners                     what is trained with; losses.LOSSES lists all of them
    CrossBatchMemory                   a loss of each batch against the ones before it
    emphasis                           weights of examples as functions of p: Emphasis, imae, chain, density, ...
    GradientWeighting                  weighs the gradient of embeddings in front of any loss
    pml                                all this inside pytorch-metric-learning
    retrieval                          what a model is judged by: embeddings in, report out
    scale_gradient, with_derivative    the two ways in which a derivative is touched

Everything is loaded when it is first used, so importing this costs nothing; the parts above need torch and, but for
`pml` and `retrieval`, nothing else that is heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metricweight import emphasis, losses, miners, pml, retrieval
    from metricweight.confidence import ClassContexts, match_probability, own_probability
    from metricweight.directions import direction, log_odds
    from metricweight.emphasis import (
        BatchSum,
        Clip,
        Density,
        Emphasis,
        Power,
        UnitMean,
        chain,
        density,
        emphasis_mode,
        emphasis_variance,
        imae,
    )
    from metricweight.gradient import scale_gradient, with_derivative
    from metricweight.losses import DerivativeLoss, GradientWeighting, derivative_loss
    from metricweight.memory import CrossBatchMemory

__version__ = "0.1.0"

__all__ = [
    "BatchSum",
    "ClassContexts",
    "Clip",
    "CrossBatchMemory",
    "Density",
    "DerivativeLoss",
    "Emphasis",
    "GradientWeighting",
    "Power",
    "UnitMean",
    "chain",
    "density",
    "derivative_loss",
    "direction",
    "emphasis",
    "emphasis_mode",
    "emphasis_variance",
    "imae",
    "log_odds",
    "losses",
    "match_probability",
    "miners",
    "own_probability",
    "pml",
    "retrieval",
    "scale_gradient",
    "with_derivative",
]

_PARTS = ("emphasis", "losses", "miners", "pml", "retrieval")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"metricweight.{name}")
    for module in ("gradient", "directions", "confidence", "emphasis", "losses", "memory") if name in __all__ else ():
        if hasattr(found := import_module(f"metricweight.{module}"), name):
            return getattr(found, name)
    raise AttributeError(f"module 'metricweight' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
