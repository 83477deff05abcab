"""The same or not: thresholds on the similarity of two items, and what each lets pass and misses."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.retrieval.points import BLOCK, Points, Similarity

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

BINS = 2**20
BYTES = 40  # for each pair of a block: its score, its bin, and masks
USUAL = 0.001  # the rate of the recommended threshold, where there are pairs enough


class Threshold(NamedTuple):
    """What a threshold does; NaN in all but `rate` where there are too few pairs to tell.

    rate       that was asked for
    threshold  two items are called the same from this cosine on, or below this distance
    fmr        share of pairs of different labels that are called the same: false matches
    fnmr       share of pairs of one label that are not: false non-matches
    tpr        1 - fnmr
    """

    rate: float
    threshold: float
    fmr: float
    fnmr: float
    tpr: float


class Verification(NamedTuple):
    """Thresholds, and the pairs that they were found on.

    similarity            cosine, or euclidean: then thresholds are distances in the units of the embeddings
    table                 a threshold for each rate
    equal_error_rate      mean of fmr and fnmr at the threshold where they are nearest to each other
    equal_error_threshold that threshold: the middle one, where several are as near
    recommended           of the table; None where no rate can be measured
    genuine               how many pairs have one label; two items that search for each other are one pair
    impostors             how many have different labels
    """

    similarity: Similarity
    table: tuple[Threshold, ...]
    equal_error_rate: float
    equal_error_threshold: float
    recommended: Threshold | None
    genuine: int
    impostors: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what could not be measured is null."""
        rows = [{name: x if math.isfinite(x) else None for name, x in row._asdict().items()} for row in self.table]
        recommended = None if self.recommended is None else rows[self.table.index(self.recommended)]
        return {**self._asdict(), "table": rows, "recommended": recommended}

    def text(self) -> str:
        """What to do, in sentences."""
        said = [
            f"Thresholds from {self.genuine:,} pairs of one label and {self.impostors:,} pairs of different labels; "
            "for classes that are harder to tell apart, more would pass."
        ]
        if self.recommended is not None:
            said.append(f"Recommended: {self._of(self.recommended)}")
        said += [self._of(row) for row in self.table if row is not self.recommended]
        same = f"call two items the same when {self._when(self.equal_error_threshold)}"
        said.append(f"Equal errors: {same}, and {self.equal_error_rate:.1%} of either kind of pair are called wrongly.")
        return "\n".join(said)

    def _of(self, row: Threshold) -> str:
        if math.isnan(row.threshold):
            return f"A rate of {row.rate:g} cannot be measured with {self.impostors:,} pairs of different labels."
        if row.threshold in (math.inf, 0):
            return f"No threshold has a rate of {row.rate:g}: more pairs of different labels coincide."
        out_of = 10 ** max(3, math.ceil(-math.log10(row.rate) - 1e-9))
        return (
            f"Call two items the same when {self._when(row.threshold)}: {out_of * row.fmr:.1f} of {out_of:,} "
            f"different pairs pass, and {row.fnmr:.1%} of same pairs are missed."
        )

    def _when(self, threshold: float) -> str:
        if self.similarity == "cosine":
            return f"their cosine is at least {threshold:.4f}"
        return f"their distance is below {threshold:.5g}"


def verification(
    queries: Points,
    gallery: Points,
    query_labels: Int64,
    gallery_labels: Int64,
    *,
    itself: Int64 | None = None,
    excluded: tuple[Int64, Int64] | None = None,
    rates: Sequence[float] = (0.1, 0.01, 0.001, 0.0001),
    memory: int = 2**30,
) -> Verification:
    """Thresholds for a yes or no to "is that the same?", from all pairs of a query [Q] and a gallery item [G].

        FMR(t)   = share of the pairs of different labels that threshold t calls the same
        FNMR(t)  = share of the pairs of one label that it does not

    itself    [Q]         the row of the gallery that the query is, or -1; that pair is left out. None: -1 for all
    excluded  ([Q], [G])  cameras: pairs with one label and one camera are left out
    rates                 for each, the loosest threshold with FMR at most that. With n pairs of different labels, a
                          rate below 1 / n cannot be measured: NaN
    memory                bytes for blocks of pairs

    The recommended threshold is that of rate 0.001 where its share of the pairs of different labels is at least 100
    pairs; else of the smallest rate where it is; else of the largest that can be measured.

    Thresholds are edges of 2^20 equal bins over [-1, 1], or from distance 0 to the largest that can be, and rates are
    counts at them. Cosines are products in float32 with an error of about 1e-6, half a bin. Distances are of products
    in float64, since those of float32 say nothing of small ones. Under cosine, a threshold that nothing reaches is inf.

    Raises InputError where there is no pair of one label, or none of different labels, and for rates outside (0, 1).
    """
    for rate in rates:
        if not 0 < rate < 1:
            raise InputError(f"rates of false matches must be between 0 and 1, got {rate}; 0.001 is one in a thousand.")
    genuine, impostors, edges = _histograms(queries, gallery, query_labels, gallery_labels, itself, excluded, memory)
    for count, what in ((genuine.sum(), "of one label"), (impostors.sum(), "of different labels")):
        if not count:
            raise InputError(
                f"there is no pair {what}, so there is nothing to find a threshold on; give items of at least two "
                "labels, and labels that at least two items share."
            )
    passed, found = _from_each_edge(impostors), _from_each_edge(genuine)
    fmr, fnmr = passed / passed[0], 1 - found / found[0]
    ends = 2 if queries is gallery and itself is not None else 1  # each pair was met from both
    n = int(passed[0]) // ends
    table = tuple(_threshold(rate, edges, fmr, fnmr, n) for rate in rates)
    equal = _crossing(fmr - fnmr)
    return Verification(
        similarity=queries.similarity,
        table=table,
        equal_error_rate=float(fmr[equal] + fnmr[equal]) / 2,
        equal_error_threshold=float(edges[equal]),
        recommended=_recommended(table, n),
        genuine=int(found[0]) // ends,
        impostors=n,
    )


def _threshold(rate: float, edges: Float64, fmr: Float64, fnmr: Float64, n: int) -> Threshold:
    if rate < 1 / n:
        return Threshold(rate, math.nan, math.nan, math.nan, math.nan)
    at = int(np.argmax(fmr <= rate))  # the first
    return Threshold(rate, float(edges[at]), float(fmr[at]), float(fnmr[at]), float(1 - fnmr[at]))


def _recommended(table: tuple[Threshold, ...], n: int) -> Threshold | None:
    rows = sorted((row for row in table if not math.isnan(row.threshold)), key=lambda row: row.rate)
    sure = [row for row in rows if row.rate * n >= 100]
    usual = [row for row in sure if row.rate == USUAL]
    best = usual or sure or rows[-1:]
    return best[0] if best else None


def _crossing(difference: Float64) -> int:
    """Where a falling function is nearest to zero: the middle of those places."""
    nearest = difference[np.argmin(np.abs(difference))]
    places = np.flatnonzero(difference == nearest)
    return int(places[len(places) // 2])


def _from_each_edge(counts: Int64) -> Int64:
    """How many pairs are as close as each edge or closer [BINS + 1]; none at the last."""
    return np.append(np.cumsum(counts[::-1])[::-1], 0)


def _histograms(
    queries: Points,
    gallery: Points,
    query_labels: Int64,
    gallery_labels: Int64,
    itself: Int64 | None,
    excluded: tuple[Int64, Int64] | None,
    memory: int,
) -> tuple[Int64, Int64, Float64]:
    """Pairs of one label and of different labels [BINS], farthest first, and the edges of the bins [BINS + 1]."""
    longest = 0.0 if queries.similarity == "cosine" else _longest(queries) + _longest(gallery)
    longest *= 1 + 1 / BINS  # what is as long as can be is within
    everything, genuine, omitted = (np.zeros(BINS, dtype=np.int64) for _ in range(3))
    step = max(1, math.isqrt(memory // BYTES))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        for begin in range(0, len(gallery), step):
            columns = slice(begin, min(begin + step, len(gallery)))
            bins = _bins(queries, rows, gallery, columns, longest)
            same = query_labels[rows, None] == gallery_labels[columns]
            left_out = np.zeros_like(same)
            if itself is not None:
                own = np.flatnonzero((itself[rows] >= columns.start) & (itself[rows] < columns.stop))
                left_out[own, itself[rows][own] - begin] = True
            if excluded is not None:
                left_out |= same & (excluded[0][rows, None] == excluded[1][columns])
            everything += np.bincount(bins.ravel(), minlength=BINS)
            genuine += np.bincount(bins[same & ~left_out], minlength=BINS)
            omitted += np.bincount(bins[left_out], minlength=BINS)
    return genuine, everything - genuine - omitted, _edges(queries, longest)


def _longest(points: Points) -> float:
    starts = range(0, len(points), BLOCK)
    return math.sqrt(max(float(_lengths(points.compared(slice(start, start + BLOCK))).max()) for start in starts))


def _lengths(rows: NDArray[np.float32]) -> Float64:
    """|x|^2 of each row."""
    return np.asarray(np.square(rows, dtype=np.float64).sum(axis=1))


def _bins(queries: Points, rows: slice, gallery: Points, columns: slice, longest: float) -> Int64:
    """The bin of each pair [b, c], from the farthest, 0, to the closest, BINS - 1.

        cosine      floor BINS (1 + cos) / 2,                      cos = 1 - |f_i - f_j|^2 / 2
        euclidean   BINS - 1 - floor BINS |x_i - x_j| / longest

    of what `Points.compared` gives: the mean that it takes off saves digits.
    """
    cosine = queries.similarity == "cosine"
    kind = np.float32 if cosine else np.float64
    a, b = queries.compared(rows), gallery.compared(columns)
    score: NDArray[Any] = np.matmul(a, b.T, dtype=kind)
    score *= -2
    score += _lengths(a)[:, None].astype(kind)
    score += _lengths(b).astype(kind)
    if cosine:
        score *= -BINS / 4
        score += BINS
        return np.clip(score.astype(np.int64), 0, BINS - 1)
    np.sqrt(np.maximum(score, 0, out=score), out=score)
    score *= BINS / longest
    return BINS - 1 - score.astype(np.int64)


def _edges(points: Points, longest: float) -> Float64:
    """The cosine from which on, or the distance below which, a pair is in each bin or a closer one [BINS + 1]."""
    if points.similarity == "cosine":
        return np.append(np.linspace(-1, 1, BINS + 1)[:-1], np.inf)
    return np.asarray(np.linspace(longest, 0, BINS + 1) / points.scale[0])
