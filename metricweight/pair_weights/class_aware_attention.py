"""Class-aware attention: how typical of its class an item is. Wang et al., AAAI 2019, arXiv:1811.01459."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricweight.checks import InputError, check_embeddings
from metricweight.similarity import at_least_float32, unit


class ClassAwareAttention(nn.Module):
    """The share of an item's own class among all class contexts, and the classification loss that learns them.

        p_i = exp(f_i . c_{y_i}) / sum_k exp(f_i . c_k)
        poster     a_i = p_i                                    L = 1/B sum_i CE_i
        released   a_i = exp( -(1 - p_i)^2 / (2 0.68^2) )       L = sum_i v_i CE_i / sum_i v_i,
                                                                v_i = exp( -(p_i - 0.5)^2 / (2 0.18^2) )

    classes    labels are 0 ... classes - 1
    dim        D of the embeddings
    form       "poster": f is scaled to unit length (whether the paper scales it, and c, is not known; c is a free
               parameter here). "released": the embedding as it is, and the two Gaussians of p above; v makes
               medium examples count, and its 0.18 is thought to be the paper's sigma_CAA

    `attention(embeddings, labels)` is a [B], constant under differentiation. Called as `caa(embeddings [B, D],
    labels [B])` it is the classification loss, a scalar; an empty batch is zero. contexts [classes, dim] are its
    only parameters: they learn by that loss alone.
    """

    def __init__(self, classes: int, dim: int, form: Literal["poster", "released"] = "poster") -> None:
        super().__init__()
        if form not in ("poster", "released"):
            raise InputError(f"form is 'poster' or 'released', got {form!r}.")
        if classes < 1 or dim < 1:
            raise InputError(f"classes and dim are counts, at least 1, got {classes} and {dim}.")
        self.classes, self.dim = classes, dim
        self.form: Literal["poster", "released"] = form
        self.contexts = nn.Parameter(torch.randn(classes, dim) / dim**0.5)

    @torch.no_grad()
    def attention(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """a_i, [B], from 0 to 1."""
        p = self._log_probability(embeddings, labels).exp()
        return p if self.form == "poster" else gaussian(p, 1.0, 0.68)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        log_p = self._log_probability(embeddings, labels)
        p = log_p.detach().exp()
        weights = torch.ones_like(p) if self.form == "poster" else gaussian(p, 0.5, 0.18)
        return -(weights * log_p).sum() / weights.sum().clamp(min=torch.finfo(log_p.dtype).tiny)

    def logits(self, embeddings: Tensor) -> Tensor:
        """f_i . c_k of embeddings [B, D] and all contexts, [B, classes]."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise InputError(f"embeddings must be [B, {self.dim}] to match dim, got {list(embeddings.shape)}.")
        f = unit(embeddings) if self.form == "poster" else at_least_float32(embeddings)
        with torch.autocast(f.device.type, enabled=False):
            return F.linear(f, self.contexts.to(f.dtype))

    def _log_probability(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        check_embeddings(embeddings, labels)
        logits = self.logits(embeddings)
        return logits.log_softmax(1).gather(1, labels.to(logits.device).long()[:, None])[:, 0]

    def __repr__(self) -> str:
        return f"ClassAwareAttention(classes={self.classes}, dim={self.dim}, form={self.form!r})"


def gaussian(p: Tensor, mean: float, sigma: float) -> Tensor:
    """exp( -(p - mean)^2 / (2 sigma^2) ), 1 at the mean."""
    return torch.exp(-((p - mean) ** 2) / (2 * sigma**2))
