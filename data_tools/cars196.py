"""Cars196. Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization, 3dRR 2013.

Classes 1 to 98 train, 99 to 196 test, as metric learning has it since Song et al., CVPR 2016; the halves that it comes
in (cars_train, cars_test) are for classification and are merged. It circulates in three forms. Their pictures are
numbered differently, so that each can be read with its own lists only; names of pictures are paths, since 00001.jpg is
there twice. Boxes are taken as MATLAB's: pixels from 1 on, the last one inside.
"""

import csv
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metricweight.checks import InputError
from metricweight.data.manifest import BOX

from .replicas import cars196 as replica
from .source import Converted, Dataset, Options, Replica, candidates, check_there, find, lines, mat, whole, wrong

if TYPE_CHECKING:
    import pandas as pd

LAST_TRAINED = 98
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
PARTS = ("train", "test")
HEADERS = {"class", "classes", "class_name", "class_names", "name", "names"}


class Car(NamedTuple):
    """A picture as it is listed: where, its class from 1 on, its corners as the source counts them, and the place."""

    path: str
    label: int
    box: Sequence[int]
    place: str


class Listed(NamedTuple):
    """What the lists of a layout say: pictures, names of the classes, the files, and where these disagree."""

    cars: list[Car]
    names: list[str]
    read: list[Path]
    notes: Sequence[str] = ()


class Layout(NamedTuple):
    """One of its forms.

    what   in words
    needs  files and folders that must be there; the first is what it is known by
    read   from the folder that they lie in
    """

    what: str
    needs: tuple[str, ...]
    read: Callable[[Path], Listed]


def convert(root: Path, options: Options) -> Converted:
    found, begun = [], []
    for base in candidates(root):
        for layout in LAYOUTS:
            lacking = [need for need in layout.needs if not (base / need).exists()]
            if not lacking:
                found.append((base, layout))
            elif layout.needs[0] not in lacking:
                begun.append(f"{base} has {layout.needs[0]}, but not {lacking[0]}, which belongs to it.")
    if not found and begun:
        raise InputError(begun[0])
    if not found:
        find(root, "Cars196", *(layout.needs[0] for layout in LAYOUTS))
    (base, layout), *others = found
    listed = layout.read(base)
    notes = [f"{place / other.needs[0]} is there too; taken was {layout.what}, in {base}." for place, other in others]
    table, flat = _table(listed)
    notes += [*listed.notes, *flat]
    notes += check_there(base, table["path"].tolist(), lambda i: listed.cars[i].place)
    return Converted(table, layout.what, base, listed.read, notes=notes)


def _table(listed: Listed) -> "tuple[pd.DataFrame, list[str]]":
    """The rows, and a note on boxes without an area, which are left out."""
    import pandas as pd

    rows, places, flat = [], dict[str, str](), list[str]()
    for path, label, (x1, y1, x2, y2), place in listed.cars:
        if not 1 <= label <= len(listed.names):
            raise InputError(f"{place}: class {label} is not one of 1 to {len(listed.names)}.")
        if path in places:
            raise InputError(f"{place}: {path} is there already, in {places[path]}.")
        places[path] = place
        box: Sequence[float] = (max(0, x1 - 1), max(0, y1 - 1), x2, y2)
        if x1 > x2 or y1 > y2 or box[0] >= x2 or box[1] >= y2:
            flat.append(f"{place}: the box {x1}, {y1}, {x2}, {y2} has no area and is left out.")
            box = [math.nan] * 4
        split = "train" if label <= LAST_TRAINED else "test"
        rows.append((path, label, listed.names[label - 1], split, *box))
    return pd.DataFrame(rows, columns=["path", "label", "label_name", "split", *BOX]), flat


# ---- car_ims with cars_annos.mat


def _read_car_ims(base: Path) -> Listed:
    file = base / "cars_annos.mat"
    variables = mat(file)
    found = _annotations(file, variables, "relative_im_path", "class", *CORNERS)
    cars = [Car(path, label, box, f"{file}, annotation {i}") for i, (path, label, *box) in enumerate(found, start=1)]
    return Listed(cars, _class_names(file, variables), [file])


# ---- cars_train and cars_test with the devkit


def _read_devkit(base: Path) -> Listed:
    """The devkit says twice which classes training pictures and which boxes test pictures have: a note, where it
    contradicts itself."""
    meta, train = _in_devkit(base, "cars_meta.mat"), _in_devkit(base, "cars_train_annos.mat")
    test = _in_devkit(base, "cars_test_annos_withlabels.mat")
    read, all_cars, notes = [meta, train, test], list[Car](), list[str]()
    for part, file, again, doubts in (
        ("cars_train", train, "train_perfect_preds.txt", _other_classes),
        ("cars_test", test, "cars_test_annos.mat", _other_boxes),
    ):
        folder = f"{part}/{part}" if (base / part / part).is_dir() else part
        found = enumerate(_annotations(file, mat(file), "fname", "class", *CORNERS), start=1)
        cars = [Car(f"{folder}/{name}", label, box, f"{file}, annotation {i}") for i, (name, label, *box) in found]
        for other in [path for path in _devkit_places(base, again) if path.is_file()]:
            notes += list(doubts(other, cars))[:1]
            read.append(other)
        all_cars += cars
    return Listed(all_cars, _class_names(meta, mat(meta)), read, notes)


def _devkit_places(base: Path, name: str) -> list[Path]:
    return [base / folder / name for folder in ("", "devkit", "car_devkit/devkit", "car_devkit")]


def _in_devkit(base: Path, name: str) -> Path:
    for path in _devkit_places(base, name):
        if path.is_file():
            return path
    comes = "by itself, not in car_devkit.tgz" if "withlabels" in name else "in car_devkit.tgz"
    other = " cars_annos.mat does not do: it is of car_ims, which is numbered otherwise."
    raise InputError(
        f"{base} has cars_train, but neither it nor its devkit/ has {name}, which comes {comes}; put it there."
        + other * (base / "cars_annos.mat").exists()
    )


def _other_classes(path: Path, cars: Sequence[Car]) -> Iterator[str]:
    """Where the classes which the devkit gives a second time, a line per training picture, are others."""
    given = lines(path)
    if len(given) != len(cars):
        yield f"{path} has {len(given):,} lines, but there are {len(cars):,} pictures in cars_train."
    for number, (line, car) in enumerate(zip(given, cars, strict=False), start=1):
        if line.strip() != str(car.label):
            yield f"{path}, line {number}: class {line}, but {car.place}, which is {car.path}, has {car.label}."


def _other_boxes(path: Path, cars: Sequence[Car]) -> Iterator[str]:
    """Where the test pictures and boxes which the devkit gives without classes are others."""
    boxes = {name: (i, box) for i, (name, *box) in enumerate(_annotations(path, mat(path), "fname", *CORNERS), start=1)}
    for car in cars:
        number, box = boxes.pop(os.path.basename(car.path), (0, None))
        if box is None:
            yield f"{car.place}: {car.path} is not in {path}."
        elif box != car.box:
            yield f"{car.place}: {car.path} has the box {car.box}, but {box} in {path}, annotation {number}."
    for name, (number, _) in boxes.items():
        yield f"{path}, annotation {number}: {name} is not in the list with classes."


def _annotations(path: Path, variables: dict[str, Any], *fields: str) -> list[tuple[Any, ...]]:
    """Some fields of each annotation of a .mat file, in its order: names are str, numbers int."""
    given = variables.get("annotations")
    has = () if given is None else given.dtype.names or ()
    if given is None or not set(fields) <= set(has):
        raise InputError(
            f"{path} has no 'annotations' with the fields {', '.join(fields)}; "
            + (f"its annotations have {', '.join(has) or 'no fields'}." if given is not None else "it has none at all.")
        )
    return list(zip(*(_column(path, given[field].ravel(), field) for field in fields), strict=True))


def _column(path: Path, values: Any, field: str) -> list[Any]:
    kind = str if field in ("fname", "relative_im_path") else int
    column = []
    for i, value in enumerate(values, start=1):
        item = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
        if isinstance(item, float) and item.is_integer():
            item = int(item)
        if not isinstance(item, kind):
            raise InputError(f"{path}, annotation {i}: {field} is {item!r}; expected one {kind.__name__}.")
        column.append(item)
    return column


def _class_names(path: Path, variables: dict[str, Any]) -> list[str]:
    given = variables.get("class_names")
    if given is None:
        raise InputError(f"{path} has no 'class_names'; it has {', '.join(variables) or 'nothing'}.")
    return [str(name.item() if isinstance(name, np.ndarray) and name.size == 1 else name) for name in given.ravel()]


# ---- a folder per class, with CSV files


def _read_class_folders(base: Path) -> Listed:
    names_file = base / "names.csv"
    names = _names(names_file)
    folders = [name.replace("/", "-") for name in names]
    read, cars = [names_file], []
    for part in PARTS:
        file = base / f"anno_{part}.csv"
        folder = next((f for f in (f"car_data/car_data/{part}", f"car_data/{part}", part) if (base / f).is_dir()), None)
        if folder is None:
            raise InputError(f"{base} has no car_data/car_data/{part}, the pictures that {file.name} lists.")
        found = _lying(base / folder)
        for number, fields in _fields(file):
            if len(fields) != 6:
                raise wrong(file, number, f"{len(fields)} fields; expected 6: picture, x1, y1, x2, y2, class.")
            picture, *box, label = fields[0], *(whole(text, file, number, "field") for text in fields[1:])
            if not 1 <= label <= len(names):
                raise wrong(file, number, f"class {label} is not one of 1 to {len(names)}.")
            right = folders[label - 1]
            if picture in found and right not in found[picture]:
                raise wrong(
                    file, number, f"{picture} has class {label}, '{names[label - 1]}', but lies in {found[picture][0]}."
                )
            cars.append(Car(f"{folder}/{right}/{picture}", label, box, f"{file}, line {number}"))
        read.append(file)
    return Listed(cars, names, read)


def _names(path: Path) -> list[str]:
    """The names of the classes, from class 1 on; written alone or after their numbers, with or without a header."""
    rows = list(_fields(path))
    if not rows[0][1][0].isdecimal() and (len(rows[0][1]) > 1 or rows[0][1][0].lower() in HEADERS):
        rows.pop(0)
    names: list[str] = []
    for i, (number, fields) in enumerate(rows, start=1):
        if len(fields) > 2 or (len(fields) == 2 and whole(fields[0], path, number, "class") != i):
            raise wrong(path, number, f"'{','.join(fields)}' is not the name of class {i}, nor {i} and its name.")
        if fields[-1] in names:
            raise wrong(path, number, f"'{fields[-1]}' is the name of class {names.index(fields[-1]) + 1} too.")
        names.append(fields[-1])
    return names


def _fields(path: Path) -> list[tuple[int, list[str]]]:
    """The number and the fields of each line of a CSV file but a header, which has words where others have numbers."""
    rows = []
    for number, line in enumerate(lines(path), start=1):
        fields = [field.strip() for field in next(csv.reader([line]), [])]
        if not any(fields):
            raise wrong(path, number, "the line is empty.")
        rows.append((number, fields))
    return rows[1:] if len(rows[0][1]) == 6 and not rows[0][1][1].isdecimal() else rows


def _lying(folder: Path) -> dict[str, list[str]]:
    """In which class folders the pictures of each name lie."""
    found: dict[str, list[str]] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        for name in os.listdir(place):
            found.setdefault(name, []).append(place.name)
    return found


LAYOUTS = (
    Layout("car_ims with cars_annos.mat", ("car_ims", "cars_annos.mat"), _read_car_ims),
    Layout("cars_train and cars_test with the devkit", ("cars_train", "cars_test"), _read_devkit),
    Layout("a folder per class with CSV files", ("anno_train.csv", "anno_test.csv", "names.csv"), _read_class_folders),
)

DATASET = Dataset(
    "Cars196",
    get="its own site is gone; copies circulate (car_ims.tgz with cars_annos.mat; cars_train.tgz, "
    "cars_test.tgz with car_devkit.tgz and cars_test_annos_withlabels.mat; a folder per class with CSV files)",
    terms="no licence is stated; pictures from the web, for research",
    counts={"train": {"images": 8054, "labels": 98}, "test": {"images": 8131, "labels": 98}},
    convert=convert,
    replica=Replica(replica.write, replica.LAYOUTS),
    archives={
        "car_ims.tgz": "d5c8f0aa497503f355e17dc7886c3f14",
        "cars_train.tgz": "065e5b463ae28d29e77c1b4b166cfe61",
        "cars_test.tgz": "4ce7ebf6a94d07f1952d94dd34c4d501",
        "car_devkit.tgz": "c3b158d763b6e2245038c8ad08e45376",
    },
    files={
        "cars_annos.mat": "b407c6086d669747186bd1d764ff9dbc",
        "cars_meta.mat": "4591ba8ddb31503892280ed8c6ed1c16",
        "cars_train_annos.mat": "7b154abe023e6274e597db035347ff56",
        "cars_test_annos.mat": "3691a6676c14dca074d69e9ec1a81e73",
        "cars_test_annos_withlabels.mat": "b0a2b23655a3edd16d84508592a98d10",
        "000001.jpg": "2d44a28f071aeaac9c0802fddcde452e",
        "000002.jpg": "531fbde520bee33dcbfced6ae588c8f9",
    },
)
