"""Data sets without lists: a folder per tracklet, and the names of folders and pictures say all that is known."""

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from re import Pattern
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from metricweight.checks import InputError

if TYPE_CHECKING:
    import pandas as pd


OF_WINDOWS = ("Thumbs.db", "desktop.ini")


class Tracklet(NamedTuple):
    """Pictures of one person before one camera.

    folder  below the root, with /
    names   of its pictures, in the order of their numbers
    frames  these numbers
    """

    folder: str
    names: Sequence[str]
    frames: Sequence[int]
    label: int
    camera: int
    split: str
    is_query: bool = False
    is_gallery: bool = False
    is_distractor: bool = False


class Names(NamedTuple):
    """What pictures of a tracklet are called: a pattern with the group `frame`, and an example."""

    form: Pattern[str]
    example: str


def entries(folder: Path, what: str) -> list[str]:
    """What a folder holds, sorted; hidden files, and those of Windows, are passed over.

    Raises InputError for a folder that cannot be read or holds nothing; `what` says what should be in it.
    """
    try:
        found = sorted(name for name in os.listdir(folder) if not name.startswith(".") and name not in OF_WINDOWS)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}; it should hold {what}.") from None
    if not found:
        raise InputError(f"{folder} holds nothing; it should hold {what}.")
    return found


def pictures(folder: Path, names: Names, told: Mapping[str, str]) -> tuple[list[str], list[int], dict[str, str]]:
    """The pictures of a tracklet, in the order of their numbers: their names, the numbers, and what all names say.

    told  what the folder says of groups of the form, which the names must say too

    Raises InputError naming a picture that is called otherwise, says something else than the folder or the pictures
    before it, or has the number of another.
    """
    said = dict(told)
    numbered: dict[int, str] = {}
    for name in entries(folder, f"pictures such as {names.example}"):
        match = names.form.fullmatch(name)
        if match is None:
            raise InputError(f"{folder / name}: not a name such as {names.example}; mend it or move the file away.")
        for key, value in match.groupdict().items():
            if key != "frame" and said.setdefault(key, value) != value:
                other = "its folder says" if key in told else "other pictures of its tracklet say"
                raise InputError(f"{folder / name}: {key} {value}, but {other} {said[key]}; one of them is wrong.")
        frame = int(match["frame"])
        if frame in numbered:
            raise InputError(f"{folder / name}: frame {frame} is there already, as {numbered[frame]}.")
        numbered[frame] = name
    frames = sorted(numbered)
    return [numbered[frame] for frame in frames], frames, said


def table(tracklets: Sequence[Tracklet]) -> "pd.DataFrame":
    """A row per picture, tracklet after tracklet; tracklets are numbered from 0 on."""
    import pandas as pd

    lengths = [len(tracklet.frames) for tracklet in tracklets]
    columns = {
        name: np.repeat(np.array([getattr(tracklet, name) for tracklet in tracklets]), lengths)
        for name in ("label", "camera", "split", "is_query", "is_gallery", "is_distractor")
    }
    return pd.DataFrame(
        {
            "path": [f"{tracklet.folder}/{name}" for tracklet in tracklets for name in tracklet.names],
            **columns,
            "tracklet": np.repeat(np.arange(len(tracklets)), lengths),
            "frame": [frame for tracklet in tracklets for frame in tracklet.frames],
        }
    )


def gaps(root: Path, tracklets: Sequence[Tracklet]) -> list[str]:
    """A note on tracklets in which numbers of frames are left out, naming the first."""
    torn = [tracklet for tracklet in tracklets if tracklet.frames[-1] - tracklet.frames[0] >= len(tracklet.frames)]
    if not torn:
        return []
    before, after = next((a, b) for a, b in pairwise(torn[0].frames) if b != a + 1)
    count = f"{len(torn):,} tracklets leave" if len(torn) > 1 else "1 tracklet leaves"
    where = root / torn[0].folder
    return [f"{count} out frames, such as {where}: none between {before} and {after}; compare it with the original."]
