"""How the weights of a batch were spread: what a log tells of a step."""

from typing import Any

import torch
from torch import Tensor

from metricweight.emphasis import Weighting, emphasis_mode, emphasis_variance
from metricweight.pairs import from_labels
from metricweight.similarity import unit
from metricweight.training.objective import Objective
from metricweight.training.tracklets import TrackletObjective

BINS = 20  # of p
MOST = 4096  # rows of a batch whose pairs are counted


@torch.no_grad()
def weight_statistics(
    objective: Objective | TrackletObjective,
    judged: Tensor,
    embeddings: Tensor,
    gradient: Tensor,
    labels: Tensor,
    step: int,
) -> dict[str, Any]:
    """What a batch weighed, as plain numbers for JSON; None where something is undefined, never NaN.

    objective   made `judged` of the batch at this `step`
    embeddings  [B, L D], and the gradient [B, L D] of the loss with respect to them, of any scale
    labels      [B]

        p                  its mean, and a histogram of 20 bins from 0 to 1
        emphasis_mode      the p that counts most. Where examples are weighed by p, that of the weighting; else it is
                           measured: the middle of the bin of p whose gradients are longest on average
        emphasis_variance  how unequally examples count, E[(w - E w)^2] over the batch: w is the weight where examples
                           are weighed by p, else the length of an example's gradient over their mean
        zero_positives     share of the pairs of one class that no loss on pairs gives a weight, those that a miner
        zero_negatives     left out included; and of the pairs of two classes. The mean over levels, of the pairs
                           within the batch, or within its first 4096
        hard_share         share of all gradient lengths that is of examples with p < 1/2
        easy_share         and of the others
        spread             sqrt(1 - |mean of the embeddings at unit length|^2), from 0 where all are one point to 1;
                           of several levels the smallest

    p is of the last level, gradients are of all levels together. An embedding of length zero is not counted in the
    spread; if all are, it is 0. It waits for the GPU.
    """
    objective, embeddings, gradient, labels = objective.counted(embeddings, gradient, labels)
    p = objective.confidence(judged, labels).double().cpu()
    lengths = torch.linalg.vector_norm(gradient.double(), dim=1).cpu()
    mode, variance = _emphasis(objective.weighting(step), p, lengths)
    positives, negatives = _zeros(objective, embeddings[:MOST], labels[:MOST])
    hard = _number((lengths * (p < 0.5)).sum() / lengths.sum())
    return {
        "p": {"mean": _number(p.mean(), 6), "histogram": torch.histc(p, BINS, 0, 1).long().tolist()},
        "emphasis_mode": mode,
        "emphasis_variance": variance,
        "zero_positives": positives,
        "zero_negatives": negatives,
        "hard_share": hard,
        "easy_share": None if hard is None else 1 - hard,
        "spread": _number(torch.stack([_spread(x) for x in objective.split(embeddings)]).amin()),
    }


def _emphasis(weighting: Weighting | None, p: Tensor, lengths: Tensor) -> tuple[float | None, float | None]:
    """Mode and variance."""
    if weighting is not None:
        w = weighting(torch.linspace(0, 1, 101, dtype=torch.float64))
        return None if w.amin() == w.amax() else emphasis_mode(weighting), _number(emphasis_variance(weighting(p)))
    if not (p.isfinite().all() and 0 < lengths.sum() < torch.inf):
        return None, None
    bins = (p * BINS).long().clamp(max=BINS - 1)
    sums, counts = torch.zeros(2, BINS, dtype=torch.float64)
    sums.index_add_(0, bins, lengths)
    counts.index_add_(0, bins, torch.ones_like(lengths))
    longest = int((sums / counts.clamp(min=1)).argmax())
    return (longest + 0.5) / BINS, _number(emphasis_variance(lengths / lengths.mean()))


def _zeros(objective: Objective, embeddings: Tensor, labels: Tensor) -> tuple[float | None, float | None]:
    """Shares of the positive and of the negative pairs that weigh nothing."""
    if not objective.pair_losses(0):
        return None, None
    labels = objective.paired(labels.to(embeddings.device))
    pairs = from_labels(labels)
    found = []
    for level, x in enumerate(objective.split(embeddings)):
        used = [torch.zeros_like(mask) for mask in pairs]
        for loss in objective.pair_losses(level):
            for mask, weights in zip(used, loss.matrices(x, labels)[1], strict=True):
                mask |= weights > 0
        if objective.miner is not None:
            used = [mask & (s > 0) for mask, s in zip(used, objective.miner.scores(x, labels), strict=True)]
        found.append([(all_ & ~mask).sum() / all_.sum() for all_, mask in zip(pairs, used, strict=True)])
    positives, negatives = (_number(torch.stack(shares).mean()) for shares in zip(*found, strict=True))
    return positives, negatives


def _spread(x: Tensor) -> Tensor:
    f = unit(x.double())[x.isnan().any(1) | (x != 0).any(1)]
    return (1 - f.mean(0).square().sum()).clamp(min=0).sqrt() if len(f) else f.new_zeros(())


def _number(x: Tensor, digits: int | None = None) -> float | None:
    value = float(x)
    if not -torch.inf < value < torch.inf:
        return None
    return value if digits is None else round(value, digits)
