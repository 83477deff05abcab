"""PRID2011 in small: multi_shot of both cameras, people whom one camera alone saw, and a file of ten splits."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .persons import person
from .products import save

if TYPE_CHECKING:
    import pandas as pd

PEOPLE = 8  # of the splits, at size 1; half of them are trained


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    import pandas as pd

    people = [2 * number + 1 for number in range(PEOPLE * size)]
    random = np.random.default_rng(90)
    splits = []
    for _ in range(10):
        drawn = [f"person_{label:04d}" for label in random.permutation(people)]
        splits.append({"train": sorted(drawn[len(drawn) // 2 :]), "test": sorted(drawn[: len(drawn) // 2])})
    (root / "splits_prid2011.json").write_text(json.dumps(splits))
    rows: list[tuple[Any, ...]] = []
    seen = {"cam_a": [*people, 2], "cam_b": [*people, 4]}  # 2 and 4 are in no split
    for camera, (name, labels) in enumerate(seen.items(), start=1):
        for label in labels:
            folder = f"person_{label:04d}"
            split = "train" if folder in splits[0]["train"] else "test"
            roles = (split == "test" and camera == 1, split == "test" and camera == 2)
            for frame in range(1, 4 + camera):
                path = f"multi_shot/{name}/{folder}/{frame:04d}.png"
                save(person(label, camera, 1, frame), root / "prid_2011" / path, "PNG")
                if label in people:
                    rows.append((path, label, split, *roles, camera, 2 * people.index(label) + camera - 1, frame))
    columns = ["path", "label", "split", "is_query", "is_gallery", "camera", "tracklet", "frame"]
    return pd.DataFrame(rows, columns=columns)
