"""Built-in data: characters drawn in the fonts that ship with matplotlib. A character is a class, a face an instance.

About 2,200 classes and 30,000 pictures of 32 x 32. Real, hard (accents, look-alikes), and there without a download.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features
from PIL import __version__ as pillow_version

from metricweight.data.images import Images, in_memory
from metricweight.files import write_arrays

SIZE = 32  # pixels of a picture
EM = 22  # pixels of the font
BASELINE = 23  # row on which letters stand
FEWEST_FACES = 12  # a character drawn by fewer faces is left out
FACE = re.compile(r"(DejaVuSans|DejaVuSansMono|DejaVuSerif)(-\w+)?|STIXGeneral\w*")  # four of each

Drawings = dict[str, dict[str, NDArray[np.uint8]]]  # character -> face -> pixels
Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Glyphs:
    """The pictures, how many characters were merged into others, and what was said about the cache."""

    images: Images
    merged: int
    notes: list[str]


def load(progress: Progress = iter) -> Glyphs:
    """Reads the pictures from the cache, or draws them and fills it.

    progress  wraps the list of faces while they are drawn, to show how far it is

    The cache is one file in `$XDG_CACHE_HOME/metricweight` (or `~/.cache/metricweight`), named by a stamp of the
    fonts and of everything else that decides the pixels; another matplotlib or Pillow draws another file. A damaged
    one is drawn again. Two processes may fill it at once. Where it cannot be written the pictures stay in memory.
    """
    own_stamp, notes, arrays = stamp(), [], None
    path = cache_folder() / f"glyphs-{own_stamp[:16]}.npz"
    try:
        arrays = _read(path)
    except OSError:
        pass  # not there, or not to be read: then it cannot be written either, which is said below
    except Exception:  # whatever a damaged file makes zip or NumPy say
        notes.append(f"{path} is damaged; drawing the glyphs again.")
    if arrays is None:
        arrays = _arrays(*draw(progress))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(path, **arrays)
        except OSError as error:
            notes.append(f"the cache cannot be written ({error}); the glyphs are drawn anew each time.")
    classes = [str(name) for name in arrays["classes"]]
    names = [
        f"{classes[label]} {arrays['faces'][face]}"
        for label, face in zip(arrays["labels"], arrays["face"], strict=True)
    ]
    images = in_memory(arrays["pixels"], arrays["labels"], classes, names, own_stamp)
    return Glyphs(images, int(arrays["merged"]), notes)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "metricweight"


def faces() -> dict[str, Path]:
    """The font files, by the name of the face."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return {path.stem: path for path in sorted(fonts.glob("*.ttf")) if FACE.fullmatch(path.stem)}


def stamp() -> str:
    """Hash of all that decides the pixels: font files, rasteriser, this file."""
    digest = hashlib.sha256(f"{pillow_version} {features.version('freetype2')}".encode())
    for path in (Path(__file__), *faces().values()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def draw(progress: Progress = iter) -> tuple[Drawings, int]:
    """All pictures by class and face, and how many characters were merged into others.

    A class is named by its first character, in the order of code points. Characters whose drawings coincide in
    more than one face, and in a quarter of the faces they share, are one class: nobody could tell them apart
    (Latin A, Greek Alpha). So are chains of such pairs.
    """
    drawings: Drawings = defaultdict(dict)
    for face, path in progress(list(faces().items())):
        for character, pixels in _draw_face(path):
            drawings[character][face] = pixels
    drawings = {c: drawings[c] for c in sorted(drawings) if len(drawings[c]) >= FEWEST_FACES}

    first = {c: c for c in drawings}  # union-find: every character points towards the first of its class

    def root(c: str) -> str:
        while first[c] != c:
            c = first[c]
        return c

    for (a, b), times in _coincidences(drawings).items():
        shared = len(drawings[a].keys() & drawings[b].keys())
        if times > 1 and 4 * times >= shared:
            low, high = sorted((root(a), root(b)))
            first[high] = low
    classes: Drawings = {}
    for c in drawings:  # in order, so that a face is drawn by the first character that has it
        classes[root(c)] = {**drawings[c], **classes.get(root(c), {})}
    return classes, len(drawings) - len(classes)


def _draw_face(path: Path) -> Iterable[tuple[str, NDArray[np.uint8]]]:
    """Letters, numbers, punctuation and symbols of one face, as far as their ink fits into the picture."""
    from matplotlib.ft2font import FT2Font

    font = ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.BASIC)
    for character in map(chr, sorted(FT2Font(str(path)).get_charmap())):
        if unicodedata.category(character)[0] not in "LNPS":
            continue
        left, top, right, bottom = font.getbbox(character, anchor="ls")
        if right - left > SIZE or BASELINE + top < 0 or BASELINE + bottom > SIZE:
            continue
        picture = Image.new("L", (SIZE, SIZE))
        position = ((SIZE - left - right) / 2, BASELINE)
        ImageDraw.Draw(picture).text(position, character, fill=255, font=font, anchor="ls")
        pixels = np.asarray(picture)
        if pixels.any():
            yield character, pixels


def _coincidences(drawings: Drawings) -> Counter[tuple[str, str]]:
    """In how many faces each pair of characters has the same drawing."""
    counts: Counter[tuple[str, str]] = Counter()
    alike: dict[tuple[str, bytes], list[str]] = defaultdict(list)
    for character, by_face in drawings.items():
        for face, pixels in by_face.items():
            others = alike[face, pixels.tobytes()]
            counts.update((other, character) for other in others)
            others.append(character)
    return counts


def _arrays(classes: Drawings, merged: int) -> dict[str, NDArray[Any]]:
    names = list(faces())
    rows = [
        (label, names.index(face), pixels)
        for label, by_face in enumerate(classes.values())
        for face, pixels in sorted(by_face.items())
    ]
    return {
        "pixels": np.stack([pixels for _, _, pixels in rows]),
        "labels": np.array([label for label, _, _ in rows], dtype=np.int64),
        "face": np.array([face for _, face, _ in rows], dtype=np.int64),
        "faces": np.array(names),
        "classes": np.array([f"U+{ord(c):04X} {unicodedata.name(c, '?')}" for c in classes]),
        "merged": np.array(merged),
    }


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a cache file, each checked by its CRC-32."""
    with np.load(path) as file:
        return {name: file[name] for name in ("pixels", "labels", "face", "faces", "classes", "merged")}
