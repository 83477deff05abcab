"""`evaluate`: embeddings in, report out."""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metricweight.checks import InputError
from metricweight.retrieval import kernels
from metricweight.retrieval.metrics import optimistic, per_query, pessimistic
from metricweight.retrieval.points import Array, Similarity, fingerprints, together
from metricweight.retrieval.protocol import Protocol, Roles, named, roles
from metricweight.retrieval.queries import ITEMS, MEANS, OTHERS
from metricweight.retrieval.ranking import Ranks, Search, Share, ranks
from metricweight.retrieval.report import EvaluationWarning, Report
from metricweight.retrieval.uncertainty import intervals

if TYPE_CHECKING:
    from metricweight.retrieval.verification import Verification

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Missing = Literal["skip", "zero", "error"]

WIDE_BAND = 0.001  # between all ties broken against the queries and for them: a tenth of a point
CLUSTERING = ("nmi", "ami", "pairwise_f1")
BYTES_PER_QUERY = 600  # some twenty metrics, three times
MEASURING = 2**26  # bytes that metrics of ranks are computed in
LISTED = 2048  # neighbours at most that an approximate index is asked for beyond the largest K


class Rerank(NamedTuple):
    """k-reciprocal re-ranking with these numbers; `rerank.reranked` says what they are."""

    k1: int = 20
    k2: int = 6
    weight: float = 0.3


class Expand(NamedTuple):
    """Query expansion by k neighbours, weighted by cosine^alpha; `expansion.expanded` has the formula."""

    k: int
    alpha: float = 0.0


def evaluate(
    embeddings: Array | Tensor,
    labels: Array | Tensor | Sequence[Any],
    *,
    gallery: Array | Tensor | None = None,
    gallery_labels: Array | Tensor | Sequence[Any] | None = None,
    cameras: Array | Tensor | Sequence[int] | None = None,
    gallery_cameras: Array | Tensor | Sequence[int] | None = None,
    queries: Array | Tensor | Sequence[bool] | None = None,
    query_embeddings: Array | Tensor | None = None,
    multi_query: bool = False,
    similarity: Similarity = "cosine",
    protocol: str | Protocol = "self",
    ks: Sequence[int] | None = None,
    missing: Missing = "skip",
    memory: str | int = "1GiB",
    rerank: Rerank | None = None,
    expand: Expand | None = None,
    index: str | None = None,
    index_file: Path | None = None,
    clustering: bool = False,
    thresholds: bool = False,
    seen: str | None = None,
    distributed: bool = False,
    progress: Callable[[float], None] = lambda done: None,
) -> Report:
    """How well queries find their own kind, exactly, by the rules of a protocol.

        recall@K     mean over queries of [any of the first K has the query's label], also called CMC at rank K
        precision@K  mean of (hits among the first K) / K
        r_precision  mean of (hits among the first R) / R,            R = how many positives the query has
        map@r        mean of 1/R sum_{k <= R} hit_k precision@k
        map          mean of 1/R sum_k hit_k precision@k over the whole list; map_trapezoid: mean of precision@k
                     and precision@(k-1) instead
        minp, mrr    mean of R / rank of the last positive, of 1 / rank of the first

    embeddings       [N, D]  NumPy array, memory map or tensor, any number type
    labels           [N]     integers of any size, or strings
    gallery          [G, D]  embeddings that are searched, `gallery_labels` [G] theirs. None: `embeddings` hold all,
                             and `queries` [N], true or false, says which of them are queries
    cameras          [N]     integers, and `gallery_cameras` [G], where the protocol leaves a query's own camera out
    query_embeddings [Q, D]  what queries search with instead, in the order of the queries among `embeddings`; for
                     image-to-video the first frame of each, while its whole tracklet stands in the gallery. Who is
                     whom (a query itself, junk, cameras) is decided by `embeddings` as ever
    multi_query      each query searches with the direction of the mean of the unit-length embeddings of all items
                     with its label and camera, itself among them: of those that are given, queries and gallery,
                     whatever the protocol then leaves out. (The code of Market-1501 takes the mean of pictures that
                     are in neither.) For protocols that leave a query's own camera out
    similarity       "cosine", or "euclidean" (smaller distance first)
    protocol         a name in `protocol.PROTOCOLS`, or a `Protocol` of your own
    ks               the K of recall and precision, each at most the size of the smallest gallery; None: those of the
                     protocol that are
    missing          queries without a positive are left out of the means (skip), count 0 (zero) or are refused (error)
    memory           bytes that may be used beyond the embeddings, such as "1GiB" or "500MB"
    rerank, expand   re-ranking and query expansion; the report says so, beside every number
    index            None: exact. ivf_flat, ivf_pq, hnsw: an approximate index, of which the report gives the recall
                     against exact search; then only what its lists can tell is reported
    index_file       where the index is kept: loaded if it is there, else built and saved
    clustering       also how k-means clusters of the gallery agree with its labels: nmi, ami, pairwise_f1
    thresholds       also from which similarity on two items are best called the same
    seen             what an item is the embedding of, such as "all frames, mean": the report says so
    distributed      share the counting among the processes that torch.distributed has joined. All of them must call
                     this, with the same arguments, and all get the same report
    progress         is told, now and then, which share of the search is done

    **Ties.** Where items are exactly as close as each other, a number is its mean over all their orders; the report
    has what it would be with all ties for, and all against, the queries, and warns where these differ by more than a
    tenth of a point. Half precision is compared in float32, near-equal comparisons are settled in float64: the ranks
    are the same whatever the memory, the threads and the number of processes.

    Raises InputError (a ValueError) for shapes that do not fit, a K beyond the gallery, labels that are neither
    integers nor strings, no query with a positive, and embeddings that are not finite, have zero norm (cosine) or are
    collapsed: these would give a number that means nothing.
    """
    rules, budget = named(protocol), as_bytes(memory)
    if similarity not in ("cosine", "euclidean"):
        raise InputError(f"similarity is 'cosine' or 'euclidean', got {similarity!r}.")
    if missing not in ("skip", "zero", "error"):
        raise InputError(f"missing is 'skip', 'zero' or 'error', got {missing!r}.")
    if rerank is not None and index is not None:
        raise InputError("re-ranking looks at all pairs, an approximate index does not; use one of the two.")
    if index is None and index_file is not None:
        raise InputError("index_file keeps an approximate index; say which kind with index='hnsw', or another.")
    if multi_query and similarity != "cosine":
        raise InputError(f"a query of several pictures is a mean of directions, so it needs cosine, got {similarity}.")
    cast = roles(
        rules, embeddings, labels, gallery, gallery_labels, cameras, gallery_cameras, queries, query_embeddings,
        multi_query,
    )  # fmt: skip
    if rerank is not None and query_embeddings is not None and (cast.itself >= 0).any():
        raise InputError(
            f"by protocol {rules.name} a query's own item is in the gallery, and re-ranking would show the query what "
            "is near that; re-rank by a protocol with gallery=rest, or without query_embeddings."
        )
    search = _search(cast, similarity)
    positives, ranked = search.counts
    valid = positives > 0
    _refuse_missing(valid, cast, rules, missing)
    smallest = int(ranked[valid].min())
    wanted = _checked_ks(rules.ks, smallest, all_=False) if ks is None else _checked_ks(ks, smallest)
    given = search
    if expand is not None:
        search = _expanded(search, cast, expand, budget)
    searching = OTHERS if query_embeddings is not None else MEANS if multi_query else ITEMS
    device = str(embeddings.device) if isinstance(embeddings, Tensor) and embeddings.device.type != "cpu" else None
    share = _share() if distributed else None
    found = _ranked(search, rerank, index, index_file, max(wanted), budget, device, share, progress)
    values, ties = _measured(found.ranks, len(search.queries), wanted)
    if found.listed is not None:
        values, ties = _told_by_lists(values, ties, found.listed, int(positives.max()))
    if missing == "zero":
        values = {name: np.where(valid, value, 0) for name, value in values.items()}
    counted = len(valid) if missing == "zero" else int(valid.sum())
    bounds = {name: (low / counted, high / counted) for name, (low, high) in ties.items()}
    stamp = {
        "protocol": _asked(rules, wanted, searching, similarity, missing, rerank, expand, found),
        "data": _data(cast, search, valid),
        "made": _made(cast, given, found, seen),
    }
    metrics = {name: float(np.nanmean(value)) for name, value in values.items()}
    if clustering:
        metrics |= _clustered(search, cast, rules)
    report = Report(
        metrics=metrics,
        intervals=intervals(values, search.query_labels),
        ties=bounds,
        stamp=stamp,
        notes=[*_without(rules.ks if ks is None else (), smallest), *_notes(cast, bounds, stamp)],
        shown=_shown(rules, wanted, metrics),
        thresholds=_verified(search, budget) if thresholds else None,
        rows=cast.rows,
        labels=cast.classes[search.query_labels],
        positives=positives,
        values=values,
    )
    for note in report.notes:
        warnings.warn(note, EvaluationWarning, stacklevel=2)
    return report


def as_bytes(memory: str | int) -> int:
    """1GiB, 500 MB, 2e9 or a number of bytes."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*([a-z]*)\s*", str(memory).lower())
    if not match or match[2] not in units:
        raise InputError(f"memory is a size such as 1GiB or 500MB, got {memory!r}.")
    return int(float(match[1]) * units[match[2]])


def _search(cast: Roles, similarity: Similarity) -> Search:
    points, gallery = together(cast.queries, cast.gallery, similarity)
    return Search(
        points, gallery, cast.query_labels, cast.gallery_labels, cast.itself, cast.query_cameras, cast.gallery_cameras
    )


def _expanded(search: Search, cast: Roles, expand: Expand, memory: int) -> Search:
    """The same search with queries that are means of themselves and what they find."""
    from metricweight.retrieval.expansion import expanded

    queries = expanded(search.queries, search.gallery, *expand, itself=search.itself, memory=memory)
    raw = cast.queries if cast.gallery is None else cast.gallery
    points, gallery = together(queries, raw, search.queries.similarity)
    return replace(search, queries=points, gallery=gallery)


class _Found(NamedTuple):
    """Ranks in batches of queries; for an approximate index how many neighbours it listed, and its recall."""

    ranks: Iterator[tuple[Ints, Ranks]]
    listed: int | None = None
    recall: float | None = None
    kind: str | None = None


def _ranked(
    search: Search,
    rerank: Rerank | None,
    index: str | None,
    index_file: Path | None,
    k: int,
    memory: int,
    device: str | None,
    share: Share | None,
    progress: Callable[[float], None],
) -> _Found:
    if rerank is not None:
        from metricweight.retrieval.rerank import reranked

        k1, k2, weight = rerank
        blocks = reranked(
            search.queries, search.gallery, k1=k1, k2=k2, weight=weight, itself=_as_it_searches(search), memory=memory
        )
        return _Found(_ranks_of_distances(search, blocks, progress))
    if index is not None:
        return _listed(search, _index(search, index, index_file, memory), k, memory)
    reserved = BYTES_PER_QUERY * len(search.queries) + MEASURING
    return _Found(ranks(search, memory=memory, share=share, device=device, reserved=reserved, progress=progress))


def _as_it_searches(search: Search) -> Ints:
    """The row of the gallery that is the query itself [Q], with the embedding that it searches with; else -1."""
    if search.queries is search.gallery:
        return search.itself
    same = search.queries.fingerprints == search.gallery.fingerprints[search.itself]
    return np.where(same, search.itself, -1)


def _index(search: Search, kind: str, file: Path | None, memory: int) -> Any:
    from metricweight.retrieval.search import build, load, save

    if file is None or not file.exists():
        made = build(search.gallery, kind, memory=memory)
        if file is not None:
            save(made, file)
        return made
    found = load(file, search.gallery)
    if found.kind != kind:
        raise InputError(f"{file} holds an index of kind {found.kind}, and {kind} was asked for; choose another file.")
    return found


def _share() -> Share:
    """This process's share of the counting."""
    import torch
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise InputError("distributed=True needs torch.distributed.init_process_group to have been called.")
    place = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"

    def add_up(counts: Ints) -> None:
        total = torch.from_numpy(counts).to(place)
        torch.distributed.all_reduce(total)
        counts[:] = total.cpu().numpy()

    return Share(torch.distributed.get_rank(), torch.distributed.get_world_size(), add_up)


def _ranks_of_distances(
    search: Search, blocks: Iterable[tuple[slice, Floats]], progress: Callable[[float], None]
) -> Iterator[tuple[Ints, Ranks]]:
    """Ranks from whole rows of distances to the gallery."""
    nobody = np.empty(0, dtype=np.int64)
    for rows, distances in blocks:
        cameras = nobody if search.query_cameras is None else search.query_cameras[rows]
        found = kernels.ranks_of_distances(
            distances,
            search.query_labels[rows],
            search.gallery_labels,
            search.itself[rows],
            cameras,
            nobody if search.gallery_cameras is None else search.gallery_cameras,
        )
        progress(rows.stop / len(search.queries))
        yield np.arange(rows.start, rows.stop), Ranks(*found)


def _listed(search: Search, index: Any, k: int, memory: int) -> _Found:
    """Ranks from the lists of an approximate index. Positives that are not on them come after all negatives."""
    from metricweight.retrieval.search import neighbours, overlap

    positives, ranked = search.counts
    camera_room = int((len(search.gallery) - ranked).max()) if search.query_cameras is not None else 0
    count = max(k, min(int(positives.max(initial=0)), LISTED))
    ids, keys = neighbours(
        search.queries, search.gallery, min(len(search.gallery), count + camera_room), itself=search.itself,
        index=index, memory=memory,
    )  # fmt: skip
    recall = overlap(index, search.queries, search.gallery, k, itself=search.itself)
    there = ids >= 0
    own = there & (search.gallery_labels[ids] == search.query_labels[:, None])
    negative, positive = there & ~own, own
    if search.query_cameras is not None and search.gallery_cameras is not None:
        positive = own & (search.gallery_cameras[ids] != search.query_cameras[:, None])
    found = kernels.ranks_of_lists(positive, negative, keys, positives, ranked)
    return _Found(iter([(np.arange(len(ids)), Ranks(*found))]), count, recall, index.kind)


def _measured(
    found: Iterable[tuple[Ints, Ranks]], queries: int, ks: Sequence[int]
) -> tuple[dict[str, Floats], dict[str, tuple[float, float]]]:
    """Each metric of each query [Q], and its sums with ties against and for them."""
    values: dict[str, Floats] = {}
    worst: dict[str, Floats] = {}
    best: dict[str, Floats] = {}
    for rows, of in found:
        expected = per_query(of, ks)
        tied = bool(of.tied.any())
        bounds = [per_query(broken(of), ks) if tied else expected for broken in (pessimistic, optimistic)]
        for table, some in zip((values, worst, best), (expected, *bounds), strict=True):
            for name, value in some.items():
                table.setdefault(name, np.full(queries, np.nan))[rows] = value
    return values, {name: (float(np.nansum(worst[name])), float(np.nansum(best[name]))) for name in values}


def _told_by_lists(
    values: dict[str, Floats], ties: dict[str, tuple[float, float]], listed: int, largest: int
) -> tuple[dict[str, Floats], dict[str, tuple[float, float]]]:
    """What lists of so many neighbours tell: not where a positive stands that is on none of them."""
    told = [name for name in values if "@" in name and name != "map@r"]
    if largest <= listed:
        told += ["map@r", "r_precision"]
    return {name: values[name] for name in told}, {name: ties[name] for name in told}


def _refuse_missing(valid: NDArray[np.bool_], cast: Roles, rules: Protocol, missing: Missing) -> None:
    if not valid.any():
        gallery = cast.queries if cast.gallery is None else cast.gallery
        raise InputError(
            f"no query has a positive: none of the {len(valid):,} labels is found again in the gallery "
            f"of {len(gallery):,} by protocol {rules.name}."
        )
    if missing == "error" and not valid.all():
        raise InputError(
            f"{int((~valid).sum()):,} of {len(valid):,} queries have no positive, the first in row "
            f"{cast.rows[np.flatnonzero(~valid)[0]]}; missing='skip' leaves them out, 'zero' counts them as 0."
        )


def _checked_ks(ks: Sequence[int], smallest: int, all_: bool = True) -> list[int]:
    """In order, each once; `smallest` is how many items a query ranks at least. Not `all_`: without those above it."""
    given = list(ks) if isinstance(ks, Iterable) else []
    if not given or any(isinstance(k, bool) or not isinstance(k, (int, np.integer)) for k in given):
        raise InputError(f"ks must be whole numbers such as (1, 2, 4, 8), got {ks!r}.")
    checked = sorted({int(k) for k in given})
    if not all_:
        checked = [k for k in checked if k <= smallest] or [1]
    if checked[0] < 1 or checked[-1] > smallest:
        raise InputError(
            f"Recall@K was asked for K = {', '.join(map(str, checked))}, but a query has {smallest:,} others to be "
            f"compared with; use ks from 1 to {smallest}."
        )
    return checked


def _shown(rules: Protocol, ks: Sequence[int], metrics: dict[str, float]) -> tuple[str, ...]:
    """The metrics of the table."""
    asked = rules.shown
    if rules.average_precision not in asked:
        asked = tuple(rules.average_precision if name in ("map", "map_trapezoid") else name for name in asked)
    names: list[str] = []
    for name in (*asked, *CLUSTERING):
        names += [f"recall@{k}" for k in ks] if name == "recall" else [name]
    return tuple(name for name in names if name in metrics)


def _clustered(search: Search, cast: Roles, rules: Protocol) -> dict[str, float]:
    """Of the gallery, which for protocol self is all there is, without distractors, which are no class."""
    from metricweight.retrieval.clustering import clustering

    distractors = np.isin(cast.classes.astype(str), [str(label) for label in rules.distractors])
    rows = np.flatnonzero(~distractors[search.gallery_labels])
    return clustering(search.gallery, search.gallery_labels, rows=rows)


def _verified(search: Search, memory: int) -> "Verification":
    from metricweight.retrieval.verification import verification

    cameras = None
    if search.query_cameras is not None and search.gallery_cameras is not None:
        cameras = search.query_cameras, search.gallery_cameras
    return verification(
        search.queries, search.gallery, search.query_labels, search.gallery_labels, itself=search.itself,
        excluded=cameras, memory=memory,
    )  # fmt: skip


def _asked(
    rules: Protocol,
    ks: Sequence[int],
    searching: str,
    similarity: str,
    missing: str,
    rerank: Rerank | None,
    expand: Expand | None,
    found: _Found,
) -> dict[str, Any]:
    """The half of the stamp that two numbers must share to be compared."""
    return {
        "name": rules.name,
        "gallery": rules.gallery,
        "same_camera": rules.same_camera,
        "junk": [str(label) for label in rules.junk],
        "distractors": [str(label) for label in rules.distractors],
        "average_precision": rules.ap,
        "recall": "any hit among the first K",
        "ties": "expected over random order",
        "ks": list(ks),
        "queries": searching,
        "similarity": similarity,
        "missing": missing,
        "rerank": None if rerank is None else rerank._asdict(),
        "expand": None if expand is None else expand._asdict(),
        "index": found.kind or "exact",
    }


def _data(cast: Roles, search: Search, valid: NDArray[np.bool_]) -> dict[str, Any]:
    """Which items the numbers are of."""
    named = hashlib.sha256()
    for part in (search.query_labels, search.gallery_labels, search.query_cameras, search.gallery_cameras, cast.itself):
        named.update(b"-" if part is None else np.ascontiguousarray(part).data)
    named.update("\n".join(map(str, cast.classes.tolist())).encode())
    return {
        "queries": len(valid),
        "valid_queries": int(valid.sum()),
        "queries_without_positives": int((~valid).sum()),
        "gallery": int(search.counts[1].max()) if search.query_cameras is None else len(search.gallery),
        "classes": len(np.unique(search.query_labels)),
        **{f"left_out: {name}": count for name, count in cast.left_out.items()},
        "labels_sha256": named.hexdigest()[:16],
    }


def _made(cast: Roles, search: Search, found: _Found, seen: str | None) -> dict[str, Any]:
    """What may differ between two numbers that are compared."""
    tables = [search.queries] if cast.gallery is None else [search.queries, search.gallery]
    rows = [table.fingerprints for table in tables]
    hashed = hashlib.sha256(b"".join(row.tobytes() for row in rows))
    return {
        **({} if seen is None else {"seen": seen}),
        "embedding_size": search.gallery.size,
        "dtype": str(cast.queries.dtype),
        "duplicates_across_labels": _duplicates_across_labels(rows, cast),
        "embeddings_sha256": hashed.hexdigest()[:16],
        **({} if found.recall is None else {"index_recall": round(found.recall, 6)}),
        "versions": {name: version(name) for name in ("metricweight", "faiss-cpu", "numpy", "numba")},
    }


def _duplicates_across_labels(rows: Sequence[NDArray[np.void]], cast: Roles) -> int:
    """How many items have exactly the embedding of an item with another label. A query that is in the
    gallery with this embedding is one item."""
    labels = [cast.query_labels, cast.gallery_labels]
    if cast.gallery is None:
        rows, labels = rows[:1], labels[:1]
    else:
        alone = (cast.itself < 0) | (rows[0] != rows[1][cast.itself])
        rows, labels = [rows[0][alone], rows[1]], [labels[0][alone], labels[1]]
    _, group = np.unique(np.concatenate(rows).view(np.int64).reshape(-1, 2)[:, 0], return_inverse=True)
    pairs = np.unique(np.stack([group, np.concatenate(labels)]), axis=1)
    return int(np.isin(group, np.flatnonzero(np.bincount(pairs[0]) > 1)).sum())


def _without(ks: Sequence[int], smallest: int) -> list[str]:
    """What to say of the K of a protocol that a small gallery leaves out."""
    left = [f"{k}" for k in ks if k > smallest]
    return [f"Without K = {', '.join(left)} of its protocol: a query has {smallest:,} others."] if left else []


def _notes(cast: Roles, ties: dict[str, tuple[float, float]], stamp: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know."""
    notes = []
    widest = max(ties, key=lambda name: ties[name][1] - ties[name][0])
    low, high = ties[widest]
    if high - low > WIDE_BAND:
        notes.append(
            f"Ties decide {widest}: from {100 * low:.2f} with all against the queries to {100 * high:.2f} with all for "
            f"them. {_why_ties(cast, stamp)}"
        )
    elif stamp["made"]["duplicates_across_labels"]:
        count = stamp["made"]["duplicates_across_labels"]
        notes.append(f"{count:,} items are exact duplicates under different labels: their order is chance.")
    if inside := cast.left_out.get("queries that are in the gallery"):
        notes.append(
            f"{inside:,} queries are in the gallery too, with the same embedding and label, and find themselves; take "
            "them out, or use a protocol with gallery=rest."
        )
    return notes


def _why_ties(cast: Roles, stamp: dict[str, Any]) -> str:
    gallery = cast.queries if cast.gallery is None else cast.gallery
    distinct = len(np.unique(fingerprints(gallery)))
    if distinct < 0.9 * len(gallery):
        return f"Only {distinct:,} of the {len(gallery):,} embeddings of the gallery differ from each other."
    if count := stamp["made"]["duplicates_across_labels"]:
        return f"{count:,} items are exact duplicates under different labels."
    if gallery.dtype.itemsize < 4:
        return f"Embeddings of {gallery.dtype} have few values, so many are exactly as close as others."
    return "Many embeddings are exactly as close as others: their values were rounded, or are few."
