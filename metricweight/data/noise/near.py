"""Label noise that follows from what pictures look like, by their embeddings, in arithmetic of whole numbers.

Embeddings are rounded to whole numbers of at most 1024, by steps that IEEE 754 rounds alike everywhere. Inner products
of them stay below 2^24, so float32 holds each product and each sum of them exactly, in whatever order a library adds:
the same pictures are near each other on every platform.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.data.noise.draw import Asked, Indices, Units, chosen, dissolved, one_of
from metricweight.progress import track

Whole = NDArray[np.int16]

LENGTH = 1024  # of an embedding
FINE = 2**20
ROWS, COLUMNS = 1024, 8192  # of the similarities that are in memory at once: 32 MiB
ROUNDS = 20  # of k-means, where it does not settle before


def small_cluster(units: Units, asked: Asked) -> Indices:
    """Classes dissolve one after the other into clusters of about two pictures, each of which joins another class.

    A class of n pictures, those that joined it among them, has floor(n / 2) clusters, by k-means.
    """
    by = np.argsort(units.numbers(asked, "order", np.arange(len(units))), kind="stable")
    points, label = _embeddings(asked)[by], units.label[by]
    surviving = np.ones(len(units.classes), dtype=bool)
    for lost in track(dissolved(units, asked), "small clusters"):
        surviving[lost] = False
        others, rows = np.flatnonzero(surviving), np.flatnonzero(label == lost)
        k = max(1, len(rows) // 2)
        drawn = units.numbers(asked, f"cluster of {units.classes[lost]}", by[rows[:k]])
        label[rows] = others[one_of(drawn, len(others))][clusters(points[rows], k)]
    found = np.empty_like(label)
    found[by] = label
    return found


def near_duplicate(units: Units, asked: Asked) -> Indices:
    """The pictures that are nearest to one of another class take its label; equally near ones by random numbers."""
    by = np.argsort(units.numbers(asked, "order", np.arange(len(units))), kind="stable")
    similarity, label = np.empty(len(units), dtype=np.float32), np.empty(len(units), dtype=np.int64)
    similarity[by], label[by] = _nearest_other(_embeddings(asked)[by], units.label[by])
    rows = chosen(units, asked, key=-similarity)
    found = units.label.copy()
    found[rows] = label[rows]
    return found


def quantised(embeddings: NDArray[Any], what: str) -> Whole:
    """Embeddings [N, D] scaled to the length 1024 and rounded to whole numbers.

    Raises InputError for what is no embedding: a row that is not finite, or zero throughout.
    """
    if embeddings.ndim != 2 or not embeddings.shape[1] or embeddings.dtype.kind not in "fiu":
        raise InputError(f"{what} must hold numbers [N, D], got {list(embeddings.shape)} of {embeddings.dtype}.")
    found = np.empty(embeddings.shape, dtype=np.int16)
    for start in range(0, len(found), COLUMNS):
        block = embeddings[start : start + COLUMNS].astype(np.float64)
        largest = np.abs(block).max(axis=1, keepdims=True)
        wrong = np.flatnonzero(~np.isfinite(largest) | (largest == 0))
        if len(wrong):
            kind = "zero throughout" if largest[wrong[0], 0] == 0 else "not finite"
            raise InputError(f"{what}: embedding {start + wrong[0]} (the first is 0) is {kind}.")
        whole = np.rint(block / largest * FINE)
        squares = (whole.astype(np.int64) ** 2).sum(axis=1, keepdims=True)  # whole numbers add alike in any order
        found[start : start + COLUMNS] = np.rint(whole / np.sqrt(squares.astype(np.float64)) * LENGTH)
    return found


def read_embeddings(path: Path, units: Units) -> Whole:
    """Embeddings of the training rows, in their order, as whole numbers.

    path  .npy [N, D] in the order of the training rows of the manifest; or .npz with `embeddings` [M, D], and with
          `names` [M], which are paths as in the manifest or with its root before them, :MEMBER behind where there is
          one: rows are then found by name, and there may be more; without `names`, in the order of the training rows

    Raises InputError where there are none for a row.
    """
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix.lower() == ".npy" else None, allow_pickle=False)
        arrays = {"embeddings": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded}
    except FileNotFoundError:
        raise InputError(f"{path} is not there; give the embeddings of the training pictures, .npy or .npz.") from None
    except Exception as error:  # a damaged file fails in many ways, all of them meaning the same
        raise InputError(f"{path} is damaged or not a NumPy file: {error}") from None
    if "embeddings" not in arrays:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}; needed: embeddings.")
    embeddings = arrays["embeddings"]
    if "names" in arrays:
        embeddings = embeddings[_rows_by_name(path, arrays["names"], len(embeddings), units)]
    if len(embeddings) != len(units.table):
        raise InputError(
            f"{path} holds {len(embeddings):,} embeddings, the manifest has {len(units.table):,} training rows; "
            "one for each is needed, in the same order, or `names` to find them by."
        )
    return quantised(embeddings, str(path))


def clusters(points: Whole, k: int) -> Indices:
    """Of k-means, the cluster [n] of each point; the first k points are the first centres.

    points  [n, D]  whole numbers; so are the centres, which are rounded. Of centres that are equally near, the first.
    """
    centres, own = points[:k].astype(np.int64), np.full(len(points), -1)
    for _ in range(ROUNDS):
        found = _nearest_centre(points, centres)
        if (found == own).all():
            break
        own = found
        order = np.argsort(own, kind="stable")
        there, first, sizes = np.unique(own[order], return_index=True, return_counts=True)
        sums = np.add.reduceat(points[order].astype(np.int64), first, axis=0)
        centres[there] = (2 * sums + sizes[:, None]) // (2 * sizes[:, None])
    return own


def _nearest_centre(points: Whole, centres: Indices) -> Indices:
    half = (centres**2).sum(axis=1).astype(np.float32)
    doubled = 2 * centres.T.astype(np.float32)
    rows = max(1, ROWS * COLUMNS // len(centres))
    blocks = (points[start : start + rows].astype(np.float32) for start in range(0, len(points), rows))
    return np.concatenate([(block @ doubled - half).argmax(axis=1) for block in blocks])


def _nearest_other(points: Whole, label: Indices) -> tuple[NDArray[np.float32], Indices]:
    """The similarity [N] of each point to the nearest one of another class, and its class; of equal ones, the first."""
    own = label.astype(np.int32)
    best, whose = np.full(len(points), -np.inf, dtype=np.float32), np.empty(len(points), dtype=np.int64)
    for start in track(range(0, len(points), ROWS), "near duplicates"):
        rows = slice(start, start + ROWS)
        some = points[rows].astype(np.float32)
        for left in range(0, len(points), COLUMNS):
            columns = slice(left, left + COLUMNS)
            similarity = some @ points[columns].astype(np.float32).T
            np.copyto(similarity, -np.inf, where=own[rows, None] == own[None, columns])
            place = similarity.argmax(axis=1)
            value = similarity[np.arange(len(place)), place]
            nearer = value > best[rows]
            best[rows] = np.where(nearer, value, best[rows])
            whose[rows] = np.where(nearer, label[columns][place], whose[rows])
    return best, whose


def _embeddings(asked: Asked) -> Whole:
    if asked.embeddings is None:
        raise InputError(f"{asked.kind} needs embeddings of the training pictures; give --embeddings FILE.")
    return asked.embeddings


def _rows_by_name(path: Path, names: NDArray[Any], there: int, units: Units) -> Indices:
    if names.ndim != 1 or len(names) != there:
        raise InputError(f"{path} holds {there:,} embeddings and {names.size:,} names; needed: one name each.")
    place = {str(name): row for row, name in enumerate(names)}
    if len(place) < len(names):
        raise InputError(f"{path} names {len(names) - len(place):,} pictures more than once; needed: each once.")
    absolute = {os.path.abspath(name): row for name, row in place.items()}
    rows, lacking = [], []
    for item, member in zip(units.table["path"], units.table["member"].tolist(), strict=True):
        end = f":{member}" if member >= 0 else ""
        row = place.get(f"{item}{end}")
        if row is None:
            row = absolute.get(f"{os.path.abspath(units.root / item)}{end}")
        if row is None:
            lacking.append(f"{item}{end}")
        else:
            rows.append(row)
    if lacking:
        raise InputError(
            f"{path} has no embedding of {len(lacking):,} of {len(units.table):,} training pictures, "
            f"the first is {lacking[0]}."
        )
    return np.array(rows, dtype=np.int64)
