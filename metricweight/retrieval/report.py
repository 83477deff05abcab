"""`evaluate`, and the report it returns: numbers, and what they were computed from."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metricweight.checks import InputError
from metricweight.files import write_text
from metricweight.retrieval.metrics import map_at_r, r_precision, recall_at_k
from metricweight.retrieval.search import Similarity, comparable, neighbours_but_self

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1  # of report.json; counts up when a reader of the old one would be misled

Array = NDArray[Any]


@dataclass(frozen=True)
class Report:
    """Metrics as fractions, and the stamp that says what they are.

    metrics  recall@K for each K, map@r, r_precision: means over the valid queries
    stamp    protocol, similarity, counts, versions, hash of the embeddings
    classes  the labels that were given as strings, by the integer that stands for each; else empty
    """

    metrics: dict[str, float]
    stamp: dict[str, Any]
    classes: Sequence[str] = field(default=(), repr=False)

    def markdown(self) -> str:
        """A table in percent, and a line that says what was measured."""
        return markdown({"embeddings": self})

    def frame(self) -> "pd.DataFrame":
        """One row, a column per metric, in fractions."""
        return frame({"embeddings": self})

    def json(self) -> str:
        """Metrics and stamp, with the version of the schema."""
        return json.dumps({"schema": SCHEMA, **self.as_dict()}, indent=2)

    def as_dict(self) -> dict[str, Any]:
        return {**self.metrics, "stamp": self.stamp}


def evaluate(
    embeddings: Array | Tensor,
    labels: Array | Tensor | Sequence[Any],
    *,
    similarity: Similarity = "cosine",
    ks: Sequence[int] = (1, 2, 4, 8),
) -> Report:
    """Recall@K, MAP@R and R-precision of every item searching for its kind among all others.

        recall@K    = mean over queries of [any of the first K neighbours has the query's label]
        r_precision = mean of (hits among the first R) / R,                R = others of the query's label
        map@r       = mean of 1/R sum_{k <= R} hit_k precision@k

    embeddings  [N, D]  NumPy array or tensor, any floating dtype; compared in float32
    labels      [N]     integers of any size, or strings
    similarity  "cosine", or "euclidean" (smaller distance first)
    ks          each at most N - 1

    The query itself is left out by its index. A query whose label nobody shares cannot hit: it is left out of the
    means and counted in the stamp. Items that are exactly as near as each other rank in the order in which they
    are found. Exact search; time N^2 D, memory that of the embeddings.

    Raises InputError (a ValueError) for shapes that do not fit, a k beyond the gallery, labels that are neither
    integers nor strings, no query with a positive, and embeddings that are not finite, have zero norm (cosine) or
    are collapsed: these would give a number that means nothing.
    """
    points = _as_numpy(embeddings)
    if points.ndim != 2 or points.dtype.kind not in "fiu" or not points.shape[1]:
        raise InputError(f"embeddings must be numbers [N, D], got {list(points.shape)} of {points.dtype}.")
    numbers, classes = _as_integers(labels)
    if numbers.shape != points.shape[:1]:
        raise InputError(
            f"labels must be [{len(points)}] to match embeddings {list(points.shape)}, got {list(numbers.shape)}."
        )
    if similarity not in ("cosine", "euclidean"):
        raise InputError(f"similarity is 'cosine' or 'euclidean', got {similarity!r}.")
    ks = _checked_ks(ks, gallery=len(points) - 1)
    _, own_class, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    positives = sizes[own_class] - 1
    valid = positives > 0
    if not valid.any():
        raise InputError(f"no label occurs twice among the {len(numbers)} items, so no query can find anything.")

    per_query = {f"recall@{k}": np.zeros(len(points)) for k in ks}
    per_query |= {"map@r": np.zeros(len(points)), "r_precision": np.zeros(len(points))}
    for rows, nearest in neighbours_but_self(comparable(points, similarity), max(*ks, int(positives.max()))):
        hits = numbers[nearest] == numbers[rows, None]
        for k in ks:
            per_query[f"recall@{k}"][rows] = recall_at_k(hits, k)
        relevant = np.maximum(positives[rows], 1)  # rows without positives are left out below
        per_query["map@r"][rows] = map_at_r(hits, relevant)
        per_query["r_precision"][rows] = r_precision(hits, relevant)
    stamp = {
        "protocol": "self: every item is a query, all others are its gallery",
        "recall": "any hit among the first K",
        "similarity": similarity,
        "ties": "in the order found",
        "queries": len(points),
        "queries_without_positives": int((~valid).sum()),
        "duplicates_across_labels": _duplicates_across_labels(points, own_class),
        "classes": len(sizes),
        "embedding_size": points.shape[1],
        "embeddings_sha256": hashlib.sha256(np.ascontiguousarray(points).data).hexdigest()[:16],
        "versions": {name: version(name) for name in ("metricweight", "faiss-cpu", "numpy")},
    }
    return Report({name: float(values[valid].mean()) for name, values in per_query.items()}, stamp, classes)


def _duplicates_across_labels(points: Array, labels: NDArray[np.int64]) -> int:
    """How many items have exactly the embedding of an item with another label: which ranks first is chance."""
    rows = np.ascontiguousarray(points).view(np.dtype((np.void, points.dtype.itemsize * points.shape[1])))[:, 0]
    _, group = np.unique(rows, return_inverse=True)
    pairs = np.unique(np.stack([group, labels]), axis=1)
    return int(np.isin(group, np.flatnonzero(np.bincount(pairs[0]) > 1)).sum())


def _as_numpy(values: Array | Tensor | Sequence[Any]) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
    return np.asarray(values)


def _as_integers(labels: Array | Tensor | Sequence[Any]) -> tuple[NDArray[np.int64], Sequence[str]]:
    """Labels as integers; strings by their place in the sorted list of all, which is returned too."""
    given = _as_numpy(labels)
    if given.dtype.kind in "iub":
        return given, ()
    if given.dtype.kind in "UT" or (given.dtype == object and all(isinstance(x, str) for x in given.flat)):
        classes, numbers = np.unique(given.astype(str), return_inverse=True)
        return numbers.reshape(given.shape), classes.tolist()
    raise InputError(
        f"labels must be integers or strings, got {given.dtype}; whole numbers in another dtype: convert them to int."
    )


def _checked_ks(ks: Sequence[int], gallery: int) -> list[int]:
    given = list(ks) if isinstance(ks, Iterable) else []
    if not given or any(isinstance(k, bool) or not isinstance(k, (int, np.integer)) for k in given):
        raise InputError(f"ks must be whole numbers such as (1, 2, 4, 8), got {ks!r}.")
    if gallery < 1:
        raise InputError(f"retrieval needs two embeddings at least, got {gallery + 1}.")
    checked = sorted(set(given))
    if checked[0] < 1 or checked[-1] > gallery:
        raise InputError(
            f"Recall@K was asked for K = {', '.join(map(str, checked))}, but a query has {gallery} others to be "
            f"compared with; use ks from 1 to {gallery}."
        )
    return [int(k) for k in checked]


def frame(reports: Mapping[str, Report]) -> "pd.DataFrame":
    """A row per report, a column per metric, in fractions."""
    import pandas as pd

    table = pd.DataFrame([report.metrics for report in reports.values()], index=list(reports))
    table.index.name = "model"
    return table


def markdown(reports: Mapping[str, Report]) -> str:
    """A table in percent with a row per report, and below it a line per stamp that differs."""
    columns = list(dict.fromkeys(name for report in reports.values() for name in report.metrics))
    rows = [["", *map(_heading, columns)]]
    for model, report in reports.items():
        rows.append([model, *(f"{100 * report.metrics[name]:.2f}" for name in columns)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    lines.insert(1, "|" + "|".join([":" + "-" * (widths[0] + 1), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|")
    described = {_described(report.stamp): None for report in reports.values()}
    if len(described) == 1:
        return "\n".join([*lines, "", *described])
    return "\n".join([*lines, "", *(f"{model}: {_described(r.stamp)}" for model, r in reports.items())])


def _heading(metric: str) -> str:
    return metric.replace("recall@", "R@").replace("map@r", "MAP@R").replace("r_precision", "R-precision")


def _described(stamp: Mapping[str, Any]) -> str:
    text = (
        f"In %. R@K: any hit among the first K. {stamp['queries']:,} items of {stamp['classes']:,} classes, each "
        f"searching among all others by {stamp['similarity']}; "
        f"{stamp['queries_without_positives']:,} without a positive left out."
    )
    if duplicates := stamp["duplicates_across_labels"]:
        text += f" {duplicates:,} items are exact duplicates under different labels: their order is chance."
    return text


def save(reports: Mapping[str, Report], stem: Path, *, split: str = "test", **facts: Any) -> None:
    """Writes STEM.json, STEM.md and STEM.csv, and STEM.labels.csv if labels were strings.

    In the JSON file the fractions are at `models.NAME.SPLIT.METRIC`; `facts` stand beside `models`.
    """
    import pandas as pd

    models = {name: {split: report.as_dict()} for name, report in reports.items()}
    classes = next(iter(reports.values())).classes
    texts = {
        "json": json.dumps({"schema": SCHEMA, **facts, "models": models}, indent=2) + "\n",
        "md": markdown(reports) + "\n",
        "csv": frame(reports).to_csv(),
        "labels.csv": pd.DataFrame({"number": range(len(classes)), "label": classes}).to_csv(index=False),
    }
    for ending, text in texts.items():
        path = stem.with_name(f"{stem.name}.{ending}")
        if ending == "labels.csv" and not classes:
            path.unlink(missing_ok=True)  # of an earlier report of this name
        else:
            write_text(path, text)
