"""CIFAR-10 and CIFAR-100 in small: all of their classes with a few pictures, pickled as Python 2 did it."""

import struct
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .products import product

if TYPE_CHECKING:
    import pandas as pd

Pixels = NDArray[np.uint8]
Value = str | int | list[str] | list[int] | Pixels

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUNDRED = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
FINE = sorted(name for names in HUNDRED.values() for name in names)
COARSE = [coarse for name in FINE for coarse, names in enumerate(HUNDRED.values()) if name in names]


def write_ten(root: Path, layout: str, size: int) -> "pd.DataFrame":
    """Five pictures of each class to train on, in no order, cut into five batches; one of each to test on; times size.

    A batch does not hold as many pictures of each class, as in the real ones.
    """
    import pandas as pd

    folder = root / "cifar-10-batches-py"
    train = np.random.default_rng(10).permutation(np.tile(np.arange(10), 5 * size))
    batches = [
        (f"data_batch_{i}", f"training batch {i} of 5", "train", labels)
        for i, labels in enumerate(np.split(train, 5), start=1)
    ]
    batches.append(("test_batch", "testing batch 1 of 1", "test", np.tile(np.arange(10), size)))
    rows: list[tuple[str, int, int, str, str]] = []
    for name, title, split, labels in batches:
        first = len(rows)
        rows += [("cifar10.npy", first + i, int(label), TEN[label], split) for i, label in enumerate(labels)]
        content: dict[str, Value] = {
            "batch_label": title,
            "labels": labels.tolist(),
            "data": _pixels(labels, first),
            "filenames": [f"{TEN[label]}_s_{first + i:06d}.png" for i, label in enumerate(labels)],
        }
        _write(folder / name, content)
    _write(folder / "batches.meta", {"num_cases_per_batch": 10 * size, "label_names": list(TEN), "num_vis": 3072})
    (folder / "readme.html").write_text("<meta HTTP-EQUIV='REFRESH' content='0; url=...'>\n")
    return pd.DataFrame(rows, columns=["path", "member", "label", "label_name", "split"])


def write_hundred(root: Path, layout: str, size: int) -> "pd.DataFrame":
    """Two pictures of each class to train on, one to test on; times size."""
    import pandas as pd

    folder = root / "cifar-100-python"
    random = np.random.default_rng(100)
    rows: list[tuple[str, int, int, str, int, str]] = []
    for split, each in (("train", 2 * size), ("test", size)):
        labels = random.permutation(np.tile(np.arange(100), each))
        first = len(rows)
        content: dict[str, Value] = {
            "filenames": [f"{FINE[label]}_s_{first + i:06d}.png" for i, label in enumerate(labels)],
            "batch_label": f"{split}ing batch 1 of 1",
            "fine_labels": labels.tolist(),
            "coarse_labels": [COARSE[label] for label in labels],
            "data": _pixels(labels, first),
        }
        _write(folder / split, content)
        rows += [
            ("cifar100.npy", first + i, int(label), FINE[label], COARSE[label], split) for i, label in enumerate(labels)
        ]
    _write(folder / "meta", {"fine_label_names": FINE, "coarse_label_names": list(HUNDRED)})
    (folder / "file.txt~").write_bytes(b"")
    return pd.DataFrame(rows, columns=["path", "member", "label", "label_name", "super_label", "split"])


def _pixels(labels: NDArray[np.int64], first: int) -> Pixels:
    """[N, 3072]: of each picture all of red, all of green, all of blue."""
    pictures = [np.asarray(product(int(label), first + i, (32, 32))) for i, label in enumerate(labels)]
    return np.stack(pictures).transpose(0, 3, 1, 2).reshape(len(labels), 3072)


# ---- pickles


def _write(path: Path, content: dict[str, Value]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickled(content))


def pickled(content: dict[str, Value]) -> bytes:
    """A dict as cPickle of Python 2 wrote it with protocol 2, to the byte: the real files of names come out of it too.

    Text is bytes, arrays go by the names that numpy 1 had, and everything but numbers gets a number, from 1 on.
    """
    numbers = count(1)
    parts = [b"\x80\x02}", _numbered(numbers), b"("]
    for key, value in content.items():
        parts += [_text(key.encode(), numbers), _pickled(value, numbers)]
    return b"".join([*parts, b"u."])


def _pickled(value: Value, numbers: Iterator[int]) -> bytes:
    if isinstance(value, str):
        return _text(value.encode(), numbers)
    if isinstance(value, int):
        return _whole(value)
    if isinstance(value, list):
        parts = [b"]", _numbered(numbers)]
        for start in range(0, len(value), 1000):
            parts += [b"(", *(_pickled(item, numbers) for item in value[start : start + 1000]), b"e"]
        return b"".join(parts)
    return _array(value, numbers)


def _array(pixels: Pixels, numbers: Iterator[int]) -> bytes:
    """An array that is made empty and then given its state: version, shape, dtype, order and bytes."""

    def new(code: bytes) -> bytes:
        return code + _numbered(numbers)

    made = new(b"cnumpy.core.multiarray\n_reconstruct\n") + new(b"cnumpy\nndarray\n")
    made += new(b"K\x00\x85") + _text(b"b", numbers) + new(b"\x87") + new(b"R")
    shape = new(b"".join(map(_whole, pixels.shape)) + b"\x86")
    kind = new(b"cnumpy\ndtype\n") + _text(b"u1", numbers) + new(b"K\x00K\x01\x87") + new(b"R")
    kind += b"(K\x03" + _text(b"|", numbers) + b"NNN" + _whole(-1) + _whole(-1) + new(b"K\x00t") + b"b"
    return made + b"(K\x01" + shape + kind + b"\x89" + _text(pixels.tobytes(), numbers) + new(b"t") + b"b"


def _text(raw: bytes, numbers: Iterator[int]) -> bytes:
    length = b"U" + struct.pack("<B", len(raw)) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
    return length + raw + _numbered(numbers)


def _whole(number: int) -> bytes:
    if 0 <= number < 256:
        return b"K" + struct.pack("<B", number)
    return b"M" + struct.pack("<H", number) if 0 <= number < 65536 else b"J" + struct.pack("<i", number)


def _numbered(numbers: Iterator[int]) -> bytes:
    number = next(numbers)
    return b"q" + struct.pack("<B", number) if number < 256 else b"r" + struct.pack("<i", number)
