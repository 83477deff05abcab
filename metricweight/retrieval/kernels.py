"""Compiled loops, and nothing else. Each is a loop over numbers that NumPy could only make by writing them down.

All of them release the interpreter's lock, so that threads run them side by side.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

exact = numba.njit(nogil=True, cache=True)  # floating point as written: one order of summation

Array = NDArray[Any]
Float64 = NDArray[np.float64]
Number = float | np.floating[Any]


LANES = 32  # partial sums of a sum over D, whatever the machine: entry k is added to sum k mod 32


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
def _summed(cosine: bool, a: Float64, row: Array, scale: float, sums: Float64) -> float:
    """Sum over k of a_k b_k (cosine) or (a_k - b_k)^2, b = scale row."""
    whole = len(a) - len(a) % LANES
    sums[:LANES] = 0.0
    if cosine:
        for begin in range(0, whole, LANES):
            for k in range(LANES):
                sums[k] += a[begin + k] * (np.float64(row[begin + k]) * scale)
        for k in range(whole, len(a)):
            sums[k - whole] += a[k] * (np.float64(row[k]) * scale)
    else:
        for begin in range(0, whole, LANES):
            for k in range(LANES):
                difference = a[begin + k] - np.float64(row[begin + k]) * scale
                sums[k] += difference * difference
        for k in range(whole, len(a)):
            difference = a[k] - np.float64(row[k]) * scale
            sums[k - whole] += difference * difference
    width = LANES // 2
    while width > 0:
        for k in range(width):
            sums[k] += sums[k + width]
        width //= 2
    return float(sums[0])


@exact
def key(
    cosine: bool, a: Float64, raw: Array, halves: Array, j: int, scale: float, squared: float, desk: Float64
) -> float:
    """What ranks b = scale times row j of a gallery for a [D]: larger is closer. Only comparable for one a.

        cosine      (a.b)^2 / |b|^2 with the sign of a.b: grows with a.b / |b|, needs no root, and is equal, to the
                    bit, for b and a multiple of b wherever the products are exact
        euclidean   -|a - b|^2

    squared  |b|^2
    desk     [LANES + D]  written on
    """
    if len(halves):
        load(raw, halves, j, scale, desk[LANES:])
        total = _summed(cosine, a, desk[LANES:], 1.0, desk)
    else:
        total = _summed(cosine, a, raw[j], scale, desk)
    return total * abs(total) / squared if cosine else -total


@exact
def squared_lengths(raw: Array, halves: Array, scale: Float64) -> Float64:
    """|scale x|^2 of each row."""
    found = np.empty(len(raw))
    row, sums = np.empty(raw.shape[1]), np.empty(LANES)
    for i in range(len(raw)):
        load(raw, halves, i, scale[i], row)
        found[i] = _summed(True, row, row, 1.0, sums)
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
    a, desk = np.empty(raw_a.shape[1]), np.empty(LANES + raw_a.shape[1])
    for n in range(len(rows)):
        i, j = rows[n], columns[n]
        if n == 0 or i != rows[n - 1]:
            load(raw_a, halves_a, i, scale_a[i], a)
        found[n] = key(cosine, a, raw_b, halves_b, j, scale_b[j], squared_b[j], desk)
    return found


fast = numba.njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})  # maxima may be taken in any order


class Side(NamedTuple):
    """Queries or a gallery of N items, in the order in which they are gone through.

    raw, halves, scale, squared  [.]  as `Points` have them, in the order they were given
    order                        [N]  which row of `raw` each item is
    group                        [N]  equal for items whose rows are equal in all values
    norm                         [N]  float32: length of the compared row
    half                         [N]  float32: norm^2 / 2
    """

    raw: Array
    halves: Array
    scale: Float64
    squared: Float64
    order: NDArray[np.int64]
    group: NDArray[np.int64]
    norm: NDArray[np.float32]
    half: NDArray[np.float32]


class Compared(NamedTuple):
    """Who is compared with whom, and how: by cosine or by distance, and how far off a float32 score may be."""

    cosine: bool
    rounding: float  # of rows of length one
    queries: Side
    gallery: Side


class Wanted(NamedTuple):
    """The positives of some queries, and what is counted for each. The queries are items `begin`, `begin` + 1, ...

    start        [B + 1]  the positives of the b-th of them are those from start[b] to start[b + 1]
    first, last  [B]      its label is that of gallery items first to last, which are never counted
    farthest     [B]      largest `norm` of its positives
    bound        [T]      float32 score of each positive, largest first
    position     [T]      which item of the gallery it is
    above, tied  [T]      negatives that are closer, and exactly as close
    """

    begin: int
    start: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    farthest: NDArray[np.float32]
    bound: NDArray[np.float32]
    position: NDArray[np.int64]
    above: NDArray[np.int64]
    tied: NDArray[np.int64]


class Desk(NamedTuple):
    """What one thread writes on while it settles comparisons in float64."""

    loaded: NDArray[np.int64]  # [1] which query lies in `query`
    query: Float64  # [D]
    sums: Float64  # [LANES + D]
    keys: Float64  # [columns] of the entries of the row at hand; NaN where not yet known


@fast
def tops(tile: Array, row_half: Array, column_half: Array, row_top: Array, column_top: Array) -> None:
    """The largest score in each row of a tile of products, and in each column."""
    column_top[:] = -np.inf
    for r in range(len(tile)):
        row_top[r] = _row_top(tile[r], column_half)
        _raise_tops(tile[r], row_half[r], column_top)


@fast
def _row_top(row: Array, half: Array) -> Number:
    top = np.float32(-np.inf)
    for j in range(len(row)):
        top = max(top, row[j] - half[j])
    return top


@fast
def _raise_tops(row: Array, half: float, tops: Array) -> None:
    for j in range(len(row)):
        tops[j] = max(tops[j], row[j] - half)


@fast
def _count_row(row: Array, half: Array, low: Number, high: Number) -> tuple[Any, Any]:
    """How many scores are above `high`, and how many are at least `low`."""
    sure = maybe = np.int32(0)
    for j in range(len(row)):
        score = row[j] - half[j]
        sure += np.int32(score > high)
        maybe += np.int32(score >= low)
    return sure, maybe


@fast
def _count_columns(row: Array, half: float, low: Array, high: Array, counts: Array) -> None:
    """The same for each column, one row at a time: the two counts are the lower and upper 16 bits."""
    for j in range(len(row)):
        score = row[j] - half
        counts[j] = np.uint32(counts[j] + np.uint32(score > high[j]) + (np.uint32(score >= low[j]) << np.uint32(16)))


@exact
def _slack(rounding: float, query: float, positive: float, entry: float) -> float:
    """How far two scores c_q.c_p - |c_p|^2/2 and c_q.c_e - |c_e|^2/2 may be off, by the lengths of the three rows."""
    return rounding * (query * (positive + entry) + (positive * positive + entry * entry) / 2)


@exact
def _entry_key(compared: Compared, query: int, entry: int, desk: Desk) -> float:
    if desk.loaded[0] != query:
        row = compared.queries.order[query]
        load(compared.queries.raw, compared.queries.halves, row, compared.queries.scale[row], desk.query)
        desk.loaded[0] = query
    row = compared.gallery.order[entry]
    return key(
        compared.cosine,
        desk.query,
        compared.gallery.raw,
        compared.gallery.halves,
        row,
        compared.gallery.scale[row],
        compared.gallery.squared[row],
        desk.sums,
    )


@exact
def _settle(
    scores: Array,
    half: Array,
    low: Number,
    high: Number,
    skip: tuple[int, int],
    begin: int,
    query: int,
    p: int,
    compared: Compared,
    wanted: Wanted,
    desk: Desk,
) -> None:
    """Decides in float64 which of the entries between `low` and `high` are closer than positive p, or as close.

    `begin`: the item of the gallery that the first score is of. `skip`: scores that do not count.
    """
    positive = wanted.position[p]
    own = np.nan
    for j in range(len(scores)):
        score = scores[j] - half[j]
        if score < low or score > high or skip[0] <= j < skip[1]:
            continue
        if compared.gallery.group[begin + j] == compared.gallery.group[positive]:
            wanted.tied[p] += 1
            continue
        if np.isnan(own):
            own = _entry_key(compared, query, positive, desk)
        if np.isnan(desk.keys[j]):
            desk.keys[j] = _entry_key(compared, query, begin + j, desk)
        wanted.above[p] += desk.keys[j] > own
        wanted.tied[p] += desk.keys[j] == own


@exact
def _overlap(first: int, last: int, begin: int, count: int) -> tuple[int, int]:
    """Which of `count` entries from item `begin` on are items first to last."""
    return min(max(first - begin, 0), count), min(max(last - begin, 0), count)


@exact
def count_rows(
    tile: Array,
    top: Array,
    longest: float,
    compared: Compared,
    wanted: Wanted,
    row_begin: int,
    column_begin: int,
    desk: Desk,
) -> None:
    """For a tile of products of queries (rows) with gallery items (columns): counts the negatives above each positive
    of these queries, one positive at a time."""
    columns = tile.shape[1]
    half = compared.gallery.half[column_begin : column_begin + columns]
    for r in range(len(tile)):
        query = row_begin + r
        b = query - wanted.begin
        skip = _overlap(wanted.first[b], wanted.last[b], column_begin, columns)
        settled = False
        for p in range(wanted.start[b], wanted.start[b + 1]):
            slack = _slack(
                compared.rounding, compared.queries.norm[query], compared.gallery.norm[wanted.position[p]], longest
            )
            low, high = np.float32(wanted.bound[p] - slack), np.float32(wanted.bound[p] + slack)
            if top[r] < low:
                continue
            sure, maybe = _count_row(tile[r], half, low, high)
            if skip[0] < skip[1]:
                less = _count_row(tile[r][skip[0] : skip[1]], half[skip[0] : skip[1]], low, high)
                sure -= less[0]
                maybe -= less[1]
            wanted.above[p] += sure
            if maybe > sure:
                if not settled:
                    desk.keys[:columns] = np.nan
                    settled = True
                _settle(tile[r], half, low, high, skip, column_begin, query, p, compared, wanted, desk)


@exact
def count_columns(
    tile: Array,
    top: Array,
    longest: float,
    compared: Compared,
    wanted: Wanted,
    row_begin: int,
    column_begin: int,
    desk: Desk,
) -> None:
    """The same tile the other way: its first columns, whose `top` is given, are the queries, its rows the gallery."""
    rows = tile.shape[0]
    half = compared.gallery.half[row_begin : row_begin + rows]
    width = len(top)
    low, high = np.empty(width, np.float32), np.empty(width, np.float32)
    counts = np.empty(width, np.uint32)
    column = np.empty(rows, np.float32)
    first_b = column_begin - wanted.begin
    most = 0
    for c in range(width):
        most = max(most, wanted.start[first_b + c + 1] - wanted.start[first_b + c])
    for k in range(most):  # the k-th positive of all these queries
        alive = False
        for c in range(width):
            low[c] = high[c] = np.inf
            p = wanted.start[first_b + c] + k
            if p < wanted.start[first_b + c + 1]:
                norm = compared.queries.norm[column_begin + c]
                slack = _slack(compared.rounding, norm, compared.gallery.norm[wanted.position[p]], longest)
                if top[c] >= np.float32(wanted.bound[p] - slack):
                    low[c], high[c] = wanted.bound[p] - slack, wanted.bound[p] + slack
                    alive = True
        if not alive:
            continue
        counts[:] = 0
        for r in range(rows):
            _count_columns(tile[r][:width], half[r], low, high, counts)
        for c in range(width):
            sure, maybe = np.int64(counts[c] & np.uint32(0xFFFF)), np.int64(counts[c] >> np.uint32(16))
            if maybe == 0:
                continue
            b = first_b + c
            p = wanted.start[b] + k
            skip = _overlap(wanted.first[b], wanted.last[b], row_begin, rows)
            for r in range(skip[0], skip[1]):
                score = tile[r, c] - half[r]
                sure -= score > high[c]
                maybe -= score >= low[c]
            wanted.above[p] += sure
            if maybe > sure:
                for r in range(rows):
                    column[r] = tile[r, c]
                desk.keys[:rows] = np.nan
                query = column_begin + c
                _settle(column, half, low[c], high[c], skip, row_begin, query, p, compared, wanted, desk)


CELLS = 16  # to each positive, where entries are sorted in among many


@fast
def _cells_of(row: Array, half: Array, floor: Number, steps: Number, top: Number, cells: NDArray[np.int32]) -> None:
    """Which of equal cells each score falls in: 0 below the floor, at most `top`."""
    for j in range(len(row)):
        cell = (row[j] - half[j] - floor) * steps + np.float32(1)
        cell = cell if cell > 0 else np.float32(0)
        cells[j] = np.int32(cell if cell < top else top)


@exact
def _tally(
    cells: NDArray[np.int32], dirty: NDArray[np.uint8], tally: NDArray[np.int32], chosen: NDArray[np.int32]
) -> int:
    """Counts the entries of each cell, and lists those of the dirty ones; returns how many these are."""
    count = 0
    for j in range(len(cells)):
        cell = cells[j]
        tally[cell] += 1
        chosen[count] = j
        count += dirty[cell]
    return count


@fast
def _sum(counts: NDArray[np.int32]) -> np.signedinteger[Any]:
    total = np.int32(0)
    for m in range(len(counts)):
        total += counts[m]
    return total


@exact
def count_binned(
    tile: Array,
    longest: float,
    compared: Compared,
    wanted: Wanted,
    row_begin: int,
    column_begin: int,
    desk: Desk,
) -> None:
    """As `count_rows`, for queries of many positives: each entry finds its place among the sorted positives.

    The range of their scores is cut into equal cells. Those with a positive in them, or within rounding, are dirty:
    each entry there is compared with the positives. All others are only counted.
    """
    columns = tile.shape[1]
    half = compared.gallery.half[column_begin : column_begin + columns]
    most = 0
    for r in range(len(tile)):
        b = row_begin + r - wanted.begin
        most = max(most, wanted.start[b + 1] - wanted.start[b])
    bound, own, place = np.empty(most + 1, np.float32), np.empty(most), np.empty(most + 1, np.int64)
    size = CELLS * most + 2
    dirty, tally = np.zeros(size, np.uint8), np.zeros(size, np.int32)
    first, last, marked = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    cells, chosen = np.empty(columns, np.int32), np.empty(columns + 1, np.int32)
    for r in range(len(tile)):
        query = row_begin + r
        b = query - wanted.begin
        start, count = wanted.start[b], wanted.start[b + 1] - wanted.start[b]
        if count == 0:
            continue
        for k in range(count):  # smallest first
            bound[k] = wanted.bound[start + count - 1 - k]
        bound[count] = np.inf
        own[:count] = np.nan
        place[: count + 1] = 0
        slack = np.float32(_slack(compared.rounding, compared.queries.norm[query], wanted.farthest[b], longest))
        floor = bound[0] - slack
        top = np.float32(CELLS * count + 1)
        steps = (top - np.float32(2)) / max(bound[count - 1] + slack - floor, np.float32(1e-30))

        marks = 0  # dirty cells so far, in order
        for k in range(count):
            lower = np.int32(min(max((bound[k] - slack - floor) * steps + np.float32(1), np.float32(0)), top))
            upper = np.int32(min(max((bound[k] + slack - floor) * steps + np.float32(1), np.float32(0)), top))
            for cell in range(lower, upper + 1):
                if marks == 0 or cell > marked[marks - 1]:
                    dirty[cell] = 1
                    first[cell] = k
                    marked[marks] = cell
                    marks += 1
                last[cell] = k + 1
        _cells_of(tile[r], half, floor, steps, top, cells)
        skip = _overlap(wanted.first[b], wanted.last[b], column_begin, columns)
        cells[skip[0] : skip[1]] = 0
        dirty[0] = 0
        count_chosen = _tally(cells, dirty, tally, chosen)
        for n in range(marks):
            after = marked[n + 1] if n + 1 < marks else np.int32(top) + 1
            place[last[marked[n]]] += _sum(tally[marked[n] + 1 : after])
            dirty[marked[n]] = 0
        tally[: np.int32(top) + 1] = 0

        for n in range(count_chosen):
            j = chosen[n]
            score = tile[r, j] - half[j]
            k, upto = first[cells[j]], last[cells[j]]
            while k < upto:  # k: how many positives have a smaller score
                middle = (k + upto) // 2
                if bound[middle] < score:
                    k = middle + 1
                else:
                    upto = middle
            while k > 0 and score - bound[k - 1] <= slack:
                k -= 1
            place[k] += 1
            entry = column_begin + j
            found = np.nan
            while k < count and bound[k] - score <= slack:
                p = start + count - 1 - k
                positive = wanted.position[p]
                if compared.gallery.group[entry] == compared.gallery.group[positive]:
                    wanted.tied[p] += 1
                else:
                    if np.isnan(own[k]):
                        own[k] = _entry_key(compared, query, positive, desk)
                    if np.isnan(found):
                        found = _entry_key(compared, query, entry, desk)
                    wanted.above[p] += found > own[k]
                    wanted.tied[p] += found == own[k]
                k += 1
        higher = 0
        for k in range(count - 1, -1, -1):
            higher += place[k + 1]
            wanted.above[start + count - 1 - k] += higher


@exact
def settle_pairs(
    compared: Compared,
    wanted: Wanted,
    first: int,
    rows: NDArray[np.int64],
    entries: NDArray[np.int64],
    lowest: NDArray[np.int64],
    highest: NDArray[np.int64],
) -> None:
    """Decides in float64 how entries stand to positives lowest to highest (smallest score first) of the queries
    first + rows of those that are wanted."""
    size = compared.gallery.raw.shape[1]
    desk = Desk(np.full(1, -1), np.empty(size), np.empty(LANES + size), np.empty(0))
    for n in range(len(rows)):
        b = first + rows[n]
        query = wanted.begin + b
        found = np.nan
        for k in range(lowest[n], min(highest[n], wanted.start[b + 1] - wanted.start[b])):
            p = wanted.start[b + 1] - 1 - k
            positive = wanted.position[p]
            if compared.gallery.group[entries[n]] == compared.gallery.group[positive]:
                wanted.tied[p] += 1
                continue
            if np.isnan(found):
                found = _entry_key(compared, query, entries[n], desk)
            own = _entry_key(compared, query, positive, desk)
            wanted.above[p] += found > own
            wanted.tied[p] += found == own


@exact
def pack_positives(
    products: Array,
    half: Array,
    itself: NDArray[np.int64],
    query_cameras: NDArray[np.int64],
    gallery_cameras: NDArray[np.int64],
    packed: NDArray[np.uint64],
) -> None:
    """Products of queries [B] with the items of their label [n] as numbers that sort by score, largest first: the
    score above, which item it is below. What is no positive, as the query itself, sorts last.

    itself                          [B]          which of the items is the query, if any
    query_cameras, gallery_cameras  [B], [n]     or empty: items of the query's camera are no positives
    packed                          [B, n]       written
    """
    bits = np.empty(1, np.float32)
    for b in range(products.shape[0]):
        for j in range(products.shape[1]):
            if j == itself[b] or (len(query_cameras) > 0 and query_cameras[b] == gallery_cameras[j]):
                packed[b, j] = np.uint64(0xFFFFFFFFFFFFFFFF)
                continue
            bits[0] = products[b, j] - half[j]
            number = bits.view(np.uint32)[0]
            rising = number ^ np.uint32(0xFFFFFFFF) if number >> np.uint32(31) else number | np.uint32(0x80000000)
            packed[b, j] = (np.uint64(rising ^ np.uint32(0xFFFFFFFF)) << np.uint64(32)) | np.uint64(j)


@exact
def unpack_positives(
    packed: NDArray[np.uint64],
    start: NDArray[np.int64],
    first: int,
    bound: NDArray[np.float32],
    position: NDArray[np.int64],
) -> None:
    """Sorted rows of `pack_positives` as bounds and positions, row b from start[b] on."""
    bits = np.empty(1, np.uint32)
    for b in range(packed.shape[0]):
        for k in range(start[b + 1] - start[b]):
            number = packed[b, k]
            rising = np.uint32(number >> np.uint64(32)) ^ np.uint32(0xFFFFFFFF)
            bits[0] = rising & np.uint32(0x7FFFFFFF) if rising >> np.uint32(31) else rising ^ np.uint32(0xFFFFFFFF)
            bound[start[b] + k] = bits.view(np.float32)[0]
            position[start[b] + k] = first + np.int64(number & np.uint64(0xFFFFFFFF))


@exact
def nearest_first(start: NDArray[np.int64], above: NDArray[np.int64], tied: NDArray[np.int64]) -> None:
    """Puts the positives of each query in order, by what was counted; only the nearly equal are out of it."""
    for b in range(len(start) - 1):
        for p in range(start[b] + 1, start[b + 1]):
            a, t = above[p], tied[p]
            k = p - 1
            while k >= start[b] and (above[k] > a or (above[k] == a and tied[k] > t)):
                above[k + 1], tied[k + 1] = above[k], tied[k]
                k -= 1
            above[k + 1], tied[k + 1] = a, t


@exact
def ranks_of_distances(
    distances: Float64,
    query_labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
    itself: NDArray[np.int64],
    query_cameras: NDArray[np.int64],
    gallery_cameras: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """`Ranks` of queries [b] whose distances to the whole gallery [b, G] are known. Cameras may be empty."""
    rows, columns = distances.shape
    start, ranked = np.zeros(rows + 1, np.int64), np.zeros(rows, np.int64)
    role = np.empty((rows, columns), np.int8)  # 1 positive, 0 negative, -1 neither
    for b in range(rows):
        positives = 0
        for j in range(columns):
            role[b, j] = gallery_labels[j] == query_labels[b]
            if j == itself[b] or (role[b, j] and len(query_cameras) > 0 and query_cameras[b] == gallery_cameras[j]):
                role[b, j] = -1
            positives += role[b, j] == 1
            ranked[b] += role[b, j] >= 0
        start[b + 1] = start[b] + positives
    above, tied = np.zeros(start[-1], np.int64), np.zeros(start[-1], np.int64)
    for b in range(rows):
        own = np.sort(distances[b][role[b] == 1])
        others = np.sort(distances[b][role[b] == 0])
        below = upto = 0
        for p in range(len(own)):
            while below < len(others) and others[below] < own[p]:
                below += 1
            while upto < len(others) and others[upto] <= own[p]:
                upto += 1
            above[start[b] + p] = below
            tied[start[b] + p] = upto - below
    return start, above, tied, ranked


@exact
def ranks_of_lists(
    positive: NDArray[np.bool_],
    negative: NDArray[np.bool_],
    keys: Float64,
    positives: NDArray[np.int64],
    ranked: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """`Ranks` of queries [Q] of which lists of neighbours [Q, K] are known, nearest first: a positive that is on no
    list comes after all negatives.

    positives, ranked  [Q]  how many there are, on the list or not
    """
    start = np.zeros(len(positives) + 1, np.int64)
    start[1:] = np.cumsum(positives)
    above, tied = np.zeros(start[-1], np.int64), np.zeros(start[-1], np.int64)
    for q in range(len(positives)):
        p = start[q]
        closer = 0
        begin = 0
        while begin < keys.shape[1]:
            end = begin
            own = others = 0
            while end < keys.shape[1] and keys[q, end] == keys[q, begin]:
                own += positive[q, end]
                others += negative[q, end]
                end += 1
            above[p : p + own] = closer
            tied[p : p + own] = others
            p += own
            closer += others
            begin = end
        above[p : start[q + 1]] = ranked[q] - positives[q]
    return start, above, tied, ranked
