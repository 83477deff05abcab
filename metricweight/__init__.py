"""Deep metric learning in which a loss is a direction times an example weight.

    derivative of a loss  =  direction (unit length, shared by many losses)  x  weight (a number per pair or example)

    scale_gradient, with_derivative    the two ways in which a derivative is touched
    losses                             what is trained with
    retrieval                          what it is judged by: embeddings in, report out

Everything is loaded when it is first used, so importing this costs nothing; the parts above need torch and nothing
else that is heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metricweight import losses, retrieval
    from metricweight.gradient import scale_gradient, with_derivative

__version__ = "0.1.0"

__all__ = ["losses", "retrieval", "scale_gradient", "with_derivative"]


def __getattr__(name: str) -> Any:
    if name in ("losses", "retrieval"):
        return import_module(f"metricweight.{name}")
    if name in ("scale_gradient", "with_derivative"):
        return getattr(import_module("metricweight.gradient"), name)
    raise AttributeError(f"module 'metricweight' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
