"""Pictures with labels, in memory or in files, and where they come from."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from metricweight.checks import InputError
from metricweight.data.split import Indices

if TYPE_CHECKING:
    from metricweight.data.manifest import Manifest


@dataclass(frozen=True)
class Roles:
    """How N pictures are judged.

    protocol   a name that `metricweight protocols` lists
    numbers    [N] labels as the source numbers them, by which the protocol knows junk and distractors
    queries    [N] which pictures search
    cameras    [N] -1 where it is not known
    tracklets  [N] those of one tracklet are judged as one; -1 for a still picture
    """

    protocol: str
    numbers: Indices
    queries: NDArray[np.bool_]
    cameras: NDArray[np.int16]
    tracklets: Indices


@dataclass(frozen=True)
class Images:
    """N pictures with labels.

    read      indices [B] -> pixels, uint8 [B, C, S, S]
    labels    int64 [N], positions in `classes`
    classes   names of the classes
    names     [N] what each picture is called
    channels  1 for grey, 3 for colour
    stamp     what tells this data from other data of the same name
    splits    indices of the images of each split, where the data say so
    roles     who searches for whom in the test half, where that is not each among all others
    """

    read: Callable[[Indices], Tensor]
    labels: Indices
    classes: Sequence[str]
    names: Sequence[str]
    channels: int
    stamp: str
    splits: Mapping[str, Indices] = field(default_factory=dict)
    roles: "Roles | None" = None

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


def from_manifest(path: Path, size: int, channels: int = 3) -> Images:
    """Pictures that a manifest lists: a table, or a folder of class folders; see `metricweight.data.manifest.read`.

    size      pictures of any size and mode are turned as their EXIF tag says, scaled so that the shorter side is
              `size`, and cut to the middle `size` x `size`
    channels  1 for grey, 3 for colour

    Raises InputError for what is not there, for rows that are wrong or that no training can use, and, when a picture
    is read, for a file that is not a picture, with its name.
    """
    from metricweight.data import manifest

    if not path.exists():
        raise InputError(f"data.root={path} is not there; give a folder of class folders, a CSV file or a manifest.")
    listed = manifest.read(path)
    table = listed.table
    splits = _splits(listed, path)
    alone = "test" not in splits  # nothing is kept to be tested on, so classes are dealt out, and each searches all
    manifest.check_root(listed, path)
    paths = [listed.root / item for item in table["path"]]
    members = table["member"].tolist()
    sizes = {}
    for row, item in enumerate(paths):
        if item not in sizes:
            try:
                sizes[item] = item.stat().st_size
            except OSError:
                raise InputError(f"{manifest.place(path, row)}: {item} is not there.") from None
    numbers, first, labels = np.unique(table["label"].to_numpy(), return_index=True, return_inverse=True)
    names = table["label_name"].iloc[first].astype(str)
    classes = [name or str(number) for number, name in zip(numbers, names, strict=True)]
    roles = None
    if listed.about.protocol != "self" and not alone:
        columns = [table[name].to_numpy() for name in ("label", "is_query", "camera", "tracklet")]
        roles = Roles(listed.about.protocol, *columns)
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="decode")

    def read(indices: Indices) -> Tensor:
        return torch.stack(list(pool.map(lambda i: decode(paths[i], size, channels, members[i]), indices)))

    known = zip(table["path"], table["member"], table["label"], table["split"], map(sizes.get, paths), strict=True)
    stamp = hashlib.sha256("\n".join(" ".join(map(str, row)) for row in known).encode()).hexdigest()
    titles = [str(item) if member < 0 else f"{item}:{member}" for item, member in zip(paths, members, strict=True)]
    return Images(read, labels.reshape(-1), classes, titles, channels, stamp, splits, roles)


def _splits(listed: "Manifest", path: Path) -> dict[str, Indices]:
    """The rows of train, validation and test; none, where all rows are of one part that is not for tests.

    Raises InputError for other parts, and for junk and distractors where they would be learned from, or ranked by a
    protocol that does not know them.
    """
    from metricweight.data import manifest

    table = listed.table
    split = table["split"].astype(str).to_numpy()
    there = set(split.tolist())
    own = there in ({"train", "test"}, {"train", "validation", "test"})
    if not own and there not in ({"all"}, {"train"}):
        raise InputError(
            f"{path} has the splits {', '.join(sorted(there))}; training needs train and test (and validation), or "
            "all rows in one split, train or all, which is then split by class."
        )
    ranked = (split == "test") & (listed.about.protocol != "self")
    odd = np.flatnonzero(~manifest.ordinary(table) & ~ranked)
    if len(odd):
        raise InputError(
            f"{path} has {len(odd):,} rows of junk or distractors, such as {table['path'].iloc[odd[0]]}, that would be "
            f"learned from or ranked as a class. Take them out: metricweight data {path} "
            '--where "not is_junk and not is_distractor" --out NEW.csv'
        )
    if not own:
        return {}
    judged = (table["is_query"] | table["is_gallery"]).to_numpy()
    return {name: np.flatnonzero((split == name) & (judged | (split == "train"))) for name in there}


def decode(path: Path, size: int, channels: int, member: int = -1) -> Tensor:
    """One picture as uint8 [C, S, S]; see `from_manifest`, and `open_picture` for `member`."""
    picture = open_picture(path, member, at_least=size)
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
    picture = picture.convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(picture, (size, size), method=Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).reshape(size, size, channels).permute(2, 0, 1)


def open_picture(path: Path, member: int = -1, at_least: int | None = None) -> Image.Image:
    """The picture of a row of a manifest, all of it in memory, in its own mode, turned as its EXIF tag says.

    path      a picture; or an .npy of pictures, uint8 [N, H, W] or [N, H, W, 3], which is mapped into memory once
    member    which picture of the .npy, from 0 on; -1 for a picture that has its file to itself
    at_least  a JPEG may come at a half, quarter or eighth of its size where its shorter side stays this long, which
              is faster; None: at its full size

    Raises InputError, with the name, for what cannot be read and for a member that is not there.
    """
    if path.suffix.lower() == ".npy":
        return _open_member(path, member)
    if member != -1:
        raise InputError(f"{path} is not an .npy of pictures, so it has no member {member}; a picture has member -1.")
    try:
        with Image.open(path) as opened:
            if at_least:
                opened.draft("RGB", (at_least, at_least))
            return ImageOps.exif_transpose(opened)
    except Exception as error:  # a damaged file fails in many ways, all of them meaning the same
        raise InputError(f"{path} cannot be read as a picture ({error}); mend it or take it out.") from None


def _open_member(path: Path, member: int) -> Image.Image:
    try:
        state = path.stat()
        pictures = _mapped(path, state.st_mtime_ns, state.st_size, state.st_ino)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an .npy of pictures ({error}); write it anew.") from None
    if not 0 <= member < len(pictures):
        raise InputError(f"{path} has no member {member}; it holds {len(pictures):,} pictures, from member 0 on.")
    return Image.fromarray(np.array(pictures[member]))


@lru_cache(maxsize=16)
def _mapped(path: Path, *state: int) -> NDArray[np.uint8]:
    """An .npy of pictures, not read yet; `state` of the file: one that was written anew is not the one of before."""
    pictures = np.load(path, mmap_mode="r")
    shape = list(pictures.shape)
    if pictures.dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)) or 0 in shape:
        raise InputError(f"{path} must hold uint8 [N, H, W] or [N, H, W, 3], got {pictures.dtype} {shape}.")
    return pictures  # type: ignore[no-any-return]
