"""Market-1501. Zheng, Shen, Tian, Wang, Wang, Tian: Scalable Person Re-Identification: A Benchmark, ICCV 2015.

No list says what there is: the three folders do, and each name tells person, camera, sequence and frame, as in
0002_c1s1_000451_03.jpg. In bounding_box_test, -1 is junk and 0000 are distractors. A few names end with .jpg.jpg.

bounding_box_train trains, bounding_box_test is the gallery and query searches in it (protocol market1501). `tracklet`
is -1, as these are still pictures; `frame` is the number in the name. gt_bbox, the pictures for multiple queries, is
left out.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from metricweight.checks import InputError

from .replicas import market1501 as replica
from .source import Converted, Dataset, Options, Replica, find, find_in
from .tracklets import entries

NAME = re.compile(
    r"(?P<person>-1|\d{4})_c(?P<camera>[1-6])s(?P<sequence>\d)_(?P<frame>\d{6})_\d{2}\.jpg(\.jpg)?", re.ASCII
)
TRAIN, GALLERY, QUERY = "bounding_box_train", "bounding_box_test", "query"
JUNK, DISTRACTOR = -1, 0


class _Picture(NamedTuple):
    path: str
    label: int
    camera: int
    sequence: int
    frame: int


def convert(root: Path, options: Options) -> Converted:
    import pandas as pd

    base = find(root, "Market-1501", TRAIN, f"Market-1501-v15.09.15/{TRAIN}").parent
    found = {folder: _pictures(find_in(base, "Market-1501", folder)) for folder in (TRAIN, GALLERY, QUERY)}
    _check_people(base, found)
    tables = [
        pd.DataFrame(pictures).assign(
            split="train" if folder == TRAIN else "test", is_query=folder == QUERY, is_gallery=folder == GALLERY
        )
        for folder, pictures in found.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    table["is_junk"], table["is_distractor"] = table["label"] == JUNK, table["label"] == DISTRACTOR
    layout = f"Market-1501 with {', '.join(found)}"
    return Converted(table, layout, base, [], "market1501", notes=_alone(base, found))


def _pictures(folder: Path) -> list[_Picture]:
    """What the names in a folder say, in their order. Raises InputError naming a file that is called otherwise."""
    found = []
    for name in entries(folder, "pictures such as 0002_c1s1_000451_03.jpg"):
        match = NAME.fullmatch(name)
        if match is None:
            raise InputError(
                f"{folder / name}: not a name such as 0002_c1s1_000451_03.jpg; mend it or move the file away."
            )
        numbers = (int(match[key]) for key in ("person", "camera", "sequence", "frame"))
        found.append(_Picture(f"{folder.name}/{name}", *numbers))
    return found


def _check_people(base: Path, found: Mapping[str, list[_Picture]]) -> None:
    """What a wrong name would break: training and test have nobody in common, a query is the only one of its kind."""
    for folder in (TRAIN, QUERY):
        for picture in found[folder]:
            if picture.label <= DISTRACTOR:
                raise InputError(
                    f"{base / picture.path}: person {picture.label} cannot be in {folder}, only in {GALLERY}."
                )
    trained = {picture.label: picture.path for picture in found[TRAIN]}
    for picture in (*found[GALLERY], *found[QUERY]):
        if picture.label in trained:
            raise InputError(
                f"{base / picture.path}: person {picture.label} is in training too, as {trained[picture.label]}; "
                "one of the two is called wrongly."
            )
    searched: dict[tuple[int, int], str] = {}
    for picture in found[QUERY]:
        other = searched.setdefault((picture.label, picture.camera), picture.path)
        if other != picture.path:
            raise InputError(
                f"{base / picture.path}: person {picture.label} from camera {picture.camera} is searched "
                f"already, by {other}."
            )


def _alone(base: Path, found: Mapping[str, list[_Picture]]) -> list[str]:
    """A note on queries that no picture from another camera answers; in the original there are none."""
    cameras: dict[int, set[int]] = {}
    for picture in found[GALLERY]:
        cameras.setdefault(picture.label, set()).add(picture.camera)
    lost = [picture for picture in found[QUERY] if not cameras.get(picture.label, set()) - {picture.camera}]
    if not lost:
        return []
    count = "1 query has" if len(lost) == 1 else f"{len(lost):,} queries have"
    return [f"{count} no picture from another camera in {GALLERY}, such as {base / lost[0].path}."]


DATASET = Dataset(
    "Market-1501",
    get="Market-1501-v15.09.15.zip; the server of its authors is gone, copies circulate",
    terms="research only",
    counts={
        "train": {"images": 12936, "labels": 751},
        "query": {"images": 3368, "labels": 750},
        "gallery": {"images": 19732, "labels": 750},
        "junk": {"images": 3819},
        "distractor": {"images": 2798},
    },
    convert=convert,
    replica=Replica(replica.write, replica.LAYOUTS),
    archives={"Market-1501-v15.09.15.zip": "65005ab7d12ec1c44de4eeafe813e68a"},
)
