"""MARS in small: lists with CRLF, tables of MATLAB, junk, distractors, and people such as make protocols differ.

Of six people to be searched, one is only among the queries, one has a single camera and no query, and one has a query
whose other cameras hold nothing but queries. Of those to learn from, one has a single tracklet, as in the real thing,
the others have two to six of them from two to four cameras. In longer tracklets somebody passes before the person, or
the tracker slips to somebody else. The converter cannot know; frames.csv, beside info/, tells it:

    path, occluded and foreign (True or False), shown (the number of the person who is to be seen, from the same half)
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from .matlab import save_mat
from .persons import Seen, tracklet
from .products import save

if TYPE_CHECKING:
    import pandas as pd

LAYOUTS = ("flat", "nested")
PEOPLE = 6  # in each half, at size 1
LENGTHS = (2, 4, 6, 8, 8, 10, 12, 24)  # dealt like cards, so that the shortest and the longest are always there


class _Tracklet(NamedTuple):
    split: str
    label: int
    camera: int
    number: int  # of those of the person, from 1 on
    is_query: bool
    length: int


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    import pandas as pd

    train, test = list(_trained(size)), list(_tested(size))
    rows: list[tuple[Any, ...]] = []
    shown: list[str] = []
    for part, first in ((train, 0), (test, len(train))):
        names: list[str] = []
        table: list[tuple[int, ...]] = []
        others = sorted({one.label for one in part if one.label > 0})
        for number, one in enumerate(part, start=first):
            label = one.label
            person = f"{label:04d}" if label >= 0 else "00-1"
            folder = f"bbox_{one.split}/" * (2 if layout == "nested" else 1) + person
            seen = _seen(one, others)
            owner = label if label > 0 else 7000 + 10 * number + label  # strangers, another in each tracklet
            looks = seen if label > 0 else [Seen(owner)] * one.length
            table.append((len(names) + 1, len(names) + one.length, label, one.camera))
            pictures = tracklet(owner, one.camera, one.number, looks)
            for frame, (picture, (identity, occluded)) in enumerate(zip(pictures, seen, strict=True), start=1):
                name = f"{person}C{one.camera}T{one.number:04d}F{frame:03d}.jpg"
                save(_half_missed(picture) if label < 0 else picture, root / folder / name)
                names.append(name)
                path = f"{folder}/{name}"
                kind = (label == -1, label == 0, one.is_query)
                rows.append((path, label, one.split, *kind, one.camera, number, frame))
                shown.append(f"{path},{occluded},{identity != label},{identity}")
        split = part[0].split
        (root / "info").mkdir(exist_ok=True)
        (root / "info" / f"{split}_name.txt").write_bytes("".join(f"{name}\r\n" for name in names).encode())
        save_mat(root / "info" / f"tracks_{split}_info.mat", {f"track_{split}_info": np.array(table, dtype=np.int32)})
    queries = [[row for row, one in enumerate(test, start=1) if one.is_query]]
    save_mat(root / "info" / "query_IDX.mat", {"query_IDX": np.array(queries, dtype=np.uint16)})
    (root / "bbox_test" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "frames.csv").write_text("\n".join(["path,occluded,foreign,shown", *shown]) + "\n", newline="\n")
    columns = ["path", "label", "split", "is_junk", "is_distractor", "is_query", "camera", "tracklet", "frame"]
    return pd.DataFrame(rows, columns=columns)


def _trained(size: int) -> Iterator[_Tracklet]:
    """Odd numbers, in the order of names. The first is seen once, the others by 2 to 4 cameras, by up to 2 twice."""
    random = np.random.default_rng(51)
    told = []
    for count in range(PEOPLE * size):
        cameras = random.permutation(6)[: (2, 3, 2, 4, 3, 2)[count % 6] if count else 1] + 1
        twice = cameras[: int(random.integers(3)) if count else 0]
        told += [(2 * count + 1, int(camera), False) for camera in [*cameras, *twice]]
    yield from _with_lengths("train", told, LENGTHS, random)


def _tested(size: int) -> Iterator[_Tracklet]:
    """Junk, distractors, then even numbers, each as a person's cameras and whether their tracklets search.

    Of tracklets 7 % are junk and 27 % distractors, in the real thing and here.
    """
    random = np.random.default_rng(52)
    kinds = (
        ("1q", "2q"),  # only among the queries
        ("3", "3"),  # one camera
        ("1q", "1", "4q", "5q"),  # from camera 1, only queries can be found
        ("2q", "2", "3q", "3"),
        ("1q", "1", "6q", "6"),
        ("4q", "5q", "5", "6q"),
    )
    junk = [(-1, 1 + i % 6, False) for i in range(2 * size)]
    distractors = [(0, 1 + i % 6, False) for i in range(8 * size)]
    told = [
        (2 * count + 2, int(text[0]), text.endswith("q")) for count in range(PEOPLE * size) for text in kinds[count % 6]
    ]
    yield from _with_lengths("test", junk, LENGTHS[:3], random)
    yield from _with_lengths("test", distractors, LENGTHS[:-1], random)
    yield from _with_lengths("test", told, LENGTHS, random)


def _with_lengths(
    split: str, told: list[tuple[int, int, bool]], lengths: Sequence[int], random: np.random.Generator
) -> Iterator[_Tracklet]:
    """Tracklets (person, camera, whether it searches), those of a person by camera and numbered, with lengths dealt."""
    dealt = (length for _ in told for length in random.permutation(lengths))
    for label, ones in groupby(told, key=lambda one: one[0]):
        for number, (_, camera, searches) in enumerate(sorted(ones, key=lambda one: one[1]), start=1):
            yield _Tracklet(split, label, camera, number, searches, int(next(dealt)))


def _seen(one: _Tracklet, others: Sequence[int]) -> list[Seen]:
    """Who is to be seen in each frame, and whether something is before them."""
    seen = [Seen(one.label)] * one.length
    if one.label <= 0 or one.length < 5:
        return seen
    random = np.random.default_rng([53, one.label, one.number])
    if random.random() < 0.65:
        run = max(1, one.length // 4)
        start = int(random.integers(one.length - run))
        seen[start : start + run] = [Seen(one.label, occluded=True)] * run
    if random.random() < 0.5:
        run = max(1, one.length // 5)
        last = one.length - run
        start = last if random.random() < 0.5 else int(random.integers(last))  # for good, or for a while
        stranger = int(random.choice([other for other in others if other != one.label]))
        seen[start : start + run] = [Seen(stranger)] * run
    return seen


def _half_missed(picture: Image.Image) -> Image.Image:
    """As a detector does that mistakes a piece of the picture for a person."""
    width, height = picture.size
    return picture.crop((width // 2, height // 3, width, height)).resize((width, height))
