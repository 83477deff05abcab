"""CUB-200-2011 in small: its four lists, ids that are not in the order of names, grey pictures, and files of a Mac."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metricweight.checks import InputError

from .products import product, save

if TYPE_CHECKING:
    import pandas as pd


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    import pandas as pd

    if size > 25:
        raise InputError(f"the replica has 4 training labels at size 1 and 100 at most; got --size {size}.")
    base = root / "CUB_200_2011"
    random = np.random.default_rng(200)
    names = ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    rows: list[tuple[Any, ...]] = []
    lists = {name: list[str]() for name in names}
    labels = [*range(1, 4 * size + 1), *range(101, 101 + 4 * size)]
    for label in labels:
        name = f"{label:03d}.Small_billed_Bird{label}"
        for number in random.permutation(6):
            key = len(rows) + 1
            file = f"{name}/Small_Billed_Bird{label}_{number:04d}_{random.integers(100, 99999)}.jpg"
            picture = product(label, int(number), (60, 48))
            save(picture.convert("L") if number == 0 and label % 4 == 1 else picture, base / "images" / file)
            x, y, width, height = 5.0 + number, 4.0, 40.0, 30.0
            lists["images"].append(f"{key} {file}")
            lists["image_class_labels"].append(f"{key} {label}")
            lists["train_test_split"].append(f"{key} {number % 2}")
            lists["bounding_boxes"].append(f"{key} {x} {y} {width} {height}")
            rows.append(
                (f"images/{file}", label, name, "train" if label < 101 else "test", x, y, x + width, y + height)
            )
        (base / "images" / name / f"._{Path(file).name}").write_bytes(b"\x00\x05\x16\x07")
    lists["classes"] = [f"{label} {label:03d}.Small_billed_Bird{label}" for label in labels]
    for name, found in lists.items():
        (base / f"{name}.txt").write_text("".join(f"{line}\n" for line in found))
    return pd.DataFrame(rows, columns=["path", "label", "label_name", "split", "x1", "y1", "x2", "y2"])
