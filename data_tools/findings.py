"""What `metricweight verify` finds: the kinds of findings, and how they are told."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from metricweight.checks import InputError
from metricweight.data import manifest
from metricweight.files import whole_file

from .looks import Ints

if TYPE_CHECKING:
    import pandas as pd

TINY, LONG = 8, 8  # pixels of the shorter side; how many times it the longer one is
COLUMNS = ("severity", "kind", "path", "member", "row", "detail", "other", "other_member")


class Kind(NamedTuple):
    """fault: training stops at it, or its numbers are not what they claim to be. warning: the numbers may mislead.
    note: nothing is wrong, but it is good to know."""

    severity: str
    what: str


KINDS = {
    "table": Kind("fault", "rows that cannot be used as they are"),
    "changed_table": Kind("fault", "the table is not the one that its sidecar speaks of"),
    "counts": Kind("fault", "more or fewer than the sidecar says"),
    "tracks": Kind("fault", "the lists of the source contradict each other, or the manifest"),
    "missing": Kind("fault", "pictures that are not there, as their path is written"),
    "damaged": Kind("fault", "pictures that cannot be decoded, or not to their end"),
    "not_a_picture": Kind("fault", "files that are something else"),
    "outside": Kind("fault", "boxes that leave their picture"),
    "shared_label": Kind("fault", "labels that are in two splits, while others are not"),
    "closed_set": Kind("warning", "the labels of two splits are the same"),
    "leak": Kind("warning", "the same file in two splits"),
    "two_labels": Kind("warning", "the same file under two labels"),
    "near_leak": Kind("warning", "pictures that look the same in two splits"),
    "near_two_labels": Kind("warning", "pictures that look the same under two labels"),
    "changed": Kind("warning", "files that are not what they were when last verified"),
    "no_match": Kind("note", "queries whose label is not to be found in the gallery"),
    "one_camera": Kind("note", "queries whose label one camera alone saw; re-identification leaves them out"),
    "double": Kind("note", "the same file again, under the same label"),
    "near_double": Kind("note", "pictures that look the same, under the same label"),
    "single": Kind("note", "labels with a single picture in their split"),
    "short_tracklet": Kind("note", "tracklets of a single frame"),
    "mode": Kind("note", "pictures that are not RGB: grey, with a palette, CMYK; they are converted"),
    "form": Kind("note", "pictures that are not what their suffix says; they are read by content"),
    "turned": Kind("note", "pictures with an EXIF rotation; they are turned upright"),
    "several": Kind("note", "files with more than one picture; the first is used"),
    "tiny": Kind("note", f"pictures of less than {TINY} pixels"),
    "long": Kind("note", f"pictures more than {LONG} times as long as wide, or as wide as long"),
    "flat": Kind("note", "pictures of one colour; they are not compared with others"),
}


@dataclass(frozen=True)
class Finding:
    """Rows of which the same is to be said.

    rows    positions in the table; none where it is said of the table
    detail  what is to be said of rows[i], by i; of the table by 0
    others  the row that each is like
    """

    kind: str
    rows: Ints
    detail: Callable[[int], str]
    others: Ints | None = None

    def __len__(self) -> int:
        return max(1, len(self.rows))


@dataclass(frozen=True)
class Verified:
    """What was found.

    name      of the data set
    pictures  how many there are
    known     how many of them had been looked at in an earlier run
    findings  in the order of KINDS
    table     that their rows are of
    out       file that lists them
    """

    name: str
    pictures: int
    known: int
    findings: Sequence[Finding]
    table: "pd.DataFrame"
    out: Path
    remarks: Sequence[str] = field(default_factory=list)

    def count(self, severity: str) -> int:
        return sum(len(one) for one in self.findings if KINDS[one.kind].severity == severity)

    @property
    def faults(self) -> int:
        return self.count("fault")

    def verdict(self) -> str:
        """In a sentence."""
        told = ", ".join(
            f"{number:,} {severity}{'s' * (number != 1)}"
            for severity in ("fault", "warning", "note")
            if (number := self.count(severity))
        )
        if self.faults:
            return f"{told}: mend the faults before training."
        if self.count("warning"):
            return f"usable, with {told}: no faults, but read the warnings before you trust its numbers."
        return f"sound: {told or 'nothing to be said'} of {self.pictures:,} pictures."


def check_free(out: Path) -> None:
    """That nothing but earlier findings is replaced."""
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"--out {out} cannot be written: {above} is a file.")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; give a file, such as {out / 'findings.csv'}.")
    if out.exists():
        with open(out, "rb") as file:
            if file.readline().strip() != ",".join(COLUMNS).encode():
                raise InputError(f"{out} is there and is not a file of findings; give another --out.")


def row_of(path: Path, position: int) -> int | str:
    """The number by which a row is found in its file."""
    return "" if path.is_dir() else int(manifest.place(path, position).rsplit(" ", 1)[1])


def write(done: Verified, path: Path) -> None:
    done.out.parent.mkdir(parents=True, exist_ok=True)
    names, members = done.table["path"].tolist(), done.table["member"].tolist()
    with whole_file(done.out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(COLUMNS)
        for one in done.findings:
            severity = KINDS[one.kind].severity
            if not len(one.rows):
                lines.writerow((severity, one.kind, "", "", "", one.detail(0), "", ""))
            for i, row in enumerate(one.rows.tolist()):
                other = ("", "") if one.others is None else _name(names, members, int(one.others[i]))
                place = row_of(path, row)
                lines.writerow((severity, one.kind, *_name(names, members, row), place, one.detail(i), *other))
        text.detach()  # which writes what is left


def _name(names: Sequence[str], members: Sequence[int], row: int) -> tuple[str, int | str]:
    return names[row], members[row] if members[row] >= 0 else ""


def _kinds(done: Verified) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in done.findings:
        found[one.kind] = found.get(one.kind, 0) + len(one)
    return found


def as_json(done: Verified) -> str:
    kinds = {
        kind: {"severity": KINDS[kind].severity, "count": number, "what": KINDS[kind].what}
        for kind, number in _kinds(done).items()
    }
    facts = {
        "name": done.name, "pictures": done.pictures, "known": done.known,
        "faults": done.faults, "warnings": done.count("warning"), "notes": done.count("note"),
        "verdict": done.verdict(), "kinds": kinds, "remarks": list(done.remarks), "findings": str(done.out),
    }  # fmt: skip
    return json.dumps(facts, indent=1, ensure_ascii=False)


def text(done: Verified) -> str:
    """A table of the kinds, an example of each fault and warning, and the verdict."""
    counted = _kinds(done)
    lines = [f"{done.name}: {done.pictures:,} pictures, {done.known:,} of them known from before"]
    rows = [(KINDS[kind].severity, f"{number:,}", kind, KINDS[kind].what) for kind, number in counted.items()]
    if rows:
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        lines.append("\n".join(f"{a:{wide[0]}}  {b:>{wide[1]}}  {c:{wide[2]}}  {d}" for a, b, c, d in rows))
    examples = []
    for one in done.findings:
        if KINDS[one.kind].severity != "note" and one.kind in counted:
            counted.pop(one.kind)
            place = f"{done.table['path'].iloc[one.rows[0]]}: " if len(one.rows) else ""
            other = f" ({done.table['path'].iloc[one.others[0]]})" if one.others is not None else ""
            examples.append(
                f"{one.kind}, such as {place}{one.detail(0)}{other}" if place else f"{one.kind}: {one.detail(0)}"
            )
    lines += ["\n".join(examples)] if examples else []
    lines += done.remarks
    return "\n\n".join([*lines, f"All findings are in {done.out}.", done.verdict()])
