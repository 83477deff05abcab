"""The report of an evaluation: numbers, and what they were computed from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metricweight.files import write_text
from metricweight.retrieval.queries import MEANS, OTHERS
from metricweight.retrieval.uncertainty import FEW_CLASSES

if TYPE_CHECKING:
    import pandas as pd

    from metricweight.retrieval.verification import Verification

SCHEMA = 2  # of report.json; counts up when a reader of the old one would be misled
HEADINGS = {
    "map@r": "MAP@R",
    "r_precision": "R-precision",
    "map": "mAP",
    "map_trapezoid": "mAP (trapezoid)",
    "minp": "mINP",
    "mrr": "MRR",
    "nmi": "NMI",
    "ami": "AMI",
    "pairwise_f1": "F1 of pairs",
}


class EvaluationWarning(UserWarning):
    """A number is right, and its reader must know something more. It is one of `Report.notes`."""


@dataclass(frozen=True, eq=False)
class Report:
    """Metrics as fractions, and the stamp that says what they are.

    metrics    by name: means over the queries that count
    intervals  by name: 95 % intervals over classes, as `uncertainty.intervals` has them
    ties       by name: the mean with all ties broken against the queries, and for them
    stamp      protocol: what was asked; data: of which items; made: by which embeddings and versions
    notes      what a reader of the numbers must know, in sentences
    thresholds where they were asked for
    shown      the metrics of the table
    rows, labels, positives, values   of each query [Q]: its row in what was given, label, number of positives, metrics
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    ties: dict[str, tuple[float, float]]
    stamp: dict[str, Any]
    notes: Sequence[str]
    thresholds: "Verification | None"
    shown: Sequence[str] = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    positives: NDArray[np.int64] = field(repr=False)
    values: dict[str, NDArray[np.float64]] = field(repr=False)

    def markdown(self) -> str:
        """A table in percent, and below it what was measured."""
        return markdown({"embeddings": self})

    def frame(self) -> "pd.DataFrame":
        """One row, a column per metric, in fractions."""
        return frame({"embeddings": self})

    def queries(self) -> "pd.DataFrame":
        """A row per query: its row in what was given, label, number of positives and metrics; NaN without positives."""
        import pandas as pd

        columns = {"query": self.rows, "label": self.labels, "positives": self.positives, **self.values}
        return pd.DataFrame(columns)

    def classes(self) -> "pd.DataFrame":
        """A row per label: how many queries have it, how many of them a positive, and the means of their metrics."""
        rows = self.queries()
        groups = rows.groupby("label")
        table = groups[list(self.values)].mean()
        table.insert(0, "valid", groups["positives"].agg(lambda x: int((x > 0).sum())))
        table.insert(0, "queries", groups.size())
        return table.reset_index()

    def json(self) -> str:
        """Metrics, intervals, ties, notes and stamp, with the version of the schema."""
        return json.dumps({"schema": SCHEMA, **self.as_dict()}, indent=2)

    def as_dict(self) -> dict[str, Any]:
        bounds = {name: [None if np.isnan(x) else x for x in pair] for name, pair in self.intervals.items()}
        ties = {name: list(pair) for name, pair in self.ties.items()}
        found = {**self.metrics, "intervals": bounds, "ties": ties, "notes": list(self.notes), "stamp": self.stamp}
        return found if self.thresholds is None else {**found, "thresholds": self.thresholds.as_dict()}


def frame(reports: Mapping[str, Report]) -> "pd.DataFrame":
    """A row per report, a column per metric, in fractions."""
    import pandas as pd

    table = pd.DataFrame([report.metrics for report in reports.values()], index=list(reports))
    table.index.name = "model"
    return table


def cells(reports: Mapping[str, Report]) -> list[list[str]]:
    """The table in percent, headings first: a row per report, with half of the interval over classes.

    Where not all have the same protocol, queries and gallery, each row says how many queries count, and the gallery.
    A report shows the average precision of its own protocol.
    """
    columns = list(dict.fromkeys(name for report in reports.values() for name in report.shown))
    counts = {model: _counts(report.stamp) for model, report in reports.items()}
    asked = {(report.stamp["protocol"]["name"], *counts[model]) for model, report in reports.items()}
    told = ("queries", "gallery") if len(asked) > 1 else ()
    headings = (HEADINGS.get(name, name.replace("recall@", "R@").replace("precision@", "P@")) for name in columns)
    rows = [["", *told, *headings]]
    for model, report in reports.items():
        rows.append([model, *counts[model][: len(told)], *(_cell(report, name) for name in columns)])
    return rows


def _counts(stamp: Mapping[str, Any]) -> tuple[str, str]:
    """Of the queries that count, and of the gallery."""
    data = stamp["data"]
    valid = data["queries"] if stamp["protocol"]["missing"] == "zero" else data["valid_queries"]
    return f"{valid:,}", f"{data['gallery']:,}"


def _cell(report: Report, name: str) -> str:
    if name not in report.shown:
        return ""
    low, high = report.intervals.get(name, (np.nan, np.nan))
    spread = "" if np.isnan(low) else f" ± {50 * (high - low):.2f}"
    return f"{100 * report.metrics[name]:.2f}{spread}"


def markdown(reports: Mapping[str, Report]) -> str:
    """A table in percent with a row per report, and below it a line per stamp that differs, and the notes."""
    table = cells(reports)
    lines = [markdown_table(table)]
    how = "In %, ± half of a 95 % interval over classes. R@K: any hit among the first K."
    if "queries" in table[0]:
        how += " Queries: how many count."
    stamps = {described(report.stamp): None for report in reports.values()}
    if len(stamps) == 1:
        lines += ["", f"{how} {next(iter(stamps))}"]
    else:
        lines += ["", how, "", *(f"- {line}" for line in _described_each(reports))]
    several = len(reports) > 1
    for model, report in reports.items():
        told = [*report.notes, *([] if report.thresholds is None else [report.thresholds.text()])]
        lines += [line for note in told for line in ("", f"{model}: {note}" if several else note)]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Headings and rows, the first columns to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if place < left else str.rjust for place in range(len(widths))]
    cells = [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    dashes = ["-" * (width + 1) for width in widths]
    rule = "|".join(f":{dash}" if place < left else f"{dash}:" for place, dash in enumerate(dashes))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def described(stamp: Mapping[str, Any]) -> str:
    """What was measured, in some sentences."""
    return " ".join([_who(stamp), *_how(stamp).values()])


def _described_each(reports: Mapping[str, Report]) -> list[str]:
    """A line for each report, which says only what is new after the first with the same protocol, queries, gallery."""
    first: dict[str, str] = {}
    lines = []
    for model, report in reports.items():
        who, how = _who(report.stamp), _how(report.stamp)
        known = _how(reports[first[who]].stamp) if who in first else {}
        if who in first and known.keys() <= how.keys():
            new = [sentence for name, sentence in how.items() if sentence != known.get(name)]
            lines.append(" ".join([f"{model}: as {first[who]}.", *new]))
        else:
            lines.append(f"{model}: {described(report.stamp)}")
            first.setdefault(who, model)
    return lines


def _who(stamp: Mapping[str, Any]) -> str:
    """By which protocol, and of which items."""
    protocol, data = stamp["protocol"], stamp["data"]
    text = (
        f"Protocol {protocol['name']}: {data['queries']:,} queries of {data['classes']:,} classes, each among "
        f"{data['gallery']:,} {'others' if protocol['gallery'] == 'self' else 'gallery items'} by "
        f"{protocol['similarity']}"
    )
    text += ", those of its class and camera left out" if protocol["same_camera"] == "left out" else ""
    treated = {"skip": "left out", "zero": "counted as 0", "error": "refused"}[protocol["missing"]]
    text += f"; {data['queries_without_positives']:,} without a positive {treated}"
    if treated == "left out" and data["queries_without_positives"]:
        text += f", so {data['valid_queries']:,} count"
    text += "."
    if protocol["average_precision"] == "trapezoid":
        text += " Its mAP is the trapezoid."
    if changes := [
        f"{n:,} {name.removeprefix('left_out: ')}" for name, n in data.items() if name.startswith("left_out")
    ]:
        text += f" {', '.join(changes)}."
    return text + (" With so few classes the intervals are too narrow." if data["classes"] < FEW_CLASSES else "")


def _how(stamp: Mapping[str, Any]) -> dict[str, str]:
    """What was done beyond that; a sentence by its key in the stamp."""
    protocol, made, found = stamp["protocol"], stamp["made"], {}
    if protocol["queries"] == OTHERS:
        found["queries"] = "Queries search with other embeddings of them than stand in the gallery."
    if protocol["queries"] == MEANS:
        found["queries"] = "Each query searches with the mean of all items that have its label and camera."
    if protocol["rerank"]:
        found["rerank"] = "Re-ranked: k1={k1}, k2={k2}, weight={weight}.".format(**protocol["rerank"])
    if protocol["expand"]:
        found["expand"] = "Queries expanded: k={k}, alpha={alpha:g}.".format(**protocol["expand"])
    if protocol["index"] != "exact":
        found["index"] = (
            f"Approximate: index {protocol['index']}, which finds {100 * made['index_recall']:.2f} % of the "
            f"{max(protocol['ks'])} exact nearest neighbours."
        )
    if "learned_from" in stamp:
        found["learned_from"] = f"Learned from {stamp['learned_from']}."
    if "seen" in made:
        found["seen"] = f"What was seen of each item: {made['seen']}."
    return found


def latex(reports: Mapping[str, Report]) -> str:
    """The table in percent for LaTeX, with booktabs."""
    import pandas as pd

    head, *rows = cells(reports)
    table = pd.DataFrame([row[1:] for row in rows], index=[row[0] for row in rows], columns=head[1:])
    text: str = table.to_latex(escape=True, column_format="l" + "r" * len(table.columns))
    return text.replace("±", r"$\pm$")


def save(reports: Mapping[str, Report], stem: Path, *, split: str = "test", **facts: Any) -> None:
    """Writes STEM.json, .md, .csv, .tex, .queries.csv and .classes.csv, each whole or not at all.

    In the JSON file the fractions are at `models.NAME.SPLIT.METRIC`; `facts` stand beside `models`. The last two have
    a row per model and query (model, query, label, then metrics alone, as `comparison` reads them) and per model and
    class.
    """
    import pandas as pd

    models = {name: {split: report.as_dict()} for name, report in reports.items()}
    rows = {name: report.queries().drop(columns="positives") for name, report in reports.items()}
    queries = pd.concat([table.assign(model=name) for name, table in rows.items()])
    classes = pd.concat([report.classes().assign(model=name) for name, report in reports.items()])
    texts = {
        "queries.csv": _model_first(queries),
        "classes.csv": _model_first(classes),
        "tex": latex(reports),
        "csv": frame(reports).to_csv(),
        "md": markdown(reports) + "\n",
        "json": json.dumps({"schema": SCHEMA, **facts, "models": models}, indent=2) + "\n",
    }
    for ending, text in texts.items():
        write_text(stem.with_name(f"{stem.name}.{ending}"), text)


def _model_first(table: "pd.DataFrame") -> str:
    text: str = table[["model", *(name for name in table.columns if name != "model")]].to_csv(index=False)
    return text
