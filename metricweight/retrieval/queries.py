"""Queries that search with other embeddings than those they have in the gallery.

Who is whom is decided by the items; here are only the embeddings that search in their stead.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.retrieval.points import BLOCK, Array, as_rows, largest, placed, power_of_two

ITEMS, OTHERS, MEANS = "the items themselves", "other embeddings of the items", "mean of own label and camera"


class Items(NamedTuple):
    """Embeddings [N, D], labels [N] and, where they are known, cameras [N]."""

    embeddings: Array
    labels: Array
    cameras: NDArray[np.int64] | None

    def only(self, kept: NDArray[np.bool_]) -> "Items":
        if kept.all():
            return self
        return Items(self.embeddings[kept], self.labels[kept], None if self.cameras is None else self.cameras[kept])


def others(given: Array | Sequence[object], shape: tuple[int, int]) -> Array:
    """Other embeddings of all queries as an array of this shape [Q, D], or InputError."""
    found = as_rows(given, "query_embeddings")
    if found.shape != shape:
        raise InputError(
            f"query_embeddings must be {list(shape)}, one for each query in their order and as long as the others, "
            f"got {list(found.shape)}."
        )
    return found


def own_camera_means(queries: Items, rows: NDArray[np.int64], tables: Sequence[Items]) -> Array:
    """Multi-query: what queries `rows` [Q] search with, the direction [Q, D] of

        sum over the items y with the query's label and camera of y / |y|

    tables  all items, each once, the queries among them

    Where the query is the only one, and where the sum vanishes, it searches with its embedding as it is. Raises
    InputError for one of these items that is not finite or has zero norm.
    """
    wanted = {key: group for group, key in enumerate(dict.fromkeys(_keys(queries, rows)))}
    of = np.array([wanted[key] for key in _keys(queries, rows)])
    total = np.zeros((len(wanted), queries.embeddings.shape[1]))
    count = np.zeros(len(wanted), dtype=np.int64)
    for table in tables:
        groups = np.array([wanted.get(key, -1) for key in _keys(table, np.arange(len(table.labels)))], dtype=np.int64)
        found = np.flatnonzero(groups >= 0)
        for start in range(0, len(found), BLOCK):
            some = found[start : start + BLOCK]
            raw = table.embeddings[some]
            scale = power_of_two(largest(raw, "embeddings of the queries' labels and cameras", "cosine"))
            np.add.at(total, groups[some], placed(raw, scale, "cosine"))
            np.add.at(count, groups[some], 1)
    length = np.linalg.norm(total, axis=1)
    alone = (count < 2) | (length < 1e-12)
    means = total / np.where(alone, 1, length)[:, None]
    own = queries.embeddings[rows]
    return np.where(alone[of, None], own, means[of]).astype(np.result_type(own.dtype, np.float32))


def _keys(items: Items, rows: NDArray[np.int64]) -> list[tuple[object, ...]]:
    assert items.cameras is not None
    return list(zip(items.labels[rows].tolist(), items.cameras[rows].tolist(), strict=True))
