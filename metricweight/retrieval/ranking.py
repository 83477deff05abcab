"""Exact ranks of all positives of every query, without a full sort and without the Q x G matrix.

A positive p of query q has the rank (negatives that are closer than p) + (positives that are). So it is enough to
count, in blocks of products that are thrown away, the entries above each positive; and when the queries are the
gallery, a block serves its rows as queries and its columns too.

    c_q.c_g - |c_g|^2 / 2  =  (|c_q|^2 - |c_q - c_g|^2) / 2        larger is closer; c are rows of `Points.compared`

**Float32 products decide what they can.** They change in the last bits with the block and with the engine, so an entry
within their rounding of a positive is compared again in float64 in one order of summation (`Points.key`), and what is
exactly as close is decided there. Ranks therefore depend on no engine, block size, thread or number of processes.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.retrieval import kernels
from metricweight.retrieval.kernels import Compared, Desk, Side, Wanted
from metricweight.retrieval.points import BLOCK, Points, readable

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

MANY = 48  # positives from which on entries are sorted in among them, rather than compared with each
TILE = 768  # rows and columns of a block of products; below 2^16, which counts of columns are kept in
WIDE = (64, 32768)  # the same where positives are many
ROUNDING = 1e-6  # of a float32 score of rows of length one, up to 1,024 numbers; measured: 4e-7 at most, of signs too
BYTES_PER_ITEM = 250  # order, groups, lengths, and what sorting them needs
CLASS = 2**18  # products of a class with itself at a time


class Ranks(NamedTuple):
    """Where the positives of some queries stand. All that a metric of a ranking needs.

    start    [Q + 1]  the positives of query q are those from start[q] to start[q + 1], T in all; nearest first
    above    [T]      how many negatives are strictly closer than this positive
    tied     [T]      how many negatives are exactly as close
    ranked   [Q]      how many items the query ranks: its positives and its negatives

    The m-th positive of a query (m from 1) has a rank from m + above to m + above + tied. Positives of one query with
    the same `above` and the same `tied` > 0 are as close as each other and as those negatives: they share the places
    from (positives before them) + above + 1 on, in an order that is chance. Positives with tied = 0 have a certain
    place each, up to the order among themselves, which no metric sees.
    """

    start: Ints
    above: Ints
    tied: Ints
    ranked: Ints


@dataclass(frozen=True, eq=False)
class Search:
    """Who looks for whom.

    queries, gallery                [Q], [G]  of one `together`; the same object where the queries are the gallery
    query_labels, gallery_labels    [Q], [G]  positives are the gallery items of the query's label ...
    itself                          [Q]       ... but for the query itself, at this row of the gallery (-1: not in it;
                                              with its own label and camera),
    query_cameras, gallery_cameras  [Q], [G]  ... and, where these are given, those of its own camera. Neither is ranked
    """

    queries: Points
    gallery: Points
    query_labels: Ints
    gallery_labels: Ints
    itself: Ints
    query_cameras: Ints | None = None
    gallery_cameras: Ints | None = None

    @cached_property
    def counts(self) -> tuple[Ints, Ints]:
        """How many positives each query has, and how many items it ranks: [Q] both."""
        own = _shared([self.query_labels], [self.gallery_labels])
        if self.query_cameras is not None and self.gallery_cameras is not None:
            left_out = _shared([self.query_labels, self.query_cameras], [self.gallery_labels, self.gallery_cameras])
        else:
            left_out = (self.itself >= 0).astype(np.int64)
        return own - left_out, len(self.gallery) - left_out


class Share(NamedTuple):
    """Which part of the blocks this process counts, and how the counts of all are added up."""

    rank: int = 0
    processes: int = 1
    add_up: Callable[[Ints], None] = lambda counts: None


def ranks(
    search: Search,
    *,
    memory: int = 2**30,
    threads: int | None = None,
    share: Share | None = None,
    device: str | None = None,
    reserved: int = 0,
    progress: Callable[[float], None] = lambda done: None,
) -> Iterator[tuple[Ints, Ranks]]:
    """Batches of queries, as rows of `search.queries`, and their ranks; each query comes once, in no order.

    memory    bytes that may be used beyond the embeddings as they were given
    device    None: this machine's cores. A torch device: there, with the gallery held there
    reserved  bytes of the memory that are used otherwise
    progress  is told, now and then, which share of the work is done

    Time: Q G D multiplications, half of that where the queries are the gallery and nobody has more than MANY
    positives; the counting adds little. Raises InputError where the memory is too small for any block.
    """
    yield from _Count(search, memory, threads or _threads(), share or Share(), device, reserved, progress).batches()


def _threads() -> int:
    import torch

    return torch.get_num_threads()


class _Order(NamedTuple):
    """Items sorted by label, those of large classes first: a class is items first[c] to first[c] + size[c]."""

    gallery: Ints  # [G] rows
    queries: Ints  # [S] rows of the queries that have a positive
    first: Ints  # [S] for each of these, where its class begins in the gallery
    last: Ints
    positives: Ints  # [S]
    without: Ints  # rows of the queries that have none
    ranked: Ints  # [Q] by row


def _sorted(search: Search) -> _Order:
    labels, own_class, size = np.unique(search.gallery_labels, return_inverse=True, return_counts=True)
    by_size = np.argsort(-size, kind="stable")
    place = np.empty_like(by_size)  # of each class
    place[by_size] = np.arange(len(by_size))
    order = np.argsort(place[own_class], kind="stable")
    first = np.concatenate([[0], np.cumsum(size[by_size])])

    found = np.minimum(np.searchsorted(labels, search.query_labels), len(labels) - 1)
    known = labels[found] == search.query_labels
    rank = np.where(known, place[found], 0)
    positives, ranked = search.counts
    rows = np.flatnonzero(positives)
    rows = rows[np.argsort(rank[rows], kind="stable")]
    return _Order(
        order, rows, first[rank[rows]], first[rank[rows] + 1], positives[rows], np.flatnonzero(positives == 0), ranked
    )


def _shared(queries: list[Ints], gallery: list[Ints]) -> Ints:
    """How many gallery items agree with each query [Q] in all of some numbers."""
    both = np.concatenate([np.stack(queries, axis=1), np.stack(gallery, axis=1)])
    _, group = np.unique(both, axis=0, return_inverse=True)
    group = group.reshape(-1)
    count = len(queries[0])
    return np.bincount(group[count:], minlength=int(group.max()) + 1)[group[:count]].astype(np.int64)


class _Count:
    """One pass over all blocks."""

    def __init__(
        self,
        search: Search,
        memory: int,
        threads: int,
        share: Share,
        device: str | None,
        reserved: int,
        progress: Callable[[float], None],
    ) -> None:
        self.search, self.threads, self.share, self.progress = search, threads, share, progress
        self.device = device
        self.blocks = itertools.count()
        self.stopped = False
        self.on_device: Tensor | None = None
        self.order = order = _sorted(search)
        self.bytes_per_positive = 64 + 16 * threads
        self._plan(memory, self._least(reserved))
        self.many = int(np.searchsorted(-order.positives, -MANY, side="left"))  # queries with more than MANY come first
        same = (
            search.queries is search.gallery
            and len(order.queries)
            and np.array_equal(order.gallery[: len(order.queries)], order.queries)
        )
        self.both_sides = bool(same) and device is None and int(order.positives[self.many :].sum()) <= self.batch
        self.points = search.gallery.compared(order.gallery) if self.held else None
        self.gallery = self._side(search.gallery, order.gallery, self.points)
        own = self.points[: len(order.queries)] if same and self.points is not None else None
        self.own = own
        self.compared = Compared(
            search.queries.similarity == "cosine",
            ROUNDING * math.sqrt(max(1.0, search.gallery.size / 1024)),
            self._side(search.queries, order.queries, own),
            self.gallery,
        )
        few = len(order.queries) - self.many
        self.done, self.work = 0, len(order.queries) * len(order.gallery) - (few * few // 2 if self.both_sides else 0)

    def _least(self, reserved: int) -> int:
        """Bytes without which nothing can be counted."""
        order, size = self.order, self.search.gallery.size
        most = int(order.positives.max(initial=0))
        items = BYTES_PER_ITEM * (len(self.search.queries) + len(order.gallery))
        block = 4 * max(TILE * TILE, WIDE[0] * WIDE[1])
        reading = 3 * 8 * BLOCK * size + 8 * TILE * size
        thread = reading + 12 * max(most, CLASS) + (4 * size + 17 * kernels.CELLS) * most + 16 * WIDE[1]
        return reserved + items + self.threads * (block + reading + thread) + self.bytes_per_positive * most

    def _plan(self, memory: int, least: int) -> None:
        """How many positives are counted at a time, whether the gallery is held, and if not, how many rows are."""
        if memory < least:
            most = int(self.order.positives.max(initial=0))
            raise InputError(
                f"memory of {_bytes(memory)} is too small for these {len(self.search.queries):,} queries of "
                f"{self.search.gallery.size} numbers, with up to {most:,} positives; give {_bytes(least)} at least."
            )
        row, spare = 4 * self.search.gallery.size, memory - least
        self.batch = spare // 4 // self.bytes_per_positive
        self.held = len(self.order.gallery) * row <= spare // 2
        self.rows = len(self.order.queries) if self.held else max(TILE, spare // 2 // row // TILE * TILE)

    def _side(self, points: Points, order: Ints, rows: Floats | None) -> Side:
        group = points.fingerprints.view(np.int64).reshape(-1, 2)[:, 0]
        squares = np.empty(len(order))
        for begin in range(0, len(order), BLOCK):
            some = points.compared(order[begin : begin + BLOCK]) if rows is None else rows[begin : begin + BLOCK]
            squares[begin : begin + BLOCK] = np.einsum("nd,nd->n", some, some, dtype=np.float64)
        norm, half = np.sqrt(squares).astype(np.float32), (squares / 2).astype(np.float32)
        return Side(*readable(points.raw), points.scale, points.squared, order, group[order], norm, half)

    def batches(self) -> Iterator[tuple[Ints, Ranks]]:
        order = self.order
        if len(order.without):
            none = np.empty(0, dtype=np.int64)
            start = np.zeros(len(order.without) + 1, dtype=np.int64)
            yield order.without, Ranks(start, none, none, order.ranked[order.without])
        ends = np.cumsum(order.positives)
        begin = 0
        from threadpoolctl import threadpool_limits

        device = self.device
        with ThreadPoolExecutor(self.threads) as self.pool, self._stopped_in_the_end():
            while begin < len(order.queries):
                before = ends[begin - 1] if begin else 0
                end = max(begin + 1, int(np.searchsorted(ends, before + self.batch, side="right")))
                if begin < self.many:
                    end = min(end, self.many)
                with threadpool_limits(1, "blas"):  # each of our threads multiplies by itself
                    wanted = self._wanted(begin, end)
                    self._count(wanted, begin, end) if device is None else self._count_on(device, wanted, end)
                self.share.add_up(wanted.above)
                self.share.add_up(wanted.tied)
                kernels.nearest_first(wanted.start, wanted.above, wanted.tied)
                rows = order.queries[begin:end]
                yield rows, Ranks(wanted.start, wanted.above, wanted.tied, order.ranked[rows])
                begin = end

    @contextmanager
    def _stopped_in_the_end(self) -> Iterator[None]:
        """No thread begins another block after an error, or Ctrl-C."""
        try:
            yield
        finally:
            self.stopped = True

    def _compared(self, points: Points, held: Floats | None, order: Ints, begin: int, end: int) -> Floats:
        return points.compared(order[begin:end]) if held is None else held[begin:end]

    def _query_rows(self, begin: int, end: int) -> Floats:
        return self._compared(self.search.queries, self.own, self.order.queries, begin, end)

    def _gallery_rows(self, begin: int, end: int) -> Floats:
        return self._compared(self.search.gallery, self.points, self.order.gallery, begin, end)

    def _wanted(self, begin: int, end: int) -> Wanted:
        """The positives of queries begin to end, with their scores."""
        order, search = self.order, self.search
        start = np.concatenate([[0], np.cumsum(order.positives[begin:end])])
        wanted = Wanted(
            begin, start, order.first[begin:end], order.last[begin:end], np.empty(end - begin, np.float32),
            np.empty(start[-1], np.float32),
            *(np.zeros(start[-1], np.int64) for _ in range(3)),
        )  # fmt: skip
        place = np.empty(len(order.gallery) + 1, dtype=np.int64)
        place[order.gallery] = np.arange(len(order.gallery))
        place[-1] = -1
        itself = place[search.itself[order.queries[begin:end]]]
        edges = np.flatnonzero(np.diff(wanted.first, prepend=-1, append=-1)).tolist()
        nobody = np.empty(0, dtype=np.int64)

        def score(class_begin: int, class_end: int) -> None:
            """Queries class_begin to class_end of one class, with all items of it."""
            first, last = int(wanted.first[class_begin]), int(wanted.last[class_begin])
            members = self._gallery_rows(first, last)
            cameras = nobody if search.gallery_cameras is None else search.gallery_cameras[order.gallery[first:last]]
            step = max(1, CLASS // (last - first))
            for b in range(class_begin, class_end, step):
                to = min(b + step, class_end)
                rows = order.queries[begin + b : begin + to]
                products = self._query_rows(begin + b, begin + to) @ members.T
                packed = np.empty(products.shape, np.uint64)
                own = nobody if search.query_cameras is None else search.query_cameras[rows]
                half = self.gallery.half[first:last]
                kernels.pack_positives(products, half, itself[b:to] - first, own, cameras, packed)
                packed.sort(axis=1)
                kernels.unpack_positives(packed, start[b : to + 1], first, wanted.bound, wanted.position)

        list(self.pool.map(score, edges[:-1], edges[1:]))
        np.maximum.reduceat(self.gallery.norm[wanted.position], start[:-1], out=wanted.farthest)
        return wanted

    def _count(self, wanted: Wanted, begin: int, end: int) -> None:
        """Goes through the blocks of queries begin to end with the gallery, each thread a block at a time."""
        many = begin < self.many
        height, width = WIDE if many else (TILE, TILE)
        if many and not self.held:
            width = min(width, max(TILE, self.rows // 2))
        benches = [_Bench(wanted, self.search.gallery.size, height, width, n) for n in range(self.threads)]
        lock = threading.Lock()
        for rows_begin in range(begin, end, self.rows):
            rows_end = min(rows_begin + self.rows, end)
            rows = self._query_rows(rows_begin, rows_end)
            tiles = self._tiles(rows_begin, rows_end, height, width, both=self.both_sides and not many)

            def work(bench: _Bench, rows: Floats = rows, first: int = rows_begin, tiles: Tiles = tiles) -> None:
                while True:
                    with lock:
                        tile = None if self.stopped else next(tiles, None)
                    if tile is None:
                        return
                    count_tile(tile, bench, rows[tile.row - first : tile.row_end - first])
                    with lock:
                        self.done += (tile.row_end - tile.row) * (tile.column_end - tile.column)
                        self.progress(min(1.0, self.done * self.share.processes / self.work))

            def count_tile(tile: _Tile, bench: _Bench, rows: Floats) -> None:
                products = bench.products(rows, tile, self._gallery_rows)
                (self._many if many else self._few)(products, tile, bench)

            list(self.pool.map(work, benches))
        for bench in benches[1:]:
            np.add(wanted.above, bench.wanted.above, out=wanted.above)
            np.add(wanted.tied, bench.wanted.tied, out=wanted.tied)

    def _tiles(self, begin: int, end: int, height: int, width: int, both: bool) -> Iterator["_Tile"]:
        """This process's blocks of queries begin to end. `both`: not those that are the other side of one."""
        for column, column_end in _grid(len(self.order.gallery), width, seam=self.many if both else 0):
            for row in range(begin, end, height):
                if both and self.many <= column < row:
                    break
                if self._is_mine():
                    yield _Tile(row, min(row + height, end), column, column_end, both and self.many <= column != row)

    def _few(self, products: Floats, tile: "_Tile", bench: "_Bench") -> None:
        """Counts for queries of few positives, which the columns may be too."""
        norm, half = self.gallery.norm, self.gallery.half
        given = (self.compared, bench.wanted, tile.row, tile.column)
        row_half = half[tile.row : tile.row_end] if tile.both else np.zeros(len(products), np.float32)
        rows, columns = (np.empty(count, np.float32) for count in products.shape)
        kernels.tops(products, row_half, half[tile.column : tile.column_end], rows, columns)
        kernels.count_rows(products, rows, norm[tile.column : tile.column_end].max(), *given, bench.desk)
        queries = min(tile.column_end, len(self.order.queries)) - tile.column if tile.both else 0
        if queries > 0:
            longest = norm[tile.row : tile.row_end].max()
            kernels.count_columns(products, columns[:queries], longest, *given, bench.desk)

    def _many(self, products: Floats, tile: "_Tile", bench: "_Bench") -> None:
        """Counts for queries of many positives."""
        longest = self.gallery.norm[tile.column : tile.column_end].max()
        given = (self.compared, bench.wanted, tile.row, tile.column)
        kernels.count_binned(products, longest, *given, bench.desk)

    def _count_on(self, device: str, wanted: Wanted, end: int) -> None:
        import torch

        from metricweight.retrieval.device import count

        if self.on_device is None:
            rows = self._gallery_rows(0, len(self.order.gallery))
            self.on_device = torch.from_numpy(rows).to(device)

        def progress(rows: int) -> None:
            self.done += rows * len(self.order.gallery)
            self.progress(min(1.0, self.done / self.work))

        count(wanted, end, self._query_rows, self.on_device, self.compared, self._is_mine, progress)

    def _is_mine(self) -> bool:
        """Whether this process counts the next block."""
        return next(self.blocks) % self.share.processes == self.share.rank


class _Tile(NamedTuple):
    """A block: queries row to row_end, gallery items column to column_end; `both`: the items are queries too."""

    row: int
    row_end: int
    column: int
    column_end: int
    both: bool


Tiles = Iterator[_Tile]


class _Bench:
    """What a thread counts with: room for a block, counts of its own, and the items at hand."""

    def __init__(self, wanted: Wanted, size: int, height: int, width: int, number: int) -> None:
        self.buffer = np.empty(height * width, np.float32)
        self.desk = Desk(np.full(1, -1), np.empty(size), np.empty(kernels.LANES + size), np.empty(max(height, width)))
        counts = {name: np.zeros_like(getattr(wanted, name)) for name in ("above", "tied")} if number else {}
        self.wanted = wanted._replace(**counts)
        self.column, self.items = -1, np.empty((0, size), np.float32)

    def products(self, rows: Floats, tile: _Tile, gallery_rows: Callable[[int, int], Floats]) -> Floats:
        """Of all rows with all items of the block."""
        if tile.column != self.column:
            self.column, self.items = tile.column, gallery_rows(tile.column, tile.column_end)
        found = self.buffer[: len(rows) * len(self.items)].reshape(len(rows), -1)
        np.matmul(rows, self.items.T, out=found)
        return found


def _grid(count: int, step: int, seam: int) -> list[tuple[int, int]]:
    """Blocks of `step`, none of which goes across the seam."""
    edges = [*range(0, seam, step), *range(seam, count, step), count]
    return list(itertools.pairwise(edges))


def _bytes(count: int) -> str:
    return f"{math.ceil(count / 2**20)} MiB" if count >= 2**20 else f"{count} bytes"
