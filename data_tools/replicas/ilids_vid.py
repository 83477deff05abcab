"""iLIDS-VID in small: numbers of people with gaps, and ten splits by position in a table of bytes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .matlab import save_mat
from .persons import person
from .products import save

if TYPE_CHECKING:
    import pandas as pd

PEOPLE = 8  # at size 1; half of them are trained


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    import pandas as pd

    count = PEOPLE * size
    people = [1 + number + number // 3 for number in range(count)]  # 1 2 3 5 6 7 9 ...
    random = np.random.default_rng(80)
    splits = np.stack([random.permutation(count) + 1 for _ in range(10)])
    dtype = np.uint8 if count < 256 else np.uint16  # as MATLAB stores what is small
    save_mat(root / "train-test people splits" / "train_test_splits_ilidsvid.mat", {"ls_set": splits.astype(dtype)})
    tested = {people[int(position) - 1] for position in splits[0, : count // 2]}
    rows: list[tuple[Any, ...]] = []
    for place, label in enumerate(people):
        for camera in (1, 2):
            split = "test" if label in tested else "train"
            roles = (label in tested and camera == 1, label in tested and camera == 2)
            for frame in range(7 * label, 7 * label + 2 + camera):
                name = f"cam{camera}_person{label:03d}_{frame:05d}.png"
                path = f"sequences/cam{camera}/person{label:03d}/{name}"
                save(person(label, camera, 1, frame), root / "i-LIDS-VID" / path, "PNG")
                rows.append((path, label, split, *roles, camera, 2 * place + camera - 1, frame))
    columns = ["path", "label", "split", "is_query", "is_gallery", "camera", "tracklet", "frame"]
    return pd.DataFrame(rows, columns=columns)
