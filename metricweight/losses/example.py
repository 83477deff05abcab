"""Example weighting: the direction of cross entropy times a weight that is chosen, w(p)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricweight.checks import InputError, check_embeddings
from metricweight.confidence import match_probability, own_probability
from metricweight.directions import direction, log_odds
from metricweight.emphasis.functions import Weighting, largest
from metricweight.gradient import scale_gradient, with_derivative
from metricweight.similarity import at_least_float32

Confidence = Callable[[Tensor, Tensor], Tensor]


def derivative_loss(logits: Tensor, labels: Tensor, weighting: Weighting, eps: float | None = None) -> Tensor:
    """A scalar whose derivative is prescribed: each example's direction, times its weight, over the batch size.

        dL/dz_i = 1/B w(p_i) g_i,     p = softmax(z)_y,     ||g_i||_1 = 1
        L       = 1/B sum_i -log p_i

    with g the `direction`. **The value is cross entropy, not an integral of the derivative**: for many weightings
    (IMAE, derivative manipulation) that integral is infinite. The weights are constants.

    logits     [B, C]  at least two classes
    labels     [B]     from 0 to C - 1
    weighting  from p in float64 to weights >= 0, such as `emphasis.Emphasis()`. With `emphasis.UnitMean()` as its
               last link the derivative is sum_i w_i g_i / sum_k w_k, as in the authors' released code
    eps        None, or 1e-6 for the released code's directions: see `direction`

    Returns float32 at least, also under autocast. Saturated or infinite logits give finite numbers; 1 - p below
    1e-16 is 0 to the weighting. Weights too large for the dtype are its largest number. An empty batch is zero,
    with zero gradient. Raises `InputError` where shapes or dtypes do not fit; a NaN in is a NaN out. Wang et al.,
    arXiv:1905.11233.
    """
    z, constant = at_least_float32(logits), logits.detach()
    odds, examples = log_odds(constant, labels), max(len(logits), 1)
    weights = largest(weighting(own_probability(constant, labels)).to(z.dtype))
    derivative = weights[:, None] / examples * direction(constant, labels, eps)
    return with_derivative(-F.logsigmoid(odds).sum() / examples, z, derivative)


class DerivativeLoss(nn.Module):
    """`derivative_loss` with its weighting, called as `loss(logits [B, C], labels [B])`."""

    def __init__(self, weighting: Weighting, eps: float | None = None) -> None:
        super().__init__()
        if isinstance(weighting, type) or not callable(weighting):
            raise InputError(f"weighting is a function of p, made with its arguments, got {weighting!r}.")
        self.weighting = weighting
        self.eps = eps

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return derivative_loss(logits, labels, self.weighting, self.eps)

    def __repr__(self) -> str:
        return f"DerivativeLoss({self.weighting!r}, eps={self.eps})"


class GradientWeighting(nn.Module):
    """Leaves embeddings as they are; each one's gradient, from whatever loss follows, is multiplied by its weight.

        y_i = x_i,     dL/dx_i = w(p_i) dL/dy_i

    weighting   from p to weights >= 0, such as `emphasis.Emphasis()`
    confidence  how p is known: `match_probability`, a softmax over neighbours in the batch; a `ClassContexts`;
                any function from (embeddings [B, D], labels [B]) to p [B]; or p itself, [B]

    Called as `weigh(embeddings [B, D], labels [B])`, between a model and a loss. The weights are constants. Raises
    `InputError` where shapes or dtypes do not fit.
    """

    def __init__(self, weighting: Weighting, confidence: Confidence | Tensor = match_probability) -> None:
        super().__init__()
        self.weighting = weighting
        self.confidence = confidence

    @torch.no_grad()
    def weights(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The weights w(p_i), [B], in float32 at least, for a log or a test."""
        check_embeddings(embeddings, labels)
        x, given = embeddings.detach(), self.confidence
        p = given.to(x.device) if isinstance(given, Tensor) else given(x, labels)
        if p.shape != labels.shape:
            raise InputError(f"confidence must be [{len(labels)}], a p for each label, got {list(p.shape)}.")
        return largest(self.weighting(p).to(at_least_float32(x).dtype))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return scale_gradient(embeddings, self.weights(embeddings, labels)[:, None])

    def __repr__(self) -> str:
        confidence = getattr(self.confidence, "__name__", None) or repr(self.confidence)
        return f"GradientWeighting({self.weighting!r}, confidence={confidence})"
