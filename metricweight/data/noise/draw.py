"""Whom noise strikes: numbers that follow from the seed, the kind of noise and the name of a picture alone.

A random number is the first eight bytes, the most significant first, of the SHA-256 of five lines of UTF-8 text with a
line feed between them:

    seed, kind, path, member, purpose

So one seed is the same noise on every platform, with every version of NumPy and in every order of the rows. Choices
are made by arithmetic of whole numbers: exact counts choose the rows with the smallest numbers, and one of k things is
the upper half of the number times k, over 2^32, rounded down.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.data.manifest import Manifest, Mask, training_rows

if TYPE_CHECKING:
    import pandas as pd

Indices = NDArray[np.int64]
Numbers = NDArray[np.uint64]


@dataclass(frozen=True)
class Asked:
    """What noise is asked for.

    kind        a name of `KINDS`
    rate        the share, exactly
    seed        any whole number
    count       a name of `COUNTS`
    embeddings  [N, D]  of the rows of the split train, of whole numbers; see `near.quantised`
    pictures    folder for pictures that are made
    """

    kind: str
    rate: Fraction
    seed: int
    count: str
    embeddings: NDArray[np.int16] | None = None
    pictures: Path | None = None


@dataclass(frozen=True)
class Units:
    """What noise strikes as a whole: U pictures, or tracklets.

    table    [N]  rows of the split train, without junk and distractors
    of       [N]  to which unit a row belongs
    heads    [U]  the row whose name a unit bears: of a tracklet, its first frame
    classes  [C]  labels in ascending order
    label    [U]  positions in `classes`
    root          what paths begin at
    """

    table: "pd.DataFrame"
    of: Indices
    heads: Indices
    classes: Indices
    label: Indices
    root: Path

    def __len__(self) -> int:
        return len(self.heads)

    def numbers(self, asked: Asked, purpose: str, units: Indices) -> Numbers:
        """A random number for each of some units."""
        named = self.table[["path", "member"]].iloc[self.heads[units]]
        return numbers(asked, named["path"].tolist(), named["member"].tolist(), purpose)

    def by_class(self, asked: Asked, purpose: str) -> Indices:
        """The classes [C] in random order."""
        drawn = numbers(asked, map(str, self.classes), [-1] * len(self.classes), purpose)
        return np.argsort(drawn, kind="stable")


def units_of(manifest: Manifest, frames: bool) -> Units:
    """The units of the split train. frames: each row is one, else the frames of a tracklet are one together."""
    table = manifest.table[training_rows(manifest.table)].reset_index(drop=True)
    classes, label = np.unique(table["label"].to_numpy(), return_inverse=True)
    tracklet, row = table["tracklet"].to_numpy(), np.arange(len(table))
    if frames or (tracklet < 0).all():
        return Units(table, row, row, classes, label.reshape(-1), manifest.root)
    key = np.where(tracklet < 0, -1 - row, tracklet)  # a still picture is a unit of its own
    order = np.lexsort((table["frame"].to_numpy(), key))
    _, first, unit = np.unique(key[order], return_index=True, return_inverse=True)
    of = np.empty(len(table), dtype=np.int64)
    of[order] = unit.reshape(-1)
    heads = order[first]
    return Units(table, of, heads, classes, label.reshape(-1)[heads], manifest.root)


def numbers(asked: Asked, paths: Iterable[str], members: Iterable[int], purpose: str) -> Numbers:
    """A random number for each name."""
    head, tail = f"{asked.seed}\n{asked.kind}\n", f"\n{purpose}"
    texts = (f"{head}{path}\n{member}{tail}" for path, member in zip(paths, members, strict=True))
    digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8] for text in texts)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def one_of(drawn: Numbers, k: int | Indices) -> Indices:
    """One of 0, ..., k - 1 for each number, each as likely as the others (to k in 2^32)."""
    return (((drawn >> np.uint64(32)) * np.asarray(k, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)


def as_fraction(rate: float) -> Fraction:
    """The rate as it is meant: 0.29 is 29/100, so that 0.29 of 100 is 29, where int(0.29 * 100) is 28.

    It is the nearest fraction whose denominator is a billion at most. Raises InputError outside of [0, 1).
    """
    found = Fraction(rate).limit_denominator(10**9) if 0 <= rate < 1 else Fraction(1)
    if found == 1:
        raise InputError(f"the rate is a share from 0 to below 1, got {rate!r}.")
    return found


def share(rate: Fraction, of: Any) -> Any:
    """The rate of a number or of several, rounded down."""
    return of * rate.numerator // rate.denominator


def chosen(units: Units, asked: Asked, candidates: Mask | None = None, key: NDArray[Any] | None = None) -> Indices:
    """The units among the candidates that noise strikes, by `asked.count`.

    key  [U]  the smallest are chosen, of equal ones those with the smallest random number; None: the latter alone
    """
    among = np.arange(len(units)) if candidates is None else np.flatnonzero(candidates)
    drawn = units.numbers(asked, "chosen", among)
    if asked.count == "bernoulli":
        return among[drawn < np.uint64(share(asked.rate, 2**64))]
    keys = (drawn,) if key is None else (drawn, key[among])
    if asked.count == "exact":
        return among[np.lexsort(keys)[: share(asked.rate, len(among))]]
    label = units.label[among]
    order = np.lexsort((*keys, label))
    sizes = np.bincount(label, minlength=len(units.classes))
    place = np.arange(len(among)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return among[order[place < np.repeat(share(asked.rate, sizes), sizes)]]


def dissolved(units: Units, asked: Asked) -> Indices:
    """Classes, in random order, that together hold the rate of all units at least, and without the last do not.

    Raises InputError where fewer than two would be left.
    """
    order = units.by_class(asked, "dissolved")
    before = np.cumsum(np.bincount(units.label, minlength=len(order))[order])
    needed = -share(asked.rate, -len(units))  # rounded up
    gone = order[: np.searchsorted(before, needed) + 1] if needed else order[:0]
    if len(order) - len(gone) < 2:
        raise InputError(
            f"{asked.kind} at rate {float(asked.rate):g} would leave {len(order) - len(gone)} of "
            f"{len(order)} classes, at least two are needed; lower the rate."
        )
    return gone
