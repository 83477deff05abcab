"""Which way an example pushes its logits, whatever it weighs."""

import torch
from torch import Tensor

from metricweight.checks import check_logits
from metricweight.similarity import at_least_float32

_LIMIT = 1e30


def bounded(logits: Tensor) -> Tensor:
    """`logits` in float32 at least, within +-1e30: differences and sums stay finite, and NaN stays NaN."""
    return at_least_float32(logits).clamp(-_LIMIT, _LIMIT)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """How much more likely an example's own class is than all others together, [B], in float32 at least.

        u = z_y - log sum_{j != y} exp(z_j) = log( p / (1 - p) ),     p = softmax(z)_y

    logits  [B, C]  z; infinite ones are taken as +-1e30, so the result is finite
    labels  [B]     y, from 0 to C - 1

    Neither p nor 1 - p is formed, so no digit of either is lost: p = sigmoid(u), 1 - p = sigmoid(-u). Raises
    `InputError` where shapes or dtypes do not fit or there are fewer than two classes. Labels are not looked at;
    indexing refuses one that is no class.
    """
    check_logits(logits, labels)
    z, own = bounded(logits), labels.to(logits.device).long()[:, None]
    return z.gather(1, own)[:, 0] - z.scatter(1, own, -torch.inf).logsumexp(1)


def direction(logits: Tensor, labels: Tensor, eps: float | None = None) -> Tensor:
    """The derivative of cross entropy scaled to unit L1 norm, [B, C], in float32 at least.

        g = (p - onehot(y)) / (2 (1 - p_y)) = 1/2 ( softmax over the classes j != y  -  onehot(y) )

    logits  [B, C]  infinite ones are taken as +-1e30
    labels  [B]     y, from 0 to C - 1
    eps     None is exact, by the second form: nothing is divided by 1 - p, and a learned example keeps its
            direction. 1e-6 is what the authors' released code adds, (p - onehot(y)) / (2 (1 - p_y) + eps), which
            mutes examples with 1 - p below about eps

    Raises what `log_odds` raises. Wang et al., Derivative Manipulation, arXiv:1905.11233, eq. 7; the second form
    is its algebra.
    """
    check_logits(logits, labels)
    z, own = bounded(logits), labels.to(logits.device).long()[:, None]
    exact = z.scatter(1, own, -torch.inf).softmax(1).scatter(1, own, -1.0) / 2
    if eps is None:
        return exact
    rest = 2 * (-log_odds(logits, labels)).sigmoid()  # 2 (1 - p), with all its digits
    return exact * (rest / (rest + eps))[:, None]
