"""From the embeddings of frames to the embedding of their set, a tracklet."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from metricweight.checks import InputError
from metricweight.pair_weights.class_aware_attention import gaussian
from metricweight.progress import aligned
from metricweight.similarity import at_least_float32

Fusion = Literal["mean", "max", "class_aware", "quality", "self_attention"]
TestFusion = Literal["mean", "max", "quality", "self_attention"]

_BLOCK = 2**22  # similarities of frames that are held at once where nothing is learned


class Row(NamedTuple):
    """How frames become a set, in words."""

    name: Fusion
    weights: str
    test: str
    source: str


FUSIONS = (
    Row("mean", "1", "yes", "most papers, at test"),
    Row("max", "none: the largest value of each dimension", "yes", "official re-ID code"),
    Row("class_aware", "class-aware attention to the frame", "no", "Wang et al., AAAI 2019"),
    Row("quality", "exp(-(1 - p)^2 / (2 0.68^2)), p of its label", "largest p", "ID-aware quality, 1911.09143"),
    Row("self_attention", "mean_t softmax_s(q_t . k_s / sqrt(d)), learned", "yes", "attention: 1706.03762"),
)


def quality(p: Tensor) -> Tensor:
    """How much a frame counts in its set, by p, how sure the classifier is of the identity; a constant.

        a = exp( -(1 - p)^2 / (2 0.68^2) )

    p  [...]  from 0 to 1; the result is in float32 at least

    From 0.339 at p = 0 to 1 at p = 1: an unsure frame still counts. The feature fusion attention of Wang et al.,
    ID-aware quality for set-based person re-identification, arXiv:1911.09143, with the numbers of the authors' released
    code for class-aware attention; those of the paper are not known.
    """
    return gaussian(at_least_float32(p.detach()), 1.0, 0.68)


def fused(frames: Tensor, weights: Tensor | None) -> Tensor:
    """The weighted mean of the frames of each set, [S, D], in float32 at least, also under autocast.

        X = sum_t w_t x_t / sum_t w_t

    frames   [S, F, D]  x, F at least 1
    weights  [S, F]     w >= 0 of any scale; None: the mean. Where all of a set are 0: its mean

    Differentiable in frames, and in weights where they carry a graph. Weights of a set that are too small next to its
    largest count nothing. Raises InputError where shapes do not fit.
    """
    _check_sets(frames)
    x = at_least_float32(frames)
    if weights is None:
        return x.mean(1)
    if weights.shape != frames.shape[:2]:
        raise InputError(
            f"weights of frames must be {list(frames.shape[:2])} to match frames {list(frames.shape)}, "
            f"got {list(weights.shape)}."
        )
    w = _scaled(weights, at_least_float32(weights).detach().amax(1, keepdim=True)).to(x.dtype)
    return (w[:, :, None] * x).sum(1) / w.sum(1, keepdim=True)


def largest(frames: Tensor) -> Tensor:
    """The largest value of each dimension over the frames of each set, [S, D], in float32 at least.

    frames  [S, F, D]  F at least 1

    The gradient goes to the frame that has it, to equal parts where several do. Raises InputError where the shape does
    not fit.
    """
    _check_sets(frames)
    return at_least_float32(frames).amax(1)


class FrameAttention(nn.Module):
    """Weights of the frames of a set by how much its frames attend to each.

        A_ts = softmax_s( q_t . k_s / sqrt(d) ),     w_s = 1/F sum_t A_ts,     q = W x + b,   k = V x

    dim    D of the embeddings
    inner  d

    Called as `attention(frames [S, F, D])`; weights are [S, F], in float32 at least, and sum to 1 in a set. They carry
    a graph, to the parameters and to the frames. W and b start at zero, so all frames weigh the same at first. Without
    a graph, memory does not grow with F^2. A set does not depend on the order of its frames.

    Scaled dot-product attention is of Vaswani et al., 2017, arXiv:1706.03762. That only its weights are used, and the
    frames stay what they are, is this library's.
    """

    def __init__(self, dim: int, inner: int | None = None) -> None:
        super().__init__()
        inner = min(dim, 64) if inner is None else inner
        if dim < 1 or inner < 1:
            raise InputError(f"dim and inner are sizes, at least 1, got {dim} and {inner}.")
        self.query, self.key = nn.Linear(dim, inner), nn.Linear(dim, inner, bias=False)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)

    def forward(self, frames: Tensor) -> Tensor:
        _check_sets(frames)
        if frames.shape[2] != self.query.in_features:
            raise InputError(f"frames must be [S, F, {self.query.in_features}], got {list(frames.shape)}.")
        x = at_least_float32(frames)
        sets, length, _ = x.shape
        block = length if torch.is_grad_enabled() else max(1, _BLOCK // max(1, sets * length))
        with torch.autocast(x.device.type, enabled=False):
            q = functional.linear(x, self.query.weight.to(x.dtype), self.query.bias.to(x.dtype))
            k = functional.linear(x, self.key.weight.to(x.dtype)).transpose(1, 2) / math.sqrt(q.shape[2])
            total = torch.zeros_like(x[:, :, 0])
            for start in range(0, length, block):
                total = total + (q[:, start : start + block] @ k).softmax(2).sum(1)
        return total / length


@torch.no_grad()
def of_each(frames: Tensor, of: Tensor, count: int, weights: Tensor | None) -> Tensor:
    """The weighted mean of the frames of each item, [I, D], in float32; summed in float64. No graph.

    frames   [n, D]  in any order
    of       [n]     which item a frame is of, from 0 to I - 1; each item has one at least
    count    I
    weights  [n]     w >= 0 of any scale; None: the mean. Where all of an item are 0: its mean

    What `fused` gives, for items of different lengths. Raises InputError where shapes do not fit.
    """
    _check_items(frames, of, weights)
    if weights is None:
        w = torch.ones(len(frames), dtype=torch.float64, device=frames.device)
    else:
        w = weights.double()
        top = w.new_zeros(count).scatter_reduce(0, of, w, "amax")
        w = _scaled(w, top[of])
    x = frames.double() * w[:, None]
    total = x.new_zeros(count, frames.shape[1]).index_add_(0, of, x)
    return (total / w.new_zeros(count).index_add_(0, of, w)[:, None]).float()


@torch.no_grad()
def largest_of_each(frames: Tensor, of: Tensor, count: int) -> Tensor:
    """The largest value of each dimension over the frames of each item, [I, D], in float32. No graph.

    The arguments are those of `of_each`. Raises InputError where shapes do not fit.
    """
    _check_items(frames, of, None)
    x = frames.float()
    low = torch.full((count, x.shape[1]), -torch.inf, device=x.device)
    return low.scatter_reduce(0, of[:, None].expand_as(x), x, "amax")


def listing() -> str:
    """All rules by which frames become a set as a table, a line each."""
    return aligned([("fusion", "weight of a frame", "at test", "as in"), *FUSIONS])


def _scaled(weights: Tensor, top: Tensor) -> Tensor:
    """Weights over the largest of their set, a constant, so that sums of them are numbers; where that is 0, ones."""
    w = at_least_float32(weights)
    most = torch.finfo(w.dtype).max
    none = top == 0
    return torch.where(none, 1.0, w.clamp(max=most) / torch.where(none, 1.0, top.clamp(max=most)))


def _check_sets(frames: Tensor) -> None:
    if frames.ndim != 3 or not frames.shape[1] or not frames.is_floating_point():
        raise InputError(
            f"frames must be [S, F, D] of a floating dtype, at least 1 frame in a set, got {list(frames.shape)} of "
            f"{frames.dtype}."
        )


def _check_items(frames: Tensor, of: Tensor, weights: Tensor | None) -> None:
    if frames.ndim != 2 or not frames.is_floating_point():
        raise InputError(f"frames must be [n, D] of a floating dtype, got {list(frames.shape)} of {frames.dtype}.")
    for name, given in (("of", of), ("weights", weights)):
        if given is not None and given.shape != frames.shape[:1]:
            raise InputError(f"{name} must be [{len(frames)}], one for each frame, got {list(given.shape)}.")
