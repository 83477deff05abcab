"""Who is positive and who is negative to whom, and how much each pair counts."""

from typing import NamedTuple

import torch
from torch import Tensor

from metricweight.checks import InputError

IndicesTuple = tuple[Tensor, ...]


class Pairs(NamedTuple):
    """Two boolean matrices [Q, G]. A pair that is in neither is not looked at: an item is no pair with itself."""

    positive: Tensor
    negative: Tensor


class PairWeights(NamedTuple):
    """Two matrices [Q, G] of weights >= 0, constant under differentiation; 0 means that the pair is not used.

    positive  how hard each pair of one class is pulled together
    negative  how hard each pair of two classes is pushed apart
    """

    positive: Tensor
    negative: Tensor


def from_labels(labels: Tensor, gallery_labels: Tensor | None = None) -> Pairs:
    """All pairs of `labels` [Q] with `gallery_labels` [G], or of a batch with itself.

        positive_ij = [y_i = y_j],   negative_ij = [y_i != y_j]

    Labels are compared as the integers they are. Without `gallery_labels` the diagonal is neither.
    """
    if gallery_labels is None:
        same = labels[:, None] == labels[None, :]
        return Pairs(same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same)
    same = labels[:, None] == gallery_labels[None, :]
    return Pairs(same, ~same)


def listed(indices_tuple: IndicesTuple, labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """Which pairs of `labels` [Q] with `gallery_labels` [G] a miner listed, bool [Q, G].

    indices_tuple  (anchors, positives, anchors, negatives) or (anchors, positives, negatives), as the miners of
                   pytorch-metric-learning return them; a triplet is a positive and a negative pair. A pair is
                   listed once, however often it is, and only as what its labels say it is
    """
    if len(indices_tuple) not in (3, 4):
        raise InputError(f"indices_tuple must be 4 tensors (pairs) or 3 (triplets), got {len(indices_tuple)}.")
    anchors, positives, *more = (indices.to(labels.device) for indices in indices_tuple)
    others, negatives = more if len(more) == 2 else (anchors, *more)
    chosen = torch.zeros(len(labels), len(gallery_labels), dtype=torch.bool, device=labels.device)
    chosen[anchors, positives] = labels[anchors] == gallery_labels[positives]
    chosen[others, negatives] |= labels[others] != gallery_labels[negatives]
    return chosen
