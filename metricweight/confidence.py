"""How sure a model is of an example's own label: p in [0, 1], [B], in float64, a constant under differentiation.

float64 because weights depend on 1 - p, of which float32 keeps nothing below 6e-8.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metricweight.checks import InputError, check_embeddings
from metricweight.directions import log_odds
from metricweight.pairs import from_labels
from metricweight.similarity import at_least_float32, unit


@torch.no_grad()
def own_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """What a classifier gives an example's own class.

        p_i = softmax(z_i)_{y_i} = sigmoid( log_odds )

    logits  [B, C]
    labels  [B]     from 0 to C - 1

    Raises what `log_odds` raises.
    """
    return log_odds(logits, labels).double().sigmoid()


@torch.no_grad()
def match_probability(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """How likely a softmax over an item's neighbours in the batch lands on its own label.

        p_i = sum_{j != i, y_j = y_i} exp(s_ij / temperature) / sum_{j != i} exp(s_ij / temperature)

    embeddings   [B, D]  of any length; s is their cosine, in float32 at least, also under autocast
    labels       [B]     integers of any size
    temperature  > 0; smaller listens to fewer neighbours. The default is this library's

    An item whose label nobody shares has p = 0, also when it is alone. One class alone has p = 1. Raises
    `InputError` where shapes or dtypes do not fit.
    """
    check_embeddings(embeddings, labels)
    if not temperature > 0:
        raise InputError(f"match_probability needs a temperature above 0, got {temperature}.")
    f = unit(embeddings)
    similarity = _products(f, f) / temperature
    positive, negative = from_labels(labels.to(embeddings.device))
    own, others = (similarity.masked_fill(~mask, -torch.inf).logsumexp(1) for mask in (positive, negative))
    return torch.where(positive.any(1), (own - others).double().sigmoid(), 0.0)


@dataclass(frozen=True, eq=False)
class ClassContexts:
    """What a softmax over class contexts gives an embedding's own class.

        p_i = softmax_k( f_i . c_k )_{y_i}

    weight  [C, D]  the contexts c, such as `classifier.weight`: it is read at each call, so it may be in training

    Called as `contexts(embeddings [B, D], labels [B])`, labels from 0 to C - 1. Both factors are taken as they
    are, as the released code of class-aware attention does; whether the paper scales them to unit length is
    unknown. Raises `InputError` where shapes or dtypes do not fit. Wang et al., AAAI 2019, arXiv:1811.01459.
    """

    weight: Tensor

    @torch.no_grad()
    def __call__(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        check_embeddings(embeddings, labels)
        if self.weight.ndim != 2 or self.weight.shape[1] != embeddings.shape[1]:
            raise InputError(
                f"class contexts must be [C, {embeddings.shape[1]}] to match embeddings {list(embeddings.shape)}, "
                f"got {list(self.weight.shape)}."
            )
        f = at_least_float32(embeddings)
        return own_probability(_products(f, self.weight.to(f)), labels)


def _products(x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # else a matrix product is the one thing in half precision
        return F.linear(x, y)
