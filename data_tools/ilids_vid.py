"""iLIDS-VID. Wang, Gong, Zhu, Wang: Person Re-Identification by Video Ranking, ECCV 2014.

300 people, a sequence each before two cameras. train_test_splits_ilidsvid.mat holds ten random splits (ls_set, [10,
300]) as positions, from 1 on, among the folders of people sorted by name, so here the sorted position is what counts:
people are numbered up to 319, with gaps, and a folder that is missing is an error. The first half of a row is tested,
the other trained.

Sequences of camera 1 search among those of camera 2; each has one answer. What is reported is the mean of the
matching rates over the ten splits. The rules are those of mars-torchreid, whose camera rule changes nothing here.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError

from .replicas import ilids_vid as replica
from .source import Converted, Dataset, Options, Replica, find, mat
from .tracklets import Names, Tracklet, entries, gaps, pictures, table

FOLDER = re.compile(r"person(\d{3})", re.ASCII)
NAMES = Names(
    re.compile(r"cam(?P<camera>[12])_person(?P<person>\d{3})_(?P<frame>\d{5})\.png", re.ASCII),
    "cam1_person001_00317.png",
)
SPLITS = "train-test people splits/train_test_splits_ilidsvid.mat"


def convert(root: Path, options: Options) -> Converted:
    sequences = find(root, "iLIDS-VID", "i-LIDS-VID/sequences", "sequences")
    base = sequences.parent
    people = _people(sequences)
    splits, file = _splits(root, base, len(people))
    fold = 1 if options.fold is None else options.fold
    if not 1 <= fold <= len(splits):
        raise InputError(f"--fold {fold} cannot be; {file} has splits 1 to {len(splits)}.")
    tested = {people[position - 1] for position in splits[fold - 1, : len(people) // 2]}
    found = []
    for folder in people:
        for camera in (1, 2):
            number = folder.removeprefix("person")
            listed, frames, _ = pictures(
                sequences / f"cam{camera}" / folder, NAMES, {"camera": str(camera), "person": number}
            )
            split, is_tested = ("test", True) if folder in tested else ("train", False)
            roles = (is_tested and camera == 1, is_tested and camera == 2)
            found.append(
                Tracklet(f"sequences/cam{camera}/{folder}", listed, frames, int(number), camera, split, *roles)
            )
    layout = f"i-LIDS-VID, split {fold} of {len(splits)}"
    return Converted(table(found), layout, base, [file], "mars-torchreid", notes=gaps(base, found))


def _people(sequences: Path) -> list[str]:
    """The folders of people, sorted; both cameras must have the same."""
    first, second = (
        entries(sequences / camera, "a folder per person, such as person001") for camera in ("cam1", "cam2")
    )
    for folder in (*first, *second):
        if not FOLDER.fullmatch(folder):
            raise InputError(f"{sequences}: {folder} is not a folder such as person001; move it away.")
    for here, there, lacking in (
        ("cam1", "cam2", set(first) - set(second)),
        ("cam2", "cam1", set(second) - set(first)),
    ):
        if lacking:
            raise InputError(f"{sequences / there / min(lacking)} is missing; {here} has {min(lacking)}.")
    return first


def _splits(root: Path, base: Path, people: int) -> tuple[NDArray[np.int64], Path]:
    """Positions of people [splits, people], and the file that has them."""
    places = [root / SPLITS, base / SPLITS, base.parent / SPLITS, root / Path(SPLITS).name]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"{places[0]} is missing: it says who is trained and who is tested. It comes with iLIDS-VID; put it there."
        )
    found = mat(file).get("ls_set")
    if found is None or np.ndim(found) != 2 or np.asarray(found).dtype.kind not in "iuf":
        raise InputError(f"{file} has no table ls_set [splits, people].")
    splits = np.asarray(found).astype(np.int64)
    if splits.shape[1] != people:
        raise InputError(
            f"{file}: ls_set is of {splits.shape[1]} people, but {people} have a folder; positions in it would be "
            "those of others. Look for what is missing, or too much."
        )
    for row, positions in enumerate(splits, start=1):
        if not np.array_equal(np.sort(positions), np.arange(1, people + 1)):
            bad = next(int(p) for p in positions if not 1 <= p <= people or (positions == p).sum() > 1)
            raise InputError(f"{file}, row {row}: position {bad} is there twice or not one of 1 to {people}.")
    return splits, file


DATASET = Dataset(
    "iLIDS-VID",
    get="https://xiatian-zhu.github.io/downloads_qmul_iLIDS-VID_ReID_dataset.html, with the folder of its splits",
    terms="research only, as its page says",
    counts={
        "train": {"labels": 150, "tracklets": 300},
        "query": {"labels": 150, "tracklets": 150},
        "gallery": {"labels": 150, "tracklets": 150},
    },
    convert=convert,
    replica=Replica(replica.write),
    options=("fold",),
)
