"""k-reciprocal re-ranking, sparse and a block at a time (Zhong et al., Re-ranking person re-identification with
k-reciprocal encoding, CVPR 2017).

Nodes are the queries that the gallery does not hold, then the gallery: N in all. Neighbours of a node are ordered by
distance, then the node itself, then by number. All products are float64: neighbours that swap places change whole sets,
and exact duplicates have to stay as close as each other, which products in float32 grant neither of.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.retrieval.points import BLOCK, Points

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Sparse = Any  # scipy.sparse.csr_array; scipy has no types

BYTES = 48  # for each entry of a dense block: its distances, a copy that is partitioned or the overlaps, and a mask


@dataclass(frozen=True, eq=False)
class _Nodes:
    """What distances are between.

    rows     [N, D]  as `Points.compared`
    squared  [N]     |x|^2
    largest  float   the largest |x|^2
    """

    rows: NDArray[np.float32]
    squared: Float64
    largest: float

    def __len__(self) -> int:
        return len(self.rows)


def reranked(
    queries: Points,
    gallery: Points,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    itself: Int64 | None = None,
    memory: int = 2**30,
) -> Iterator[tuple[slice, Float64]]:
    """Re-ranked distances of queries [Q] to a gallery [G], some queries at a time: which ones, and theirs [b, G].

        D_ij  = |x_i - x_j|^2 / max_j |x_i - x_j|^2
        F(i)  = the first k1 + 1 neighbours of i, i among them
        R(i)  = {j in F(i): i in F(j)};  r(i) is the same for round(k1 / 2), halves to even
        S(i)  = R(i) and each r(j), j in R(i), with |r(j) and R(i)| > 2/3 |r(j)|
        V_ij  = exp(-D_ij) / sum_{l in S(i)} exp(-D_il) for j in S(i), else 0
        W_i   = mean of V_j over the first k2 neighbours j of i, i among them
        m_qg  = sum_j min(W_qj, W_gj)
        d_qg  = (1 - weight) (1 - m / (2 - m)) + weight D_qg

    itself  [Q]   the row of the gallery that the query is, -1 where the gallery does not hold it. Such a query and its
                  row are one node, or it would be its own neighbour. The row keeps its column. None: -1 for all.
    memory  bytes for blocks, from which b follows; beyond them there are N rows of float32 and some hundred numbers a
            node

    d is rounded to 1e-10, far above its noise and far below that of float32 embeddings, so that exact duplicates tie
    where their sets are the same. k1 and k2 beyond N are as N. `queries` and `gallery` are of
    one `together`. Raises InputError for k1 or k2 below 1, a weight outside [0, 1], and an `itself` that does not fit.
    """
    for name, k in (("k1", k1), ("k2", k2)):
        if k < 1:
            raise InputError(f"{name} of re-ranking must be at least 1, got {k}.")
    if not 0 <= weight <= 1:
        raise InputError(f"weight of re-ranking, the share of the first distance, must be in [0, 1], got {weight}.")
    if itself is None:
        itself = np.full(len(queries), -1)
    if itself.shape != (len(queries),) or (len(itself) and not -1 <= itself.min() <= itself.max() < len(gallery)):
        raise InputError(
            f"itself must hold, for each of {len(queries)} queries, one of {len(gallery)} rows of the gallery or -1; "
            f"got {list(itself.shape)}{f' from {itself.min()} to {itself.max()}' if itself.size else ''}."
        )
    return _blocks(queries, gallery, k1, k2, weight, itself, memory)


def _blocks(
    queries: Points, gallery: Points, k1: int, k2: int, weight: float, itself: Int64, memory: int
) -> Iterator[tuple[slice, Float64]]:
    free = np.flatnonzero(itself < 0)
    node = itself + len(free)  # of each query
    node[free] = np.arange(len(free))
    nodes = _nodes(queries, free, gallery)
    first, farthest = _neighbours(nodes, max(k1 + 1, k2), memory)
    encoded = _encoded(nodes, first, farthest, k1, memory)
    if k2 > 1:
        encoded = _pattern(first[:, :k2]) @ encoded
        encoded.data /= min(k2, len(nodes))
    inverted = encoded[len(free) :].tocsc()
    step = _step(len(gallery), memory)
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        found = _squared(nodes, node[rows], len(free))
        found *= weight / farthest[node[rows], None]
        overlap = _overlaps(encoded[node[rows]], inverted, memory)
        overlap /= 2 - overlap
        overlap -= 1
        overlap *= 1 - weight
        found -= overlap
        yield rows, np.round(found, 10, out=found)


def _nodes(queries: Points, free: Int64, gallery: Points) -> _Nodes:
    rows = np.empty((len(free) + len(gallery), gallery.size), dtype=np.float32)
    rows[: len(free)] = queries.compared(free)
    rows[len(free) :] = gallery.compared()
    squared = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        squared[start : start + BLOCK] = np.square(rows[start : start + BLOCK], dtype=np.float64).sum(axis=1)
    return _Nodes(rows, squared, float(squared.max()))


def _step(columns: int, memory: int) -> int:
    """How many rows of a dense block with that many columns."""
    return max(1, memory // (BYTES * columns))


def _squared(nodes: _Nodes, rows: Int64, first: int) -> Float64:
    """|x_i - x_j|^2 = |x_i|^2 + |x_j|^2 - 2 x_i.x_j of some nodes to all from number `first` on."""
    own = -2 * nodes.rows[rows].astype(np.float64)
    found = np.empty((len(rows), len(nodes) - first))
    for start in range(first, len(nodes), BLOCK):
        found[:, start - first : start - first + BLOCK] = own @ nodes.rows[start : start + BLOCK].astype(np.float64).T
    found += nodes.squared[rows, None]
    found += nodes.squared[first:]
    return np.maximum(found, 0, out=found)


def _of_pairs(nodes: _Nodes, rows: Int64, columns: Int64) -> Float64:
    """|x_i - x_j|^2 of pairs [n], summed from differences: equal, to the bit, for exact duplicates."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        some = slice(start, start + BLOCK)
        differences = nodes.rows[rows[some]].astype(np.float64) - nodes.rows[columns[some]]
        found[some] = np.einsum("nd,nd->n", differences, differences)
    return found


def _neighbours(nodes: _Nodes, k: int, memory: int) -> tuple[Int64, Float64]:
    """The first k neighbours of every node [N, k], itself among them, and its largest squared distance [N].

    Products choose who may be among them, with a margin for their rounding; differences say in what order.
    """
    k = min(k, len(nodes))
    first, farthest = np.empty((len(nodes), k), dtype=np.int64), np.empty(len(nodes))
    step = _step(len(nodes), memory)
    for start in range(0, len(nodes), step):
        own = np.arange(start, min(start + step, len(nodes)))
        squared = _squared(nodes, own, 0)
        farthest[own] = squared.max(axis=1)
        margin = 1e-12 * (nodes.squared[own] + nodes.largest)
        near = squared <= (np.partition(squared, k - 1, axis=1)[:, k - 1] + margin)[:, None]
        del squared
        rows, columns = np.nonzero(near)
        distances = _of_pairs(nodes, own[rows], columns)
        order = np.lexsort((columns != own[rows], distances, rows))  # stable: by number last
        begin = np.cumsum(near.sum(axis=1)) - near.sum(axis=1)
        first[own] = columns[order[begin[:, None] + np.arange(k)]]
    return first, farthest


def _encoded(nodes: _Nodes, first: Int64, farthest: Float64, k1: int, memory: int) -> Sparse:
    """V [N, N], sparse."""
    half = round(k1 / 2)
    mutual, halves = _mutual(first[:, : k1 + 1]), _mutual(first[:, : half + 1])
    sizes = halves.sum(axis=1)
    values, columns, counts = [], [], []
    step = max(1, memory // (64 * (k1 + 1) * (half + 1)))
    for start in range(0, len(nodes), step):
        own = mutual[start : start + step]
        common = (own @ halves).multiply(own).tocsr()  # |r(j) and R(i)| for j in R(i)
        common.data = (3 * common.data > 2 * sizes[common.indices]).astype(np.int64)
        found = (own + common @ halves).tocsr()
        found.eliminate_zeros()
        found.sort_indices()
        count = np.diff(found.indptr)
        rows = start + np.repeat(np.arange(len(count)), count)
        value = np.exp(-_of_pairs(nodes, rows, found.indices) / farthest[rows])
        values.append(value / np.repeat(np.add.reduceat(value, found.indptr[:-1]), count))
        columns.append(found.indices)
        counts.append(count)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return _sparse(np.concatenate(values), np.concatenate(columns), starts, len(nodes))


def _mutual(first: Int64) -> Sparse:
    """1 where i is among the first neighbours of j and j among those of i: symmetric [N, N]."""
    forward = _pattern(first)
    return forward.multiply(forward.T).tocsr()


def _pattern(first: Int64) -> Sparse:
    """1 at (i, j) for j in row i of `first` [N, k]."""
    n, k = first.shape
    return _sparse(np.ones(n * k, dtype=np.int64), first.ravel(), np.arange(0, n * k + 1, k), n)


def _sparse(values: NDArray[Any], columns: Int64, starts: Int64, n: int) -> Sparse:
    from scipy.sparse import csr_array

    return csr_array((values, columns, starts), shape=(n, n))


def _overlaps(encoded: Sparse, inverted: Sparse, memory: int) -> Float64:
    """m_qg = sum_j min(W_qj, W_gj): rows [b, N] against the columns of the gallery's [G, N]; dense [b, G].

    Each entry (q, j) meets the entries of column j, however many gallery items have one.
    """
    b, g = encoded.shape[0], inverted.shape[0]
    found = np.zeros((b, g))
    rows = np.repeat(np.arange(b), np.diff(encoded.indptr))
    begin = inverted.indptr[encoded.indices].astype(np.int64)
    met = inverted.indptr[encoded.indices + 1] - begin
    ends = np.cumsum(met)
    limit = max(g, memory // 128)
    start = 0
    while start < len(rows):
        before = ends[start] - met[start]
        stop = int(np.searchsorted(ends, before + limit, side="right"))  # past `start`: a column has at most G
        some = slice(start, stop)
        place = np.arange(ends[stop - 1] - before) + np.repeat(
            begin[some] - (ends[some] - met[some] - before), met[some]
        )
        smaller = np.minimum(np.repeat(encoded.data[some], met[some]), inverted.data[place])
        low, high = rows[start], rows[stop - 1] + 1
        cell = np.repeat((rows[some] - low) * g, met[some]) + inverted.indices[place]
        found[low:high] += np.bincount(cell, smaller, minlength=(high - low) * g).reshape(high - low, g)
        start = stop
    return found
