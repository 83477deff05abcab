"""Nearest neighbours, exact and approximate, and k-means. The only file that knows faiss.

Engines propose candidates by float32 distances; what is returned is chosen and ordered by the float64 keys of
`Points.key`. So an exact search gives the same answer whatever engine made the distances.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from metricweight.checks import InputError, nearest
from metricweight.files import write_arrays
from metricweight.retrieval.points import Points
from metricweight.similarity import full_precision

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
# rows [b, D] and a number m to the m least squared distances of each row, [b, m], ascending, and which rows they are to
Engine = Callable[[Float32, int], tuple[Float32, Int64]]

INDEXES = ("exact", "ivf_flat", "ivf_pq", "hnsw")

EXTRA = 32  # candidates beyond those that are asked for, at first
TILE = 2**15  # rows of the gallery that torch compares at a time
SEED = 1234  # of everything random in an index
CODES = 256  # of each part of a product quantiser


class Neighbours(NamedTuple):
    """Nearest first; of exactly equal keys, the smaller id first.

    ids   [Q, K]  rows of the gallery; -1 where there are fewer than K
    keys  [Q, K]  `Points.key` of them; -inf where the id is -1
    """

    ids: Int64
    keys: Float64


@dataclass(frozen=True, eq=False)
class Index:
    """An approximate index of a gallery.

    kind         ivf_flat, ivf_pq or hnsw
    similarity   of the gallery
    fingerprint  of the gallery's embeddings
    mean, scale  of the gallery when it was indexed: other queries, compared later, move `Points.mean`
    faiss        what faiss made of it; may have more columns than the embeddings, which are zero
    """

    kind: str
    similarity: str
    fingerprint: str
    mean: Float64
    scale: float
    faiss: Any

    def candidates(self, points: Points, count: int) -> Int64:
        """The rows [b, count] that the index holds to be nearest to each of some queries; -1 where it finds fewer."""
        return cast("Int64", self.faiss.search(_columns(self._placed(points).compared(), self.faiss.d), count)[1])

    def _placed(self, points: Points) -> Points:
        scale = np.full(len(points), self.scale) if self.similarity == "euclidean" else points.scale
        return replace(points, mean=self.mean, scale=scale)


def neighbours(
    queries: Points,
    gallery: Points,
    k: int,
    *,
    itself: Int64 | None = None,
    index: Index | None = None,
    device: str | None = None,
    memory: int = 2**30,
) -> Neighbours:
    """The k items of the gallery with the largest keys, for each query.

    queries, gallery  of one call of `together`
    itself            [Q]: the row of the gallery that is the query itself, which is never returned; -1: none
    index             None: exact, else those among the candidates that the index returns
    device            of an exact search, as torch names it; None: the CPU, by faiss. The answer is the same
    memory            bytes to work in, about, beside the answer

    Exact search fetches some more than k by float32 distances s, and for a query x is done when

        s(last fetched) - s(k-th) > 2 e,     e = c (|x| + |y|)^2 >= |s - |x - y|^2|,     |y| <= 1.1 (|x| + s(k-th)^1/2)

    since nothing further away can then be among the k nearest. Otherwise it fetches twice as many, up to the whole
    gallery. Where more than k items are as near as each other, those with the smallest ids are returned.

    Raises InputError for points that were not brought together, a k below 1, `itself` that does not fit, and an index
    of another gallery.
    """
    _check(queries, gallery, k, itself, index, device)
    itself = np.full(len(queries), -1) if itself is None else itself
    found = Neighbours(np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf))
    if index is None:
        _exact(found, queries, gallery, itself, _engine(gallery, device, memory), memory)
    else:
        count = min(len(gallery), (4 * k if index.kind == "ivf_pq" else k + 1) + EXTRA)  # codes of a PQ are coarse
        for rows in _blocks(np.arange(len(queries)), memory // (64 * count + 8 * gallery.size)):
            ids = index.candidates(_only(queries, rows), count)
            _choose(found, queries, gallery, rows, ids, (ids >= 0) & (ids != itself[rows, None]))
    return found


def build(gallery: Points, kind: str, *, memory: int = 2**30) -> Index:
    """An approximate index. What it misses differs by embeddings, and `overlap` says how much.

        ivf_flat  n = 4 G^1/2 cells, or G / 39 if that is fewer; n / 8 of them are searched, 8 at least
        ivf_pq    the same cells; rows are kept as codes of up to 64 bytes. Smallest and coarsest
        hnsw      a graph with 32 neighbours per item, searched with a beam of 128. Its edges depend on which thread is
                  first, so two builds may differ

    memory    bytes to work in, about, beside the index and the 64 n rows, 16384 at least, that cells are fitted to

    Raises InputError for another kind, and for a gallery that is too small for ivf_pq.
    """
    if kind not in INDEXES[1:]:
        if kind == "exact":
            raise InputError("exact search needs no index; search without one.")
        raise InputError(f"an index is {', '.join(INDEXES[1:])}, got {kind!r}{nearest(kind, INDEXES)}")
    if kind == "ivf_pq" and len(gallery) < CODES:
        raise InputError(
            f"ivf_pq needs a gallery of {CODES} at least to learn its codes from, got {len(gallery)}; "
            "use exact search, which is fast at that size."
        )
    cells = max(1, min(int(4 * len(gallery) ** 0.5), len(gallery) // 39))
    made = _unfitted(kind, gallery.size, cells)
    if kind != "hnsw":
        fitted = min(len(gallery), 64 * max(cells, CODES))
        drawn = np.sort(np.random.default_rng(SEED).choice(len(gallery), fitted, replace=False))
        made.train(_columns(gallery.compared(drawn), made.d))
    for rows in _blocks(np.arange(len(gallery)), memory // (8 * made.d)):
        made.add(_columns(gallery.compared(rows), made.d))
    return Index(kind, gallery.similarity, _fingerprint(gallery), gallery.mean, float(gallery.scale[0]), made)


def save(index: Index, path: Path) -> None:
    """Writes an index to one .npz file, whole or not at all."""
    import faiss

    write_arrays(
        path,
        kind=index.kind,
        similarity=index.similarity,
        fingerprint=index.fingerprint,
        mean=index.mean,
        scale=np.asarray(index.scale),
        index=faiss.serialize_index(index.faiss),
    )


def load(path: Path, gallery: Points) -> Index:
    """An index from its file.

    Raises InputError for a file that is missing, damaged or something else, and for an index of other embeddings than
    those of `gallery`, in value, order or dtype, or of another similarity.
    """
    import faiss

    if not path.is_file():
        raise InputError(f"{path} is a folder; give a file in it." if path.is_dir() else f"{path} is not there.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            kind, similarity, fingerprint = (str(arrays[name]) for name in ("kind", "similarity", "fingerprint"))
            made = faiss.deserialize_index(arrays["index"])
            index = Index(kind, similarity, fingerprint, arrays["mean"], float(arrays["scale"]), made)
    except Exception:  # a damaged file fails in many ways, all of them meaning the same
        raise InputError(f"{path} is damaged or not an index that was saved here; build it again.") from None
    if index.similarity != gallery.similarity:
        raise InputError(
            f"{path} was built for {index.similarity} similarity, and {gallery.similarity} is asked for; "
            "build another, or ask for that similarity."
        )
    if index.fingerprint != _fingerprint(gallery):
        raise InputError(f"{path} was built for other embeddings than these; build an index of these.")
    return index


def overlap(
    index: Index,
    queries: Points,
    gallery: Points,
    k: int,
    *,
    itself: Int64 | None = None,
    sample: int = 1000,
    seed: int = 0,
) -> float:
    """The share of the k nearest neighbours that an index finds, for `sample` queries at random: its recall.

    One that is found counts if its key is at least the k-th largest, so that of items that are exactly as near any
    will do. 1 where no query has any neighbour. It belongs beside every number that an approximate index yields.
    """
    _check(queries, gallery, k, itself, index, None)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(queries))[:sample])
    some, own = _only(queries, drawn), None if itself is None else itself[drawn]
    exact = neighbours(some, gallery, k, itself=own)
    approximate = neighbours(some, gallery, k, itself=own, index=index)
    there = exact.ids >= 0
    least = np.where(there, exact.keys, np.inf).min(axis=1, keepdims=True)
    return float((approximate.keys >= least).sum() / there.sum()) if there.any() else 1.0


def kmeans(points: Float32, k: int, *, seed: int = 1234, iterations: int = 20) -> Int64:
    """The cluster [N] of each row of `points` [N, D], by Lloyd's iterations from k rows at random.

    Every row takes part in every iteration. One start; so a number that comes of it has the chance of `seed` in it.
    Some clusters may be empty. Raises InputError for a k that is not from 1 to N.
    """
    import faiss

    if not 1 <= k <= len(points):
        raise InputError(f"k-means makes from 1 to {len(points)} clusters of {len(points)} points, got k = {k}.")
    found = faiss.Kmeans(
        points.shape[1],
        k,
        niter=iterations,
        nredo=1,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=2**30,  # else more points than this many per cluster would be left out
    )
    found.train(points)
    return np.asarray(found.assign(points)[1], dtype=np.int64)


def _check(
    queries: Points, gallery: Points, k: int, itself: Int64 | None, index: Index | None, device: str | None
) -> None:
    if queries.similarity != gallery.similarity or not np.array_equal(queries.mean, gallery.mean):
        raise InputError("queries and gallery were not brought together; make both by one call of together().")
    if k < 1:
        raise InputError(f"k, the number of neighbours, is 1 at least, got {k}.")
    if itself is not None and (
        itself.shape != (len(queries),)
        or itself.dtype.kind not in "iu"
        or (len(itself) and not -1 <= itself.min() <= itself.max() < len(gallery))
    ):
        raise InputError(
            f"itself must be [{len(queries)}] rows of the gallery from 0 to {len(gallery) - 1}, or -1, "
            f"got {list(itself.shape)} of {itself.dtype}."
        )
    if index is None:
        return
    if device is not None:
        raise InputError("an index is searched on the CPU; give an index or a device, not both.")
    given = (len(gallery), gallery.size, gallery.similarity)
    indexed = (index.faiss.ntotal, len(index.mean), index.similarity)
    if given != indexed:
        raise InputError(
            f"the index is of {indexed[0]} x {indexed[1]} by {indexed[2]}, the gallery {given[0]} x {given[1]} by "
            f"{given[2]}; build an index of this gallery."
        )


def _unfitted(kind: str, size: int, cells: int) -> Any:
    import faiss

    made: Any
    if kind == "hnsw":
        made = faiss.index_factory(size, "HNSW32,Flat")
        made.hnsw.efConstruction, made.hnsw.efSearch = 80, 128
        return made
    if kind == "ivf_flat":
        made = faiss.index_factory(size, f"IVF{cells},Flat")
    else:
        parts = min(64, -(-size // 4))  # of equal size, so columns are added if need be; np: not polysemous
        made = faiss.index_factory(-(-size // parts) * parts, f"IVF{cells},PQ{parts}np")
        made.pq.cp.seed, made.pq.cp.min_points_per_centroid, made.pq.cp.max_points_per_centroid = SEED, 1, 64
    made.cp.seed, made.cp.min_points_per_centroid = SEED, 1
    made.nprobe = min(cells, max(8, cells // 8))
    return made


def _exact(found: Neighbours, queries: Points, gallery: Points, itself: Int64, engine: Engine, memory: int) -> None:
    k, left, count = found.ids.shape[1], np.arange(len(queries)), found.ids.shape[1] + 1 + EXTRA
    while len(left):
        count, unsettled = min(count, len(gallery)), []
        for rows in _blocks(left, memory // 4 // (64 * count + 8 * gallery.size)):
            x = queries.compared(rows)
            distances, ids = engine(x, count)
            last = distances[:, -1].copy()
            distances[ids == itself[rows, None]] = np.inf
            kth = np.partition(distances, k - 1)[:, k - 1] if k <= count else np.full(len(rows), np.float32(np.inf))
            limit = kth + 2 * _rounding(x, kth)
            settled = (last > limit) | (count == len(gallery))
            near = (distances <= limit[:, None]) & np.isfinite(distances)
            _choose(found, queries, gallery, rows[settled], ids[settled], near[settled])
            unsettled.append(rows[~settled])
        left, count = np.concatenate(unsettled), 2 * count


def _rounding(x: Float32, kth: Float32) -> Float64:
    """How far off float32 distances may be among those that matter to rows x [b, D]: e of `neighbours`, [b].

        c = 2^-24 (8 + D / 4)

    What the rounding of two norms and of a sum of D products comes to at worst: if every rounding goes the same way.
    What vanishes in float32 is added.
    """
    size = x.shape[1]
    reach = 2.1 * np.linalg.norm(x.astype(np.float64), axis=1) + 1.1 * np.sqrt(np.maximum(kth.astype(np.float64), 0))
    return np.asarray(2.0**-24 * (8 + size / 4) * reach**2 + 4 * size * float(np.finfo(np.float32).tiny))


def _choose(
    found: Neighbours, queries: Points, gallery: Points, rows: Int64, ids: Int64, listed: NDArray[np.bool_]
) -> None:
    """Writes the candidates `ids` [b, m] of queries `rows` [b] that are listed and have the largest keys to `found`."""
    ids = np.sort(np.where(listed, ids, len(gallery)), axis=1)
    at, place = np.nonzero(ids < len(gallery))
    keys = np.full(ids.shape, -np.inf)
    keys[at, place] = _keys(queries, rows[at], gallery, ids[at, place])
    first = np.argsort(-keys, axis=1, kind="stable")[:, : found.ids.shape[1]]
    chosen = np.take_along_axis(keys, first, axis=1)
    found.keys[rows, : first.shape[1]] = chosen
    found.ids[rows, : first.shape[1]] = np.where(np.isneginf(chosen), -1, np.take_along_axis(ids, first, axis=1))


def _keys(queries: Points, rows: Int64, gallery: Points, columns: Int64) -> Float64:
    """`Points.key` of pairs, by as many threads as torch uses."""
    threads = min(torch.get_num_threads(), 1 + len(rows) // 10_000)
    with ThreadPoolExecutor(threads) as pool:
        some = np.array_split(rows, threads), np.array_split(columns, threads)
        return np.concatenate(list(pool.map(lambda a, b: queries.key(a, gallery, b), *some)))


def _engine(gallery: Points, device: str | None, memory: int) -> Engine:
    if device is None:
        return _by_faiss(gallery, memory // 4)
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"torch cannot use device {device!r} ({str(error).splitlines()[0]}); try 'cpu'.") from None
    return _by_torch(gallery, place, memory // 4)


def _by_faiss(gallery: Points, memory: int) -> Engine:
    import faiss

    blocks = list(_blocks(np.arange(len(gallery)), memory // (4 * gallery.size)))

    def index_of(rows: Int64) -> Any:
        index = faiss.IndexFlatL2(gallery.size)
        index.add(gallery.compared(rows))
        return index

    kept = [index_of(rows) for rows in blocks] if len(blocks) == 1 else None

    def engine(x: Float32, count: int) -> tuple[Float32, Int64]:
        found = np.empty((len(x), 0), dtype=np.float32), np.empty((len(x), 0), dtype=np.int64)
        for number, rows in enumerate(blocks):
            index = kept[number] if kept else index_of(rows)
            distances, ids = index.search(x, min(count, len(rows)))
            found = _least(np.hstack([found[0], distances]), np.hstack([found[1], ids + rows[0]]), count)
        return found

    return engine


def _least(distances: Float32, ids: Int64, count: int) -> tuple[Float32, Int64]:
    first = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(distances, first, axis=1), np.take_along_axis(ids, first, axis=1)


def _by_torch(gallery: Points, device: torch.device, memory: int) -> Engine:
    blocks = list(_blocks(np.arange(len(gallery)), min(TILE, memory // (4 * gallery.size))))

    def there(rows: Int64) -> torch.Tensor:
        return torch.from_numpy(gallery.compared(rows)).to(device)

    fits = 4 * len(gallery) * gallery.size <= memory
    kept = [there(rows) for rows in blocks] if fits else None
    height = max(1, memory // (8 * len(blocks[0])))

    @torch.no_grad()
    def engine(x: Float32, count: int) -> tuple[Float32, Int64]:
        parts = [torch.from_numpy(x[start : start + height]).to(device) for start in range(0, len(x), height)]
        found = [(part.new_empty(len(part), 0), part.new_empty(len(part), 0, dtype=torch.int64)) for part in parts]
        with full_precision(device.type):
            for number, rows in enumerate(blocks):
                y = kept[number] if kept else there(rows)
                squared = (y * y).sum(1)
                for i, part in enumerate(parts):
                    block = torch.addmm(squared, part, y.T, alpha=-2).add_((part * part).sum(1, keepdim=True))
                    distances, ids = block.topk(min(count, len(y)), largest=False)
                    distances, ids = (
                        torch.cat([found[i][0], distances], 1),
                        torch.cat([found[i][1], ids + int(rows[0])], 1),
                    )
                    distances, first = distances.topk(min(count, distances.shape[1]), largest=False)
                    found[i] = distances, ids.gather(1, first)
        return torch.cat([d for d, _ in found]).cpu().numpy(), torch.cat([i for _, i in found]).cpu().numpy()

    return engine


def _blocks(rows: Int64, height: int) -> Iterator[Int64]:
    height = max(1, height)
    return (rows[start : start + height] for start in range(0, len(rows), height))


def _only(points: Points, rows: Int64) -> Points:
    return replace(points, raw=points.raw[rows], scale=points.scale[rows], squared=points.squared[rows])


def _columns(rows: Float32, size: int) -> Float32:
    """Rows with zero columns added up to `size`: they change no distance."""
    return rows if rows.shape[1] == size else np.pad(rows, ((0, 0), (0, size - rows.shape[1])))


def _fingerprint(gallery: Points) -> str:
    found = hashlib.sha256(f"{gallery.raw.dtype.str} {gallery.raw.shape}".encode())
    found.update(gallery.fingerprints.tobytes())
    return found.hexdigest()
