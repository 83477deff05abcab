"""Which classes are learned from and which are tested on. No class is on two sides: retrieval is zero-shot."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.data.manifest import Manifest, ordinary, parts, training_rows

Indices = NDArray[np.int64]


def split_by_class(
    labels: Indices,
    *,
    test: float = 0.5,
    validation: float = 0.1,
    order: Literal["random", "given"] = "random",
    seed: int = 0,
) -> dict[str, Indices]:
    """Indices of the items of each split: "train", "validation", "test".

    test        share of the classes that are tested on: `round(test * classes)` of them
    validation  share of the remaining classes that are held out of training to validate on; 0 is none, otherwise
                at least two, since one class alone cannot be confused with anything
    order       "random": classes are drawn with `seed`; "given": the last classes test and the last of the rest
                validate, as in the usual splits of CUB-200-2011 and Cars196

    Raises InputError for shares, orders and seeds that cannot be, and where a side would have fewer than two classes.
    """
    for name, share in (("test", test), ("validation", validation)):
        if not 0 <= share < 1:
            raise InputError(f"{name} is a share of the classes, from 0 to below 1, got {share}.")
    if order not in ("random", "given"):
        raise InputError(f"order is random or given, got '{order}'.")
    if seed < 0:
        raise InputError(f"the seed is 0 or more, got {seed}.")
    classes = np.unique(labels)
    if order == "random":
        classes = np.random.default_rng(seed).permutation(classes)
    tested = round(test * len(classes))
    held_out = max(2, round(validation * (len(classes) - tested))) if validation else 0
    learned = len(classes) - tested - held_out
    if min(learned, tested) < 2:
        many = f"{len(classes)} class{'es' * (len(classes) != 1)}"
        raise InputError(
            f"{many} make {max(0, learned)} to train, {held_out} to validate and {tested} to test on; train and test "
            "need two at least. Hold fewer out to validate on (0: none), or give more classes."
        )
    names = ("train", "validation", "test")
    groups = np.split(classes, [learned, learned + held_out])
    return {name: np.flatnonzero(np.isin(labels, group)) for name, group in zip(names, groups, strict=True)}


def split_classes(
    manifest: Manifest,
    *,
    test: float = 0.5,
    validation: float = 0.0,
    order: Literal["random", "given"] = "random",
    seed: int = 0,
) -> Manifest:
    """Zero-shot splits: no label is in two of them; junk and distractors are tested with. See `split_by_class` for the
    arguments.

    Raises InputError where the manifest is split already, or says who searches for whom, which only its author can
    split.
    """
    import pandas as pd

    if (manifest.table["split"] != "all").any():
        raise InputError(f"{manifest.about.name} is split already ({', '.join(parts(manifest.table))}).")
    if "query" in parts(manifest.table):
        raise InputError(f"{manifest.about.name} has queries of its own; say in a column split what is trained on.")
    table = manifest.table.copy()
    named = ordinary(table)
    dealt = np.flatnonzero(named)
    split = np.full(len(table), "test", dtype=object)
    labels = table["label"].to_numpy()[dealt]
    for name, rows in split_by_class(labels, test=test, validation=validation, order=order, seed=seed).items():
        split[dealt[rows]] = name
    table["split"] = pd.Categorical(split)
    table["is_gallery"] = split != "train"
    table["is_query"] = table["is_gallery"] & named
    said = f"split by class: test {test:g}, validation {validation:g}, order {order}, seed {seed}"
    return manifest.changed(table, said)


def fold_classes(manifest: Manifest, folds: int, seed: int = 0) -> Manifest:
    """Numbers 0 to folds - 1 in the column `fold` of the rows of the split train; no label is in two folds.

    Raises InputError where a fold would have fewer than two labels.
    """
    if seed < 0:
        raise InputError(f"the seed is 0 or more, got {seed}.")
    table = manifest.table.copy()
    train = training_rows(table)
    labels = np.unique(table["label"].to_numpy()[train])
    if folds < 2 or len(labels) < 2 * folds:
        raise InputError(
            f"{folds} folds of {len(labels)} training labels cannot be: two folds at least, two labels in each."
        )
    shuffled = np.random.default_rng(seed).permutation(labels)
    number = {int(label): place % folds for place, label in enumerate(shuffled)}
    table.loc[train, "fold"] = table["label"][train].map(number).astype("int16")
    return manifest.changed(table, f"{folds} folds of the training labels, seed {seed}")
