"""How converters look at a raw data set, line by line, and what they say when it is not as it should be."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metricweight.checks import InputError
from metricweight.data.manifest import SUFFIXES, Counts
from metricweight.progress import track

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Options:
    """What `metricweight prepare` was asked for beside the name, the root and the manifest; None: not asked for.

    fold              which of the published random splits, from 1 on
    test, validation  shares of the classes, for data without splits of its own
    order             how classes are dealt out: random or given
    seed              of that
    pictures          folder for files of pictures that have to be unpacked
    """

    fold: int | None = None
    test: float | None = None
    validation: float | None = None
    order: Literal["random", "given"] | None = None
    seed: int | None = None
    pictures: Path = Path()


@dataclass(frozen=True)
class Converted:
    """What a converter found.

    rows         a table with some columns of the manifest; `complete` adds the others and checks it
    layout       which of the circulating forms this is, in words
    root         what paths begin at
    read         files that it was read from, beside the pictures
    protocol     a name that `metricweight protocols` lists
    super_names  names of the super labels
    notes        what a user should know, a sentence each
    name         of data of one's own; "": the title of the data set
    """

    rows: "pd.DataFrame"
    layout: str
    root: Path
    read: Sequence[Path]
    protocol: str = "self"
    super_names: Mapping[int, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    name: str = ""


@dataclass(frozen=True)
class Replica:
    """How a tiny copy of a data set is written.

    write    (folder, layout, size) -> the rows that a right converter finds. `size`: 1 is the smallest that is of use,
             n has n times the labels, or the pictures where the labels are always the same
    layouts  the forms that it comes in; the first is the usual one
    """

    write: Callable[[Path, str, int], "pd.DataFrame"]
    layouts: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Dataset:
    """A data set that circulates.

    title     as its authors call it
    get       where to get it; nothing is ever fetched
    terms     under which it is given
    counts    what must be found; see `metricweight.data.manifest.counts`
    convert   raw folder -> rows
    replica   how a tiny copy is written; None: it has no form of its own
    archives  {file name: md5} of what it comes in
    files     {path or name: md5} of files that are known
    options   the fields of Options that it takes
    """

    title: str
    get: str
    terms: str
    counts: Counts
    convert: Callable[[Path, Options], Converted]
    replica: Replica | None = None
    archives: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


def find(root: Path, wanted: str, *places: str) -> Path:
    """The first of some places below the root, or below a folder in it, that is there; `wanted` names the data set.

    Raises InputError that says where it looked and what lies there.
    """
    for folder in candidates(root):
        for place in places:
            if (folder / place).exists():
                return folder / place
    return find_in(root, wanted, *places)


def candidates(root: Path) -> list[Path]:
    """A root and the folders in it, in which a data set may lie; none where there is no such folder."""
    return [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []


def find_in(root: Path, wanted: str, *places: str) -> Path:
    """The same, but not below a folder in the root."""
    for place in places:
        if (root / place).exists():
            return root / place
    if not root.is_dir():
        raise InputError(f"--root {root} is {'a file' if root.exists() else 'not there'}; give the folder of {wanted}.")
    there = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    listed = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "")
    raise InputError(
        f"{root} does not look like {wanted}: none of {', '.join(places)} is in it. It holds {listed or 'nothing'}."
    )


def lines(path: Path) -> list[str]:
    """The lines of a text file, written with LF or CRLF; line i is item i - 1. Empty ones at its end do not count.

    Raises InputError for a file that is missing, empty or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, byte {error.start}: not UTF-8 text; the file is damaged.") from None
    found = text.rstrip().split("\n") if text.strip() else []
    if not found:
        raise InputError(f"{path} is empty.")
    return found


def wrong(path: Path, line: int, sentence: str) -> InputError:
    """What is to be raised about a line, counted from 1."""
    return InputError(f"{path}, line {line}: {sentence}")


def whole(text: str, path: Path, line: int, what: str) -> int:
    """A whole number that stands in a line."""
    if not text.strip().isdecimal():
        raise wrong(path, line, f"{what} '{text}' is not a whole number.")
    return int(text)


def check_there(root: Path, paths: Sequence[str], place: Callable[[int], str]) -> list[str]:
    """That each listed picture lies below the root, exactly as written.

    place  names where item i of the paths is listed

    Returns notes on pictures that lie beside them without being listed. Raises InputError naming the first that is
    missing, where it is listed, and how many more there are.
    """
    folders = sorted({os.path.dirname(path) for path in paths})
    with ThreadPoolExecutor(max_workers=16) as pool:
        listings = pool.map(lambda folder: _names(root / folder), folders)
        names = dict(zip(folders, track(listings, "looking for pictures", len(folders)), strict=True))
    missing = [i for i, path in enumerate(paths) if os.path.basename(path) not in names[os.path.dirname(path)]]
    if missing:
        first = paths[missing[0]]
        near = {name.lower(): name for name in names[os.path.dirname(first)]}.get(os.path.basename(first).lower())
        hint = f" (there is {near}, which differs in case)" if near else ""
        more = f"; so are {len(missing) - 1:,} more of {len(paths):,}" if len(missing) > 1 else ""
        raise InputError(f"{place(missing[0])}: {root / first} is missing{hint}{more}.")
    listed = set(paths)
    found = (os.path.join(folder, name) for folder in folders for name in names[folder])
    extra = sorted(path for path in found if path not in listed and _is_picture(path))
    if not extra:
        return []
    return [f"{len(extra):,} pictures are listed nowhere and left out, such as {extra[0]}."]


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _is_picture(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB 5 file, as SciPy reads them. Raises InputError for a file that is damaged."""
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError(f"{path} is not there.")
    try:
        return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except Exception as error:  # a damaged file fails in many ways, all of them meaning the same
        raise InputError(f"{path} is damaged or not a MATLAB 5 file: {error}") from None
