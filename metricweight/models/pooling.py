"""From maps [B, F, h, w] to features [B, F]."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Pooling = Literal["avg", "max", "avg+max", "gem"]
Pool = Callable[[Tensor], Tensor]


def average(maps: Tensor) -> Tensor:
    """The mean of each map."""
    return functional.adaptive_avg_pool2d(maps, 1).flatten(1)


def maximum(maps: Tensor) -> Tensor:
    """The largest value of each map."""
    return maps.amax((2, 3))


def average_and_maximum(maps: Tensor) -> Tensor:
    """The sum of both, as the released code of Proxy-Anchor has it (Kim et al., CVPR 2020)."""
    return average(maps) + maximum(maps)


class GeM(nn.Module):
    """Generalised mean of each map.

        f = (mean over places of max(x, eps)^p)^(1/p)

    p is learned, starts at 3, and is shared by all maps: 1 is the mean, infinity the maximum. Values below eps, all
    negative ones among them, count as eps and get no gradient. Half precision is computed in float32.

    Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2018, eq. 3. arXiv:1711.02512
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        wide = maps if maps.dtype == torch.float64 else maps.float()
        return wide.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p).to(maps.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p.item():.4g}, eps={self.eps:g}"


def build(name: Pooling | None) -> Pool | None:
    """The pooling of a name, a new one each time; None: the backbone's own."""
    if name == "gem":
        return GeM()
    pools: dict[Pooling | None, Pool] = {"avg": average, "max": maximum, "avg+max": average_and_maximum}
    return pools.get(name)
