"""The manifest: one table of pictures, whatever they are and wherever they came from, and a page about them.

A manifest is a CSV or Parquet file with a row per picture, such as birds.csv, and beside it birds.csv.json, its
sidecar, which says what the table cannot: how many there should be, where they came from, by which protocol they are
judged. A CSV file with `path` and `label` alone, or a folder of class folders, is a manifest too.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError, nearest
from metricweight.files import checksum, whole_file, write_text

if TYPE_CHECKING:
    import pandas as pd

Counts = Mapping[str, Mapping[str, int]]
Mask = NDArray[np.bool_]

SCHEMA = 1
SPLITS = ("train", "validation", "test", "all")  # all: not split yet
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
TABLES = (".csv", ".parquet")


class Column(NamedTuple):
    """Its dtype; what stands there where a table lacks it: a value, or a function of the columns before it, or nothing,
    since it is needed."""

    dtype: str
    default: Any
    what: str


def _evaluated(columns: Mapping[str, Any]) -> Mask:
    """Whether a picture searches and is searched where nothing is said: all but those for training do."""
    return np.asarray(columns["split"] != "train")


COLUMNS = {
    "path": Column("str", None, "of the picture, with /, from the root of the manifest or absolute"),
    "member": Column("int64", -1, "where path is an .npy of pictures, uint8 [N, H, W] or [N, H, W, 3]: which of them"),
    "label": Column("int64", None, "what is learned and matched: the source's own number; -1 is junk"),
    "label_name": Column("category", "", "the source's own name of the label"),
    "super_label": Column("int32", -1, "of what kind the label is, where the source says so"),
    "clean_label": Column("int64", lambda c: c["label"], "the true label; of a frame, who is to be seen"),
    "is_noisy": Column("bool", False, "whether noise touched the row"),
    "split": Column("category", "all", "train, validation, test; all: not split yet"),
    "is_junk": Column("bool", False, "neither right nor wrong for anybody"),
    "is_distractor": Column("bool", False, "wrong for everybody"),
    "is_query": Column("bool", lambda c: _evaluated(c) & ~c["is_junk"] & ~c["is_distractor"], "whether it searches"),
    "is_gallery": Column("bool", _evaluated, "whether it is searched"),
    "camera": Column("int16", -1, "the source's own number"),
    "sequence": Column("int16", -1, "the source's own number"),
    "tracklet": Column("int64", -1, "one number per tracklet"),
    "frame": Column("int64", -1, "order in the tracklet"),
    "x1": Column("float32", np.nan, "box in pixels, from 0 on; x2 and y2 are where it ends, itself outside"),
    "y1": Column("float32", np.nan, ""),
    "x2": Column("float32", np.nan, ""),
    "y2": Column("float32", np.nan, ""),
    "fold": Column("int16", -1, "of cross-validation"),
}
BOX = ["x1", "y1", "x2", "y2"]
CONSTANT = ["label", "camera", "split", "is_query"]  # in a tracklet


@dataclass(frozen=True)
class About:
    """The sidecar.

    name         of the data set
    layout       which of its circulating forms was read, in words
    protocol     by which its test half is judged; see `metricweight protocols`
    root         what paths begin at: absolute, or from the folder of the manifest
    counts       {"train": {"images": 5864, "labels": 100}, ...}: what the table holds
    sources      [{"name", "bytes", "md5"}, ...] files that were read for it
    super_names  {"0": "bicycle", ...} names of the super labels
    noise        what `metricweight noise` did, with its realised rates
    history      what was done, a sentence each
    sha256       of the table
    """

    name: str
    layout: str = ""
    protocol: str = "self"
    root: str = "."
    counts: Counts = field(default_factory=dict)
    sources: Sequence[Mapping[str, Any]] = ()
    super_names: Mapping[str, str] = field(default_factory=dict)
    noise: Mapping[str, Any] | None = None
    history: Sequence[str] = ()
    sha256: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class Manifest:
    """Pictures and what is known of them.

    table  a row per picture, with all of `COLUMNS`; further columns are kept
    root   what paths begin at
    about  the rest
    """

    table: "pd.DataFrame"
    root: Path
    about: About

    def __len__(self) -> int:
        return len(self.table)

    def where(self, rows: "Mask | pd.Series[bool]", what: str) -> "Manifest":
        """Some of the rows; `what` says which, for its history."""
        return self.changed(self.table[rows].reset_index(drop=True), what)

    def changed(self, table: "pd.DataFrame", what: str, **about: Any) -> "Manifest":
        """The same with another table, or other things known about it; `what` says why, for its history."""
        return Manifest(table, self.root, replace(self.about, history=[*self.about.history, what], **about))


class Problem(NamedTuple):
    """What is wrong with some rows: their positions, a sentence about the first, and the kind of trouble."""

    rows: NDArray[np.int64]
    sentence: str
    kind: str


# ---- read and write


def read(path: Path, root: Path | None = None, accept: bool = False, check: bool = True) -> Manifest:
    """A manifest, checked.

    path    .csv or .parquet with the columns `path` and `label` at least; or a folder of class folders: each picture
            below `path/CLASS/` belongs to CLASS, names that begin with a dot and other files are passed over
    root    what paths begin at; None: what the sidecar says, else the folder of the table
    accept  take the table as it is where it is not the one that its sidecar speaks of
    check   False leaves rows that are wrong in it, for `problems` to find

    Without a sidecar, labels may be text: they are numbered in sorted order and kept as `label_name`. They are
    numbers if all of them read so to the letter (01 does not, 7.0 is 7). The table is held in memory: about 120 bytes
    a row, four times that while it is read.

    Raises InputError, with the row, for what is not as `COLUMNS` says; row 1 of a CSV file is its header.
    """
    import pandas as pd

    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise InputError(f"{path} is not there; give a manifest (.csv, .parquet) or a folder of class folders.")
    suffix = path.suffix.lower()
    if suffix not in TABLES or not path.is_file():
        raise InputError(f"{path} is not {' or '.join(TABLES)}, nor a folder of class folders.")
    about = _read_sidecar(path)
    if about and not accept:
        _check_unchanged(path, about)
    known = about or About(path.stem)
    raw = _read_csv(path, typed=about is not None) if suffix == ".csv" else _read_parquet(path)
    if suffix == ".csv" and not isinstance(raw.index, pd.RangeIndex):  # pandas took the first fields for row names
        raise InputError(f"{path} has rows with more fields than its header names columns.")
    if about is None:
        raw = _with_numbered_labels(raw, partial(place, path))
    table = complete(raw, partial(place, path), str(path), check)
    if about is None:
        known = replace(known, protocol=_protocol(table))
    return Manifest(table, path.parent / known.root if root is None else root, known)


def of(table: "pd.DataFrame", root: Path, name: str = "table") -> Manifest:
    """A manifest of a table with some of the columns of `COLUMNS`, `path` and `label` at least.

    Labels may be text, as in a CSV file; see `read`. Raises InputError, with the row from 0 on, for what is not as
    `COLUMNS` says.
    """

    def where(row: int) -> str:
        return f"{name}, row {row}"

    table = complete(_with_numbered_labels(table.reset_index(drop=True), where), where, name)
    return Manifest(table, Path(root), About(name, protocol=_protocol(table)))


def write(manifest: Manifest, path: Path, overwrite: bool = False) -> None:
    """Writes the table and its sidecar; columns that say nothing are left out.

    path  .csv or .parquet; whole or not there at all

    Raises InputError where there is something already.
    """
    check_free(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = manifest.table
    kept = [name for name in table if name not in COLUMNS or not _says_nothing(table, name)]
    with whole_file(path) as file:
        if path.suffix.lower() == ".csv":
            table[kept].to_csv(file, index=False, lineterminator="\n")
        else:
            _with_pyarrow(lambda: table[kept].to_parquet(file, index=False))
    about = replace(
        manifest.about,
        root=_root_in_words(manifest.root, path.parent),
        counts=counts(table),
        noise=manifest.about.noise and {**manifest.about.noise, **noise_rates(table)},
        sha256=checksum(path, "sha256"),
    )
    write_text(sidecar(path), json.dumps(asdict(about), indent=1, ensure_ascii=False) + "\n")


def check_free(path: Path, overwrite: bool) -> None:
    """That a manifest can be written to a path. Raises InputError where not, which is better known before the work."""
    if path.suffix.lower() not in TABLES or path.is_dir():
        raise InputError(f"a manifest is written to {' or '.join(TABLES)}, got {path}.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"{path} cannot be written, since {above} is no folder that you may write to.")
    for there in (path, sidecar(path)):
        if there.exists() and not overwrite:
            raise InputError(f"{there} is already there; add --overwrite to replace it, or choose another --out.")


def check_root(manifest: Manifest, path: Path) -> None:
    """That the root of a manifest, read from `path`, is there. Raises InputError that says what to do."""
    if not manifest.root.is_dir():
        raise InputError(
            f"{manifest.root}, where the pictures of {path} should lie, is not there; say where they are: "
            f"metricweight data {path} --root DIR --out NEW.csv"
        )


def sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def place(path: Path, row: int) -> str:
    """Where row i of a table, from 0 on, stands in its file; the header of a CSV file is its row 1."""
    return f"{path}, row {row + (2 if path.suffix.lower() == '.csv' else 1)}"


def complete(raw: "pd.DataFrame", where: Callable[[int], str], what: str, check: bool = True) -> "pd.DataFrame":
    """A table with all columns of `COLUMNS`, in their order and dtypes, checked; further columns follow.

    where  names the place of a row, by its position
    what   names the table
    check  False leaves rows that are wrong in it; what cannot be read as its dtype is an error all the same

    Raises InputError with the place of the first row that is wrong.
    """
    import pandas as pd

    for name in ("path", "label"):
        if name not in raw:
            there = [str(column) for column in raw]
            hint = " Columns are to be separated by commas." if any(c in "".join(there) for c in ";\t") else ""
            raise InputError(
                f"{what} has no column '{name}'; it has {', '.join(map(repr, there)) or 'none'}. "
                f"Needed: 'path' and 'label'.{hint}"
            )
    if raw.columns.duplicated().any():
        raise InputError(f"{what} has the column '{raw.columns[raw.columns.duplicated()][0]}' twice.")
    if not len(raw):
        raise InputError(f"{what} has no rows; needed: one per picture.")
    columns: dict[str, Any] = {}
    for name, (dtype, default, _) in COLUMNS.items():
        if name in raw:
            values = _cast(raw[name].reset_index(drop=True), name, where)
        elif callable(default):
            values = default(columns)
        else:
            values = pd.Series(default, index=range(len(raw)), dtype=dtype)
        columns[name] = values
    more = {str(name): raw[name].reset_index(drop=True) for name in raw if name not in COLUMNS}
    table = pd.DataFrame({**columns, **more}, copy=False)
    for problem in problems(table) if check else ():
        others = f" ({len(problem.rows) - 1:,} more like it)" if len(problem.rows) > 1 else ""
        raise InputError(f"{where(int(problem.rows[0]))}: {problem.sentence}{others}")
    return table


def problems(table: "pd.DataFrame") -> Iterator[Problem]:
    """What is wrong with a complete table, kind by kind; nothing where all is well."""

    def found(kind: str, wrong: Any, sentence: Callable[[Any], str]) -> Iterator[Problem]:
        rows = np.flatnonzero(np.asarray(wrong))
        if len(rows):
            yield Problem(rows, sentence(table.iloc[rows[0]]), kind)

    path, junk, distractor = table["path"], table["is_junk"], table["is_distractor"]
    query, label = table["is_query"], table["label"]
    yield from found("path", path.str.strip() == "", lambda row: "the path is empty.")
    yield from found(
        "path", path.str.contains("\\", regex=False), lambda row: f"{row.path} has a \\; paths are written with /."
    )
    yield from found(
        "duplicate", table.duplicated(["path", "member"]), lambda row: f"{_picture(row)} is there already, above."
    )
    yield from found(
        "split", ~table["split"].isin(SPLITS),
        lambda row: f"split '{row.split}' is not one of {', '.join(SPLITS)}{nearest(str(row.split), SPLITS)}",
    )  # fmt: skip
    yield from found("label", label < -1, lambda row: f"label {row.label} is below -1, which is junk.")
    yield from found(
        "junk",
        (label == -1) != junk,
        lambda row: f"label {row.label} with is_junk {row.is_junk}: junk has the label -1.",
    )
    yield from found(
        "query",
        query & (junk | distractor),
        lambda row: "junk and distractors search for nothing; is_query must be False.",
    )
    yield from found("query", query & (table["split"] == "train"), lambda row: "a query cannot be in the split train.")
    yield from found(
        "noise", (label != table["clean_label"]) & ~table["is_noisy"],
        lambda row: f"label {row.label} is not clean_label {row.clean_label}, so is_noisy must be True.",
    )  # fmt: skip
    if not table[BOX].isna().all(axis=None):
        partly = table[BOX].isna().any(axis=1) & ~table[BOX].isna().all(axis=1)
        wrong = partly | (table["x2"] <= table["x1"]) | (table["y2"] <= table["y1"])
        yield from found(
            "box", wrong, lambda row: f"the box {[float(row[x]) for x in BOX]} has no area; x1 < x2, y1 < y2."
        )
    frames = table.loc[table["tracklet"] >= 0, ["tracklet", "frame", *CONSTANT]]
    if len(frames):
        yield from _problems_of_tracklets(frames)


def _problems_of_tracklets(frames: "pd.DataFrame") -> Iterator[Problem]:
    """Frames of one tracklet have one label, camera and split, and each a place of its own."""
    first = frames.drop_duplicates("tracklet").set_index("tracklet")
    for name in CONSTANT:
        expected = first[name].reindex(frames["tracklet"]).to_numpy()
        rows = np.flatnonzero(frames[name].to_numpy() != expected)
        if len(rows):
            row = frames.iloc[rows[0]]
            sentence = f"tracklet {row.tracklet} has {name} {row[name]} here and {expected[rows[0]]} above."
            yield Problem(frames.index.to_numpy()[rows], sentence, "tracklet")
    twice = np.flatnonzero(frames.duplicated(["tracklet", "frame"]))
    if len(twice):
        row = frames.iloc[twice[0]]
        sentence = f"tracklet {row.tracklet} has two frames numbered {row.frame}."
        if row.frame < 0:
            sentence = f"tracklet {row.tracklet} has frames without a number; a column frame says their order."
        yield Problem(frames.index.to_numpy()[twice], sentence, "tracklet")


# ---- what a table holds


def matching(manifest: Manifest, expression: str) -> Manifest:
    """The rows for which an expression over columns is true, such as "split == 'train' and camera in (1, 2)".

    Raises InputError for an expression that pandas does not take as one, and where no row is left.
    """
    asked = f'--where "{expression}"'
    how = "write what is true or false of each row, as in \"split == 'train'\"."
    try:
        rows: Any = manifest.table.eval(expression, engine="python")
    except Exception as error:  # pandas raises what the expression leads to
        raise InputError(f"{asked} cannot be used ({error}); {how}") from None
    rows = np.asarray(rows)
    if rows.shape != (len(manifest),) or rows.dtype != bool:
        raise InputError(f"{asked} is not true or false of each row; {how}")
    chosen = manifest.where(rows, f"rows where {expression}")
    if not len(chosen):
        raise InputError(f"no row of {manifest.about.name} is left where {expression}.")
    return chosen


def counts(table: "pd.DataFrame") -> dict[str, dict[str, int]]:
    """How much there is of each part: of the splits; of query and gallery where these differ; of junk and distractors.

    Each part has `images` and `labels`, junk and distractors not among the labels, and `tracklets` where there are any.
    """
    return {
        part: {
            "images": int(rows.sum()),
            "labels": int(table["label"][rows & ordinary(table)].nunique()),
            **({"tracklets": int(table["tracklet"][rows].nunique())} if (table["tracklet"][rows] >= 0).any() else {}),
        }
        for part, rows in parts(table).items()
    }


def ordinary(table: "pd.DataFrame") -> Mask:
    """Whose label says who it is: not junk, not distractors."""
    return (~table["is_junk"] & ~table["is_distractor"]).to_numpy()


def training_rows(table: "pd.DataFrame") -> Mask:
    """The rows to learn from."""
    return (table["split"] == "train").to_numpy() & ordinary(table)


def noise_rates(table: "pd.DataFrame") -> dict[str, Any]:
    """How noisy the training rows are: over all, and by true class.

    realised      share of the rows that are noisy
    noisy, rows   how many that is, of how many
    classes_gone  true classes that are no row's label any more
    per_class     the least, mean and most noisy class
    """
    train = table[training_rows(table)]
    rates = train.groupby("clean_label")["is_noisy"].mean()
    spread = {"least": rates.min(), "mean": rates.mean(), "most": rates.max()} if len(train) else {}
    return {
        "realised": float(train["is_noisy"].mean()) if len(train) else 0.0,
        "noisy": int(train["is_noisy"].sum()),
        "rows": len(train),
        "classes_gone": len(np.setdiff1d(train["clean_label"], train["label"])),
        "per_class": {name: float(rate) for name, rate in spread.items()},
    }


def parts(table: "pd.DataFrame") -> "dict[str, pd.Series[bool]]":
    """Which rows each part of a table has; see `counts`."""
    found = {split: table["split"] == split for split in SPLITS}
    evaluated = table["split"] != "train"
    if (table["is_query"] != table["is_gallery"])[evaluated & ordinary(table)].any():
        found["query"], found["gallery"] = evaluated & table["is_query"], evaluated & table["is_gallery"]
    found["junk"], found["distractor"] = table["is_junk"], table["is_distractor"]
    return {part: rows for part, rows in found.items() if rows.any()}


# ---- what lies beneath


def _protocol(table: "pd.DataFrame") -> str:
    """By which a table is judged where nobody says it: with queries of its own, they search in the others."""
    return "gallery" if "query" in parts(table) else "self"


def _read_folder(root: Path) -> Manifest:
    import pandas as pd

    rows = []
    for directory in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for path in sorted(directory.rglob("*")):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
                rows.append((path.relative_to(root).as_posix(), directory.name))
    if not rows:
        raise InputError(
            f"{root} holds no pictures in class folders; expected {root}/CLASS/picture.jpg "
            f"({', '.join(sorted(s[1:] for s in SUFFIXES))})."
        )
    raw = pd.DataFrame(rows, columns=["path", "label"])
    names, labels = np.unique(raw["label"], return_inverse=True)
    raw = raw.assign(label=labels, label_name=names[labels])
    return Manifest(complete(raw, lambda row: rows[row][0], str(root)), root, About(root.name, "class folders"))


def _read_sidecar(path: Path) -> About | None:
    from pydantic import TypeAdapter, ValidationError

    file = sidecar(path)
    if not file.is_file():
        return None
    try:
        about: About = TypeAdapter(About).validate_json(file.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its text"
        raise InputError(
            f"{file} is not the sidecar of a manifest ({where}: {first['msg']}); move it away or write it anew."
        ) from None
    if about.schema > SCHEMA:
        raise InputError(f"{file} was written by a later version of metricweight (schema {about.schema}); update.")
    return about


def _check_unchanged(path: Path, about: About) -> None:
    if checksum(path, "sha256") != about.sha256:
        told = "; ".join(f"{part} {had['images']:,}" for part, had in about.counts.items())
        raise InputError(
            f"{path} is not the table that {sidecar(path)} speaks of (images: {told}): it was changed or cut short. "
            f"Write it anew, or, if it is as it should be: metricweight data {path} --accept"
        )


def _read_csv(path: Path, typed: bool) -> "pd.DataFrame":
    """A CSV file; `typed`: first try to read known columns as what they must be, which is faster."""
    import pandas as pd

    always: Any = {"keep_default_na": False, "encoding": "utf-8-sig"}
    if typed:
        wide = {"category": "str", "int16": "int64", "int32": "int64"}  # pandas 2 cuts what does not fit without a word
        known = {name: wide.get(dtype, dtype) for name, (dtype, _, _) in COLUMNS.items()}
        dtypes: Any = defaultdict(lambda: "str", known)  # columns of others are kept to the letter
        try:
            typed_table: pd.DataFrame = pd.read_csv(path, dtype=dtypes, na_values={x: [""] for x in BOX}, **always)
            return typed_table
        except ValueError:
            pass  # read again, as text, to find the row
    try:
        table: pd.DataFrame = pd.read_csv(path, dtype=str, **always)
        return table
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty; needed: a CSV file with the columns 'path' and 'label'.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, byte {error.start}: not UTF-8 text; save it as UTF-8.") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read as a CSV file: {str(error).strip()}") from None


def _read_parquet(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        table: pd.DataFrame = _with_pyarrow(lambda: pd.read_parquet(path))
        return table
    except (ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as a Parquet file: {error}") from None


def _with_pyarrow(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except ImportError:
        raise InputError(".parquet needs pyarrow: pip install 'metricweight[parquet]'") from None


def _with_numbered_labels(raw: "pd.DataFrame", where: Callable[[int], str]) -> "pd.DataFrame":
    """Labels that are text become numbers, unless all of them read as numbers."""
    import pandas as pd

    labels = raw.get("label")
    if labels is None or pd.api.types.is_numeric_dtype(labels):
        return raw
    text = labels.astype(str)
    for rows, what in (
        (labels.isna() | (text.str.strip() == ""), "empty"),
        (text.str.fullmatch("nan|NaN"), "nan, which pandas writes where there is none"),
        (text.str.fullmatch("-?[1-9][0-9]{18,}"), "a number of more than 18 digits; take another, or a name"),
    ):
        if rows.any():
            raise InputError(f"{where(int(np.argmax(rows)))}: the label is {what}.")
    if text.str.fullmatch(r"(0|-?[1-9][0-9]*)(\.0+)?").all():
        return raw.assign(label=text.str.replace(r"\.0+$", "", regex=True).astype("int64"))
    names, numbers = np.unique(text.to_numpy(dtype=object), return_inverse=True)
    return raw.assign(label=numbers, label_name=names[numbers])


def _cast(values: "pd.Series[Any]", name: str, where: Callable[[int], str]) -> "pd.Series[Any]":
    """A column as the dtype that `COLUMNS` gives it; InputError names the first row that cannot be that."""
    import pandas as pd

    dtype = COLUMNS[name].dtype
    if dtype == "str" and values.isna().any():
        raise InputError(f"{where(int(np.argmax(values.isna())))}: the {name} is missing.")
    if values.dtype == dtype:
        return values
    if dtype in ("str", "category"):
        return values.astype(str).astype(dtype)  # type: ignore[call-overload, no-any-return]
    if dtype == "bool":
        known = {"true": True, "1": True, "false": False, "0": False}
        found = values.astype(str).str.lower().map(known)
        wrong, kind = found.isna(), "true or false"
    elif dtype == "float32":
        found = pd.to_numeric(values.replace("", np.nan), errors="coerce")
        wrong, kind = found.isna() & ~values.isna() & (values.astype(str) != ""), "a number"
    else:
        found = pd.to_numeric(values, errors="coerce")
        limit = np.iinfo(dtype)
        wrong = found.isna() | (found % 1 != 0) | (found < limit.min) | (found > limit.max) | (found == 2.0**63)
        kind = f"a whole number of at most {limit.max:,}" if limit.bits < 64 else "a whole number"
    rows = np.flatnonzero(wrong)
    if len(rows):
        given = str(values.iloc[rows[0]])
        raise InputError(f"{where(int(rows[0]))}: {name} {given!r} is not {kind}.")
    return found.astype(dtype)  # type: ignore[call-overload, no-any-return]


def _says_nothing(table: "pd.DataFrame", name: str) -> bool:
    """Whether a column holds what would stand there without it."""
    default = COLUMNS[name].default
    if default is None:
        return False
    if callable(default):
        return bool((table[name] == default(table)).all())
    return bool((table[name].isna() if default != default else table[name] == default).all())


def _root_in_words(root: Path, home: Path) -> str:
    """From the folder of the manifest where the root lies in it, so that both can be moved together; else absolute."""
    root, home = root.resolve(), home.resolve()
    return root.relative_to(home).as_posix() if root.is_relative_to(home) else root.as_posix()


def _picture(row: Any) -> str:
    return str(row.path) if row.member < 0 else f"{row.path}, member {row.member},"
