"""MARS in small: lists with CRLF, tables of MATLAB, junk, distractors, and people such as make protocols differ.

Of six people to be searched, one is only among the queries, one has a single camera and no query, and one has a query
whose other cameras hold nothing but queries. In longer tracklets somebody passes before the person, or the tracker
slips to somebody else. The converter cannot know; frames.csv, beside info/, tells it:

    path, occluded (True or False), shown (the number of the person who is to be seen, from the same half)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from .matlab import save_mat
from .persons import person
from .products import save

if TYPE_CHECKING:
    import pandas as pd

LAYOUTS = ("flat", "nested")
PEOPLE = 6  # in each half, at size 1
LENGTHS = (2, 4, 5, 6, 8, 9, 12, 20)


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
        others = sorted({tracklet.label for tracklet in part if tracklet.label > 0})
        for number, tracklet in enumerate(part, start=first):
            label = tracklet.label
            person_text = f"{label:04d}" if label >= 0 else "00-1"
            folder = f"bbox_{tracklet.split}/" * (2 if layout == "nested" else 1) + person_text
            looks = _seen(tracklet, others)
            table.append((len(names) + 1, len(names) + tracklet.length, label, tracklet.camera))
            for frame, (identity, occluded) in enumerate(looks, start=1):
                name = f"{person_text}C{tracklet.camera}T{tracklet.number:04d}F{frame:03d}.jpg"
                look = identity if identity > 0 else 7000 + 10 * number + identity
                picture = person(look, tracklet.camera, tracklet.number, frame, occluded=occluded)
                save(_half_missed(picture) if label < 0 else picture, root / folder / name)
                names.append(name)
                path = f"{folder}/{name}"
                kind = (label == -1, label == 0, tracklet.is_query)
                rows.append((path, label, tracklet.split, *kind, tracklet.camera, number, frame))
                shown.append(f"{path},{occluded},{identity}")
        split = part[0].split
        (root / "info").mkdir(exist_ok=True)
        (root / "info" / f"{split}_name.txt").write_bytes("".join(f"{name}\r\n" for name in names).encode())
        save_mat(root / "info" / f"tracks_{split}_info.mat", {f"track_{split}_info": np.array(table, dtype=np.int32)})
    queries = [[row for row, tracklet in enumerate(test, start=1) if tracklet.is_query]]
    save_mat(root / "info" / "query_IDX.mat", {"query_IDX": np.array(queries, dtype=np.uint16)})
    (root / "bbox_test" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "frames.csv").write_text("\n".join(["path,occluded,shown", *shown]) + "\n", newline="\n")
    columns = ["path", "label", "split", "is_junk", "is_distractor", "is_query", "camera", "tracklet", "frame"]
    return pd.DataFrame(rows, columns=columns)


def _trained(size: int) -> Iterator[_Tracklet]:
    """Odd numbers, 1 to 3 cameras each, in the order of names."""
    random = np.random.default_rng(51)
    for count in range(PEOPLE * size):
        cameras = sorted(random.permutation(6)[: (1, 2, 3, 2, 2, 3)[count % 6]] + 1)
        yield from _of_one("train", 2 * count + 1, [(int(camera), False) for camera in cameras], random)


def _tested(size: int) -> Iterator[_Tracklet]:
    """Junk, distractors, then even numbers: (camera, whether it searches) of their tracklets in turn."""
    random = np.random.default_rng(52)
    yield from _of_one("test", -1, [(1 + i % 6, False) for i in range(3 * size)], random, longest=5)
    yield from _of_one("test", 0, [(1 + i % 6, False) for i in range(5 * size)], random, longest=6)
    kinds = (
        ("1q", "2q"),  # only among the queries
        ("3", "3"),  # one camera
        ("1q", "1", "4q", "5q"),  # from camera 1, only queries can be found
        ("2q", "2", "3q", "3"),
        ("1q", "1", "6q", "6"),
        ("4q", "5q", "5", "6q"),
    )
    for count in range(PEOPLE * size):
        told = [(int(text[0]), text.endswith("q")) for text in kinds[count % 6]]
        yield from _of_one("test", 2 * count + 2, told, random)


def _of_one(
    split: str, label: int, told: list[tuple[int, bool]], random: np.random.Generator, longest: int = 20
) -> Iterator[_Tracklet]:
    lengths = [length for length in LENGTHS if length <= longest]
    for number, (camera, searches) in enumerate(sorted(told, key=lambda pair: pair[0]), start=1):
        yield _Tracklet(split, label, camera, number, searches, int(random.choice(lengths)))


def _seen(tracklet: _Tracklet, others: list[int]) -> list[tuple[int, bool]]:
    """Who is to be seen in each frame, and whether something is before them."""
    looks = [(tracklet.label, False)] * tracklet.length
    if tracklet.label <= 0 or tracklet.length < 5:
        return looks
    random = np.random.default_rng([53, tracklet.label, tracklet.number])
    if random.random() < 0.6:
        run = max(1, tracklet.length // 4)
        start = int(random.integers(tracklet.length - run))
        looks[start : start + run] = [(tracklet.label, True)] * run
    if random.random() < 0.5:
        run = max(1, tracklet.length // 5)
        stranger = int(random.choice([other for other in others if other != tracklet.label]))
        looks[-run:] = [(stranger, False)] * run
    return looks


def _half_missed(picture: Image.Image) -> Image.Image:
    """As a detector does that mistakes a piece of the picture for a person."""
    width, height = picture.size
    return picture.crop((width // 2, height // 3, width, height)).resize((width, height))
