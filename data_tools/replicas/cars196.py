"""Cars196 in small, in each form that circulates: numbers of three kinds for the same pictures, a name with a slash,
grey pictures, names that are in both halves, and files of other systems.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metricweight.checks import InputError

from .matlab import cell, save_mat, structs
from .products import product, save

if TYPE_CHECKING:
    import pandas as pd

LAYOUTS = ("car_ims", "devkit", "nested", "class_folders", "class_folders_header")
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
WITH_SLASH = 174
LARGEST = 18  # with more, the test classes would run into the one with a slash


class Shot(NamedTuple):
    label: int
    view: int
    part: str  # train or test: halves for classification
    number: int  # in its half

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Corners as MATLAB counts them; some need two bytes, most need one."""
        width, height = self.size
        return 2 + self.view, 3 + self.number % 5, width - self.view, height - 4

    @property
    def size(self) -> tuple[int, int]:
        return (320, 240) if self.view == 1 else (72, 54)


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    import pandas as pd

    if size > LARGEST:
        raise InputError(
            f"--size {size} is too large for the replica of Cars196, which takes 4 of 98 training classes for each; "
            f"{LARGEST} at most."
        )
    names = [f"Small Motor Sedan {2000 + label % 13} {label}" for label in range(1, 197)]
    names[WITH_SLASH - 1] = "Ram C/V Cargo Van Minivan 2012"
    shots = _shots(size)
    if layout == "car_ims":
        paths = _write_car_ims(root, shots, names)
    elif layout in ("devkit", "nested"):
        paths = _write_devkit(root, shots, names, layout == "nested")
    else:
        paths = _write_class_folders(root, shots, names, header=layout == "class_folders_header")
    rows: list[tuple[Any, ...]] = []
    for shot, path in zip(shots, paths, strict=True):
        picture = product(shot.label, shot.view, shot.size, kind=1 + shot.label % 3)
        save(picture.convert("L") if shot.view == 2 and shot.label % 4 == 1 else picture, root / path)
        x1, y1, x2, y2 = shot.box
        split = "train" if shot.label < 99 else "test"
        rows.append((path, shot.label, names[shot.label - 1], split, x1 - 1, y1 - 1, x2, y2))
    return pd.DataFrame(rows, columns=["path", "label", "label_name", "split", "x1", "y1", "x2", "y2"])


def _shots(size: int) -> list[Shot]:
    """Seven of each class, four of them in the half for training; classes are in no order."""
    labels = [*range(1, 4 * size + 1), *range(99, 98 + 4 * size), WITH_SLASH]
    shots = []
    for part, views in (("train", range(4)), ("test", range(4, 7))):
        dealt = [(label, view) for label in labels for view in views]
        for number, i in enumerate(np.random.default_rng(196).permutation(len(dealt)), start=1):
            label, view = dealt[i]
            shots.append(Shot(label, view, part, number))
    return shots


def _write_car_ims(root: Path, shots: list[Shot], names: list[str]) -> list[str]:
    numbers = np.random.default_rng(197).permutation(len(shots)) + 1
    paths = [f"car_ims/{number:06d}.jpg" for number in numbers]
    listed = [(path, *s.box, s.label, int(s.part == "test")) for path, s in zip(paths, shots, strict=True)]
    fields = ("relative_im_path", *CORNERS, "class", "test")
    save_mat(root / "cars_annos.mat", {"annotations": structs(fields, sorted(listed)), "class_names": cell(names)})
    return paths


def _write_devkit(root: Path, shots: list[Shot], names: list[str], nested: bool) -> list[str]:
    devkit = root / "devkit"
    save_mat(devkit / "cars_meta.mat", {"class_names": cell(names)})
    fields = (*CORNERS, "class", "fname")
    train, test = (
        [(*s.box, s.label, f"{s.number:05d}.jpg") for s in shots if s.part == part] for part in ("train", "test")
    )
    save_mat(devkit / "cars_train_annos.mat", {"annotations": structs(fields, train)})
    unlabelled = structs((*CORNERS, "fname"), [(*box, name) for *box, _, name in test])
    save_mat(devkit / "cars_test_annos.mat", {"annotations": unlabelled})
    labelled = (devkit if nested else root) / "cars_test_annos_withlabels.mat"
    save_mat(labelled, {"annotations": structs(fields, test)})
    _write_lines(devkit / "train_perfect_preds.txt", [str(label) for *_, label, _ in train])
    folders = {part: f"cars_{part}/cars_{part}" if nested else f"cars_{part}" for part in ("train", "test")}
    for folder in folders.values():
        _write_lines(root / folder / "._00001.jpg", ["of a Mac"])
    return [f"{folders[s.part]}/{s.number:05d}.jpg" for s in shots]


def _write_class_folders(root: Path, shots: list[Shot], names: list[str], header: bool) -> list[str]:
    end = "\r\n" if header else "\n"
    for part in ("train", "test"):
        listed = [",".join(map(str, (f"{s.number:05d}.jpg", *s.box, s.label))) for s in shots if s.part == part]
        first = ["image_name,x_min,y_min,x_max,y_max,label"] * header
        _write_lines(root / f"anno_{part}.csv", [*first, *listed], end)
    numbered = ["class_id,class_name", *(f"{label},{name}" for label, name in enumerate(names, start=1))]
    _write_lines(root / "names.csv", numbered if header else names, end)
    paths = [f"car_data/car_data/{s.part}/{names[s.label - 1].replace('/', '-')}/{s.number:05d}.jpg" for s in shots]
    _write_lines(root / Path(paths[0]).parent / "Thumbs.db", ["of Windows"])
    return paths


def _write_lines(path: Path, lines: list[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
