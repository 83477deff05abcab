"""Pictures with labels, in memory or in files, and where they come from."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from metricweight.checks import InputError

Indices = NDArray[np.int64]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Images:
    """N pictures with labels.

    read      indices [B] -> pixels, uint8 [B, C, S, S]
    labels    int64 [N], positions in `classes`
    classes   names of the classes
    names     [N] what each picture is called
    channels  1 for grey, 3 for colour
    stamp     what tells this data from other data of the same name
    """

    read: Callable[[Indices], Tensor]
    labels: Indices
    classes: Sequence[str]
    names: Sequence[str]
    channels: int
    stamp: str

    def __len__(self) -> int:
        return len(self.labels)


def in_memory(
    pixels: NDArray[np.uint8], labels: Indices, classes: Sequence[str], names: Sequence[str], stamp: str
) -> Images:
    """Grey pictures [N, S, S] that are held in memory."""
    tensor = torch.from_numpy(pixels)[:, None]
    return Images(lambda indices: tensor[torch.from_numpy(indices)], labels, classes, names, 1, stamp)


def digits(size: int) -> Images:
    """The 1,797 scanned handwritten digits that ship with scikit-learn, 8 x 8, enlarged to `size` x `size`."""
    import sklearn
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    pixels = large[:, 0].round().to(torch.uint8).numpy()
    names = [f"digits/{i}" for i in range(len(pixels))]
    return in_memory(
        pixels,
        data.target.astype(np.int64),
        [str(digit) for digit in range(10)],
        names,
        f"scikit-learn {sklearn.__version__}",
    )


def folder(root: Path, size: int, channels: int = 3) -> Images:
    """Pictures of a folder of class folders, or of a CSV file with the columns `path` and `label`.

    root      folder: every picture below `root/CLASS/` belongs to CLASS; other files and names that begin with a
              dot are passed over. CSV: a path that is not absolute starts at the folder of the CSV file
    size      pictures of any size and mode are turned as their EXIF tag says, scaled so that the shorter side is
              `size`, and cut to the middle `size` x `size`
    channels  1 for grey, 3 for colour

    Raises InputError for what is not there or holds no pictures, and, when a picture is read, for a file that is
    not a picture, with its name.
    """
    if not root.exists():
        raise InputError(f"data.root={root} is not there; give a folder of class folders or a CSV file.")
    rows = _rows_of_folder(root) if root.is_dir() else _rows_of_csv(root)
    classes = sorted({label for _, label in rows})
    number = {label: i for i, label in enumerate(classes)}
    labels = np.array([number[label] for _, label in rows], dtype=np.int64)
    paths = [path for path, _ in rows]
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="decode")

    def read(indices: Indices) -> Tensor:
        return torch.stack(list(pool.map(lambda i: decode(paths[i], size, channels), indices)))

    listed = "\n".join(f"{os.path.relpath(path, root)} {label} {path.stat().st_size}" for path, label in rows)
    stamp = hashlib.sha256(listed.encode()).hexdigest()
    return Images(read, labels, classes, [str(path) for path in paths], channels, stamp)


def decode(path: Path, size: int, channels: int) -> Tensor:
    """One picture as uint8 [C, S, S]; see `folder`."""
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (size, size))  # JPEG: decode no more pixels than needed
            picture = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}); mend it or take it out.") from None
    fitted = ImageOps.fit(picture, (size, size), method=Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).reshape(size, size, channels).permute(2, 0, 1)


def _rows_of_folder(root: Path) -> list[tuple[Path, str]]:
    rows = []
    for directory in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for path in sorted(directory.rglob("*")):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
                rows.append((path, directory.name))
    if not rows:
        raise InputError(
            f"{root} holds no pictures in class folders; expected {root}/CLASS/picture.jpg "
            f"({', '.join(sorted(s[1:] for s in SUFFIXES))})."
        )
    return rows


def _rows_of_csv(path: Path) -> list[tuple[Path, str]]:
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a CSV file: {error}") from None
    for column in ("path", "label"):
        if column not in table:
            raise InputError(
                f"{path} has no column '{column}'; it has {', '.join(map(repr, table.columns))}. "
                "Needed: 'path' and 'label'."
            )
    rows = [(path.parent / item, label) for item, label in zip(table["path"], table["label"], strict=True)]
    if not rows:
        raise InputError(f"{path} has no rows; needed: one per picture.")
    for number, (item, label) in enumerate(rows, start=2):
        if not label.strip():
            raise InputError(f"{path}, row {number}: {item} has no label.")
        if not item.is_file():
            raise InputError(f"{path}, row {number}: {item} is not there.")
    return rows
