"""What is compared: embeddings as points, read a block at a time, whatever file they lie in.

Two views of the same rows. `compared` is float32, for matrix products. `key` is float64 with one order of summation,
for the few comparisons that float32 cannot settle: what it calls equal is equal.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metricweight.checks import InputError

Similarity = Literal["cosine", "euclidean"]
Array = NDArray[Any]
Rows = slice | NDArray[np.int64]

BLOCK = 1024  # rows read at a time; fixed, so that sums do not depend on the memory there is


@dataclass(frozen=True, eq=False)
class Points:
    """Embeddings [N, D] as they are compared with others of the same `together`.

    raw         [N, D]  as given: float16, float32, float64 or integers; may be a memory map
    similarity  cosine or euclidean
    scale       [N]     powers of two that bring the rows near length one, so that no square overflows or vanishes
    squared     [N]     |scale x|^2 in float64, in the order of summation of `key`
    mean        [D]     that of all rows that are compared, queries and gallery
    """

    raw: Array
    similarity: Similarity
    scale: NDArray[np.float64]
    squared: NDArray[np.float64]
    mean: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def size(self) -> int:
        """D."""
        return int(self.raw.shape[1])

    @cached_property
    def fingerprints(self) -> NDArray[np.void]:
        """A number of 16 bytes for each row [N]: equal where all its values are."""
        return fingerprints(self.raw)

    def compared(self, rows: Rows = slice(None)) -> NDArray[np.float32]:
        """Rows as float32 [n, D] whose Euclidean neighbours are the ones that are asked for.

            cosine      x / |x| - mean,   since |f_i - f_j|^2 = 2 - 2 cos(x_i, x_j) for f of unit length
            euclidean   x - mean

        up to a common scale. The mean changes no distance, and taking it off saves the digits that embeddings in a
        narrow cone, or far from the origin, would lose.
        """
        indices = np.arange(len(self))[rows] if isinstance(rows, slice) else rows
        found = np.empty((len(indices), self.size), dtype=np.float32)
        for start in range(0, len(indices), BLOCK):
            some = indices[start : start + BLOCK]
            found[start : start + BLOCK] = placed(self.raw[some], self.scale[some], self.similarity) - self.mean
        return found

    def key(self, rows: NDArray[np.int64], gallery: "Points", columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """What ranks items `columns` [n] of a gallery for items `rows` [n] of this: larger is closer, float64 [n].

        Only comparable among the pairs of one row. `kernels.key` has the formula.
        """
        from metricweight.retrieval.kernels import keys

        own = (*readable(self.raw), self.scale)
        return keys(
            self.similarity == "cosine", *own, *readable(gallery.raw), gallery.scale, gallery.squared, rows, columns
        )


def together(queries: Array, gallery: Array | None, similarity: Similarity) -> tuple[Points, Points]:
    """Queries [Q, D] and gallery [G, D] (None: the queries themselves, the same object) as points to be compared.

    Raises InputError for what would yield a number that means nothing: values that are not finite, zero rows under
    cosine, and embeddings that all coincide as far as float32 can tell.
    """
    from metricweight.retrieval.kernels import squared_lengths

    tables = [queries] if gallery is None else [queries, gallery]
    names = ["embeddings"] if gallery is None else ["query embeddings", "gallery embeddings"]
    tops = [largest(table, name, similarity) for table, name in zip(tables, names, strict=True)]
    if similarity == "cosine":
        scales = [power_of_two(top) for top in tops]
    else:
        scales = [np.full(len(top), power_of_two(max(top.max() for top in tops))) for top in tops]
    total, size = np.zeros(queries.shape[1]), 0.0
    for table, scale in zip(tables, scales, strict=True):
        for rows in _blocks(len(table)):
            some = placed(table[rows], scale[rows], similarity)
            total += some.sum(axis=0)
            size = max(size, float(np.linalg.norm(some, axis=1).max()))
    mean = total / sum(map(len, tables))
    _refuse_collapse(tables, scales, mean, size, similarity)
    points = [
        Points(table, similarity, scale, squared_lengths(*readable(table), scale), mean)
        for table, scale in zip(tables, scales, strict=True)
    ]
    return points[0], points[-1]


def readable(raw: Array) -> tuple[Array, NDArray[np.float32]]:
    """Rows as compiled code reads them, and a table of the numbers that float16 stand for (else empty).

    One kind of array for each dtype, since code is compiled for each kind: read-only, no memory map.
    """
    rows, halves = np.asarray(raw).view(), np.empty(0, dtype=np.float32)
    if raw.dtype == np.float16:
        rows, halves = rows.view(np.uint16), np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    rows.flags.writeable = False
    return rows, halves


def as_rows(values: Array | Tensor | Sequence[Any], name: str) -> Array:
    """Embeddings as an array [N, D] of numbers; bfloat16 becomes float32, a memory map stays one."""
    rows = as_array(values)
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or not rows.shape[1]:
        raise InputError(f"{name} must be numbers [N, D], got {list(rows.shape)} of {rows.dtype}.")
    if rows.dtype.itemsize > 8 or rows.dtype.kind in "iu":
        rows = rows.astype(np.float32 if rows.dtype.itemsize < 4 else np.float64)  # exact, to 2^53
    if not rows.dtype.isnative:
        rows = rows.astype(rows.dtype.newbyteorder("="))
    return rows if rows.flags.c_contiguous else np.ascontiguousarray(rows)


def as_array(values: Array | Tensor | Sequence[Any]) -> Array:
    if isinstance(values, Tensor):
        import torch

        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asanyarray(values)


def fingerprints(rows: Array) -> NDArray[np.void]:
    """A number of 16 bytes for each row [N]: equal where all its values are."""
    found = bytearray()
    for block in _blocks(len(rows)):
        given = np.ascontiguousarray(rows[block])
        positive_zeros = given + given.dtype.type(0)  # -0 + 0 = 0
        for row in positive_zeros:
            found += hashlib.blake2b(row.data, digest_size=16).digest()
    return np.frombuffer(bytes(found), dtype=np.dtype((np.void, 16)))


def power_of_two(largest: Array) -> Array:
    """1 / 2^e for numbers m 2^e with 1/2 <= m < 1, so that multiplying by it is exact; 1 for zero."""
    _, exponents = np.frexp(largest)
    return np.ldexp(
        1.0, np.where(np.asarray(largest) > 0, -np.minimum(np.abs(exponents), 1020) * np.sign(exponents), 0)
    )


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def placed(raw: Array, scale: NDArray[np.float64], similarity: Similarity) -> NDArray[np.float64]:
    """Rows in float64: scaled, and of unit length under cosine."""
    rows = raw.astype(np.float64) * scale[:, None]
    if similarity == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def largest(table: Array, name: str, similarity: Similarity) -> NDArray[np.float64]:
    """The largest absolute value of each row [N]. Refuses what is not finite, and zero rows under cosine."""
    found = np.empty(len(table))
    for rows in _blocks(len(table)):
        found[rows] = np.maximum(table[rows].max(axis=1), -table[rows].min(axis=1).astype(np.float64))
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(table)} {name} are not finite (NaN or infinite), the first in row {bad[0]}; "
            "there is nothing to compare them by."
        )
    zero = np.flatnonzero(found == 0)
    if similarity == "cosine" and len(zero):
        raise InputError(
            f"{len(zero)} of {len(table)} {name} have zero norm, the first in row {zero[0]}; "
            "they have no direction for cosine similarity. Use similarity='euclidean' if zero is meant."
        )
    return found


def _refuse_collapse(
    tables: list[Array],
    scales: list[NDArray[np.float64]],
    mean: NDArray[np.float64],
    size: float,
    similarity: Similarity,
) -> None:
    spread = 0.0
    for table, scale in zip(tables, scales, strict=True):
        for rows in _blocks(len(table)):
            away = np.linalg.norm(placed(table[rows], scale[rows], similarity) - mean, axis=1)
            spread = max(spread, float(away.max()))
            if spread > 1e-5 * size:
                return
    raise InputError(
        f"the embeddings are collapsed: all {sum(map(len, tables))} lie within {spread / (size or 1):.1e} of their "
        "mean, as a share of their length. Every ranking of them is chance, so no number is given."
    )
