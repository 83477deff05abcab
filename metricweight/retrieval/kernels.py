"""Compiled loops, and nothing else. Each is a loop over numbers that NumPy could only make by writing them down.

All of them release the interpreter's lock, so that threads run them side by side.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

exact = numba.njit(nogil=True, cache=True)  # floating point as written: one order of summation

Array = NDArray[Any]
Float64 = NDArray[np.float64]


@exact
def load(raw: Array, halves: Array, i: int, scale: float, row: Float64) -> None:
    """row = scale times row i, in float64. Where there are `halves`, `raw` are the bits of float16."""
    if len(halves):
        for k in range(len(row)):
            row[k] = np.float64(halves[np.int64(raw[i, k])]) * scale
    else:
        for k in range(len(row)):
            row[k] = np.float64(raw[i, k]) * scale


@exact
def key(cosine: bool, a: Float64, b: Float64, b_squared: float) -> float:
    """What ranks b, a row of the gallery, for a: larger is closer. Only comparable for one a.

        cosine      (a.b)^2 / |b|^2 with the sign of a.b: grows with a.b / |b|, needs no root, and is equal, to the
                    bit, for b and a multiple of b wherever the products are exact
        euclidean   -|a - b|^2
    """
    s0 = s1 = s2 = s3 = 0.0
    whole = len(a) - len(a) % 4
    if cosine:
        for k in range(0, whole, 4):
            s0 += a[k] * b[k]
            s1 += a[k + 1] * b[k + 1]
            s2 += a[k + 2] * b[k + 2]
            s3 += a[k + 3] * b[k + 3]
        for k in range(whole, len(a)):
            s0 += a[k] * b[k]
        product = (s0 + s1) + (s2 + s3)
        return product * abs(product) / b_squared
    for k in range(0, whole, 4):
        d0, d1, d2, d3 = a[k] - b[k], a[k + 1] - b[k + 1], a[k + 2] - b[k + 2], a[k + 3] - b[k + 3]
        s0 += d0 * d0
        s1 += d1 * d1
        s2 += d2 * d2
        s3 += d3 * d3
    for k in range(whole, len(a)):
        d0 = a[k] - b[k]
        s0 += d0 * d0
    return -((s0 + s1) + (s2 + s3))


@exact
def squared_lengths(raw: Array, halves: Array, scale: Float64) -> Float64:
    """|scale x|^2 of each row."""
    found = np.empty(len(raw))
    row = np.empty(raw.shape[1])
    for i in range(len(raw)):
        load(raw, halves, i, scale[i], row)
        total = 0.0
        for k in range(len(row)):
            total += row[k] * row[k]
        found[i] = total
    return found


@exact
def keys(
    cosine: bool,
    raw_a: Array,
    halves_a: Array,
    scale_a: Float64,
    raw_b: Array,
    halves_b: Array,
    scale_b: Float64,
    squared_b: Float64,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> Float64:
    """`key` of each of the pairs (rows[n], columns[n])."""
    found = np.empty(len(rows))
    a, b = np.empty(raw_a.shape[1]), np.empty(raw_b.shape[1])
    for n in range(len(rows)):
        i, j = rows[n], columns[n]
        if n == 0 or i != rows[n - 1]:
            load(raw_a, halves_a, i, scale_a[i], a)
        load(raw_b, halves_b, j, scale_b[j], b)
        found[n] = key(cosine, a, b, squared_b[j])
    return found
