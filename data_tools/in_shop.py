"""In-Shop Clothes Retrieval. Liu, Luo, Qiu, Wang, Tang: DeepFashion: Powering Robust Clothes Recognition and Retrieval
with Rich Annotations, CVPR 2016.

list_eval_partition.txt says which pictures train, search and are searched. A label is the number of an item; a super
label is the gender and category that the path has, numbered from 0 on in the order of their names; some items have
pictures in two. Boxes are for the pictures of 256 x 256 (img), not for those of full size (img_highres), and are taken
as the list has them.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from metricweight.checks import InputError
from metricweight.data.manifest import BOX

from .replicas import in_shop as replica
from .source import Converted, Dataset, Options, Replica, check_there, find, lines, whole, wrong

PARTITION, BOXES = "list_eval_partition.txt", "list_bbox_inshop.txt"
HEADERS = {
    PARTITION: "image_name item_id evaluation_status",
    BOXES: "image_name clothes_type pose_type x_1 y_1 x_2 y_2",
}
LISTS = ("Eval/", "Anno/", "")
PICTURES = ("Img/img", "img", "Img/img_highres", "img_highres")
STATUS = ("train", "query", "gallery")

Listed = Mapping[str, tuple[int, list[str]]]  # of each path its line and the columns after it


def convert(root: Path, options: Options) -> Converted:
    import pandas as pd

    file = find(root, "In-Shop", *(folder + PARTITION for folder in LISTS))
    base = file.parent.parent if file.parent.name in ("Eval", "Anno") else file.parent
    listed = _listed(file)
    rows = _rows(file, listed)
    folder, *others = [place for place in PICTURES if (base / place).is_dir()] or [""]
    if not folder:
        raise InputError(f"{base} has no pictures: none of {', '.join(PICTURES)} is there; unpack img.zip.")
    kinds = sorted({kind for _, kind, _ in rows})
    numbers = {kind: number for number, kind in enumerate(kinds)}
    table = pd.DataFrame(
        {
            "path": [folder + path.removeprefix("img") for path in listed],
            "label": [label for label, _, _ in rows],
            "super_label": [numbers[kind] for _, kind, _ in rows],
            "split": ["train" if status == "train" else "test" for _, _, status in rows],
            "is_query": [status == "query" for _, _, status in rows],
            "is_gallery": [status == "gallery" for _, _, status in rows],
        }
    )
    notes = [f"{base / other} is there too; taken was {folder}." for other in others]
    read = [file]
    boxes = next((place for above in LISTS if (place := base / above / BOXES).is_file()), None)
    if boxes and folder.endswith("highres"):
        notes.append(f"the boxes of {boxes} are not for pictures of full size and are left out.")
    elif boxes:
        read.append(boxes)
        table[BOX], more = _boxes(boxes, file, listed)
        notes += more
    places = [line for line, _ in listed.values()]
    notes += check_there(base, table["path"].tolist(), lambda i: f"{file}, line {places[i]}")
    return Converted(table, f"{PARTITION} with {folder}", base, read, "inshop", dict(enumerate(kinds)), notes)


def _rows(file: Path, listed: Listed) -> list[tuple[int, str, str]]:
    """The item's number, its kind and the status of each picture."""
    rows = []
    trains: dict[str, tuple[bool, int]] = {}
    for path, (line, (item, status)) in listed.items():
        if status not in STATUS:
            raise wrong(file, line, f"evaluation_status '{status}' is not one of {', '.join(STATUS)}.")
        parts = path.split("/")
        if len(parts) != 5 or parts[0] != "img":
            raise wrong(file, line, f"{path} is not img/GENDER/CATEGORY/ITEM/PICTURE.")
        if parts[3] != item:
            raise wrong(file, line, f"item_id is {item}, but the path is {path}.")
        trained, first = trains.setdefault(item, (status == "train", line))
        if trained != (status == "train"):
            raise wrong(
                file, line, f"{item} is in {status} here and {'' if trained else 'not '}in train in line {first}."
            )
        rows.append((whole(item.removeprefix("id_"), file, line, "item_id"), f"{parts[1]}/{parts[2]}", status))
    return rows


def _boxes(file: Path, partition: Path, listed: Listed) -> tuple[list[list[float]], list[str]]:
    """The box of each listed picture; unknown where there is none, or one without area, with a note."""
    boxes = _listed(file)
    found: dict[str, list[float]] = {}
    flat: list[int] = []
    for path, (line, columns) in boxes.items():
        *_, x1, y1, x2, y2 = (whole(text, file, line, "column") for text in columns)
        if x1 >= x2 or y1 >= y2:
            flat.append(line)
        found[path] = [x1, y1, x2, y2] if x1 < x2 and y1 < y2 else [math.nan] * 4
    notes = [f"{file} has {len(flat):,} boxes without an area, the first in line {flat[0]}; left out."] if flat else []
    for one, other, where, lacking in ((listed, boxes, partition, file), (boxes, listed, file, partition)):
        lines_without = [(line, path) for path, (line, _) in one.items() if path not in other]
        if lines_without:
            line, path = lines_without[0]
            more = f" ({len(lines_without) - 1:,} more like it)" if len(lines_without) > 1 else ""
            notes.append(f"{where}, line {line}: {path} is not in {lacking}{more}.")
    return [found.get(path, [math.nan] * 4) for path in listed], notes


def _listed(file: Path) -> Listed:
    """The lines of a list, which begins with their number and the names of its columns."""
    number, *others = lines(file)
    header = HEADERS[file.name]
    if not others or others[0].split() != header.split():
        found_there = others[0].strip() if others else ""
        hint = "This is another list: CelebA and other parts of DeepFashion have files of this name."
        raise wrong(file, 2, f"'{found_there}'; expected '{header}'. {hint}")
    if whole(number, file, 1, "number of pictures") != len(others) - 1:
        raise wrong(file, 1, f"{number.strip()} pictures are announced, but {len(others) - 1} lines follow the header.")
    after = len(header.split()) - 1
    found: dict[str, tuple[int, list[str]]] = {}
    for line, text in enumerate(others[1:], start=3):
        path, *columns = text.rsplit(None, after)
        if len(columns) != after:
            raise wrong(file, line, f"'{text}' is not {header}.")
        if path in found:
            raise wrong(file, line, f"{path} is there already, in line {found[path][0]}.")
        found[path] = (line, columns)
    return found


DATASET = Dataset(
    "In-Shop Clothes Retrieval",
    get="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html (list_eval_partition.txt, img.zip, "
    "list_bbox_inshop.txt)",
    terms="agreement of DeepFashion: non-commercial research and education",
    counts={
        "train": {"images": 25882, "labels": 3997},
        "query": {"images": 14218, "labels": 3985},
        "gallery": {"images": 12612, "labels": 3985},
    },
    convert=convert,
    replica=Replica(replica.write, replica.LAYOUTS),
)
