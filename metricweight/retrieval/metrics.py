"""Metrics per query, [Q], as functions of its hits.

hits       [Q, K]  bool: the k-th nearest neighbour has the label of the query
positives  [Q]     how many items of its label a query could have found, at least 1 and at most K: its R
"""

import numpy as np
from numpy.typing import NDArray

Hits = NDArray[np.bool_]
Counts = NDArray[np.int64]
PerQuery = NDArray[np.float64]


def recall_at_k(hits: Hits, k: int) -> PerQuery:
    """1 where any of the first k neighbours is a hit, else 0. Also called CMC at rank k, or hit rate."""
    return np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)


def r_precision(hits: Hits, positives: Counts) -> PerQuery:
    """1/R sum_{k <= R} hit_k: the share of the first R neighbours that are hits."""
    return np.asarray((hits & _first(positives, hits)).sum(axis=1) / positives)


def map_at_r(hits: Hits, positives: Counts) -> PerQuery:
    """1/R sum_{k <= R} hit_k precision@k (Musgrave et al., A Metric Learning Reality Check, ECCV 2020)."""
    ranks = np.arange(1, hits.shape[1] + 1)
    precision = hits.cumsum(axis=1) / ranks
    return np.asarray((precision * (hits & _first(positives, hits))).sum(axis=1) / positives)


def _first(positives: Counts, hits: Hits) -> Hits:
    return np.arange(hits.shape[1]) < positives[:, None]
