"""Stanford Online Products in small: both of its forms, items of two to seven pictures, GIFs and grey pictures that are
called .JPG, and lists beside those that matter.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .products import product, save

if TYPE_CHECKING:
    import pandas as pd

LAYOUTS = ("original", "repacked")
HEADER = "image_id class_id super_class_id path"
KINDS = (
    "bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle",
    "lamp", "mug", "sofa", "stapler", "table", "toaster",
)  # fmt: skip


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    import pandas as pd

    base = root / ("online_products" if layout == "repacked" else "Stanford_Online_Products")
    lists, prefix = (base / "Info_Files", "images/") if layout == "repacked" else (base, "")
    random = np.random.default_rng(2016)
    rows: list[tuple[str, int, int, str]] = []
    told: dict[str, list[str]] = {"train": [], "test": []}
    for split in told:
        for kind, name in enumerate(KINDS, start=1):
            for _ in range(size):
                label = rows[-1][1] + 1 if rows else 1
                item = 110_000_000_000 + 7_919 * label + int(random.integers(7_000))
                for view in range(int(random.integers(2, 8))):
                    path = f"{name}_final/{item}_{view}.JPG"
                    picture = product(label, view, (72, 72) if view % 2 else (80, 60), kind)
                    grey = picture.convert("L") if view == 1 and label % 5 == 2 else picture
                    save(grey, base / f"{prefix}{path}", "GIF" if view == 0 and label % 9 == 3 else "JPEG")
                    rows.append((prefix + path, label, kind, split))
                    told[split].append(f"{len(rows)} {label} {kind} {path}")
    lists.mkdir(parents=True, exist_ok=True)
    for split, listed in {**told, "info": [*told["train"], *told["test"]]}.items():
        (lists / f"Ebay_{split}.txt").write_bytes("".join(f"{line}\n" for line in [HEADER, *listed]).encode())
    return pd.DataFrame(rows, columns=["path", "label", "super_label", "split"])
