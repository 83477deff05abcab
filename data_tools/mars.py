"""MARS. Zheng and others: MARS: A Video Benchmark for Large-Scale Person Re-Identification, ECCV 2016.

Lists name the frames, tables cut the lists into tracklets, a third says which tracklets search. Names, such as
0001C1T0002F003.jpg, say person, camera, tracklet of that person and frame once more: all of it must agree. Person
00-1 is junk (-1), 0000 are distractors (0).

Queries stay in the gallery, as in the code of the authors (protocol mars-official): without the others, 140 of them
would have nobody to find. Rows are in the order of the lists, `frame` is the number in the name, and tracklets are
numbered through training and test, in the order of the tables.

The paper counts 20,715 tracklets and 1,067,516 frames; the files hold 20,478 and 1,191,003, which is what is expected
here.
"""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError

from .replicas import mars as replica
from .source import Converted, Dataset, Options, Replica, check_there, find, find_in, lines, mat, wrong

if TYPE_CHECKING:
    import pandas as pd

Ints = NDArray[np.int64]

NAME = re.compile(r"(00-1|\d{4})C([1-6])T(\d{4})F(\d{3,})\.jpg", re.ASCII)
START, END, PERSON, CAMERA = range(4)  # columns of the tables; START and END are lines, from 1 on, END inside
JUNK, DISTRACTOR = -1, 0
SPLITS = ["train", "test"]
FILES = ("train_name.txt", "test_name.txt", "tracks_train_info.mat", "tracks_test_info.mat", "query_IDX.mat")


class _Half(NamedTuple):
    """Training or test: its list of names, and its table of tracklets [T, 4]."""

    listed: Path
    names: list[str]
    cut: Path
    table: Ints

    @property
    def lengths(self) -> Ints:
        lengths: Ints = self.table[:, END] - self.table[:, START] + 1
        return lengths

    @property
    def rows(self) -> Ints:
        """The tracklet of each name."""
        return np.repeat(np.arange(len(self.table)), self.lengths)

    def place(self, row: int) -> str:
        start, end = self.table[row, :PERSON]
        return f"lines {start} to {end} (row {row + 1} of {self.cut})"


def convert(root: Path, options: Options) -> Converted:
    found = listed(root)
    trained = int((found.rows["split"] == "train").sum())

    def place(row: int) -> str:
        file, line = (FILES[0], row + 1) if row < trained else (FILES[1], row + 1 - trained)
        return f"{found.read[0].parent / file}, line {line}"

    notes = check_there(found.root, found.rows["path"].tolist(), place)
    return replace(found, notes=[*found.notes, *notes])


def listed(root: Path) -> Converted:
    """What lists and tables say, whether the pictures are there or not."""
    import pandas as pd

    info = find(root, "MARS", "info/train_name.txt").parent
    base = find(root, "MARS", "bbox_train").parent  # info may lie elsewhere, in a clone of its repository
    for name in FILES:
        find_in(info, "the folder info of MARS", name)
    train, test = (_read(info, half) for half in ("train", "test"))
    searches = _queries(info / "query_IDX.mat", test)
    folders = [_pictures(base, half) for half in ("train", "test")]
    parts, notes, first = [], [], 0
    for half, folder, split, queries in (
        (train, folders[0], "train", np.zeros(len(train.table), dtype=bool)),
        (test, folders[1], "test", searches),
    ):
        frames, more = _frames(half)
        notes += more
        parts.append(_rows(half, folder, split, frames, queries, first))
        first += len(half.table)
    table = pd.concat(parts, ignore_index=True)
    nested = any(folder.count("/") for folder in folders)
    layout = f"MARS with info/ and {', '.join(f'{folder}/' for folder in folders)}{' (nested)' if nested else ''}"
    return Converted(table, layout, base, [info / name for name in FILES], "mars-official", notes=notes)


def _pictures(base: Path, half: str) -> str:
    """The folder with the pictures; some copies have it in a folder of the same name."""
    folder = f"bbox_{half}"
    inside = f"{folder}/{folder}"
    return inside if (base / inside).is_dir() else find_in(base, "MARS", folder).name


def _read(info: Path, half: str) -> _Half:
    listed, cut = info / f"{half}_name.txt", info / f"tracks_{half}_info.mat"
    names, table = [line.rstrip() for line in lines(listed)], _numbers(cut, f"track_{half}_info")
    if table.ndim != 2 or table.shape[1] != 4:
        raise InputError(f"{cut}: track_{half}_info is {list(table.shape)}; [tracklets, 4] was expected.")
    found = _Half(listed, names, cut, table)
    for line, name in enumerate(names, start=1):
        if not NAME.fullmatch(name):
            raise wrong(listed, line, f"'{name}' is not a name such as 0001C1T0001F001.jpg.")
    if len(set(names)) < len(names):
        _refuse_second(found)
    _check_table(found)
    return found


def _numbers(path: Path, name: str) -> Ints:
    """A variable of a .mat file that must be whole numbers; MATLAB keeps them in any type."""
    variables = mat(path)
    if name not in variables:
        raise InputError(f"{path} has no {name}; it has {', '.join(variables) or 'nothing'}.")
    values = np.asarray(variables[name])
    if values.dtype.kind not in "iuf" or not values.size:
        raise InputError(f"{path}: {name} is {list(values.shape)} of {values.dtype}; whole numbers were expected.")
    odd = np.argwhere(~np.isfinite(values) | (values != np.floor(values)))
    if len(odd):
        raise InputError(f"{path}, row {odd[0][0] + 1}: {values[tuple(odd[0])]} is not a whole number.")
    return values.astype(np.int64)


def _check_table(half: _Half) -> None:
    """That the tracklets are all of the list, one after another, and that persons and cameras can be."""
    start, end, person, camera = half.table.T
    before = np.concatenate([[0], end[:-1]])
    count = len(half.names)

    def refuse(bad: NDArray[np.bool_], sentence: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            told = {
                "start": start[row],
                "end": end[row],
                "before": before[row],
                "person": person[row],
                "camera": camera[row],
            }
            raise InputError(f"{half.cut}, row {row + 1}: {sentence.format(**told)}")

    refuse(end < start, "the tracklet ends at line {end}, before it begins at line {start}.")
    refuse(
        end > count,
        f"the tracklet ends at line {{end}}, but {half.listed} has {count:,} lines{_parted(half)}; lines were lost, or "
        "it is of another edition.",
    )
    refuse(
        start > before + 1, "the tracklet begins at line {start}, the one before ends at {before}: names in between."
    )
    refuse(start <= before, "the tracklet begins at line {start}, the one before ends at {before}: both have names.")
    refuse(person < JUNK, "person {person} cannot be; they are numbered from 1 on, 0 are distractors, -1 is junk.")
    refuse((camera < 1) | (camera > 6), "camera {camera} cannot be; there are 1 to 6.")
    if end[-1] < count:
        raise wrong(
            half.listed,
            int(end[-1]) + 1,
            f"{half.names[end[-1]]} and what follows is in no row of {half.cut}{_parted(half)}.",
        )


def _parted(half: _Half) -> str:
    """Where names and table first part, by what names have in common: person, camera and tracklet."""
    names, lengths = half.names, half.lengths
    begins = [i for i in range(len(names)) if i == 0 or names[i][:11] != names[i - 1][:11]]
    for row, (begin, end) in enumerate(pairwise([*begins, len(names)])):
        if row >= len(lengths) or end - begin != lengths[row]:
            listed = f"{half.listed}, line {begin + 1} on, has {end - begin} names such as {names[begin]}"
            return f"; {listed}, where the table has {lengths[row] if row < len(lengths) else 'nothing'}"
    return ""


def _frames(half: _Half) -> tuple[Ints, list[str]]:
    """The number of each frame, after all that its name says was compared with the table, and notes.

    The table decides what a tracklet is: where names say otherwise, that is a note, and frames are numbered anew.
    """
    listed, names = half.listed, half.names
    count, rows = len(names), half.rows
    person = np.fromiter((int(name[:4].replace("00-1", "-1")) for name in names), np.int64, count)
    camera = np.fromiter((int(name[5]) for name in names), np.int64, count)
    tracklet = np.fromiter((int(name[7:11]) for name in names), np.int64, count)
    for what, found, column in (("person", person, PERSON), ("camera", camera, CAMERA)):
        said = half.table[rows, column]
        for at in np.flatnonzero(found != said)[:1]:
            raise wrong(
                listed, at + 1, f"{names[at]} is of {what} {found[at]}, but {half.place(rows[at])} are of {said[at]}."
            )
    number = np.fromiter((int(name[12:-4]) for name in names), np.int64, count)
    first = half.table[rows, START] - 1
    mixed = np.flatnonzero(tracklet != tracklet[first])
    if not len(mixed):
        return number, _order(half, number)
    at, more = int(mixed[0]), f" ({len(mixed) - 1:,} more like it)" if len(mixed) > 1 else ""
    return np.arange(count) - first, [
        f"{listed}, line {at + 1}: {names[at]} is not of the tracklet of {names[first[at]]} by its name, but "
        f"{half.place(rows[at])} are one{more}; frames are in the order of the list."
    ]


def _refuse_second(half: _Half) -> None:
    seen: dict[str, int] = {}
    for line, name in enumerate(half.names, start=1):
        if name in seen:
            raise wrong(half.listed, line, f"{name} is there already, in line {seen[name]}.")
        seen[name] = line


def _order(half: _Half, frames: Ints) -> list[str]:
    """A note on frames that are listed after later ones of their tracklet; their numbers say what is true."""
    back = np.flatnonzero((np.diff(frames) < 0) & (np.diff(half.rows) == 0)) + 1
    if not len(back):
        return []
    line = int(back[0]) + 1
    return [
        f"{half.listed}, line {line}: {half.names[line - 1]} is listed after {half.names[line - 2]}"
        f"{f' ({len(back) - 1:,} more like it)' if len(back) > 1 else ''}; frames are ordered by their numbers."
    ]


def _queries(path: Path, test: _Half) -> NDArray[np.bool_]:
    """Which tracklets of the test half search."""
    rows = _numbers(path, "query_IDX").ravel()
    tracklets = len(test.table)
    for at in np.flatnonzero((rows < 1) | (rows > tracklets))[:1]:
        raise InputError(f"{path}, entry {at + 1}: row {rows[at]} cannot be; {test.cut} has rows 1 to {tracklets}.")
    for at in np.flatnonzero(np.diff(rows) <= 0)[:1] + 1:
        raise InputError(f"{path}, entry {at + 1}: row {rows[at]} comes after row {rows[at - 1]}; they must increase.")
    person, camera = test.table[rows - 1, PERSON], test.table[rows - 1, CAMERA]
    for at in np.flatnonzero(person <= DISTRACTOR)[:1]:
        kind = "junk" if person[at] == JUNK else "a distractor"
        raise InputError(f"{path}, entry {at + 1}: row {rows[at]} of {test.cut} is {kind}, which searches for nobody.")
    _, first, which = np.unique(10 * person + camera, return_index=True, return_inverse=True)
    for at in np.flatnonzero(first[which] != np.arange(len(rows)))[:1]:
        raise InputError(
            f"{path}, entry {at + 1}: row {rows[at]} searches for person {person[at]} from camera {camera[at]}, as "
            f"does row {rows[first[which[at]]]}; there is one query for each."
        )
    searches = np.zeros(tracklets, dtype=bool)
    searches[rows - 1] = True
    return searches


def _rows(half: _Half, folder: str, split: str, frames: Ints, queries: NDArray[np.bool_], first: int) -> "pd.DataFrame":
    import pandas as pd

    rows = half.rows
    label = half.table[rows, PERSON]
    codes = np.full(len(rows), SPLITS.index(split))
    return pd.DataFrame(
        {
            "path": [f"{folder}/{name[:4]}/{name}" for name in half.names],
            "label": label,
            "split": pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(SPLITS)),
            "is_junk": label == JUNK,
            "is_distractor": label == DISTRACTOR,
            "is_query": queries[rows],
            "camera": half.table[rows, CAMERA].astype(np.int16),
            "tracklet": first + rows,
            "frame": frames,
        }
    )


DATASET = Dataset(
    "MARS",
    get="http://www.liangzheng.com.cn/Project/project_mars.html (bbox_train.zip, bbox_test.zip, 6.3 GB); the folder "
    "info of github.com/liangzheng06/MARS-evaluation, with train_name.txt and test_name.txt; copies circulate",
    terms="academic research only",
    counts={
        "train": {"images": 509914, "labels": 625, "tracklets": 8298},
        "test": {"images": 681089, "labels": 634, "tracklets": 12180},
        "query": {"labels": 626, "tracklets": 1980},
        "junk": {"images": 23380, "tracklets": 870},
        "distractor": {"images": 147743, "tracklets": 3248},
    },
    convert=convert,
    replica=Replica(replica.write, replica.LAYOUTS),
    files={
        "tracks_train_info.mat": "67a139e0f79ef1385535446cbb3ca6b7",
        "tracks_test_info.mat": "55ba4e3c9e03759f7262b28d7a1fe382",
        "query_IDX.mat": "f939e70b087615653035f1cf38467e25",
    },
)
