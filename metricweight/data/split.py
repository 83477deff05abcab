"""Which classes are learned from and which are tested on. No class is on two sides: retrieval is zero-shot."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError

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
            f"{many} make {learned} to train, {held_out} to validate and {tested} to test on; train and test need two "
            "at least. Hold fewer out to validate on (0: none), or give more classes."
        )
    names = ("train", "validation", "test")
    groups = np.split(classes, [learned, learned + held_out])
    return {name: np.flatnonzero(np.isin(labels, group)) for name, group in zip(names, groups, strict=True)}
