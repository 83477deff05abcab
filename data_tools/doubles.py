"""Which pictures are there twice: to the byte, or to the eye.

Of two that are the same, it matters where they stand. `leak`: in two splits. `two_labels`: in one split, under two
labels. `double`: in one split, under one label.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Patterns = NDArray[np.uint64]
Bytes = NDArray[np.uint8]
Doubles = dict[str, tuple[Ints, Ints]]  # kind -> pictures, and of each the other one

KINDS = ("leak", "two_labels", "double")
BITS, COLOUR = 4, 16  # how much patterns and colours may differ and pictures still look the same
MOST = 256  # patterns with which one is compared in each of the 35 ways to be alike
_EDGES = (0, 9, 18, 27, 36, 46, 55, 64)  # seven bands of a pattern: where 4 bits differ, 3 bands at least do not


@dataclass(frozen=True)
class Places:
    """Where N pictures stand.

    split     [N] its number; train is the lowest
    label     [N]
    named     [N] whether the label says who it is: not of junk and distractors
    tracklet  [N] -1 for none
    """

    split: Ints
    label: Ints
    named: Mask
    tracklet: Ints


def exact(digest: Patterns, places: Places) -> Doubles:
    """Pictures that are the same to the byte, each with the first of its kind."""
    split, label, named = places.split, places.label, places.named
    found = {
        "leak": _unlike_first([digest], split, np.full(len(digest), True)),
        "two_labels": _unlike_first([digest, split], label, named),
    }
    order = np.lexsort((label, split, digest))  # it is stable: the first comes first
    first = _first_of_run([digest[order], split[order], label[order]])
    later = first != np.arange(len(order))
    found["double"] = (order[later], order[first[later]])
    return {kind: _sorted(*pair) for kind, pair in found.items()}


def _unlike_first(keys: list[NDArray[np.generic]], value: Ints, among: Mask) -> tuple[Ints, Ints]:
    """Of pictures with the same keys, those whose value is not that of the one with the lowest; and that one."""
    rows = np.flatnonzero(among)
    order = rows[np.lexsort((value[rows], *(key[rows] for key in reversed(keys))))]
    first = _first_of_run([key[order] for key in keys])
    unlike = value[order] != value[order][first] if len(order) else np.zeros(0, dtype=bool)
    return order[unlike], order[first[unlike]]


def _first_of_run(keys: list[NDArray[np.generic]]) -> Ints:
    """For each position of sorted keys, where the run of the same keys begins."""
    begins = np.zeros(len(keys[0]), dtype=bool)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))


def _sorted(rows: Ints, others: Ints) -> tuple[Ints, Ints]:
    order = np.argsort(rows)
    return rows[order], others[order]


def near(digest: Patterns, pattern: Patterns, colours: Bytes, places: Places) -> tuple[Doubles, int]:
    """Pictures that look the same, each with the one that is most like it; and how many could not be compared with all.

    digest   [N]      pictures that are the same to the byte are left to `exact`
    pattern  [N]      at most 4 bits may differ
    colours  [N, 48]  none may differ by more than 16 of 255

    Frames of one tracklet are not compared. Memory is that of some columns, however many pictures look the same.
    """
    known = _Known(digest, pattern, colours, places)
    order = np.lexsort((places.tracklet, places.label, places.split, pattern))
    first = _first_of_run([x[order] for x in (pattern, places.split, places.label, places.tracklet)])
    later = first != np.arange(len(order))
    rest, like = order[later], order[first[later]]
    rows = np.sort(order[~later])  # one for all with this pattern, in this place
    crowded = np.zeros(len(pattern), dtype=bool)
    for bands in combinations(range(len(_EDGES) - 1), 3):
        mask = sum(((1 << _EDGES[band + 1]) - (1 << _EDGES[band])) for band in bands)
        key = pattern[rows] & np.uint64(mask)
        order = np.argsort(key, kind="stable")
        for a, b in _pairs(key[order]):
            if b is None:
                crowded[rows[order[a]]] = True
            else:
                known.take(rows[order[a]], rows[order[b]])
    known.take_for_others(rest, like)
    known.take(rest, like)
    return {kind: known.told(i) for i, kind in enumerate(KINDS)}, int(crowded.sum())


def _pairs(key: Patterns) -> Iterator[tuple[Ints, Ints | None]]:
    """Positions of sorted keys that are the same, in blocks; last, with None, those that have more than MOST beside
    them."""
    left = np.arange(len(key))
    for step in range(1, MOST + 1):
        left = left[left + step < len(key)]
        left = left[key[left] == key[left + step]]
        if not len(left):
            return
        for start in range(0, len(left), 1 << 20):
            block = left[start : start + (1 << 20)]
            yield block, block + step
    yield left, None


class _Known:
    """What looks like what.

    best   [3, N]  for each kind and picture: how many bits differ, and in the lower 48 bits the other picture
    first  [3, N]  the first picture that looks like it, which may be told of this one
    """

    def __init__(self, digest: Patterns, pattern: Patterns, colours: Bytes, places: Places) -> None:
        self.digest, self.pattern, self.colours, self.places = digest, pattern, colours, places
        self.best = np.full((len(KINDS), len(pattern)), np.iinfo(np.uint64).max, dtype=np.uint64)
        self.first = np.full((len(KINDS), len(pattern)), len(pattern), dtype=np.int64)

    def take(self, a: Ints, b: Ints) -> None:
        """Keeps those of the pairs (a, b) that look the same and are nearer than what is known already."""
        places = self.places
        apart = np.bitwise_count(self.pattern[a] ^ self.pattern[b])
        tracklets = places.tracklet[a]
        chosen = apart <= BITS
        chosen &= (self.digest[a] != self.digest[b]) & ((tracklets < 0) | (tracklets != places.tracklet[b]))
        a, b, apart = a[chosen], b[chosen], apart[chosen]
        if not len(a):
            return
        close = np.abs(self.colours[a].astype(np.int16) - self.colours[b]).max(axis=1) <= COLOUR
        a, b, apart = a[close], b[close], apart[close]
        splits = places.split[a] - places.split[b]
        later = np.where(splits != 0, splits > 0, a > b)  # it is told of the one not to train on, else of the later
        row, other = np.where(later, a, b), np.where(later, b, a)
        unlike = (places.label[a] != places.label[b]) & places.named[a] & places.named[b]
        kind = np.where(splits != 0, 0, np.where(unlike, 1, 2))
        near = apart.astype(np.uint64) << np.uint64(48) | other.astype(np.uint64)
        np.minimum.at(self.best, (kind, row), near)
        np.minimum.at(self.first, (kind, row), other)
        np.minimum.at(self.first, (kind, other), row)

    def take_for_others(self, rows: Ints, like: Ints) -> None:
        """What looks like one of a pattern and place, `like`, looks like the others of them, `rows`."""
        for i in range(len(KINDS)):
            there = self.best[i, like] != np.iinfo(np.uint64).max
            other = np.where(there, _other(self.best[i, like]), self.first[i, like])
            found = other < len(self.pattern)
            self.take(rows[found], other[found])

    def told(self, kind: int) -> tuple[Ints, Ints]:
        rows = np.flatnonzero(self.best[kind] != np.iinfo(np.uint64).max)
        return rows, _other(self.best[kind, rows])


def _other(best: Patterns) -> Ints:
    return (best & np.uint64((1 << 48) - 1)).astype(np.int64)
