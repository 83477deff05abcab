"""Embeddings as they are compared: in float32 at least, of unit length."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(embeddings: Tensor) -> Tensor:
    """Rows of length one, f = x / ||x||, in float32 at least. A zero row stays zero, its derivative is the identity.

    embeddings  [B, D]
    """
    x = at_least_float32(embeddings)
    largest = x.detach().abs().amax(-1, keepdim=True)  # squares of very long or short rows would not be numbers
    x = x / torch.where(largest > 0, largest, 1)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1)


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Products are formed in the dtype of what is multiplied: no autocast, no TF32. What was set before is put back."""
    reduced = [(put, before) for get, put in _PRECISIONS if (before := get()) in _REDUCED]
    for put, before in reduced:
        put(_REDUCED[before])
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for put, before in reduced:
            put(before)


_PRECISIONS: list[tuple[Callable[[], str], Callable[[str], None]]] = (
    [
        (partial(getattr, backend.matmul, "fp32_precision"), partial(setattr, backend.matmul, "fp32_precision"))
        for backend in (torch.backends.cuda, torch.backends.mkldnn)
    ]
    if hasattr(torch.backends, "fp32_precision")
    else [(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)]  # before torch 2.9
)
_REDUCED = {"tf32": "ieee", "bf16": "ieee", "high": "highest", "medium": "highest"}
