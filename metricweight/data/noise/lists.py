"""Published noisy lists: a picture and the label it is given, a line each, as they came with PRISM.

Liu et al., Noise-Resistant Deep Metric Learning with Ranking-Based Instance Selection, CVPR 2021. arXiv:2103.16047
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metricweight.checks import InputError
from metricweight.data.noise.draw import Indices, Units


class Listed(NamedTuple):
    """What a list says.

    label    [N]  of the training rows, in the numbers of the manifest
    numbered      how the list numbers the labels, in words
    bogus         listed labels that are those of no class, which got numbers of their own: listed -> here
    """

    label: Indices
    numbered: str
    bogus: dict[int, int]


def read(path: Path, units: Units, free: int) -> Listed:
    """The labels that a list gives to the training rows of a manifest.

    path  CSV without a header, rows `/data/.../picture.jpg,12`
    free  the first number that is no label in the manifest

    A line is about the training picture with which its path shares the longest end, folder by folder. Labels are taken
    as those of the manifest, or as places among its training labels from 0 or from 1 on, whichever is the truth most
    often. Where none of these is so half as often as a vote, labels were numbered anew and the vote decides: each
    listed label is a class of its own, the one that most of its pictures truly are of, without two being one; a class
    that is whole under one label goes before one that is spread, where the list has fewer labels than the manifest,
    because classes that were dissolved were spread. (Two whole classes as large as each other under one label cannot
    be told apart: the one of the smaller number has it.)

    Raises InputError with the line for what is no such row, for a picture that is not among the training rows or may be
    several of them, and for training rows that the list lacks.
    """
    rows, listed = _join(path, units)
    truth = units.label[rows]
    maps = {
        "by the labels of the manifest": {int(label): place for place, label in enumerate(units.classes)},
        "from 0 on": {place: place for place in range(len(units.classes))},
        "from 1 on": {place + 1: place for place in range(len(units.classes))},
    }
    vote = _vote(listed.tolist(), truth.tolist(), len(units.classes))
    right = {how: _right(numbering, listed, truth) for how, numbering in maps.items()}
    numbered = max(right, key=lambda how: right[how])  # of equal ones, the first
    known = maps[numbered]
    if 2 * right[numbered] < _right(vote, listed, truth):
        numbered, known = "anew", vote
    bogus = {label: free + i for i, label in enumerate(sorted(set(listed.tolist()) - set(known)))}
    numbers = {label: int(units.classes[place]) for label, place in known.items()} | bogus
    label = np.empty(len(units), dtype=np.int64)
    label[rows] = [numbers[given] for given in listed.tolist()]
    return Listed(label, numbered, bogus)


def _join(path: Path, units: Units) -> tuple[Indices, Indices]:
    """The training row and the label of each line."""
    by_name: dict[str, list[int]] = defaultdict(list)
    parts = [item.split("/") for item in units.table["path"]]
    for row, (item, member) in enumerate(zip(parts, units.table["member"].tolist(), strict=True)):
        if member < 0:
            by_name[item[-1]].append(row)
    line_of: dict[int, int] = {}
    labels = []
    for number, line in enumerate(_lines(path), start=1):
        item, comma, label = line.rstrip("\r\n").rpartition(",")
        if not comma or not label.strip().isdecimal():
            raise InputError(f"{path}, line {number}: {line.strip()!r} is not a path, a comma and a label.")
        found = _nearest(item.split("/"), by_name, parts)
        if found is None:
            raise InputError(f"{path}, line {number}: {item} is none of the {len(units.table):,} training pictures.")
        if found < 0:
            raise InputError(
                f"{path}, line {number}: {item} may be several of the training pictures, such as "
                f"{'/'.join(parts[-found - 1])}; prepare the manifest from the folders that the list speaks of."
            )
        if found in line_of:
            raise InputError(f"{path}, line {number}: {'/'.join(parts[found])} has line {line_of[found]} already.")
        line_of[found] = number
        labels.append(int(label))
    if len(line_of) < len(units.table):
        lacking = next(row for row in range(len(parts)) if row not in line_of)
        raise InputError(
            f"{path} lacks {len(units.table) - len(line_of):,} of {len(units.table):,} training pictures, the first is "
            f"{'/'.join(parts[lacking])}; needed: a list of all of them, with the noisy ones."
        )
    return np.array(list(line_of), dtype=np.int64), np.array(labels, dtype=np.int64)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text.") from None


def _nearest(item: list[str], by_name: dict[str, list[int]], parts: list[list[str]]) -> int | None:
    """The row that shares the longest end with a path; -row - 1 of one of several such rows; None: there is none."""
    found = by_name.get(item[-1], [])
    depth = 1
    while len(found) > 1:
        depth += 1
        if depth > len(item):
            break
        deeper = [row for row in found if parts[row][-depth:] == item[-depth:]]
        if not deeper:
            break
        found = deeper
    if not found:
        return None
    return found[0] if len(found) == 1 else -found[0] - 1


def _right(numbering: dict[int, int], listed: Indices, truth: Indices) -> int:
    return sum(numbering.get(label) == true for label, true in zip(listed.tolist(), truth.tolist(), strict=True))


def _vote(listed: Iterable[int], truth: list[int], classes: int) -> dict[int, int]:
    """Listed label -> class; see `read`."""
    votes: dict[tuple[int, int], int] = defaultdict(int)
    sizes = np.bincount(truth, minlength=classes).tolist()
    for pair in zip(listed, truth, strict=True):
        votes[pair] += 1
    fewer = len({label for label, _ in votes}) < classes

    def order(item: tuple[tuple[int, int], int]) -> tuple[bool, int, tuple[int, int]]:
        (label, true), count = item
        return (fewer and count < sizes[true], -count, (label, true))

    found: dict[int, int] = {}
    taken = set()
    for (label, true), _ in sorted(votes.items(), key=order):
        if label not in found and true not in taken:
            found[label] = true
            taken.add(true)
    return found
