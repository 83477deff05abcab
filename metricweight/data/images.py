"""Pictures with labels, in memory or in files, and where they come from."""

import hashlib
import io
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

_ORIENTATION = 0x0112  # of EXIF


@dataclass(frozen=True)
class Roles:
    """How N pictures are judged.

    protocol   a name that `metricweight protocols` lists
    numbers    [N] labels as the source numbers them, by which the protocol knows junk and distractors
    queries    [N] which pictures search
    cameras    [N] -1 where it is not known
    """

    protocol: str
    numbers: Indices
    queries: NDArray[np.bool_]
    cameras: NDArray[np.int16]


@dataclass(frozen=True)
class Images:
    """N pictures with labels. It can be sent to other processes.

    picture   index -> pixels, uint8 [C, H, W] of any size
    labels    int64 [N], positions in `classes`
    classes   names of the classes
    names     [N] what each picture is called
    channels  1 for grey, 3 for colour
    stamp     what tells this data from other data of the same name
    splits    indices of the images of each split, where the data say so
    roles     who searches for whom in the test half, where that is not each among all others
    tracklets [N] which tracklet each is a frame of, -1 for a still picture; None where all are stills. Those of one
              tracklet are judged as one
    frames    [N] the order of frames in their tracklet, where there are any
    """

    picture: Callable[[int], Tensor]
    labels: Indices
    classes: Sequence[str]
    names: Sequence[str]
    channels: int
    stamp: str
    splits: Mapping[str, Indices] = field(default_factory=dict)
    roles: "Roles | None" = None
    tracklets: Indices | None = None
    frames: Indices | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Indices) -> list[Tensor]:
        """Some pictures, by several threads where they have to be decoded."""
        if isinstance(self.picture, Held):
            return [self.picture(i) for i in indices.tolist()]
        with ThreadPoolExecutor(threads(), thread_name_prefix="decode") as pool:
            return list(pool.map(self.picture, indices.tolist()))


@dataclass(frozen=True)
class Held:
    """Pictures that are in memory, uint8 [N, C, H, W]."""

    pixels: Tensor

    def __call__(self, index: int) -> Tensor:
        return self.pixels[index]


@dataclass(frozen=True)
class Files:
    """Pictures that are in files.

    paths     [N] of files
    members   [N] which picture of its file each is, see `open_picture`
    states    [N] size in bytes, and time in nanoseconds of the last change, of each file
    channels  1 for grey, 3 for colour
    at_least  see `open_picture`
    """

    paths: Sequence[str]
    members: Sequence[int]
    states: Sequence[tuple[int, int]]
    channels: int
    at_least: int | None

    def __call__(self, index: int) -> Tensor:
        return decode(Path(self.paths[index]), self.channels, self.members[index], self.at_least)

    def mark(self, index: int) -> str:
        """What tells the pixels of a picture from those of any other, and of any other state of its file."""
        size, time = self.states[index]
        path = os.path.abspath(self.paths[index])
        return f"{path} {self.members[index]} {size} {time} {self.channels} {self.at_least}"


def threads() -> int:
    """How many threads or processes are worth having for decoding here: one for each core, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, cores or 1)


def in_memory(
    pixels: NDArray[np.uint8], labels: Indices, classes: Sequence[str], names: Sequence[str], stamp: str
) -> Images:
    """Grey pictures [N, S, S] that are held in memory."""
    return Images(Held(torch.from_numpy(pixels)[:, None]), labels, classes, names, 1, stamp)


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


def from_manifest(path: Path, at_least: int | None = None, channels: int = 3) -> Images:
    """Pictures that a manifest lists: a table, or a folder of class folders; see `metricweight.data.manifest.read`.

    Pictures of any size and mode are turned as their EXIF tag says.

    at_least  the shorter side that is needed, in pixels: see `open_picture`
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
    states = {}
    for row, item in enumerate(paths):
        if item not in states:
            try:
                state = item.stat()
                states[item] = (state.st_size, state.st_mtime_ns)
            except OSError:
                raise InputError(f"{manifest.place(path, row)}: {item} is not there.") from None
    numbers, first, labels = np.unique(table["label"].to_numpy(), return_index=True, return_inverse=True)
    names = table["label_name"].iloc[first].astype(str)
    classes = [name or str(number) for number, name in zip(numbers, names, strict=True)]
    roles = None
    if listed.about.protocol != "self" and not alone:
        columns = [table[name].to_numpy() for name in ("label", "is_query", "camera")]
        roles = Roles(listed.about.protocol, *columns)
    tracklets = frames = None
    if (table["tracklet"] >= 0).any():
        tracklets, frames = table["tracklet"].to_numpy(), table["frame"].to_numpy()
    files = Files([str(item) for item in paths], members, [states[item] for item in paths], channels, at_least)
    sizes = (size for size, _ in files.states)
    ordered = [] if tracklets is None or frames is None else [tracklets, frames]
    known = zip(table["path"], table["member"], table["label"], table["split"], sizes, *ordered, strict=True)
    stamp = hashlib.sha256("\n".join(" ".join(map(str, row)) for row in known).encode()).hexdigest()
    titles = [item if member < 0 else f"{item}:{member}" for item, member in zip(files.paths, members, strict=True)]
    return Images(files, labels.reshape(-1), classes, titles, channels, stamp, splits, roles, tracklets, frames)


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
    _check_kinds(listed, path, ranked & judged)
    return {
        name: np.flatnonzero((split == name) & (judged | (split == "train")))
        for name in ("train", "validation", "test")
        if name in there
    }


def _check_kinds(listed: "Manifest", path: Path, ranked: NDArray[np.bool_]) -> None:
    """Raises InputError where the protocol would take junk for somebody, or somebody for junk or a distractor.

    ranked  [N] the rows that it ranks
    """
    from metricweight.data import manifest
    from metricweight.retrieval.protocol import among, named

    table, rules = listed.table, named(listed.about.protocol)
    labels = table["label"].to_numpy()
    junk = np.flatnonzero(ranked & table["is_junk"].to_numpy() & ~among(labels, rules.junk))
    if len(junk):
        raise InputError(
            f"{path} has {len(junk):,} rows of junk, such as {table['path'].iloc[junk[0]]} of label {labels[junk[0]]}, "
            f"which protocol {rules.name} would rank (its junk: {', '.join(map(str, rules.junk)) or 'none'}). Choose "
            f"another: metricweight data {path} --protocol NAME --out NEW.csv; or take them out with --where "
            '"not is_junk".'
        )
    lost = np.flatnonzero(ranked & manifest.ordinary(table) & among(labels, (*rules.junk, *rules.distractors)))
    if len(lost):
        label, base = labels[lost[0]], rules.name.partition(":")[0]
        raise InputError(
            f"{path} has {len(lost):,} rows such as {table['path'].iloc[lost[0]]} of label {label}, which is somebody "
            f"here and is junk or a distractor by protocol {rules.name}. Give the label another number, or say that "
            f"there are none: metricweight data {path} --protocol {base}:junk=none,distractors=none --out NEW.csv"
        )


def decode(path: Path, channels: int, member: int = -1, at_least: int | None = None) -> Tensor:
    """One picture as uint8 [C, H, W], 16 bits as 8 and without transparency; see `open_picture`.

    channels  1 for grey, 3 for colour

    A plain JPEG is decoded by torchvision, which is a fifth faster; any other picture, one that is to be shrunk, and
    one that torchvision refuses, by Pillow.
    """
    if member < 0 and path.suffix.lower() != ".npy" and (found := _plain_jpeg(path, channels, at_least)) is not None:
        return found
    picture = open_picture(path, member, at_least)
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
    pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _plain_jpeg(path: Path, channels: int, at_least: int | None) -> Tensor | None:
    """The pixels of a JPEG of the right mode that is neither to be turned nor shrunk; None: it is another picture."""
    try:
        from torchvision.io import decode_jpeg

        data = bytearray(path.read_bytes())
        with Image.open(io.BytesIO(data)) as picture:
            plain = picture.format == "JPEG" and picture.mode == ("L" if channels == 1 else "RGB")
            shrinks = at_least is not None and min(picture.size) >= 2 * at_least
            if not plain or shrinks or picture.getexif().get(_ORIENTATION, 1) != 1:
                return None
        found: Tensor = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8))
    except Exception:  # what is wrong with it is for Pillow to say; it also serves where torchvision has no decoder
        return None
    return found if len(found) == channels else None


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
