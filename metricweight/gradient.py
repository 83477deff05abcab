"""The only two ways this library touches a derivative. In both, weights are constants.

scale_gradient    leaves a tensor as it is and weighs the gradient that comes back to it
with_derivative   gives a scalar the derivative that a method prescribes
"""

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return (grad * weight).to(grad.dtype), None


class _WithDerivative(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, x: Tensor, derivative: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.x_dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (derivative,) = ctx.saved_tensors
        return None, (grad * derivative).to(ctx.x_dtype), None


def scale_gradient(x: Tensor, weight: Tensor) -> Tensor:
    """Returns `x`; the gradient that reaches it is multiplied by `weight`.

        forward    y = x
        backward   dL/dx = weight * dL/dy

    x       [...]  any floating dtype; the result has its shape, dtype and values (it is a view of `x`:
                   clone it before writing into it)
    weight  [...]  anything that broadcasts to the shape of `x`, such as [B, 1] for embeddings [B, D];
                   a constant: no gradient flows into it

    The product is formed in the wider of the two dtypes and returned in that of the gradient, so a float32
    weight does not lose its digits on a float16 gradient. Each backward pass weighs once, so a second
    derivative through the same point carries the weight twice. Raises RuntimeError where `weight` does not
    broadcast to the shape of `x`.
    """
    if weight.ndim > x.ndim or any(w not in (1, s) for w, s in zip(weight.shape[::-1], x.shape[::-1], strict=False)):
        raise RuntimeError(
            f"scale_gradient needs a weight that broadcasts to {list(x.shape)}, got {list(weight.shape)}."
        )
    return _ScaleGradient.apply(x, weight.detach())  # type: ignore[no-any-return]


def with_derivative(value: Tensor, x: Tensor, derivative: Tensor) -> Tensor:
    """A scalar that equals `value` and whose derivative with respect to `x` is `derivative`.

        forward    L = value
        backward   dL/dx = derivative

    value       []     only its number is used: no gradient flows through it
    x           [...]  what the loss is a function of, such as a distance matrix [B, G]
    derivative  [...]  same shape as `x`; a constant, so the second derivative with respect to `x` is zero

    Nothing is computed from `x`, so infinities and NaN in it do no harm where `derivative` is finite.
    Raises RuntimeError where `value` is no scalar or the shapes of `x` and `derivative` differ.
    """
    if value.ndim != 0:
        raise RuntimeError(f"with_derivative needs a value that is a scalar, got {list(value.shape)}.")
    if derivative.shape != x.shape:
        raise RuntimeError(
            f"with_derivative needs a derivative of shape {list(x.shape)}, got {list(derivative.shape)}."
        )
    return _WithDerivative.apply(value.detach(), x, derivative.detach())  # type: ignore[no-any-return]
