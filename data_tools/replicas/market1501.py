"""Market-1501 in small: three folders with Thumbs.db, junk, distractors, and names that end with .jpg.jpg."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .persons import person
from .products import save

if TYPE_CHECKING:
    import pandas as pd

LAYOUTS = ("flat", "in_folder")
PEOPLE = 4  # in each half, at size 1


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    import pandas as pd

    base = root / "Market-1501-v15.09.15" if layout == "in_folder" else root
    random = np.random.default_rng(60)
    rows: list[tuple[Any, ...]] = []

    def add(folder: str, label: int, camera: int, look: int, box: int, twice: bool = False) -> None:
        sequence, frame = int(random.integers(1, 7)), int(random.integers(1, 120000))
        text = f"{label:04d}" if label >= 0 else "-1"
        name = f"{text}_c{camera}s{sequence}_{frame:06d}_{box:02d}.jpg" + ".jpg" * twice
        save(person(look, camera, sequence, frame), base / folder / name)
        split = "train" if folder == "bounding_box_train" else "test"
        roles = (folder == "query", folder == "bounding_box_test", label == -1, label == 0)
        rows.append((f"{folder}/{name}", label, split, *roles, camera, sequence, frame))

    for label in range(2, 2 + 4 * PEOPLE * size, 2):
        cameras = [int(camera) for camera in sorted(random.permutation(6)[:3] + 1)]
        if label % 4 == 2:
            for box, camera in enumerate([*cameras, cameras[0]], start=1):
                add("bounding_box_train", label, camera, label, box)
        else:
            for camera in cameras:
                add("query", label, camera, label, 0, twice=label == 4 and camera == cameras[0])
                add("bounding_box_test", label, camera, label, 1, twice=label == 8)
    for stranger in range(4 * size):
        add("bounding_box_test", 0, 1 + stranger % 6, 8000 + stranger, 2)
        add("bounding_box_test", -1, 1 + stranger % 6, 9000 + stranger, 3)
    for folder in ("bounding_box_train", "bounding_box_test", "query"):
        (base / folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (base / "readme.txt").write_bytes(b"This is a replica.\r\n")
    (base / "gt_bbox").mkdir()
    columns = [
        "path",
        "label",
        "split",
        "is_query",
        "is_gallery",
        "is_junk",
        "is_distractor",
        "camera",
        "sequence",
        "frame",
    ]
    return pd.DataFrame(rows, columns=columns)
