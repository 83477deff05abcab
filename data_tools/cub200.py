"""CUB-200-2011. Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset, 2011.

Classes 1 to 100 train, 101 to 200 test, as metric learning has it since Song et al., CVPR 2016; its own
train_test_split.txt is for classification and is not used.
"""

from pathlib import Path

from .replicas import cub200 as replica
from .source import Converted, Dataset, Options, Replica, check_there, find, lines, whole, wrong

LAST_TRAINED = 100


def convert(root: Path, options: Options) -> Converted:
    import pandas as pd

    images = find(root, "CUB-200-2011", "images.txt")
    root = images.parent
    labels, boxes, classes = (root / f"{name}.txt" for name in ("image_class_labels", "bounding_boxes", "classes"))
    path_of, label_of, box_of = _by_id(images), _by_id(labels), _by_id(boxes)
    names = {whole(key, classes, line, "class"): name for key, (line, name) in _by_id(classes).items()}
    for other, of in ((labels, label_of), (boxes, box_of)):
        for file, has, lacks, has_not in ((images, path_of, other, of), (other, of, images, path_of)):
            if lacking := has.keys() - has_not.keys():
                line, key = min((has[key][0], key) for key in lacking)
                raise wrong(file, line, f"image {key} is not in {lacks}.")
    rows = []
    lines_of: dict[str, int] = {}
    for key, (line, path) in path_of.items():
        label = whole(label_of[key][1], labels, label_of[key][0], "class")
        name = names.get(label)
        if name is None or path.split("/")[0] != name:
            raise wrong(labels, label_of[key][0], f"class {label} is {name} in {classes}, but image {key} is {path}.")
        if lines_of.setdefault(path, line) != line:
            raise wrong(images, line, f"{path} is there already, in line {lines_of[path]}.")
        x, y, width, height = _box(boxes, *box_of[key])
        split = "train" if label <= LAST_TRAINED else "test"
        rows.append((f"images/{path}", label, name, split, x, y, x + width, y + height, line))
    columns = ["path", "label", "label_name", "split", "x1", "y1", "x2", "y2", "line"]
    table = pd.DataFrame(rows, columns=columns)
    listed = table.pop("line")
    notes = check_there(root, table["path"].tolist(), lambda i: f"{images}, line {listed[i]}")
    return Converted(table, "CUB_200_2011 with images.txt", root, [images, labels, boxes, classes], notes=notes)


def _box(path: Path, line: int, text: str) -> list[float]:
    try:
        box = [float(number) for number in text.split(" ")]
    except ValueError:
        box = []
    if len(box) != 4 or not (box[2] > 0 and box[3] > 0):
        raise wrong(path, line, f"'{text}' is not x y width height.")
    return box


def _by_id(path: Path) -> dict[str, tuple[int, str]]:
    """The number and the rest of each line, by the id it begins with."""
    found: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines(path), start=1):
        key, space, rest = line.partition(" ")
        if not space or not key.isdecimal() or not rest.strip():
            raise wrong(path, number, f"'{line}' is not an id and a value.")
        if key in found:
            raise wrong(path, number, f"id {key} is there already, in line {found[key][0]}.")
        found[key] = (number, rest.strip())
    return found


DATASET = Dataset(
    "CUB-200-2011",
    get="https://data.caltech.edu/records/65de6-vp158 (CUB_200_2011.tgz, 1.2 GB)",
    terms="no licence is stated; pictures from Flickr, for non-commercial research and education",
    counts={"train": {"images": 5864, "labels": 100}, "test": {"images": 5924, "labels": 100}},
    convert=convert,
    replica=Replica(replica.write),
    archives={"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"},
    files={
        "001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg": "4c84da568f89519f84640c54b7fba7c2",
        "002.Laysan_Albatross/Laysan_Albatross_0001_545.jpg": "e7db63424d0e384dba02aacaf298cdc0",
    },
)
