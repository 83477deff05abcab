"""PRID2011. Hirzer and others: Person Re-Identification by Descriptive and Discriminative Classification, SCIA 2011.

Its multi_shot part: 385 people before camera a, 749 before camera b, of whom the first 200 are the same. What is used
of them is said by splits_prid2011.json, which the literature shares: a list of {"train": [...], "test": [...]} of
folders of people, such as person_0001, for each random split. In the one that circulates these are the 178 people
with at least 27 frames before both cameras, halved ten times; whom it does not name is left out.

Sequences of camera a search among those of camera b; each has one answer. What is reported is the mean of the
matching rates over the splits. The rules are those of mars-torchreid, whose camera rule changes nothing here. Camera
a is 1, b is 2.
"""

import json
import re
from pathlib import Path

from metricweight.checks import InputError

from .replicas import prid2011 as replica
from .source import Converted, Dataset, Options, Replica, find
from .tracklets import Names, Tracklet, gaps, pictures, table

FOLDER = re.compile(r"person_(\d{4})", re.ASCII)
NAMES = Names(re.compile(r"(?P<frame>\d{4})\.png", re.ASCII), "0001.png")
SPLITS = "splits_prid2011.json"
CAMERAS = {"cam_a": 1, "cam_b": 2}


def convert(root: Path, options: Options) -> Converted:
    shots = find(root, "PRID2011", "prid_2011/multi_shot", "multi_shot")
    base = shots.parent
    file = next((place for place in (root / SPLITS, base / SPLITS, base.parent / SPLITS) if place.is_file()), None)
    if file is None:
        raise InputError(
            f"{root / SPLITS} is missing: it says who is trained and who is tested. torchreid has it; put it there."
        )
    fold = 1 if options.fold is None else options.fold
    halves, count = _halves(file, fold)
    found = []
    for folder, split in sorted(halves.items()):
        for name, camera in CAMERAS.items():
            if not (shots / name / folder).is_dir():
                raise InputError(f"{file}, split {fold}: {folder} is named, but {shots / name / folder} is missing.")
            listed, frames, _ = pictures(shots / name / folder, NAMES, {})
            label = int(folder.removeprefix("person_"))
            roles = (split == "test" and camera == 1, split == "test" and camera == 2)
            found.append(Tracklet(f"multi_shot/{name}/{folder}", listed, frames, label, camera, split, *roles))
    layout = f"multi_shot of PRID2011, split {fold} of {count}"
    return Converted(table(found), layout, base, [file], "mars-torchreid", notes=gaps(base, found))


def _halves(file: Path, fold: int) -> tuple[dict[str, str], int]:
    """train or test for each person that a split names, and how many splits there are."""
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {error.lineno}: not JSON ({error.msg}); the file is damaged.") from None
    if not isinstance(splits, list) or not splits:
        raise InputError(f"{file} is not a list of splits.")
    if not 1 <= fold <= len(splits):
        raise InputError(f"--fold {fold} cannot be; {file} has splits 1 to {len(splits)}.")
    halves: dict[str, str] = {}
    for half in ("train", "test"):
        people = splits[fold - 1].get(half) if isinstance(splits[fold - 1], dict) else None
        if not isinstance(people, list) or not people:
            raise InputError(f"{file}, split {fold}: it has no list '{half}' of people such as person_0001.")
        for folder in people:
            if not isinstance(folder, str) or not FOLDER.fullmatch(folder):
                raise InputError(f"{file}, split {fold}, {half}: '{folder}' is not a person such as person_0001.")
            if folder in halves:
                where = half if halves[folder] == half else f"{halves[folder]} and in {half}"
                raise InputError(f"{file}, split {fold}: {folder} is named twice, in {where}.")
            halves[folder] = half
    return halves, len(splits)


DATASET = Dataset(
    "PRID2011",
    get="https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/prid11/ (prid_2011.zip), and "
    "splits_prid2011.json as torchreid has it",
    terms="research only, as its page says",
    counts={
        "train": {"labels": 89, "tracklets": 178},
        "query": {"labels": 89, "tracklets": 89},
        "gallery": {"labels": 89, "tracklets": 89},
    },
    convert=convert,
    replica=Replica(replica.write),
    options=("fold",),
)
