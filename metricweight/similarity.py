"""Embeddings as they are compared: in float32 at least, of unit length."""

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
