"""Matrices of distances between embeddings. Larger is farther: the name says which."""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(embeddings: Tensor) -> Tensor:
    """Rows of length one, f = x / ||x||, in float32 at least. A zero row stays zero.

    embeddings  [B, D]
    """
    return F.normalize(at_least_float32(embeddings), dim=-1)


def euclidean(query: Tensor, gallery: Tensor) -> Tensor:
    """Distances d_ij = ||q_i - g_j||, not squared, [Q, G].

    query, gallery  [Q, D], [G, D]

    Formed from the differences, never as |q|^2 + |g|^2 - 2 q.g, which loses every digit of a small distance.
    Where two rows coincide the distance is 0 and has no direction; its derivative there is taken as 0.
    """
    return torch.cdist(query, gallery, compute_mode="donot_use_mm_for_euclid_dist")
