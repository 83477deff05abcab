"""The noise laboratory: labels made wrong, and frames made strange, in the training half of a manifest.

`KINDS` says what there is. Rows of other splits, junk and distractors are never touched. The same seed is the same
noise everywhere; see `draw`.
"""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError, nearest
from metricweight.data import manifest as manifests
from metricweight.data.manifest import Manifest, training_rows
from metricweight.data.noise import frames, lists, near
from metricweight.data.noise.draw import (
    Asked,
    Indices,
    Units,
    as_fraction,
    chosen,
    dissolved,
    one_of,
    units_of,
)
from metricweight.files import checksum

Columns = Mapping[str, NDArray[Any]]

COUNTS = {
    "exact": "the rate of the rows that may change, rounded down; of these rows, not of all",
    "exact_per_class": "the rate of the rows of each class, rounded down",
    "bernoulli": "each row by itself, with the rate as its probability",
    "whole_classes": "whole classes, until the rate of all rows is reached: less than a class above it",
}
DRAWN = ("exact", "exact_per_class", "bernoulli")
NOWHERE = -1


class Kind(NamedTuple):
    """A kind of noise.

    what     it does, in words
    source   who uses it
    make     for labels: the class [U] of each unit afterwards; for frames: columns of the training rows afterwards
    counts   names of `COUNTS` that fit; the first is taken where none is asked for
    frames   whether it strikes single frames, and what is to be seen in them; else a tracklet as a whole, and its label
    labels   how many labels there must be, from 0 on; None: any
    needs    what it needs besides: super labels, tracklets or embeddings
    """

    what: str
    source: str
    make: Callable[[Units, Asked], Any]
    counts: tuple[str, ...] = DRAWN
    frames: bool = False
    labels: int | None = None
    needs: str = ""


# ---- kinds of label noise


def _another(units: Units, asked: Asked) -> Indices:
    rows = chosen(units, asked)
    drawn = one_of(units.numbers(asked, "label", rows), len(units.classes) - 1)
    found = units.label.copy()
    found[rows] = drawn + (drawn >= units.label[rows])
    return found


def _any(units: Units, asked: Asked) -> Indices:
    rows = chosen(units, asked)
    found = units.label.copy()
    found[rows] = one_of(units.numbers(asked, "label", rows), len(units.classes))
    return found


def _by(targets: Callable[[Units, Asked], Indices]) -> Callable[[Units, Asked], Indices]:
    """Noise that turns each class into one other. targets: the class [C] that each turns into, or NOWHERE."""

    def make(units: Units, asked: Asked) -> Indices:
        target = targets(units, asked)
        rows = chosen(units, asked, target[units.label] != NOWHERE)
        found = units.label.copy()
        found[rows] = target[units.label[rows]]
        return found

    return make


def _cifar10(units: Units, asked: Asked) -> Indices:
    return np.array([{9: 1, 2: 0, 4: 7, 3: 5, 5: 3}.get(label, NOWHERE) for label in range(10)])


def _next(units: Units, asked: Asked) -> Indices:
    return np.roll(np.arange(len(units.classes)), -1)


def _next_of_kind(group: Callable[[Units], Indices]) -> Callable[[Units, Asked], Indices]:
    """The next class of the same group, by label; after the last the first. A class alone in its group stays."""

    def targets(units: Units, asked: Asked) -> Indices:
        found = np.full(len(units.classes), NOWHERE)
        for members in _groups(group(units)):
            found[members] = np.roll(members, -1)
        return found

    return targets


def _pair_of_kind(group: Callable[[Units], Indices]) -> Callable[[Units, Asked], Indices]:
    """Two classes of each group, drawn, turn into each other; the others stay."""

    def targets(units: Units, asked: Asked) -> Indices:
        found = np.full(len(units.classes), NOWHERE)
        place = np.argsort(units.by_class(asked, "pair"))
        for members in _groups(group(units)):
            a, b = members[np.argsort(place[members])[:2]]
            found[[a, b]] = b, a
        return found

    return targets


def _groups(group: Indices) -> list[Indices]:
    """The classes of each group that has two at least."""
    members = (np.flatnonzero(group == number) for number in np.unique(group))
    return [some for some in members if len(some) > 1]


def _superclass(units: Units) -> Indices:
    """The super label [C] of each class. Raises InputError where one has none or two, or no two classes share one."""
    found = np.full(len(units.classes), -1, dtype=np.int64)
    given = units.table["super_label"].to_numpy()
    found[units.label] = given[units.heads]
    wrong = np.flatnonzero((given < 0) | (given != found[units.label][units.of]))
    if len(wrong):
        row = units.table.iloc[wrong[0]]
        kind = "no super label" if row["super_label"] < 0 else "more than one super label"
        raise InputError(f"this kind of noise needs the super label of each class; label {row['label']} has {kind}.")
    if not _groups(found):
        raise InputError("this kind of noise needs two classes of one super label; here each class has its own.")
    return found


def _block5(units: Units) -> Indices:
    return np.arange(len(units.classes)) // 5


def _open_set(units: Units, asked: Asked) -> Indices:
    gone = dissolved(units, asked)
    left = np.setdiff1d(np.arange(len(units.classes)), gone)
    rows = np.flatnonzero(np.isin(units.label, gone))
    found = units.label.copy()
    found[rows] = left[one_of(units.numbers(asked, "label", rows), len(left))]
    return found


KINDS: Mapping[str, Kind] = {
    "sym_excl": Kind(
        "Any of the other labels, each as likely: every chosen row becomes wrong.",
        "DM, IMAE, ProSelfLC (exact); SCE, APL (exact_per_class); GCE, Patrini, Co-teaching, PRISM (bernoulli)",
        _another,
    ),
    "sym_incl": Kind(
        "Any label, the true one too, each as likely: of C classes, (C - 1) / C of the chosen rows become wrong.",
        "DivideMix, Joint-Optim (exact)",
        _any,
    ),
    "asym_cifar10": Kind(
        "CIFAR-10: truck to automobile, bird to airplane, deer to horse, cat to dog and dog to cat. The rate is that "
        "of these five classes; half of it over all ten.",
        "Patrini (bernoulli); SCE, APL (exact_per_class); DivideMix draws from all ten classes",
        _by(_cifar10),
        labels=10,
    ),
    "asym_superclass_pair": Kind(
        "Two classes of each superclass, drawn, turn into each other. The rate is that of these classes; for five "
        "classes in each, 2/5 of it over all.",
        "ProSelfLC, DM (exact_per_class)",
        _by(_pair_of_kind(_superclass)),
        needs="super labels",
    ),
    "asym_superclass_circular": Kind(
        "Each class turns into the next one of its superclass, the last into the first.",
        "asym_block5_circular as its papers describe it, by the true superclasses",
        _by(_next_of_kind(_superclass)),
        needs="super labels",
    ),
    "asym_block5_circular": Kind(
        "Legacy, CIFAR-100: each label turns into the next one of its block of five in the alphabet. These blocks are "
        "no superclasses: 6 of the 100 flips stay in one.",
        "the code of Patrini (bernoulli) and APL (exact_per_class)",
        _by(_next_of_kind(_block5)),
        labels=100,
    ),
    "asym_block5_pair": Kind(
        "Legacy, CIFAR-100: two labels, drawn, of each block of five in the alphabet turn into each other. These "
        "blocks are no superclasses. The rate is that of these labels; 2/5 of it over all.",
        "the code of SCE (exact_per_class)",
        _by(_pair_of_kind(_block5)),
        labels=100,
    ),
    "pairflip": Kind(
        "Each label turns into the next one, the last into the first.",
        "Co-teaching (bernoulli)",
        _by(_next),
    ),
    "small_cluster": Kind(
        "Classes, drawn, dissolve one after the other into clusters of about two like pictures, each of which joins "
        "another class. The true classes of these pictures are gone.",
        "PRISM, to judge by its lists; its network and its draws are not known",
        near.small_cluster,
        ("whole_classes",),
        needs="embeddings",
    ),
    "open_set": Kind(
        "Classes, drawn, dissolve: each of their pictures joins any of the classes that are left. Their true classes "
        "are gone.",
        "small_cluster without its clusters",
        _open_set,
        ("whole_classes",),
    ),
    "near_duplicate": Kind(
        "The pictures that are most like one of another class take its label, the likest first. Two that are like each "
        "other change labels.",
        "labels that people give, who take what looks alike for the same",
        near.near_duplicate,
        ("exact", "exact_per_class"),
        needs="embeddings",
    ),
    "occlusion": Kind(
        "30 to 60 % of a picture are covered, from one side, by grey or by a picture of another label. New pictures "
        "are written beside the manifest; labels stay.",
        "frames of tracklets, where somebody walks past",
        frames.occlusion,
        frames=True,
    ),
    "foreign_frames": Kind(
        "Frames change places with frames of other identities; clean_label is who is to be seen.",
        "tracklets of a tracker that lost whom it followed",
        frames.foreign_frames,
        frames=True,
        needs="tracklets",
    ),
}


def add_noise(
    manifest: Manifest,
    kind: str,
    rate: float,
    seed: int = 0,
    count: str | None = None,
    *,
    embeddings: Path | None = None,
    pictures: Path | None = None,
) -> Manifest:
    """The manifest with noise in the rows of its split train.

    kind        a name of `KINDS`
    rate        share of the rows that may change, in [0, 1); 0.29 is 29/100
    count       a name of `COUNTS` that fits the kind; None: the first that does, which is exact where this fits
    embeddings  file with those of the training rows, for kinds that need them; see `near.read_embeddings`
    pictures    folder to which occlusion writes its pictures

    Label noise strikes a tracklet as a whole: its frames have one label. The rate then is that of tracklets. At one
    seed, what is noisy at a lower rate is noisy in the same way at a higher one, except where classes dissolve or
    frames change places.
    `clean_label` keeps the truth, `is_noisy` says which rows were changed, and `label_name` and `super_label` are those
    of the new label. What was asked for and what came of it stands in `about.noise`.

    Raises InputError, before any work, for what cannot be: see its sentences.
    """
    if kind not in KINDS:
        raise InputError(f"there is no noise called {kind}{nearest(kind, KINDS)} Known: {', '.join(KINDS)}.")
    row = KINDS[kind]
    count = count or row.counts[0]
    if count not in row.counts:
        known = "." if count in COUNTS else nearest(count, COUNTS)
        raise InputError(f"count {count} does not fit {kind}; there is {', '.join(row.counts)}{known}")
    asked = Asked(kind, as_fraction(rate), seed, count, None, pictures)
    _check_clean(manifest)
    units = units_of(manifest, row.frames)
    _check_fits(row, asked, units, embeddings)
    if embeddings is not None:
        asked = replace(asked, embeddings=near.read_embeddings(embeddings, units))
    found = row.make(units, asked)
    columns = found if row.frames else _relabelled(units, units.classes[found][units.of])
    what = "tracklets" if len(units) < len(units.table) else "pictures"
    said = {"kind": kind, "rate": rate, "of": what, "count": count, "seed": seed}
    return _changed(manifest, units, columns, said, f"noise {kind}, rate {rate:g}, count {count}, seed {seed}")


def add_list(manifest: Manifest, path: Path) -> Manifest:
    """The manifest with the labels that a published list gives to its training rows; see `lists.read`.

    A listed label that is that of no class becomes a label of its own, above all others.
    """
    _check_clean(manifest)
    units = units_of(manifest, frames=True)
    if not path.is_file():
        raise InputError(f"{path} is not there; give a list with rows such as /data/.../picture.jpg,12.")
    listed = lists.read(path, units, int(manifest.table["label"].max()) + 1)
    said = {"kind": "listed", "list": path.name, "labels_numbered": listed.numbered}
    if listed.bogus:
        said["bogus"] = ", ".join(f"{given} is {here} here" for given, here in listed.bogus.items())
    source = {"name": path.name, "bytes": path.stat().st_size, "md5": checksum(path, "md5")}
    text = f"labels as in {path.name}, which numbers them {listed.numbered}"
    made = _changed(manifest, units, _relabelled(units, listed.label), said, text)
    return replace(made, about=replace(made.about, sources=[*manifest.about.sources, source]))


def make(
    path: Path,
    out: Path | None,
    kind: str | None = None,
    rate: float | None = None,
    seed: int | None = None,
    count: str | None = None,
    embeddings: Path | None = None,
    listed: Path | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Reads a manifest, adds noise, or that of a list, and writes it to `out`.

    Occlusion writes its pictures before that, to a folder beside it.
    """
    if out is None:
        raise InputError("say where to write the noisy manifest: --out noisy.csv")
    if out.resolve() == path.resolve():
        raise InputError(f"{out} is the manifest itself, which noise does not replace; choose another --out.")
    manifests.check_free(out, overwrite)
    if listed is not None:
        given = {"--kind": kind, "--rate": rate, "--seed": seed, "--count": count, "--embeddings": embeddings}
        if more := [name for name, value in given.items() if value is not None]:
            raise InputError(f"--list says which labels are wrong; {', '.join(more)} cannot be given with it.")
        made = add_list(manifests.read(path), listed)
    elif kind is None or rate is None:
        raise InputError("give --kind and --rate, or --list; metricweight noise lists the kinds.")
    else:
        pictures = out.with_name(f"{out.name}-pictures")
        clean = manifests.read(path)
        if kind == "occlusion":
            manifests.check_root(clean, path)
        made = add_noise(clean, kind, rate, seed or 0, count, embeddings=embeddings, pictures=pictures)
    manifests.write(made, out, overwrite)
    return made


def listing() -> str:
    """The kinds of noise, what they do, who uses them and how rows are counted."""
    lines = []
    for name, kind in KINDS.items():
        needs = f" Needs {kind.needs}." if kind.needs else ""
        what = textwrap.fill(f"{kind.what}{needs}", 110, initial_indent="  ", subsequent_indent="  ")
        lines.append(f"{name}\n{what}\n  As in: {kind.source}.\n  count: {', '.join(kind.counts)}")
    width = max(map(len, COUNTS))
    return "\n".join([*lines, "\ncount", *(f"  {name:{width}}  {what}" for name, what in COUNTS.items())])


def report(made: Manifest) -> str:
    """What came of it, in words."""
    noise = made.about.noise or {}
    spread = noise["per_class"]
    more = [f"Labels of the list are numbered {noise['labels_numbered']}."] if "labels_numbered" in noise else []
    more += [f"Listed labels that are those of no class: {noise['bogus']}."] if "bogus" in noise else []
    more += (
        [] if noise["noisy"] else ["No row was changed: of so few, the rate is none, or the list has no other label."]
    )
    more += [f"{noise['classes_gone']:,} classes are gone from the labels."] if noise["classes_gone"] else []
    head = (
        f"{noise['noisy']:,} of {noise['rows']:,} training rows are noisy: {noise['realised']:.4f}. "
        f"By true class: least {spread['least']:.4f}, mean {spread['mean']:.4f}, most {spread['most']:.4f}."
    )
    return "\n".join([head, *more])


# ---- what lies beneath


def _check_clean(manifest: Manifest) -> None:
    rows = training_rows(manifest.table)
    if not rows.any():
        splits = ", ".join(sorted(manifest.table["split"].astype(str).unique()))
        raise InputError(
            f"{manifest.about.name} has no rows to train on (splits: {splits}), and noise touches nothing else; "
            "split it first: metricweight prepare folder, or csv."
        )
    noisy = int(manifest.table["is_noisy"].to_numpy()[rows].sum())
    if manifest.about.noise is not None or noisy:
        what = (manifest.about.noise or {}).get("kind", f"{noisy:,} rows with is_noisy")
        raise InputError(f"{manifest.about.name} is noisy already ({what}); noise begins with a clean manifest.")


def _check_fits(row: Kind, asked: Asked, units: Units, embeddings: Path | None) -> None:
    if len(units.classes) < 2:
        raise InputError(f"{asked.kind} needs two labels at least, the training rows have {len(units.classes)}.")
    if row.labels is not None and units.classes.tolist() != list(range(row.labels)):
        raise InputError(
            f"{asked.kind} needs the labels 0 to {row.labels - 1}, the training rows have {len(units.classes)}, "
            f"from {units.classes[0]} to {units.classes[-1]}."
        )
    tracklets = bool((units.table["tracklet"] >= 0).any())
    if row.needs == "tracklets" and not tracklets:
        raise InputError(f"{asked.kind} needs tracklets, the training rows have none.")
    if row.needs == "super labels":
        _superclass(units)
    if row.needs == "embeddings" and embeddings is None:
        raise InputError(f"{asked.kind} needs embeddings of the training rows; give --embeddings FILE, .npy or .npz.")
    if row.needs == "embeddings" and tracklets:
        raise InputError(f"{asked.kind} compares pictures that have a label each; the training rows have tracklets.")
    if row.needs != "embeddings" and embeddings is not None:
        raise InputError(f"{asked.kind} looks at no embeddings; leave --embeddings out.")
    if row.counts == ("whole_classes",):
        dissolved(units, asked)


def _relabelled(units: Units, label: Indices) -> Columns:
    """The columns of the training rows that change with their labels [N]."""
    table = units.table
    changed = label != table["label"].to_numpy()
    columns = {"label": label, "is_noisy": changed}
    for name, none in (("label_name", ""), ("super_label", -1)):
        of_class = dict(zip(units.classes.tolist(), _first(table, name, units.classes), strict=True))
        column = table[name].to_numpy(object, copy=True)
        column[changed] = [of_class.get(new, none) for new in label[changed].tolist()]
        columns[name] = column
    return columns


def _first(table: Any, name: str, classes: Indices) -> list[Any]:
    """What a column says of each class; the smallest where it says several things."""
    pairs = table[["label", name]].drop_duplicates().astype({name: object})
    return pairs.groupby("label")[name].min().loc[classes].tolist()  # type: ignore[no-any-return]


def _changed(manifest: Manifest, units: Units, columns: Columns, said: Mapping[str, Any], text: str) -> Manifest:
    """The manifest with other columns in its training rows, and what was done in its sidecar."""
    import pandas as pd

    table = manifest.table.copy(deep=False)  # only whole columns of it are replaced
    rows = training_rows(table)
    for name, values in columns.items():
        dtype = manifests.COLUMNS[name].dtype
        column = table[name].to_numpy(values.dtype, copy=True)
        column[rows] = values
        table[name] = pd.Series(column, index=table.index).astype(dtype)  # type: ignore[call-overload]
    noise = {**said, **manifests.noise_rates(table)}
    text = f"{text}: {noise['noisy']:,} of {noise['rows']:,} training rows are noisy"
    return manifest.changed(table, text, noise=noise)
