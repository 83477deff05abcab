"""CIFAR-10 and CIFAR-100. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.

They come as pickles of Python 2. Here nothing that a pickle asks for is run: it may hold text, numbers, lists, dicts
and arrays of bytes, or it is refused. The pictures are written once, into one file that is mapped into memory later.
"""

import filecmp
import io
import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.files import whole_file
from metricweight.progress import track

from .replicas import cifar as replica
from .source import Converted, Dataset, Options, Replica, find

if TYPE_CHECKING:
    import pandas as pd


class Form(NamedTuple):
    """How one of the two is laid out.

    title    of the data set
    folder   that its archive unpacks to
    archive  its name
    meta     file of the names of the labels
    batches  (file, what it calls itself, split) in the order in which pictures are numbered
    labels   key of the labels in a batch; their names are under a key that begins likewise
    coarse   key of the super labels; "" where there are none
    classes  (number of labels, number of super labels)
    pictures the file that is written
    """

    title: str
    folder: str
    archive: str
    meta: str
    batches: Sequence[tuple[str, str, str]]
    labels: str
    coarse: str
    classes: tuple[int, int]
    pictures: str


TEN = Form(
    "CIFAR-10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    "batches.meta",
    [
        *((f"data_batch_{i}", f"training batch {i} of 5", "train") for i in range(1, 6)),
        ("test_batch", "testing batch 1 of 1", "test"),
    ],
    "labels",
    "",
    (10, 0),
    "cifar10.npy",
)
HUNDRED = Form(
    "CIFAR-100",
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    "meta",
    [("train", "training batch 1 of 1", "train"), ("test", "testing batch 1 of 1", "test")],
    "fine_labels",
    "coarse_labels",
    (100, 20),
    "cifar100.npy",
)


def convert(form: Form, root: Path, options: Options) -> Converted:
    """Reads the batches and writes their pictures to `options.pictures`.

    Raises InputError where there is a file of that name already, unless it holds the same pictures.
    """
    import pandas as pd

    folder = _unpacked(form, root)
    names, super_names, each = _meta(form, folder / form.meta)
    out = options.pictures / form.pictures
    out.parent.mkdir(parents=True, exist_ok=True)
    tables: list[pd.DataFrame] = []
    with whole_file(out) as file:
        file.write(_header(0))
        for name, title, split in track(form.batches, form.title):
            table = _batch(form, folder / name, title, each, file)
            tables.append(table.assign(split=split))
        rows = pd.concat(tables, ignore_index=True)
        _check_even(form, folder, rows, names)
        file.seek(0)
        file.write(_header(len(rows)))
        file.flush()
        if out.exists() and not filecmp.cmp(file.name, out, shallow=False):
            raise InputError(f"{out} is there already and holds other pictures; delete it, or choose another folder.")
    rows.insert(0, "path", form.pictures)
    rows.insert(1, "member", np.arange(len(rows)))
    rows["label_name"] = pd.Categorical.from_codes(rows["label"], categories=pd.Index(names))
    return Converted(
        rows,
        f"{form.folder} with {form.meta}",
        options.pictures,
        [folder / name for name in (form.meta, *(name for name, _, _ in form.batches))],
        super_names=dict(enumerate(super_names)),
    )


def _unpacked(form: Form, root: Path) -> Path:
    """The folder of the batches. Raises InputError that says how to unpack the archive where only that is there."""
    places = (form.meta, f"{form.folder}/{form.meta}")
    for archive in (root, root / form.archive):
        if archive.name == form.archive and archive.is_file() and not any((root / place).exists() for place in places):
            raise InputError(f"{archive} is still packed; unpack it with: tar -xzf {archive} -C {archive.parent}")
    return find(root, form.title, *places).parent


def _meta(form: Form, path: Path) -> tuple[list[str], list[str], int | None]:
    """Names of labels and of super labels, and how many pictures a batch has where that is said."""
    content = _content(path)
    found = []
    for key, count in zip((form.labels, form.coarse), form.classes, strict=True):
        names = content.get(f"{key[:-1]}_names") if key else []
        if (
            not isinstance(names, list)
            or len({*map(str, names)}) != count
            or not all(isinstance(n, str) for n in names)
        ):
            raise InputError(f"{path}: {key[:-1]}_names must be {count} different names, got {_short(names)}.")
        found.append(names)
    return found[0], found[1], content.get("num_cases_per_batch")


def _batch(form: Form, path: Path, title: str, each: int | None, file: IO[bytes]) -> "pd.DataFrame":
    """The labels of one batch; its pictures are written on."""
    import pandas as pd

    content = _content(path)
    if content.get("batch_label") != title:
        raise InputError(
            f"{path} calls itself '{_short(content.get('batch_label'))}', not '{title}'; was it swapped or renamed?"
        )
    pixels = _pixels(path, content.get("data"))
    if each is not None and len(pixels) != each:
        raise InputError(f"{path} has {len(pixels):,} pictures; {form.meta} says {each} are in a batch.")
    columns = {"label": _labels(path, content, form.labels, len(pixels), form.classes[0])}
    if form.coarse:
        columns["super_label"] = _labels(path, content, form.coarse, len(pixels), form.classes[1])
    names = content.get("filenames")
    if not isinstance(names, list) or len(names) != len(pixels):
        raise InputError(f"{path}: filenames must be a list of {len(pixels):,}, as data has rows, got {_short(names)}.")
    for start in range(0, len(pixels), 5000):
        pictures = pixels[start : start + 5000].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        file.write(np.ascontiguousarray(pictures).data)
    return pd.DataFrame(columns)


def _labels(path: Path, content: Mapping[str, Any], key: str, count: int, classes: int) -> NDArray[np.int64]:
    labels = content.get(key)
    if not isinstance(labels, list) or len(labels) != count:
        raise InputError(f"{path}: {key} must be a list of {count:,}, as data has rows, got {_short(labels)}.")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise InputError(
                f"{path}, row {row} (from 0 on): {key} has {_short(label)}, which is not one of 0 to {classes - 1}."
            )
    return np.array(labels, dtype=np.int64)


def _check_even(form: Form, folder: Path, rows: "pd.DataFrame", names: Sequence[str]) -> None:
    """That a split has as many pictures of each label, and a label one super label: both hold for the real ones."""
    for split, part in rows.groupby("split", sort=False):
        counts = np.bincount(part["label"], minlength=len(names))
        if counts.min() != counts.max():
            least, most = int(counts.argmin()), int(counts.argmax())
            raise InputError(
                f"{folder}: of the {split} pictures {counts[least]:,} are of label {least} ({names[least]}) and "
                f"{counts[most]:,} of label {most} ({names[most]}); there must be as many of each. A label is damaged."
            )
    if not form.coarse:
        return
    pairs = rows.groupby(["label", "super_label"], as_index=False).size().sort_values("size", ascending=False)
    usual = pairs.drop_duplicates("label").set_index("label")["super_label"]
    wrong = np.flatnonzero(rows["super_label"] != usual.reindex(rows["label"]).to_numpy())
    if len(wrong):
        row = rows.iloc[wrong[0]]
        inside = int((rows["split"].iloc[: wrong[0]] == row["split"]).sum())
        raise InputError(
            f"{folder / str(row['split'])}, row {inside} (from 0 on): label {row['label']} ({names[row['label']]}) has "
            f"the super label {row['super_label']} here and {usual[row['label']]} elsewhere. The file is damaged."
        )


def _header(count: int) -> bytes:
    """The first 128 bytes of an .npy of that many pictures; there is room in them for any number."""
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (count, 32, 32, 3)}
    np.lib.format.write_array_header_1_0(header, shape)
    return header.getvalue()


# ---- pickles


class _Named:
    """What stands for a function of numpy, or for what it would make: it keeps what it is given and does nothing."""

    __slots__ = ("given", "state")

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.state: Any = None

    def __call__(self, *given: Any) -> "_Named":
        return _Named(*given)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Plain(pickle.Unpickler):
    """Reads a pickle without running anything that it names."""

    ALLOWED = (
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.ndarray",
        "numpy.dtype",
    )

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> _Named:
        if f"{module}.{name}" not in self.ALLOWED:
            raise InputError(
                f"{self.path} wants to run {module}.{name}, which pictures and labels do not need; it was not run. "
                "The file is not the original; get it anew from its source."
            )
        return _Named(name)


def _content(path: Path) -> dict[str, Any]:
    """The dict in a pickle; see `_Plain`."""
    try:
        with open(path, "rb") as file:
            content = _Plain(file, path).load()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # a damaged pickle fails in many ways, all of them meaning the same
        raise InputError(f"{path} is damaged, or not a pickle of Python 2 ({error}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a dict, got {type(content).__name__}; it is another file, or damaged.")
    return content


def _pixels(path: Path, data: Any) -> NDArray[np.uint8]:
    """uint8 [N, 3072] of what stands for an array."""
    try:
        _, shape, kind, columns_first, raw = data.state
        rows, columns = shape
        if kind.given[0] != "u1" or columns != 3072:
            raise ValueError(f"{kind.given[0]} {list(shape)}")
        flat = np.frombuffer(raw.encode("latin1"), dtype=np.uint8)
        return flat.reshape(rows, columns, order="F" if columns_first else "C")
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: data is not an array of bytes, [N, 3072] ({error}).") from None


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    return "nothing" if value is None else str(value)[:80]


def _counts(labels: int) -> dict[str, dict[str, int]]:
    return {"train": {"images": 50_000, "labels": labels}, "test": {"images": 10_000, "labels": labels}}


_TERMS = "no licence is stated; pictures from the web, for research. Cite the technical report of 2009"
CIFAR10 = Dataset(
    TEN.title,
    get="https://www.cs.toronto.edu/~kriz/cifar.html (cifar-10-python.tar.gz, 163 MB)",
    terms=_TERMS,
    counts=_counts(10),
    convert=partial(convert, TEN),
    replica=Replica(replica.write_ten),
    archives={TEN.archive: "c58f30108f718f92721af3b95e74349a"},
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
CIFAR100 = Dataset(
    HUNDRED.title,
    get="https://www.cs.toronto.edu/~kriz/cifar.html (cifar-100-python.tar.gz, 161 MB)",
    terms=_TERMS,
    counts=_counts(100),
    convert=partial(convert, HUNDRED),
    replica=Replica(replica.write_hundred),
    archives={HUNDRED.archive: "eb9058c3a382ffc7106e4002c42a8d85"},
    files={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)
