"""`metricweight prepare`: from a raw data set to a manifest that is known to be whole."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricweight.checks import InputError, nearest
from metricweight.data import manifest
from metricweight.data.manifest import About, Counts, Manifest
from metricweight.data.split import fold_classes
from metricweight.files import checksum
from metricweight.progress import part_done, say

if TYPE_CHECKING:
    import pandas as pd

from .replicas import mark, marked
from .source import Converted, Dataset, Options
from .table import DATASETS


def prepare(
    name: str, root: Path, out: Path, options: Options, *, folds: int | None = None, allow_counts: bool = False,
    overwrite: bool = False,
) -> Manifest:  # fmt: skip
    """Converts a raw data set and writes its manifest, which it returns.

    folds         numbers folds of the training labels in the column `fold`
    allow_counts  go on where there are not as many pictures, labels or tracklets as there should be

    Raises InputError, before the manifest is written, for what is not as the data set has it, with file and line.
    """
    dataset = named(name)
    allowed = {"pictures", *dataset.options, *(["seed"] if folds else [])}
    for option in fields(Options):
        if option.name not in allowed and getattr(options, option.name) is not None:
            takes = [other for other, row in DATASETS.items() if option.name in row.options]
            raise InputError(f"--{option.name} is not for {name}; it is for {', '.join(takes) or 'none yet'}.")
    manifest.check_free(out, overwrite)
    if out.resolve() == root.resolve():
        raise InputError(f"--out {out} is what is read; choose another, so that nothing is lost.")
    converted = dataset.convert(root, options)
    near = (root, root.parent, converted.root, *converted.root.parents[:2])
    replica = next((mark_there for folder in near if (mark_there := marked(folder))), None)
    table = manifest.complete(converted.rows, lambda row: f"{root}: {converted.rows['path'].iloc[row]}", str(root))
    found, expected = manifest.counts(table), replica["counts"] if replica else dataset.counts
    wrong = differences(found, expected)
    if wrong and not allow_counts:
        raise InputError(
            f"{root} is not all of {dataset.title}, or more: {'; '.join(wrong)}. "
            "Look for what is missing, or take it as it is with --allow-counts."
        )
    notes = [*converted.notes, *(f"{sentence}; taken as it is." for sentence in wrong)]
    sources, doubts = _sources(root, dataset, converted, known=replica is None)
    about = About(
        f"{converted.name or dataset.title}{' (replica)' if replica else ''}",
        converted.layout,
        converted.protocol,
        sources=sources,
        super_names={str(number): text for number, text in converted.super_names.items()},
        history=[f"prepared from {converted.layout}", *notes, *doubts],
    )
    whole = Manifest(table, converted.root, about)
    if folds is not None:
        whole = fold_classes(whole, folds, options.seed or 0)
    manifest.write(whole, out, overwrite)
    say(f"{about.name}: this is {converted.layout}.")
    for note in [*notes, *doubts]:
        say(f"note: {note}")
    return manifest.read(out)


def write_replica(name: str, folder: Path, layout: str | None = None, size: int = 1) -> "pd.DataFrame":
    """Writes a tiny copy of a data set and returns the rows that a right converter finds in it.

    Raises InputError where the folder holds something, or the layout is not one of the data set.
    """
    dataset = named(name)
    if dataset.replica is None:
        raise InputError(f"{name} has no form of its own, so there is no replica of it.")
    if layout is not None and layout not in dataset.replica.layouts:
        known = ", ".join(filter(None, dataset.replica.layouts)) or "only one, without a name"
        raise InputError(
            f"'{layout}' is not a layout of {name}{nearest(layout, dataset.replica.layouts)} Known: {known}."
        )
    if size < 1:
        raise InputError(f"--size is 1 or more, got {size}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not an empty folder; choose another for the replica.")
    folder.mkdir(parents=True, exist_ok=True)
    rows = dataset.replica.write(folder, dataset.replica.layouts[0] if layout is None else layout, size)
    table = manifest.complete(rows, lambda row: f"replica, row {row}", "the replica")
    mark(folder, name, manifest.counts(table))
    return rows


def named(name: str) -> Dataset:
    if name not in DATASETS:
        raise InputError(f"'{name}' is not a data set{nearest(name, DATASETS)} Known: {', '.join(DATASETS)}.")
    return DATASETS[name]


def listing() -> str:
    """What `metricweight prepare` knows: where to get each, its terms, and what must be found."""
    told = []
    for name, row in DATASETS.items():
        facts = [row.title, f"get: {row.get}", f"terms: {row.terms}"]
        if row.counts:
            facts.append(f"holds: {_in_words(row.counts)}")
        if row.options:
            facts.append("options: " + ", ".join(f"--{option}" for option in row.options))
        if row.replica and len(row.replica.layouts) > 1:
            facts.append(f"layouts: {', '.join(row.replica.layouts)}")
        told.append("\n".join(f"{name if i == 0 else '':12s} {fact}" for i, fact in enumerate(facts)))
    return "\n\n".join(told)


def differences(found: Counts, expected: Counts) -> list[str]:
    """Where counts are not what they should be, a sentence each with both numbers."""
    return [
        f"{part} has {found.get(part, {}).get(what, 0):,} {what}, {number:,} expected"
        for part, numbers in expected.items()
        for what, number in numbers.items()
        if found.get(part, {}).get(what, 0) != number
    ]


def _in_words(counts: Counts) -> str:
    return "; ".join(
        f"{part} " + ", ".join(f"{number:,} {what}" for what, number in numbers.items())
        for part, numbers in counts.items()
    )


def _sources(
    root: Path, dataset: Dataset, converted: Converted, known: bool
) -> tuple[list[Mapping[str, Any]], Sequence[str]]:
    """The files that were read, with checksums, and doubts about those that are known and differ.

    known  whether the checksums of the real files are to be compared: not for replicas
    """
    doubts: list[str] = []
    sources: list[Mapping[str, Any]] = []
    for path in converted.read:
        md5 = checksum(path, "md5")
        sources.append({"name": path.name, "bytes": path.stat().st_size, "md5": md5})
        doubts += _doubt(path, md5, dataset.files.get(path.name))
    if not known:
        return sources, []
    listed = converted.rows["path"]
    for name, expected in dataset.files.items():
        for path in listed[listed.str.endswith(f"/{name}")].head(1):
            doubts += _doubt(converted.root / path, checksum(converted.root / path, "md5"), expected)
    for name, expected in dataset.archives.items():
        for path in {root / name, root.parent / name, converted.root.parent / name}:
            if path.is_file():
                with part_done(f"checksum of {name}") as told:
                    digest = checksum(path, "md5", told)
                sources.append({"name": name, "bytes": path.stat().st_size, "md5": digest})
                doubts += _doubt(path, digest, expected)
                break
    return sources, doubts


def _doubt(path: Path, found: str, expected: str | None) -> list[str]:
    if expected is None or found == expected:
        return []
    return [f"{path} has the checksum {found}; that of the original is {expected}. It is another edition, or damaged."]
