"""Who searches for whom, as data: a protocol has a name, and every number carries it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metricweight.checks import InputError, nearest
from metricweight.retrieval.points import Array, as_array, as_rows, fingerprints
from metricweight.retrieval.queries import Items, others, own_camera_means

Ints = NDArray[np.int64]
Label = int | str


@dataclass(frozen=True)
class Protocol:
    """The rules of a benchmark.

    name         travels with every number
    gallery      self: all others. rest: a gallery without the queries, which are taken out where it holds them. all: a
                 gallery with the queries, which are added where it lacks them. given: the gallery as it is
    same_camera  what becomes of a query's own label in its own camera: ranked, or left out, neither right nor wrong
    junk         labels of items that nobody ranks and that search for nothing
    distractors  labels of items that everybody ranks, that are nobody's positives and that search for nothing
    ap           which average precision is its mAP: step, or the trapezoid of the official MARS and Market-1501 code
    ks           the K of Recall@K
    shown        what its table shows; recall stands for all of `ks`
    """

    name: str
    gallery: Literal["self", "rest", "all", "given"]
    same_camera: Literal["ranked", "left out"] = "ranked"
    junk: tuple[Label, ...] = ()
    distractors: tuple[Label, ...] = ()
    ap: Literal["step", "trapezoid"] = "step"
    ks: tuple[int, ...] = (1, 2, 4, 8)
    shown: tuple[str, ...] = ("recall", "map@r", "r_precision", "map")
    what: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name, known in (("gallery", GALLERIES), ("same_camera", CAMERAS), ("ap", APS)):
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise InputError(
                    f"{name} of a protocol is {', '.join(known)}, got {given!r}{nearest(str(given), known)}"
                )
        for name in ("junk", "distractors"):
            if not isinstance(getattr(self, name), tuple):
                raise InputError(
                    f"{name} of a protocol is a tuple of labels such as (-1,), got {getattr(self, name)!r}."
                )

    def rules(self) -> str:
        """In the words of `named`."""
        junk, distractors = ("+".join(map(str, labels)) or "none" for labels in (self.junk, self.distractors))
        camera = self.same_camera.replace(" ", "-")
        return f"gallery={self.gallery},same_camera={camera},junk={junk},distractors={distractors},ap={self.ap}"

    @property
    def average_precision(self) -> str:
        """The metric that is its mAP."""
        return "map" if self.ap == "step" else "map_trapezoid"


GALLERIES = ("self", "rest", "all", "given")
CAMERAS = ("ranked", "left out")
APS = ("step", "trapezoid")

_PERSON = Protocol(
    "", "rest", same_camera="left out", junk=(-1,), distractors=(0,), ks=(1, 5, 10, 20), shown=("map", "recall", "minp")
)  # fmt: skip
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("self", "self", what="each item searches among all others (CUB, Cars, SOP)"),
        Protocol("gallery", "given", what="queries search in a gallery, nothing is left out"),
        Protocol("inshop", "given", ks=(1, 10, 20, 30, 40, 50), shown=("recall",), what="In-Shop Clothes Retrieval"),
        replace(_PERSON, name="market1501", ap="trapezoid", shown=("map_trapezoid", "map", "recall", "minp"),
                what="Market-1501, as its own code; step AP beside it"),
        replace(_PERSON, name="mars-official", gallery="all", ap="trapezoid", shown=("map_trapezoid", "recall", "minp"),
                what="MARS, as its own code: queries stay in the gallery"),
        replace(_PERSON, name="mars-ap3d", gallery="all", what="MARS, as AP3D and TF-CLIP: the same gallery, step AP"),
        replace(_PERSON, name="mars-torchreid", what="MARS, as torchreid: queries leave the gallery"),
    )
}  # fmt: skip
"""Distractors (label 0) and junk (-1) of the last four as Market-1501 and MARS number them."""


def named(protocol: str | Protocol) -> Protocol:
    """A protocol by its name, with changes such as `market1501:ap=step,junk=-1+-2,distractors=none`.

    Raises InputError for a name, rule or value that is not known, with the nearest.
    """
    if isinstance(protocol, Protocol):
        return protocol
    name, colon, text = protocol.partition(":")
    if name not in PROTOCOLS:
        raise InputError(
            f"'{name}' is not a protocol{nearest(name, PROTOCOLS)} Known: {', '.join(PROTOCOLS)}; "
            "with changes as in market1501:ap=step."
        )
    changes: dict[str, Any] = {}
    for word in text.split(",") if colon else []:
        key, _, value = word.partition("=")
        if key not in ("gallery", "same_camera", "junk", "distractors", "ap"):
            rules = ("gallery", "same_camera", "junk", "distractors", "ap")
            raise InputError(f"'{key}' is not a rule of a protocol{nearest(key, rules)} Known: {', '.join(rules)}.")
        if key in ("junk", "distractors"):
            changes[key] = () if value in ("", "none") else tuple(value.split("+"))
        else:
            changes[key] = value.replace("-", " ")
    return replace(PROTOCOLS[name], name=protocol, **changes)


class Roles(NamedTuple):
    """What a protocol makes of some items.

    queries, gallery                [Q, D], [G, D]  gallery None: the queries are the gallery
    query_labels, gallery_labels    [Q], [G]        as numbers; no query has that of a distractor
    itself                          [Q]             the row of the gallery that is the query itself, or -1
    query_cameras, gallery_cameras  [Q], [G]        where same cameras are left out
    rows                            [Q]             which row of what was given each query is
    classes                         the label that each number stands for
    left_out                        what the protocol took away or added, as counts
    """

    queries: Array
    gallery: Array | None
    query_labels: Ints
    gallery_labels: Ints
    itself: Ints
    query_cameras: Ints | None
    gallery_cameras: Ints | None
    rows: Ints
    classes: Array
    left_out: dict[str, int]


def roles(
    protocol: Protocol,
    embeddings: Any,
    labels: Any,
    gallery: Any = None,
    gallery_labels: Any = None,
    cameras: Any = None,
    gallery_cameras: Any = None,
    queries: Any = None,
    query_embeddings: Any = None,
    multi_query: bool = False,
) -> Roles:
    """Who searches for whom. The arguments are those of `evaluate`.

    A row of the gallery is the query itself if it has its embedding, to the last bit, its label and its camera. So it
    stays where the query searches with another embedding.
    """
    if query_embeddings is not None and multi_query:
        raise InputError("query_embeddings and multi_query both say what queries search with; give one of the two.")
    if multi_query and protocol.same_camera == "ranked":
        raise InputError(
            f"a query of several pictures is made of those with its label and camera, which protocol {protocol.name} "
            "ranks; use one that leaves a query's own camera out."
        )
    table = _items("embeddings", embeddings, labels, cameras)
    chosen = _chosen(queries, len(table.labels))
    other = None
    if gallery is not None:
        if protocol.gallery == "self":
            raise InputError(
                "protocol self has no gallery: each item searches among the others; to search in the gallery that was "
                "given, use protocol='gallery', or the benchmark's name."
            )
        if queries is not None:
            raise InputError("queries= chooses among embeddings that are all; give queries= or gallery=, not both.")
        other = _items("gallery", gallery, gallery_labels, gallery_cameras)
    elif gallery_labels is not None or gallery_cameras is not None:
        raise InputError("gallery_labels and gallery_cameras were given without gallery=, the embeddings they are of.")
    elif protocol.gallery != "self" and queries is None:
        raise InputError(
            f"protocol {protocol.name} needs queries and a gallery: give gallery= and gallery_labels=, or one table "
            "with queries=, which says for each row whether it is a query."
        )
    if protocol.same_camera == "left out":
        for what, items in (("embeddings", table), ("gallery", other)):
            _refuse_unknown_cameras(protocol, what, items)
    cast = _assigned(protocol, table, other, chosen)
    if query_embeddings is not None:
        if gallery is None and queries is None:
            raise InputError("query_embeddings are of some items that are queries; say which with queries=.")
        given = np.flatnonzero(chosen)
        return _searching_with(cast, others(query_embeddings, (len(given), table.embeddings.shape[1])), given)
    if multi_query:
        tables = [table] if other is None else [table, _beyond(table, other)]
        return _searching_with(cast, own_camera_means(table, cast.rows, tables), cast.rows)
    return cast


def _searching_with(cast: Roles, embeddings: Array, rows: Ints) -> Roles:
    """The same roles, with queries that search with other embeddings, which are of these rows of what was given."""
    gallery = cast.queries if cast.gallery is None else cast.gallery
    return cast._replace(queries=embeddings[np.searchsorted(rows, cast.rows)], gallery=gallery)


def _refuse_unknown_cameras(protocol: Protocol, what: str, items: Items | None) -> None:
    """Of junk and distractors the camera may be unknown: nobody searches for them."""
    if items is None or items.cameras is None:
        return
    unknown = (items.cameras < 0) & ~among(items.labels, protocol.junk + protocol.distractors)
    if unknown.any():
        raise InputError(
            f"protocol {protocol.name} leaves a query's own camera out, and that of {int(unknown.sum()):,} of "
            f"{len(unknown):,} {what} is not known (below 0), the first in row {np.flatnonzero(unknown)[0]}; give "
            "their cameras, or use a protocol that ranks a query's own camera, such as gallery."
        )


def _assigned(protocol: Protocol, table: Items, other: Items | None, chosen: NDArray[np.bool_]) -> Roles:
    left_out: dict[str, int] = {}
    given = np.arange(len(table.labels))
    if other is None:
        kept = ~among(table.labels, protocol.junk)
        left_out["junk"] = int((~kept).sum())
        table, chosen, given = table.only(kept), chosen[kept], given[kept]
        if protocol.gallery in ("rest", "given"):
            first, second = table.only(chosen), table.only(~chosen)
            itself = np.full(int(chosen.sum()), -1)
        else:
            first, second = table.only(chosen), table
            itself = np.flatnonzero(chosen)
        rows = given[chosen]
    else:
        kept, there = ~among(table.labels, protocol.junk), ~among(other.labels, protocol.junk)
        left_out["junk"] = int((~kept).sum() + (~there).sum())
        first, second, rows = table.only(kept), other.only(there), given[kept]
        if first.embeddings.shape[1] != second.embeddings.shape[1]:
            raise InputError(
                f"queries have {first.embeddings.shape[1]} numbers each and the gallery {second.embeddings.shape[1]}; "
                "both must come from one model."
            )
        itself = _found(first, second)
        known = np.unique(itself[itself >= 0])
        if protocol.gallery == "rest" and len(known):
            keep = np.ones(len(second.labels), dtype=bool)
            keep[known] = False
            second, itself = second.only(keep), np.full(len(first.labels), -1)
            left_out["queries taken out of the gallery"] = len(known)
        if protocol.gallery == "all" and (itself < 0).any():
            missing = itself < 0
            itself = itself.copy()
            itself[missing] = len(second.labels) + np.arange(int(missing.sum()))
            second = _joined(second, first.only(missing))
            left_out["queries added to the gallery"] = int(missing.sum())
        if protocol.gallery == "given" and protocol.same_camera == "ranked":
            left_out["queries that are in the gallery"] = int((itself >= 0).sum())
            itself = np.full(len(first.labels), -1)
    seeking = ~among(first.labels, protocol.distractors)
    left_out["queries that are distractors"] = int((~seeking).sum())
    first, itself, rows = first.only(seeking), itself[seeking], rows[seeking]
    same = second is first
    if same and len(first.labels) < 2:
        raise InputError(f"retrieval needs two embeddings at least, got {len(first.labels)}.")
    if not len(first.labels) or not len(second.labels):
        what = "queries" if not len(first.labels) else "gallery"
        raise InputError(f"by protocol {protocol.name} nothing that was given is left as {what} ({protocol.rules()}).")
    classes, (numbers, others) = _numbered(first.labels, second.labels)
    left_out["distractors"] = int(among(second.labels, protocol.distractors).sum())
    own_camera = other_camera = None
    if protocol.same_camera == "left out":
        if first.cameras is None or second.cameras is None:
            raise InputError(
                f"protocol {protocol.name} leaves a query's own camera out, so it needs the cameras of all."
            )
        own_camera, other_camera = first.cameras, second.cameras
    counted = {name: count for name, count in left_out.items() if count}
    return Roles(
        first.embeddings, None if same else second.embeddings, numbers, others, itself, own_camera, other_camera,
        rows, classes, counted,
    )  # fmt: skip


def _items(what: str, embeddings: Any, labels: Any, cameras: Any) -> Items:
    rows = as_rows(embeddings, what)
    labels_name = "labels" if what == "embeddings" else "gallery_labels"
    if labels is None:
        raise InputError(f"{what} came without {labels_name}.")
    found = _labels(labels, labels_name)
    cameras_name = labels_name.replace("labels", "cameras")
    if found.shape != rows.shape[:1]:
        raise InputError(
            f"{labels_name} must be [{len(rows)}] to match {what} {list(rows.shape)}, got {list(found.shape)}."
        )
    if cameras is None:
        return Items(rows, found, None)
    numbers = as_array(cameras)
    if numbers.dtype.kind not in "iu" or numbers.shape != rows.shape[:1]:
        raise InputError(
            f"{cameras_name} must be [{len(rows)}] integers, got {list(numbers.shape)} of {numbers.dtype}."
        )
    return Items(rows, found, numbers.astype(np.int64))


def _labels(labels: Array | Tensor | Sequence[Any], name: str) -> Array:
    """Labels as integers or strings; whole numbers beyond 64 bits stay Python's."""
    given = as_array(labels)
    if given.dtype.kind == "f" and isinstance(labels, Sequence) and all(isinstance(x, int) for x in labels):
        given = np.array(labels, dtype=object)  # NumPy makes floats of 2^63 beside -1
    if given.dtype.kind in "iub":
        return given
    if given.dtype.kind in "UT":
        return given.astype(str)
    if given.dtype == object and all(isinstance(x, str) for x in given.flat):
        return given.astype(str)
    if given.dtype == object and all(isinstance(x, int) for x in given.flat):
        return given
    raise InputError(
        f"{name} must be integers or strings, got {given.dtype}; whole numbers in another dtype: convert them to int."
    )


def _numbered(first: Array, second: Array) -> tuple[Array, tuple[Ints, Ints]]:
    """Both as numbers of one sorted list of labels, and that list."""
    if (first.dtype.kind in "UT") != (second.dtype.kind in "UT"):
        raise InputError("labels and gallery_labels must be of one kind, both integers or both strings.")
    if second is first:
        classes, numbers = np.unique(first, return_inverse=True)
        return classes, (numbers, numbers)
    wide = object if {first.dtype.kind, second.dtype.kind} == {"u", "i"} else None  # int64 and uint64 would be float
    joined = np.concatenate([first.astype(wide or first.dtype), second.astype(wide or second.dtype)])
    classes, numbers = np.unique(joined, return_inverse=True)
    return classes, (numbers[: len(first)], numbers[len(first) :])


def _chosen(queries: Any, count: int) -> NDArray[np.bool_]:
    if queries is None:
        return np.ones(count, dtype=bool)
    chosen = as_array(queries)
    if chosen.dtype != bool or chosen.shape != (count,):
        raise InputError(f"queries must be [{count}] true or false, got {list(chosen.shape)} of {chosen.dtype}.")
    return chosen


def among(labels: Array, some: tuple[Label, ...]) -> NDArray[np.bool_]:
    """Which labels [N] are among some, compared as they are written."""
    if not some:
        return np.zeros(len(labels), dtype=bool)
    classes, numbers = np.unique(labels, return_inverse=True)
    return np.isin(classes.astype(str), [str(label) for label in some])[numbers]


def _found(first: Items, second: Items) -> Ints:
    """The row of the second that is each of the first, or -1."""
    rows = {key: row for row, key in enumerate(_keys(second))}
    return np.array([rows.get(key, -1) for key in _keys(first)], dtype=np.int64)


def _beyond(first: Items, second: Items) -> Items:
    """The second without those that are in the first."""
    there = Counter(_keys(first))
    new = []
    for key in _keys(second):
        new.append(not there[key])
        there[key] -= not new[-1]
    return second.only(np.array(new))


def _keys(items: Items) -> list[tuple[Any, ...]]:
    cameras = [-1] * len(items.labels) if items.cameras is None else items.cameras.tolist()
    rows = [bytes(row) for row in fingerprints(items.embeddings)]
    return list(zip(rows, items.labels.tolist(), cameras, strict=True))


def _joined(first: Items, second: Items) -> Items:
    cameras = None
    if first.cameras is not None and second.cameras is not None:
        cameras = np.concatenate([first.cameras, second.cameras])
    return Items(
        np.concatenate([first.embeddings, second.embeddings]), np.concatenate([first.labels, second.labels]), cameras
    )
