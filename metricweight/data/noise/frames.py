"""Noise in what is to be seen, labels as they were: frames of others in a tracklet, and pictures that are covered."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metricweight.checks import InputError
from metricweight.data.manifest import BOX
from metricweight.data.noise.draw import Asked, Indices, Units, chosen, one_of
from metricweight.files import whole_file
from metricweight.progress import track

LEAST, MOST = 30, 60  # per cent of a picture that are covered
SIDES = ("left", "top", "right", "bottom")
GREY = 127
OF_THE_PICTURE = ("path", "member", *BOX)


class Cover(NamedTuple):
    """How a picture is covered.

    percent  of its area
    side     from which side, as a strip along it
    by       row of the picture that covers it; -1: grey
    """

    percent: int
    side: str
    by: int


def foreign_frames(units: Units, asked: Asked) -> dict[str, NDArray[Any]]:
    """Columns of the training rows in which chosen frames have changed places with frames of other identities.

    Each picture is still there once. Label, camera, tracklet and frame belong to the place; path and box to the
    picture; `clean_label` is who is to be seen.

    Raises InputError where one identity has more than half of the chosen frames: they cannot all go to others.
    """
    places = chosen(units, asked, (units.table["tracklet"] >= 0).to_numpy())
    order, drawn = units.numbers(asked, "place", places), units.numbers(asked, "picture", places)
    places, pictures = places[np.argsort(order, kind="stable")], places[np.argsort(drawn, kind="stable")]
    most = np.bincount(units.label[places]).max() if len(places) else 0
    if 2 * most > len(places):
        raise InputError(
            f"foreign_frames cannot exchange {len(places):,} frames of which {most:,} show one identity; "
            "at most half of them may. Choose another rate or --count exact_per_class."
        )
    pictures = places_of_others(units.label[places].tolist(), units.label[pictures].tolist(), pictures.tolist())
    columns = {}
    for name in OF_THE_PICTURE:
        columns[name] = units.table[name].to_numpy(object if name == "path" else None, copy=True)
        columns[name][places] = columns[name][pictures]
    columns["clean_label"] = units.table["clean_label"].to_numpy(copy=True)
    columns["clean_label"][places] = units.classes[units.label[pictures]]
    columns["is_noisy"] = units.table["is_noisy"].to_numpy(copy=True)
    columns["is_noisy"][places] = True
    return columns


def places_of_others(labels: Sequence[int], shown: list[int], pictures: list[int]) -> Indices:
    """The pictures in an order in which none is at a place of its own label; no label may have more than half.

    A picture that is at home changes with the next one for which this is right for both. There is one: at the places
    of a label and with the pictures of it there are less than all together.
    """
    n = len(labels)
    for i in range(n):
        if shown[i] == labels[i]:
            step = next(s for s in range(1, n) if labels[i] not in (labels[(i + s) % n], shown[(i + s) % n]))
            j = (i + step) % n
            shown[i], shown[j] = shown[j], shown[i]
            pictures[i], pictures[j] = pictures[j], pictures[i]
    return np.array(pictures, dtype=np.int64)


def occlusion(units: Units, asked: Asked) -> dict[str, NDArray[Any]]:
    """Columns of the training rows in which chosen pictures are new ones, written here, that are partly covered.

    30 to 60 % of the area, along one side, are grey or show a picture of another label. The choice of rows, sides,
    areas and pictures is the same everywhere; pixels are as the decoder of this machine gives them.
    """
    from metricweight.data.images import open_picture

    if asked.pictures is None:
        raise InputError("occlusion writes pictures; say to which folder.")
    rows = chosen(units, asked)
    folder = asked.pictures.resolve()
    root = units.root.resolve()
    table = units.table
    path, member = table["path"].to_numpy(object, copy=True), table["member"].to_numpy(copy=True)
    stamps = units.numbers(asked, "name", rows).tolist()  # so that seeds do not share pictures
    names = [f"{PurePosixPath(path[row]).stem}-{stamp:016x}.png" for row, stamp in zip(rows, stamps, strict=True)]
    for label in set(table["label"].to_numpy()[rows].tolist()):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    files = [folder / str(label) / name for label, name in zip(table["label"].to_numpy()[rows], names, strict=True)]

    def write(job: tuple[int, Cover, Path]) -> None:
        row, cover, file = job
        picture = open_picture(units.root / path[row], int(member[row]))
        by = open_picture(units.root / path[cover.by], int(member[cover.by])) if cover.by >= 0 else None
        with whole_file(file) as opened:
            covered(picture, cover, by).save(opened, format="png")

    jobs = list(zip(rows.tolist(), covers(units, asked, rows), files, strict=True))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="occlude") as pool:
        for _ in track(pool.map(write, jobs), "occluded pictures", total=len(jobs)):
            pass
    for row, file in zip(rows, files, strict=True):
        path[row] = (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()
    member[rows] = -1
    noisy = table["is_noisy"].to_numpy(copy=True)
    noisy[rows] = True
    return {"path": path, "member": member, "is_noisy": noisy}


def covers(units: Units, asked: Asked, rows: Indices) -> Iterator[Cover]:
    """How each of some rows is covered: grey or by a picture of another label, as likely."""
    by_label = np.lexsort((units.numbers(asked, "order", np.arange(len(units))), units.label))
    sizes = np.bincount(units.label)
    first = np.cumsum(sizes) - sizes
    label = units.label[rows]
    place = one_of(units.numbers(asked, "other", rows), len(units) - sizes[label])
    place += np.where(place >= first[label], sizes[label], 0)  # leap over the own label
    grey = one_of(units.numbers(asked, "grey", rows), 2) == 0
    percent = LEAST + one_of(units.numbers(asked, "area", rows), MOST - LEAST + 1)
    side = one_of(units.numbers(asked, "side", rows), len(SIDES))
    by = np.where(grey, -1, by_label[place])
    yield from (Cover(p, SIDES[s], b) for p, s, b in zip(percent.tolist(), side.tolist(), by.tolist(), strict=True))


def covered(picture: Image.Image, cover: Cover, by: Image.Image | None) -> Image.Image:
    """A picture, grey or RGB, with a strip along one side that is grey or shows the same place of another picture."""
    picture = picture.copy() if picture.mode == "L" else picture.convert("RGB")
    width, height = picture.size
    wide, high = max(1, (width * cover.percent + 50) // 100), max(1, (height * cover.percent + 50) // 100)
    box = {
        "left": (0, 0, wide, height),
        "top": (0, 0, width, high),
        "right": (width - wide, 0, width, height),
        "bottom": (0, height - high, width, height),
    }[cover.side]
    above = Image.new("L", picture.size, GREY) if by is None else by.resize(picture.size, Image.Resampling.NEAREST)
    picture.paste(above.convert(picture.mode).crop(box), box)
    return picture
