"""In-Shop in small: padded columns, items of one picture or in two categories, files of Windows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .products import product, save

if TYPE_CHECKING:
    import pandas as pd

LAYOUTS = ("img", "flat", "highres")  # where the pictures lie: Img/img, img, Img/img_highres
PICTURES = {"img": "Img/img", "flat": "img", "highres": "Img/img_highres"}
KINDS = (
    "MEN/Denim", "MEN/Jackets_Vests", "MEN/Tees_Tanks", "WOMEN/Blouses_Shirts", "WOMEN/Dresses", "WOMEN/Skirts",
)  # fmt: skip
POSES = ("1_front", "2_side", "3_back", "4_full", "7_additional", "6_flat")
COLUMNS = ["path", "label", "super_label", "split", "is_query", "is_gallery"]
BOX = ["x1", "y1", "x2", "y2"]


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    import pandas as pd

    base = root / "In-shop Clothes Retrieval Benchmark"
    random = np.random.default_rng(52712)
    rows: list[tuple[Any, ...]] = []
    told: list[tuple[str, str, str]] = []
    boxes: list[tuple[str, str]] = []
    for number, label in enumerate(sorted(random.permutation(40 * size)[: 20 * size] + 1)):
        kind = number // 2 % len(KINDS)
        item, train = f"id_{label:08d}", number % 2 == 0
        views = 1 if number % 20 == 4 else int(random.integers(2, 6)) + 1 - train
        for view in range(views):
            if number == 3 and view == 2:
                kind = 3  # some real items are filed under two
            inside = f"{KINDS[kind]}/{item}/{1 + view // 6:02d}_{POSES[view % 6]}.jpg"
            status = "train" if train else ("query", "gallery")[view % 2]
            box = (4 + view, 6, 60 - view, 58)
            save(product(int(label), view, kind=kind + 1), base / PICTURES[layout] / inside)
            told.append((f"img/{inside}", item, status))
            boxes.append((f"img/{inside}", f"{1 + kind % 3} {1 + view % 6} " + " ".join(f"{x:03d}" for x in box)))
            asks = (status == "query", status == "gallery")
            place = f"{PICTURES[layout]}/{inside}"
            rows.append((place, int(label), kind, "train" if train else "test", *asks, *box))
    (base / PICTURES[layout] / KINDS[0] / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    lists = base if layout == "flat" else base / "Eval"
    _write(
        lists / "list_eval_partition.txt",
        "image_name item_id evaluation_status",
        [(a, f"{b} {c:10s}") for a, b, c in told],
    )
    annotations = base if layout == "flat" else base / "Anno"
    _write(annotations / "list_bbox_inshop.txt", "image_name clothes_type pose_type x_1 y_1 x_2 y_2", boxes)
    table = pd.DataFrame(rows, columns=[*COLUMNS, *BOX])
    return table.drop(columns=BOX) if layout == "highres" else table


def _write(path: Path, header: str, rows: list[tuple[str, str]]) -> None:
    """A list: how many, names of columns, and columns, the first padded to one width."""
    width = max(len(name) for name, _ in rows) + 8
    listed = [str(len(rows)), header, *(f"{name.ljust(width)} {rest}" for name, rest in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in listed).encode())
