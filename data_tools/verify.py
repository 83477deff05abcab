"""`metricweight verify`: whether the pictures of a manifest are all there and whole, and what else to know of them."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError, Interrupted
from metricweight.data import manifest
from metricweight.data.manifest import BOX, SPLITS, Manifest
from metricweight.files import checksum
from metricweight.progress import part_done, track

from . import doubles, mars
from .findings import KINDS, LONG, TINY, Finding, Verified, check_free, row_of, write
from .looks import Book, Ints, look_at_all
from .prepare import differences

if TYPE_CHECKING:
    pass

Mask = NDArray[np.bool_]

BEYOND = 1.0  # pixels by which a box may leave the picture: sources round, and some count from 1
FORMS = {
    "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "GIF": (".gif",), "BMP": (".bmp",),
    "PPM": (".ppm",), "TIFF": (".tif", ".tiff"), "WEBP": (".webp",), "NPY": (".npy",),
}  # fmt: skip


def verify(
    path: Path, root: Path | None = None, out: Path | None = None, processes: int | None = None, again: bool = False
) -> Verified:
    """Looks at each picture of a manifest, and writes what is found to a CSV file.

    path       see `metricweight.data.manifest.read`
    root       what paths begin at; None: what the manifest says
    out        the CSV file; None: MANIFEST.findings.csv, or FOLDER.findings.csv here for a folder of pictures. What was
               seen of each picture is kept beside it, in OUT.looks, as it is seen: a second run goes on from there
    processes  None: one per core. They are started anew, so a script that calls this needs `if __name__ == "__main__"`
    again      look at all pictures, whether they are known or not

    Raises InputError for a table that cannot be read; what is wrong with its rows is a finding.
    """
    if processes is not None and processes < 1:
        raise InputError(f"--processes must be at least 1, got {processes}.")
    out = out or (
        Path(f"{path.resolve().name}.findings.csv") if path.is_dir() else path.with_name(f"{path.name}.findings.csv")
    )
    check_free(out)
    listed = manifest.read(path, root, accept=True, check=False)
    if not listed.root.is_dir():
        raise InputError(f"{listed.root}, where the pictures should lie, is not there; give the folder with --root.")
    found = [*_table(path, listed), *_labels(listed), *_queries(listed), *_tracklets(listed)]
    rows = np.flatnonzero(~listed.table.duplicated(["path", "member"]).to_numpy())
    tasks = list(zip(listed.table["path"].iloc[rows].tolist(), listed.table["member"].iloc[rows].tolist(), strict=True))
    if tasks and not any((listed.root / item).exists() for item, _ in tasks):
        raise InputError(
            f"none of the {len(tasks):,} pictures, such as {tasks[0][0]}, lies below {listed.root}; "
            "give their folder with --root."
        )
    book, known, missing = _look(listed, tasks, out, processes or os.cpu_count() or 1, again)
    found += [*_missing(listed, rows, missing), *_looks(listed, rows, book)]
    remarks: list[str] = []
    found += [*_doubles(listed, rows, book, remarks), *_tracks(listed)]
    findings = sorted((one for one in found), key=lambda one: list(KINDS).index(one.kind))
    done = Verified(listed.about.name, len(tasks), known, findings, listed.table, out, remarks)
    write(done, path)
    return done


# ---- the table


def _table(path: Path, listed: Manifest) -> Iterator[Finding]:
    for problem in manifest.problems(listed.table):
        first = int(problem.rows[0])

        def detail(i: int, sentence: str = problem.sentence, first: int = first) -> str:
            return sentence if i == 0 else f"as in row {row_of(path, first)}: {sentence}"

        yield Finding("table", problem.rows, detail)
    if not listed.about.sha256:
        return
    if checksum(path, "sha256") != listed.about.sha256:
        accept = f"metricweight data {path} --accept"
        yield _whole("changed_table", f"it was changed after it was written; if it is as it should be: {accept}")
    for sentence in differences(manifest.counts(listed.table), listed.about.counts):
        yield _whole("counts", sentence)


def _whole(kind: str, sentence: str) -> Finding:
    return Finding(kind, np.zeros(0, dtype=np.int64), lambda _: sentence)


def _labels(listed: Manifest) -> Iterator[Finding]:
    """Labels that are in more than one split, and labels with a single picture."""
    table = listed.table
    labels, split, named = table["label"].to_numpy(), table["split"].astype(str).to_numpy(), manifest.ordinary(table)
    first: dict[str, dict[int, int]] = {}
    for name in SPLITS:
        rows = np.flatnonzero(named & (split == name))
        values, where, sizes = np.unique(labels[rows], return_index=True, return_counts=True)
        first[name] = dict(zip(values.tolist(), rows[where].tolist(), strict=True))
        single = np.sort(rows[where[sizes == 1]])
        if len(single):

            def said(i: int, single: Ints = single, name: str = name) -> str:
                return f"the only one of label {labels[single[i]]} in {name}"

            yield Finding("single", single, said)
    for one, other in combinations(SPLITS[:3], 2):
        shared = sorted(first[one].keys() & first[other].keys())
        if shared and first[one].keys() == first[other].keys():
            yield _whole(
                "closed_set",
                f"{one} and {other} have the same {len(shared):,} labels: this is the closed-set classification split, "
                "not the zero-shot split of metric learning",
            )
        elif shared:
            rows = np.array([first[other][label] for label in shared], dtype=np.int64)
            others = np.array([first[one][label] for label in shared], dtype=np.int64)

            def detail(i: int, a: str = one, b: str = other, labels: Sequence[int] = shared) -> str:
                return f"label {labels[i]} is in {a} and in {b}, as {len(labels):,} of {len(first[b]):,} of {b} are"

            yield Finding("shared_label", rows, detail, others)


def _queries(listed: Manifest) -> Iterator[Finding]:
    """Queries for which nothing right can be found, or nothing from another camera, which is what some protocols ask
    for; frames of one tracklet search as one."""
    table = listed.table[listed.table["split"] != "train"]
    named = manifest.ordinary(table)
    queries = np.asarray(table["is_query"]) & named
    if not queries.any():
        return
    item = table["tracklet"].where(table["tracklet"] >= 0, -2 - np.arange(len(table)))
    frame = table.assign(item=item, on=(np.asarray(table["is_gallery"]) & named).astype(np.int64))
    right = frame.groupby("label")["on"].transform("sum")
    alone = right <= frame.groupby(["label", "item"])["on"].transform("sum")
    here = ~alone & (frame["camera"] >= 0) & (right <= frame.groupby(["label", "camera"])["on"].transform("sum"))
    for kind, chosen, said in (
        ("no_match", alone, "nothing else in the gallery has its label {}"),
        ("one_camera", here, "nothing in the gallery that another camera saw has its label {}"),
    ):
        found = frame[queries & chosen.to_numpy()].drop_duplicates("item")
        labels = found["label"].tolist()
        if labels:

            def detail(i: int, said: str = said, labels: Sequence[int] = labels) -> str:
                return said.format(labels[i])

            yield Finding(kind, found.index.to_numpy(dtype=np.int64), detail)


def _tracklets(listed: Manifest) -> Iterator[Finding]:
    frames = listed.table[listed.table["tracklet"] >= 0]
    short = frames[~frames.duplicated("tracklet", keep=False)] if len(frames) else frames
    if len(short):
        numbers = short["tracklet"].tolist()
        yield Finding("short_tracklet", short.index.to_numpy(dtype=np.int64), lambda i: f"tracklet {numbers[i]}")


def _tracks(listed: Manifest) -> Iterator[Finding]:
    """What the lists and track tables of MARS, where they lie near the root, say otherwise than the manifest, or than
    each other. Rows that noise touched are not compared, nor are queries, which one may choose."""
    near = [listed.root, listed.root.parent]  # the tables may lie in a clone of their repository, beside the pictures
    homes = [home for home in near if any(next(home.glob(f"{up}info/tracks_*_info.mat"), None) for up in ("", "*/"))]
    if not homes or "MARS" not in listed.about.name:
        return
    try:
        source = mars.listed(homes[0])
    except InputError as error:
        yield _whole("tracks", str(error))
        return
    above = os.path.relpath(source.root, listed.root)
    paths = source.rows["path"] if above == "." else f"{above}/" + source.rows["path"]
    said = source.rows.assign(path=paths).set_index("path").reindex(listed.table["path"])
    table, there = listed.table, said["label"].notna().to_numpy()
    clean = ~table["is_noisy"].to_numpy()
    unlisted = np.flatnonzero(~there & clean)
    if len(unlisted):
        yield Finding("tracks", unlisted, lambda i: "it is in none of the lists")
    there = there & clean
    for name in ("label", "camera", "frame"):
        ours, theirs = table[name].to_numpy(), said[name].to_numpy()
        rows = np.flatnonzero(there & (ours != theirs))

        def detail(i: int, name: str = name, rows: Ints = rows, ours: Any = ours, theirs: Any = theirs) -> str:
            return f"its {name} is {theirs[rows[i]]:.0f} in the lists, and {ours[rows[i]]} here"

        if len(rows):
            yield Finding("tracks", rows, detail)
    tested = [np.asarray(side["split"].astype(str) == "test") for side in (table, said)]
    rows = np.flatnonzero(there & (tested[0] != tested[1]))
    if len(rows):
        yield Finding(
            "tracks", rows, lambda i: f"it is {'not ' * (not tested[1][rows[i]])}of the test half in the lists"
        )
    yield from _torn(table["tracklet"].to_numpy(), said["tracklet"].fillna(-1).to_numpy(dtype=np.int64), there)


def _torn(ours: Ints, theirs: Ints, there: Mask) -> Iterator[Finding]:
    """Frames that one side has in the tracklet of other frames than the other side."""
    chosen = np.flatnonzero(there & (ours >= 0))
    for one, other, where in (
        (ours, theirs, "here, but not in the lists"),
        (theirs, ours, "in the lists, but not here"),
    ):
        _, first, which = np.unique(one[chosen], return_index=True, return_inverse=True)
        begins = chosen[first[which]]
        torn = other[chosen] != other[begins]
        rows, others = chosen[torn], begins[torn]
        if len(rows):

            def detail(i: int, where: str = where) -> str:
                return f"it is in one tracklet with the other {where}"

            yield Finding("tracks", rows, detail, others)


# ---- the pictures


def _look(
    listed: Manifest, tasks: Sequence[tuple[str, int]], out: Path, processes: int, again: bool
) -> tuple[Book, int, dict[int, str]]:
    """What was seen of each picture that is there, how many of them were known, and what to say of those missing."""
    sizes, times, missing = _files(listed.root, [path for path, _ in tasks])
    book = Book(out.with_name(f"{out.name}.looks"), listed.root, tasks)
    there = sizes >= 0
    known = book.looks["known"] & (book.looks["size"] == sizes) & (book.looks["time"] == times) & there
    if again:
        known[:] = False
    book.looks["known"] &= there
    wanted = np.flatnonzero(there & ~known)
    looked = 0
    try:
        with part_done(f"looking at {len(wanted):,} pictures", quiet=not len(wanted)) as told:
            for numbers, seen in look_at_all(listed.root, [tasks[i] for i in wanted.tolist()], processes):
                book.add(wanted[numbers].tolist(), seen)
                looked += len(numbers)
                told(looked / len(wanted))
    except KeyboardInterrupt:
        book.close(done=False)
        raise Interrupted(
            f"stopped: {int(known.sum()) + looked:,} of {len(tasks):,} pictures are known; the same command goes on."
        ) from None
    book.close(done=True)
    return book, int(known.sum()), missing


def _files(root: Path, paths: Sequence[str]) -> tuple[Ints, Ints, dict[int, str]]:
    """Sizes and times of files below a root, -1 where there is none of this very name; then {which: why}."""
    import pandas as pd

    sizes, times = np.full(len(paths), -1, dtype=np.int64), np.full(len(paths), -1, dtype=np.int64)
    missing: dict[int, str] = {}
    codes, folders = pd.factorize(np.array([os.path.dirname(path) for path in paths], dtype=object))
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)

    @cache
    def names(folder: Path) -> frozenset[str]:
        return frozenset(os.listdir(folder))

    def scan(group: Ints) -> None:
        folder = root / folders[codes[group[0]]]
        there = _listing(folder) if _is_written_so(folder, root, names) else {}
        lower: dict[str, str] = {}
        for i in group.tolist():
            name = os.path.basename(paths[i])
            if name in there:
                sizes[i], times[i] = there[name]
                continue
            lower = lower or {other.lower(): other for other in there}
            if near := lower.get(name.lower()):
                missing[i] = f"there is {near}, which differs in case"
            else:
                missing[i] = "there is no such file" if there else "there is no such folder, or nothing is in it"

    with ThreadPoolExecutor(max_workers=16) as pool:
        for _ in track(pool.map(scan, groups), "looking for pictures", len(groups)):
            pass
    return sizes, times, missing


def _is_written_so(folder: Path, root: Path, names: Callable[[Path], frozenset[str]]) -> bool:
    """Whether a folder below the root has this very name on the disk, where a disk may not care for case."""
    if not folder.is_relative_to(root):
        return True
    while folder != root:
        try:
            if folder.name != ".." and folder.name not in names(folder.parent):
                return False
        except OSError:
            return False
        folder = folder.parent
    return True


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file in a folder, by name; nothing where it cannot be read."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    state = entry.stat()
                    found[entry.name] = (state.st_size, state.st_mtime_ns)
    except OSError:
        return {}
    return found


def _missing(listed: Manifest, rows: Ints, missing: dict[int, str]) -> Iterator[Finding]:
    if missing:
        where = sorted(missing)
        yield Finding("missing", rows[where], lambda i: missing[where[i]])


def _looks(listed: Manifest, rows: Ints, book: Book) -> Iterator[Finding]:
    """What is to be said of each picture by itself."""
    looks, table = book.looks, listed.table

    def of(kind: str, chosen: Any, detail: Callable[[int], str]) -> Iterator[Finding]:
        """detail: of a picture, by its number"""
        where = np.flatnonzero(np.asarray(chosen))
        if len(where):
            yield Finding(kind, rows[where], lambda i: detail(int(where[i])))

    known, fault = looks["known"], looks["fault"]
    good = known & (fault == b"")
    changed = known & (looks["digest"] != 0) & (book.before != 0) & (book.before != looks["digest"])
    yield from of("changed", changed, lambda i: "its bytes differ from those of the last complete run")
    for kind in ("damaged", "not_a_picture"):
        yield from of(kind, known & (fault == kind.encode()), lambda i: book.reasons[i])
    yield from of("mode", good & (looks["mode"] != b"RGB"), lambda i: f"its mode is {looks['mode'][i].decode()}")
    suffix = [os.path.splitext(path)[1].lower() for path, _ in book.tasks]
    known_forms = {(form.encode(), ending) for form, endings in FORMS.items() for ending in endings}
    pairs = zip(looks["form"].tolist(), suffix, strict=True)
    fits = np.fromiter((pair in known_forms for pair in pairs), dtype=bool, count=len(suffix))
    yield from of(
        "form", good & ~fits, lambda i: f"it is {looks['form'][i].decode()}, its name ends with '{suffix[i]}'"
    )
    yield from of(
        "turned",
        good & ((looks["turn"] > 1) & (looks["turn"] <= 8)),
        lambda i: f"its EXIF orientation is {looks['turn'][i]}",
    )
    yield from of("several", good & looks["several"], lambda i: f"it is {looks['form'][i].decode()}")
    width, height = looks["width"], looks["height"]

    def size(i: int) -> str:
        return f"{width[i]} x {height[i]} pixels"

    yield from of("tiny", good & (np.minimum(width, height) < TINY), size)
    yield from of("long", good & (np.maximum(width, height) > LONG * np.minimum(width, height)), size)
    yield from of("flat", good & looks["flat"], size)
    if not table[BOX].isna().all(axis=None):
        x1, y1, x2, y2 = (table[name].to_numpy()[rows] for name in BOX)
        beyond = (np.minimum(x1, y1) < -BEYOND) | (x2 > width + BEYOND) | (y2 > height + BEYOND)
        yield from of(
            "outside", good & beyond, lambda i: f"box {x1[i]:g}, {y1[i]:g} to {x2[i]:g}, {y2[i]:g} in {size(i)}"
        )


# ---- twice


def _doubles(listed: Manifest, rows: Ints, book: Book, remarks: list[str]) -> Iterator[Finding]:
    good = np.flatnonzero(book.looks["known"] & (book.looks["fault"] == b""))
    if not len(good):
        return
    table, looks, chosen = listed.table.iloc[rows[good]], book.looks[good], rows[good]
    number = {name: place for place, name in enumerate(SPLITS)}
    names = table["split"].astype(str).tolist()
    split = np.array([number.get(name, len(SPLITS)) for name in names], dtype=np.int64)
    label, tracklet = table["label"].to_numpy(), table["tracklet"].to_numpy()
    called = table["label_name"].astype(str).tolist()
    places = doubles.Places(split, label, manifest.ordinary(table), tracklet)
    same = doubles.exact(looks["digest"], places)
    seen = np.flatnonzero(~looks["flat"])
    near, crowded = doubles.near(
        looks["digest"][seen],
        looks["pattern"][seen],
        looks["colours"][seen],
        doubles.Places(split[seen], label[seen], places.named[seen], tracklet[seen]),
    )
    if crowded:
        remarks.append(
            f"{crowded:,} pictures look like so many others that they were not compared with all of them; "
            "of pictures that look the same there may be more."
        )

    def told(pair: tuple[Ints, Ints], kind: str) -> Finding:
        a, b = pair

        def detail(i: int) -> str:
            mine, its = (f"label {called[j] or label[j]} in {names[j]}" for j in (a[i], b[i]))
            return f"{mine}; the other is {its}" if mine != its else f"both are {mine}"

        return Finding(kind, chosen[a], detail, chosen[b])

    for kind, pair in same.items():
        if len(pair[0]):
            yield told(pair, kind)
        a, b = seen[near[kind][0]], seen[near[kind][1]]
        new = ~np.isin(a, pair[0])  # what is the same is not told again as looking the same
        if new.any():
            yield told((a[new], b[new]), f"near_{kind}")
