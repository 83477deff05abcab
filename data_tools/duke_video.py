"""DukeMTMC-VideoReID. Wu, Lin, Dong, Yan, Ouyang, Yang: Exploit the Unknown Gradually, CVPR 2018.

train, query and gallery (train_split and so on in the first release) hold a folder per person, in it one per tracklet,
and the names of its pictures tell person, camera, number and frame of the video once more: 0001_C6_F0099_X30823.jpg,
or 0001C6F0099X30823.jpg in the first release. `frame` is the number after F; some tracklets begin at 2.

Each query searches in the gallery, where pictures of the same person from the same camera do not count: the rules of
mars-torchreid, with step AP. By the numbers that its authors give, the gallery holds the queries too; that rule leaves
them out. The 408 people of the gallery whom nobody searches for are marked as distractors; they keep their numbers, so
they are nobody's positives by any rule.
"""

import re
from pathlib import Path

from metricweight.checks import InputError
from metricweight.progress import track

from .replicas import duke_video as replica
from .source import Converted, Dataset, Options, Replica, find, find_in
from .tracklets import Names, Tracklet, entries, gaps, pictures, table

LATER = Names(
    re.compile(r"(?P<person>\d{4})_C(?P<camera>[1-8])_F(?P<frame>\d{4,})_X\d+\.jpg", re.ASCII),
    "0001_C6_F0099_X30823.jpg",
)
FIRST = Names(
    re.compile(r"(?P<person>\d{4})C(?P<camera>[1-8])F(?P<frame>\d{4,})X\d+\.jpg", re.ASCII), "0001C6F0099X30823.jpg"
)
PARTS = ("train", "query", "gallery")


def convert(root: Path, options: Options) -> Converted:
    base = find(root, "DukeMTMC-VideoReID", "train", "train_split").parent
    folders = [folder for part in PARTS for folder in _folders(base, part)]
    names = LATER if any(map(LATER.form.fullmatch, entries(base / folders[0], "pictures"))) else FIRST
    searched = {_person(folder) for folder in folders if folder.startswith("query")}
    found = []
    for folder in track(folders, "reading tracklets", len(folders)):
        part, label = folder.split("/")[0].removesuffix("_split"), _person(folder)
        listed, frames, told = pictures(base / folder, names, {"person": folder.split("/")[1]})
        split, stranger = "train" if part == "train" else "test", part == "gallery" and label not in searched
        found.append(
            Tracklet(
                folder, listed, frames, label, int(told["camera"]), split, part == "query", part == "gallery", stranger
            )
        )
    trained = {tracklet.label for tracklet in found if tracklet.split == "train"}
    for tracklet in found:
        if tracklet.split == "test" and tracklet.label in trained:
            raise InputError(f"{base / tracklet.folder}: person {tracklet.label} is in {base / 'train'} too.")
    layout = f"DukeMTMC-VideoReID with names such as {names.example}"
    return Converted(table(found), layout, base, [], "mars-torchreid", notes=gaps(base, found))


def _folders(base: Path, part: str) -> list[str]:
    """The tracklets of a part, such as train/0001/0002."""
    above = find_in(base, "DukeMTMC-VideoReID", part, f"{part}_split")
    found = []
    for person in entries(above, "a folder per person, such as 0001"):
        tracklets = entries(above / person, "a folder per tracklet, such as 0001") if person.isdecimal() else [""]
        for tracklet in tracklets:
            if not tracklet.isdecimal():
                raise InputError(f"{above / person / tracklet}: not a folder such as 0001; move it away.")
            found.append(f"{above.name}/{person}/{tracklet}")
    return found


def _person(folder: str) -> int:
    return int(folder.split("/")[1])


DATASET = Dataset(
    "DukeMTMC-VideoReID",
    get="withdrawn by Duke University: for those who have a copy",
    terms="CC BY-NC-SA 4.0; withdrawn",
    counts={
        "train": {"labels": 702, "tracklets": 2196},
        "query": {"labels": 702, "tracklets": 702},
        "gallery": {"labels": 702, "tracklets": 2636},
    },
    convert=convert,
    replica=Replica(replica.write, replica.LAYOUTS),
)
