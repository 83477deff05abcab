"""Embeddings and labels in files, whoever wrote them."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[Any]

TABLES = (".csv", ".parquet")
ROLES = {"camera": "cameras", "query": "queries"}  # column of a table -> array of an .npz file
PARTS = "part-[0-9][0-9][0-9][0-9][0-9].npz"  # files of a folder that holds embeddings in parts
OF_EACH = ("labels", "names", *ROLES.values())  # arrays with an entry for each embedding
OF_QUERIES = "query_images"  # array with an entry for each query
OF_PARTS = ("stamp", "part")  # arrays that parts have and the whole has not


class Embeddings(NamedTuple):
    """What a file, or two, hold.

    embeddings    [N, D]  a memory map where they come from an .npy file
    labels        [N]
    cameras       [N]     integers, where there are any
    queries       [N]     which items are queries, true or false, where that is said
    split         which split they are of; "all" where nothing is said
    what          what was read, in words
    protocol      by which they are judged, where that is said
    query_images  [Q, D]  of the first frame alone of each query, where there are any; all are queries if none is said
    seen          what an item is the embedding of, such as "all frames, mean", where that is said
    """

    embeddings: Array
    labels: Array
    cameras: Array | None
    queries: Array | None
    split: str
    what: str
    protocol: str | None = None
    query_images: Array | None = None
    seen: str | None = None


def read(path: Path, labels: Path | None = None, label_column: str | None = None) -> Embeddings:
    """Embeddings and labels of a file, or of two.

    path          .npz with the arrays `embeddings` and `labels`; .npy, with `labels` in a file of their own; .csv or
                  .parquet with a label column, and the embedding in numbered columns (e0, e1, ...), else in all other
                  columns if they are floats, or, in .parquet, in one column of lists; or the folder of a run, or of
                  parts that `metricweight embed --shards` wrote
    labels        .npy, .csv or .parquet with a label column, or .txt with a label per line
    label_column  what that column is called; None: label

    Cameras and queries are the arrays `cameras` and `queries` of an .npz file, or the columns `camera` and `query` of
    a table, that of the labels where these have one of their own. First frames of queries and what was seen of an item
    are the arrays `query_images` and `seen` of an .npz file.

    Labels in text are integers if all of them read so to the letter (01 does not), else strings. Raises InputError
    for files that are missing, damaged or of another kind, and says which arrays or columns are there when the ones
    that are needed are not.
    """
    if (path / "embeddings.npz").is_file():
        path = path / "embeddings.npz"
    in_parts = path.is_dir() and any(path.glob(PARTS))
    for file in filter(None, (None if in_parts else path, labels)):
        if not file.is_file():
            raise InputError(f"{file} is a folder; give a file in it." if file.is_dir() else f"{file} is not there.")
    if label_column is not None and (labels or path).suffix.lower() not in TABLES:
        raise InputError(f"{labels or path} has no columns, so --label-column {label_column} cannot be.")
    label_column = label_column or "label"
    split, protocol, seen = "all", None, None
    query_images: Array | None = None
    own: Array | None = None
    more: dict[str, Array] = {}
    suffix = "" if in_parts else path.suffix.lower()
    if suffix in TABLES:
        table = _table(path, label_column)
        if labels is None:
            own = _label_column(table, label_column, path)
        more = _roles(table, path)
        numbers = table.drop(columns=[label_column, *ROLES], errors="ignore")
        embeddings, what = _embedding_columns(numbers, path)
    elif suffix == ".npz" or in_parts:
        arrays = parts(path) if in_parts else _numpy(path)
        if "embeddings" not in arrays or ("labels" not in arrays and labels is None):
            raise InputError(
                f"{path} holds {', '.join(arrays) or 'nothing'}; needed: embeddings and labels "
                "(or labels in a file of their own, with --labels)."
            )
        embeddings, own, split = arrays["embeddings"], arrays.get("labels"), str(arrays.get("split", split))
        more = {name: arrays[name] for name in ROLES.values() if name in arrays}
        protocol, seen = (str(arrays[name]) if name in arrays else None for name in ("protocol", "seen"))
        query_images = arrays.get(OF_QUERIES)
        what = " x ".join(map(str, embeddings.shape))
    elif suffix == ".npy":
        embeddings = _numpy(path)[""]
        what = " x ".join(map(str, embeddings.shape))
    else:
        raise InputError(f"{path} is not .npz, .npy, .csv or .parquet.")
    if labels is not None:
        own, of_labels = _labels(labels, label_column)
        more |= of_labels
    if own is None:
        raise InputError(f"{path} holds embeddings alone; give their labels with --labels FILE.")
    queries = more.get("queries")
    if queries is not None:
        queries = _yes_or_no(queries, path)
    if query_images is not None:
        _check_query_images(query_images, embeddings, queries, path)
    what = f"{what} of {path}."
    return Embeddings(embeddings, own, more.get("cameras"), queries, split, what, protocol, query_images, seen)


def _check_query_images(query_images: Array, embeddings: Array, queries: Array | None, path: Path) -> None:
    count = len(embeddings) if queries is None else int(queries.sum())
    if query_images.ndim != 2 or len(query_images) != count:
        raise InputError(
            f"{path}: query_images must have a row for each of the {count:,} queries, got {list(query_images.shape)}; "
            "embed the items again."
        )
    if count and query_images.shape[1:] != embeddings.shape[1:]:
        raise InputError(
            f"{path}: query_images have {query_images.shape[1]:,} numbers each and embeddings {embeddings.shape[1]:,}; "
            "both must come from one model."
        )


def part_name(number: int) -> str:
    return f"part-{number:05d}.npz"


def parts(folder: Path, scratch: Path | None = None) -> dict[str, Array]:
    """The arrays of a folder of parts, as one .npz file would hold them.

    Each part is an .npz file that has, beside embeddings and what is known of them, `part`, its number and how many
    there are, and `stamp`, which is the same in parts of the same embeddings.

    scratch  a file to lay the embeddings in, so that they need not fit in memory

    Raises InputError, with its number, for a part that is missing, damaged, or of other embeddings than the first.
    """
    small = _without_embeddings(folder)
    lengths = [len(part["labels"]) for part in small]
    whole = {
        name: np.concatenate([part[name] for part in small]) if name in OF_EACH else value
        for name, value in small[0].items()
        if name not in OF_PARTS
    }
    if OF_QUERIES in whole:
        some = [part[OF_QUERIES] for part in small if len(part[OF_QUERIES])]  # without a row, D may be anything
        whole[OF_QUERIES] = np.concatenate(some or [whole[OF_QUERIES]])
    embeddings: Array = np.empty((0, 0), np.float32)
    start = 0
    for number in np.flatnonzero(lengths).tolist():  # a part of damaged pictures alone has none
        rows = _numpy(folder / part_name(number))["embeddings"]
        if not start:
            shape = (sum(lengths), rows.shape[1])
            new = np.empty if scratch is None else partial(np.lib.format.open_memmap, scratch, "w+")
            embeddings = new(dtype=rows.dtype, shape=shape)
        embeddings[start : start + len(rows)] = rows
        start += len(rows)
    return {"embeddings": embeddings, **whole}


def _without_embeddings(folder: Path) -> list[dict[str, Array]]:
    """The other arrays of each part, which are few; and all parts are there and belong together."""
    found = {int(path.stem.removeprefix("part-")): path for path in folder.glob(PARTS)}
    lowest = min(found)
    first = _numpy(found[lowest], without="embeddings")
    if not {"labels", *OF_PARTS} <= first.keys():
        raise InputError(f"{found[lowest]} is not a part that `metricweight embed --shards` wrote; take it away.")
    count = int(first["part"][1])
    small = []
    for number in range(max(count, *(n + 1 for n in found))):
        if number not in found:
            raise InputError(
                f"{folder}: part {number} is missing, of {count} that begin with part 0; give metricweight embed the "
                "same command again, and it makes what is missing."
            )
        part = _numpy(found[number], without="embeddings")
        if str(part.get("stamp")) != str(first["stamp"]) or part["part"].tolist() != [number, count]:
            raise InputError(
                f"{folder}: part {number} is of other embeddings than part {lowest}; take it away, or make all anew "
                "with metricweight embed and --overwrite."
            )
        small.append(part)
    return small


def _roles(table: "pd.DataFrame", path: Path) -> dict[str, Array]:
    """The columns of a table that say who searches for whom, by the name of their array."""
    found = {name: table[column].to_numpy() for column, name in ROLES.items() if column in table}
    if "cameras" in found and found["cameras"].dtype.kind not in "iu":
        raise InputError(f"{path}, column 'camera': cameras must be whole numbers.")
    return found


def _yes_or_no(queries: Array, path: Path) -> Array:
    if queries.dtype == bool:
        return queries
    if queries.dtype.kind in "iu" and np.isin(queries, (0, 1)).all():
        return queries.astype(bool)
    raise InputError(f"{path}: which items are queries must be true or false, or 1 or 0.")


def _numpy(path: Path, without: str | None = None) -> dict[str, Array]:
    """The arrays of an .npz file by name, but one that is not needed, or that of an .npy file under ''."""
    try:
        mapped: Literal["r"] | None = "r" if path.suffix.lower() == ".npy" else None
        loaded = np.load(path, mmap_mode=mapped, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files if name != without}
    except Exception as error:  # a damaged file fails in many ways, all of them meaning the same
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise InputError(f"{path} holds Python objects, which are not loaded; save .astype(str) of them.") from None
        raise InputError(f"{path} is damaged or not a NumPy file: {error}") from None


def _table(path: Path, label_column: str) -> "pd.DataFrame":
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype={label_column: str}, keep_default_na=False)  # labels as written, NA and 01 too
    except ImportError:
        raise InputError("reading .parquet needs pyarrow: pip install 'metricweight[parquet]'") from None
    except Exception as error:
        raise InputError(f"{path} cannot be read as a {path.suffix} table: {error}") from None


def _label_column(table: "pd.DataFrame", column: str, path: Path) -> Array:
    if column not in table:
        raise InputError(
            f"{path} has no column '{column}'; it has {_listed(table)}. Name the column of labels with --label-column."
        )
    labels = table[column].to_numpy()
    return _from_text(labels, path) if path.suffix.lower() == ".csv" else labels


def _from_text(labels: Sequence[str] | Array, path: Path) -> Array:
    for row, label in enumerate(labels, start=1):
        if not label.strip():
            raise InputError(f"{path}: the label of item {row} is empty.")
    if all(re.fullmatch("0|-?[1-9][0-9]*", label) and abs(int(label)) < 2**63 for label in labels):
        return np.array([int(label) for label in labels], dtype=np.int64)
    return np.array(labels, dtype=str)


def _embedding_columns(table: "pd.DataFrame", path: Path) -> tuple[Array, str]:
    """The columns of a table that are the embedding, and which these are."""
    if not len(table):
        raise InputError(f"{path} has no rows.")
    objects = [name for name in table if table[name].dtype == object]  # all that could hold lists
    lists = [name for name in objects if table[name].map(lambda value: isinstance(value, (list, np.ndarray))).all()]
    if len(lists) == 1:
        lengths = table[lists[0]].map(len).unique()
        if len(lengths) > 1:
            raise InputError(f"{path}, column '{lists[0]}': the lists are of different lengths.")
        return np.stack(table[lists[0]].to_list()), f"{len(table)} x {lengths[0]} from column '{lists[0]}'"

    names = [str(name) for name in table.columns]
    table = table.set_axis(names, axis="columns")
    numbers = set(table.select_dtypes("number").columns)
    numbered = defaultdict(list)
    for name in names:
        if match := re.fullmatch(r"(.*?)(\d+)", name):
            numbered[match[1]].append(name)
    chosen = max(numbered.values(), key=len, default=[])
    if len(chosen) > 1:
        for name in chosen:
            if name not in numbers:
                raise InputError(f"{path}, column '{name}': not all of it are numbers.")
    else:
        chosen = [name for name in names if name in numbers]
        whole = [name for name in chosen if table[name].dtype.kind != "f"]
        if whole:
            raise InputError(
                f"{path} has columns of whole numbers ({', '.join(map(repr, whole))}), which may be no part of the "
                "embedding; take them out, or number the columns of the embedding (e0, e1, ...)."
            )
    if not chosen:
        raise InputError(f"{path} has no columns of numbers besides the label; it has {_listed(table)}.")
    others = [name for name in names if name not in chosen]
    what = f"{len(table)} x {len(chosen)} from columns '{chosen[0]}' to '{chosen[-1]}'"
    return table[chosen].to_numpy(np.float64), what + (f" (not {', '.join(others)})" if others else "")


def _labels(path: Path, column: str) -> tuple[Array, dict[str, Array]]:
    """Labels, and what else their file says."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _numpy(path)[""], {}
    if suffix in TABLES:
        table = _table(path, column)
        return _label_column(table, column, path), _roles(table, path)
    if suffix == ".txt":
        try:
            return _from_text(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"), path), {}
        except UnicodeDecodeError:
            raise InputError(f"{path} is not UTF-8 text.") from None
    raise InputError(f"the labels {path} are not .npy, .csv, .parquet or .txt.")


def _listed(table: "pd.DataFrame") -> str:
    names = [repr(str(name)) for name in table.columns]
    return ", ".join(names if len(names) <= 12 else [*names[:10], f"and {len(names) - 10} more"])
