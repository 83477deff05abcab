"""Query expansion: a query becomes a mean of itself and of what it finds."""

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.retrieval.points import BLOCK, Points
from metricweight.retrieval.search import Index, neighbours


def expanded(
    queries: Points,
    gallery: Points,
    k: int,
    alpha: float = 0.0,
    *,
    itself: NDArray[np.int64] | None = None,
    index: Index | None = None,
    device: str | None = None,
    memory: int = 2**30,
) -> NDArray[np.float32]:
    """Queries [Q, D] of unit length, to search with once more: the direction of

        x + sum over the k nearest y of max(cos(x, y), 0)^alpha y,     x and y of unit length

    alpha = 0 is average query expansion (Chum et al., Total Recall, ICCV 2007), 3 is usual otherwise (Radenovic et al.,
    Fine-tuning CNN image retrieval with no human annotation, TPAMI 2018). 0^0 is 1. Where the sum vanishes, the query
    stays as it is.

    The other arguments are those of `search.neighbours`; without `itself`, a query that is in the gallery counts twice.
    Raises InputError for another similarity than cosine, and an alpha below 0.
    """
    if queries.similarity != "cosine":
        raise InputError(f"query expansion is a mean of directions, so it needs cosine, got {queries.similarity}.")
    if not 0 <= alpha < np.inf:
        raise InputError(f"alpha, the power of the cosine, is 0 or a larger number, got {alpha}.")
    ids, keys = neighbours(queries, gallery, k, itself=itself, index=index, device=device, memory=memory)
    found = np.empty((len(queries), queries.size), dtype=np.float32)
    for start in range(0, len(queries), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(queries)))
        own = _unit(queries, rows)
        total = own.copy()
        for place in range(k):  # at most BLOCK rows of the gallery at a time
            there = ids[rows, place] >= 0
            near = _unit(gallery, ids[rows[there], place])
            squared_cosines = np.maximum(keys[rows[there], place], 0) / queries.squared[rows[there]]
            total[there] += squared_cosines[:, None] ** (alpha / 2) * near
        length = np.linalg.norm(total, axis=1, keepdims=True)
        found[rows] = np.where(length > 1e-12, total / np.maximum(length, 1e-12), own)
    return found


def _unit(points: Points, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(points.raw[rows] * points.scale[rows, None] / np.sqrt(points.squared[rows, None]))
