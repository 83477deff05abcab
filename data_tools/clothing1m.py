"""Clothing1M. Xiao, Xia, Yang, Huang, Wang: Learning from Massive Noisy Labeled Data, CVPR 2015.

Trained on are the million pictures of noisy_train_key_list.txt with the labels that the web gave them, as is usual in
work on noisy labels. Where a person has labelled one of them too, that is its clean label. The clean pictures to train
on, clean_train_key_list.txt, are left out where they are not among the million.

A picture that is listed to train on and to validate or test on is not trained on; a note says how many there are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError

from .replicas import clothing1m as replica
from .source import Converted, Dataset, Options, Replica, check_there, find, lines, wrong

LABELS = 14
LISTS = {
    "train": "noisy_train_key_list.txt",
    "validation": "clean_val_key_list.txt",
    "test": "clean_test_key_list.txt",
}


def convert(root: Path, options: Options) -> Converted:
    import pandas as pd

    lists = find(root, "Clothing1M", LISTS["train"], f"annotations/{LISTS['train']}").parent
    base = lists.parent if lists.name == "annotations" else lists
    noisy_file, clean_file, names_file = (
        lists / name for name in ("noisy_label_kv.txt", "clean_label_kv.txt", "category_names_eng.txt")
    )
    files = [lists / name for name in LISTS.values()]
    parts = [_keys(path) for path in files]
    left_out = _taken_apart(files, *parts)
    keys, lines_of = [key for part in parts for key in part], [line for part in parts for line in part.values()]
    part = np.repeat([0, 1, 2], [len(found) for found in parts])

    def place(row: int) -> str:
        return f"{files[part[row]]}, line {lines_of[row]}"

    row_of = {key: row for row, key in enumerate(keys)}
    noisy, clean = _labels(noisy_file, row_of), _labels(clean_file, row_of)
    label = np.where(part == 0, noisy, clean)
    if len(lacking := np.flatnonzero(label < 0)):
        row, more = lacking[0], f" ({len(lacking) - 1:,} more like it)" if len(lacking) > 1 else ""
        labels = (clean_file if part[row] else noisy_file).name
        raise InputError(f"{place(row)}: {keys[row]} has no label in {labels}.{more}")
    true = np.where(clean < 0, label, clean)

    within = _within(base, keys[0])
    paths = keys if within else [key.removeprefix("images/") for key in keys]
    check_there(base, paths, place)  # what it finds beside them is clean_train
    rows = pd.DataFrame({"path": paths, "label": label, "clean_label": true, "is_noisy": label != true}, copy=False)
    rows["split"] = pd.Categorical.from_codes(part, categories=pd.Index(list(LISTS)))
    read = [*files, noisy_file, clean_file]
    if names_file.exists():
        rows["label_name"] = pd.Categorical.from_codes(label, categories=pd.Index(_names(names_file)))
        read.append(names_file)
    layout = f"Clothing1M with lists {'in annotations/' if lists != base else 'at the root'}"
    layout += "" if within else " and no folder images/"
    return Converted(
        rows, layout, base, read, notes=_notes(len(parts[0]), int((clean[part == 0] >= 0).sum()), left_out)
    )


def _taken_apart(
    files: Sequence[Path], train: dict[str, int], validation: dict[str, int], test: dict[str, int]
) -> list[str]:
    """Takes pictures that are listed to validate or test on out of those to train on, and returns them."""
    if both := validation.keys() & test.keys():
        line = min(test[key] for key in both)
        raise wrong(files[2], line, f"this picture is in {files[1].name} too; it is for one of the two.")
    left_out = [key for key in train if key in validation or key in test]
    for key in left_out:
        del train[key]
    return left_out


def _notes(trained: int, known: int, left_out: Sequence[str]) -> list[str]:
    notes = [
        f"the true label is known of {known:,} of {trained:,} pictures to train on; the clean_label of the others "
        "is their label again.",
        "pictures of clean_train_key_list.txt are left out, but for those that are to be trained on anyway.",
    ]
    if left_out:
        notes.append(
            f"{len(left_out):,} pictures are listed to train on and to validate or test on, such as {left_out[0]}; "
            "they are not trained on."
        )
    return notes


def _keys(path: Path) -> dict[str, int]:
    """The pictures of a list, with the line that each is in."""
    found: dict[str, int] = {}
    for number, line in enumerate(lines(path), start=1):
        key = line.strip()
        if not key.startswith("images/"):
            raise wrong(path, number, f"'{line[:80]}' is not a picture in images/.")
        if found.setdefault(key, number) != number:
            raise wrong(path, number, f"{key} is there already, in line {found[key]}.")
    return found


def _labels(path: Path, row_of: Mapping[str, int]) -> NDArray[np.int64]:
    """The label of each row; -1: none. Lines on other pictures are checked and passed over."""
    found = np.full(len(row_of), -1, dtype=np.int64)
    numbers = {str(label): label for label in range(LABELS)}
    for number, line in enumerate(lines(path), start=1):
        key, _, text = line.strip().partition(" ")
        label = numbers.get(text.strip())
        if label is None or not key.startswith("images/"):
            raise wrong(path, number, f"'{line[:80]}' is not a picture in images/ and a label from 0 to {LABELS - 1}.")
        row = row_of.get(key)
        if row is not None:
            if found[row] >= 0:
                raise wrong(path, number, f"{key} is there already, above.")
            found[row] = label
    return found


def _names(path: Path) -> Sequence[str]:
    names = [line.strip() for line in lines(path) if line.strip()]
    if len(names) != LABELS or len(set(names)) != LABELS:
        raise InputError(f"{path} must have {LABELS} different names, got {len(names)}, {len(set(names))} different.")
    return names


def _within(root: Path, key: str) -> bool:
    """Whether the pictures are in images/, as the keys say; some have its folders at the root."""
    folder = key.removeprefix("images/").split("/")[0]
    return (root / "images").is_dir() or not (root / folder).is_dir()


DATASET = Dataset(
    "Clothing1M",
    get="https://github.com/Cysu/noisy_label (by request of its authors; unpack the archives in images/)",
    terms="by request, for non-commercial research",
    counts={
        "train": {"images": 1_000_000, "labels": LABELS},
        "validation": {"images": 14_313, "labels": LABELS},
        "test": {"images": 10_526, "labels": LABELS},
    },
    convert=convert,
    replica=Replica(replica.write, replica.LAYOUTS),
)
