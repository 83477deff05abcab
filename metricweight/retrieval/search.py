"""Exact nearest neighbours. The only file that knows faiss."""

from collections.abc import Iterator
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError

Similarity = Literal["cosine", "euclidean"]

BLOCK_BYTES = 64 * 2**20  # of neighbours held at a time


def comparable(embeddings: NDArray[np.floating], similarity: Similarity) -> NDArray[np.float32]:
    """Embeddings [N, D] as float32 whose Euclidean neighbours are the ones that are asked for.

        cosine      x / ||x|| - mean,     since ||f_i - f_j||^2 = 2 - 2 cos(x_i, x_j) for f of unit length
        euclidean   x - mean

    up to a common scale. The mean changes no distance, and taking it off saves the digits that embeddings
    in a narrow cone, or far from the origin, would lose. Raises InputError for what would yield a number that means
    nothing: values that are not finite, zero rows under cosine, and embeddings that all coincide as far as float32
    can tell.
    """
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(embeddings)} embeddings are not finite (NaN or infinite), the first in row {bad[0]}; "
            "there is nothing to compare them by."
        )
    rows = embeddings.astype(np.float64)
    if similarity == "cosine":
        largest = np.abs(rows).max(axis=1, initial=0, keepdims=True)
        zero = np.flatnonzero(largest == 0)
        if len(zero):
            raise InputError(
                f"{len(zero)} of {len(rows)} embeddings have zero norm, the first in row {zero[0]}; "
                "they have no direction for cosine similarity. Use similarity='euclidean' if zero is meant."
            )
        rows /= largest  # so that no square of an entry overflows or vanishes
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    else:
        rows /= np.abs(rows).max(initial=0) or 1
    size = np.linalg.norm(rows, axis=1).max(initial=0)
    rows -= rows.mean(axis=0)
    spread = np.linalg.norm(rows, axis=1).max(initial=0)
    if spread <= 1e-5 * size:
        raise InputError(
            f"the embeddings are collapsed: all {len(rows)} lie within {spread / (size or 1):.1e} of their mean, "
            "as a share of their length. Every ranking of them is chance, so no number is given."
        )
    return rows.astype(np.float32)


def neighbours_but_self(points: NDArray[np.float32], k: int) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """The k nearest others of every row of `points` [N, D], nearest first: blocks of rows, and the rows found [b, k].

    The query itself is taken out by its index, not by its rank: another row may be exactly as near. Rows that are
    exactly as near come in the order in which faiss finds them.
    """
    import faiss

    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    step = max(1, BLOCK_BYTES // (12 * (k + 1)))
    for start in range(0, len(points), step):
        rows = slice(start, min(start + step, len(points)))
        _, ids = index.search(points[rows], k + 1)
        others = ids != np.arange(start, rows.stop)[:, None]
        others[others.all(axis=1), -1] = False  # crowded out by k + 1 rows that are as near as itself
        yield rows, cast("NDArray[np.int64]", ids[others].reshape(-1, k))
