"""Embeddings and labels in files, whoever wrote them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[Any]


def read(path: Path, labels: Path | None = None, label_column: str = "label") -> tuple[Array, Array, str]:
    """Embeddings [N, D], labels [N], and a sentence that says what was read.

    path          .npz with the arrays `embeddings` and `labels`; .npy, with `labels` in a file of their own; .csv or
                  .parquet with a label column, and the embedding in the other columns of numbers or, in .parquet,
                  in one column of lists
    labels        .npy, .csv or .parquet with a label column, or .txt with a label per line
    label_column  what that column is called

    Raises InputError for files that are missing, damaged or of another kind, and says which arrays or columns are
    there when the ones that are needed are not.
    """
    for file in (path, labels):
        if file is not None and not file.is_file():
            raise InputError(f"{file} is not there.")
    found, own, what = _embeddings(path, label_column, labels_needed=labels is None)
    if labels is not None:
        own = _labels(labels, label_column)
    if own is None:
        raise InputError(f"{path} holds embeddings alone; give their labels with --labels FILE.")
    return found, own, f"{what} of {path}."


def _embeddings(path: Path, label_column: str, labels_needed: bool) -> tuple[Array, Array | None, str]:
    """Embeddings, their labels if they are in the same file, and what was read."""
    if path.suffix in (".csv", ".parquet"):
        table = _table(path)
        if labels_needed:
            _require(table, label_column, path)
        found, what = _embedding_columns(table.drop(columns=label_column, errors="ignore"), path)
        return found, table[label_column].to_numpy() if label_column in table else None, what
    if path.suffix == ".npz":
        arrays = _numpy(path)
        if "embeddings" not in arrays or (labels_needed and "labels" not in arrays):
            raise InputError(
                f"{path} holds {', '.join(arrays) or 'nothing'}; needed: embeddings and labels "
                "(or labels in a file of their own, with --labels)."
            )
        found, own = arrays["embeddings"], arrays.get("labels")
    elif path.suffix == ".npy":
        found, own = _numpy(path)[""], None
    else:
        raise InputError(f"{path} is not .npz, .npy, .csv or .parquet.")
    return found, own, " x ".join(map(str, found.shape))


def _numpy(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name, or that of an .npy file under ''."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a damaged file fails in many ways, all of them meaning the same
        raise InputError(f"{path} is damaged or not a NumPy file of plain arrays: {error}") from None


def _table(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except ImportError:
        raise InputError("reading .parquet needs pyarrow: pip install 'metricweight[parquet]'") from None
    except Exception as error:
        raise InputError(f"{path} cannot be read as a {path.suffix} table: {error}") from None


def _require(table: "pd.DataFrame", column: str, path: Path) -> None:
    if column not in table:
        raise InputError(
            f"{path} has no column '{column}'; it has {_listed(table)}. Name the column of labels with --label-column."
        )


def _embedding_columns(table: "pd.DataFrame", path: Path) -> tuple[Array, str]:
    lists = [name for name in table if table[name].map(lambda value: isinstance(value, (list, np.ndarray))).all()]
    if len(table) and len(lists) == 1:
        lengths = table[lists[0]].map(len).unique()
        if len(lengths) > 1:
            raise InputError(f"{path}, column '{lists[0]}': the lists are of different lengths.")
        return np.stack(table[lists[0]].to_list()), f"{len(table)} x {lengths[0]} from column '{lists[0]}'"
    numbers = table.select_dtypes("number")
    if numbers.shape[1] == 0:
        raise InputError(f"{path} has no columns of numbers besides the label; it has {_listed(table)}.")
    passed_over = [str(name) for name in table if name not in numbers]
    what = f"{len(table)} x {numbers.shape[1]} from columns '{numbers.columns[0]}' to '{numbers.columns[-1]}'"
    return numbers.to_numpy(np.float64), what + (f" (not {', '.join(passed_over)})" if passed_over else "")


def _labels(path: Path, column: str) -> Array:
    if path.suffix == ".npy":
        return _numpy(path)[""]
    if path.suffix in (".csv", ".parquet"):
        table = _table(path)
        _require(table, column, path)
        return table[column].to_numpy()
    if path.suffix == ".txt":
        return np.array(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    raise InputError(f"the labels {path} are not .npy, .csv, .parquet or .txt.")


def _listed(table: "pd.DataFrame") -> str:
    names = [repr(str(name)) for name in table.columns]
    return ", ".join(names if len(names) <= 12 else [*names[:10], f"and {len(names) - 10} more"])
