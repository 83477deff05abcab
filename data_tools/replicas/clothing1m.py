"""Clothing1M in small: commas in names, labels of which two in five are wrong, and clean ones of some pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .products import product, save

if TYPE_CHECKING:
    import pandas as pd

NAMES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit",
    "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip
LAYOUTS = ("annotations", "root", "no_images_folder")


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    """Six pictures of each label to train on, two to validate and one to test with; times size.

    Every third training picture has a clean label too; so has one of each label that is not among the training
    pictures, as in clean_train_key_list.txt.
    """
    import pandas as pd

    lists = root / "annotations" if layout == "annotations" else root
    lists.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(14)
    keys: dict[str, list[str]] = {"noisy_train": [], "clean_train": [], "clean_val": [], "clean_test": []}
    noisy: list[str] = []
    clean: list[str] = []
    rows: list[tuple[str, int, str, int, bool, str]] = []
    for part, split, each in (
        ("noisy_train", "train", 6 * size),
        ("clean_train", "", size),
        ("clean_val", "validation", 2 * size),
        ("clean_test", "test", size),
    ):
        for number, true in enumerate(random.permutation(np.tile(np.arange(14), each)).tolist()):
            view = sum(map(len, keys.values()))
            folder = f"{random.integers(10)}/{random.integers(3):02d}"
            key = f"images/{folder}/{view:010d},{random.integers(1 << 31)}.jpg"
            place = key.removeprefix("images/") if layout == "no_images_folder" else key
            save(product(true, view, (40, 48)), root / place)
            keys[part].append(key)
            label = int((true + random.integers(1, 14)) % 14) if random.random() < 0.4 else true
            known = part != "noisy_train" or number % 3 == 0
            if part == "noisy_train" or number % 2:
                noisy.append(f"{key} {label}")
            if known:
                clean.append(f"{key} {true}")
            if part == "noisy_train":
                truth = true if known else label
                rows.append((place, label, NAMES[label], truth, truth != label, split))
            elif split:
                rows.append((place, true, NAMES[true], true, False, split))
    for name, found in keys.items():
        _write(lists / f"{name}_key_list.txt", found)
    _write(lists / "noisy_label_kv.txt", [noisy[i] for i in random.permutation(len(noisy))])
    _write(lists / "clean_label_kv.txt", [clean[i] for i in random.permutation(len(clean))])
    _write(lists / "category_names_eng.txt", list(NAMES))
    return pd.DataFrame(rows, columns=["path", "label", "label_name", "clean_label", "is_noisy", "split"])


def _write(path: Path, found: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in found), newline="\n")
