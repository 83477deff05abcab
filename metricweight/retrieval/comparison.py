"""Whether one model finds better than another: the same queries, one at a time.

Two witnesses have to agree. The **test** flips the signs of the differences of single queries; it takes queries as
independent, which those of one class are not, so alone it is too sure. The **interval** redraws whole classes; it
allows for that, and is too narrow only for few classes. B is called better, or worse, where both say so.

Both are about these embeddings. How far another training run of the same recipe would be from them, neither can know.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError, nearest
from metricweight.files import write_text
from metricweight.retrieval.queries import ITEMS
from metricweight.retrieval.report import SCHEMA, markdown_table
from metricweight.retrieval.uncertainty import FEW_CLASSES, intervals

if TYPE_CHECKING:
    import pandas as pd

SAME = 1e-9  # differences below are those of rounding
BLOCK = 2**22  # signs drawn at a time: 32 MB in float64

EVALUATED: Mapping[str, Sequence[str] | None] = {"protocol": None, "data": None}  # must agree

Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model of a saved report.

    name     what it was asked for by
    stamp    what was evaluated and how: `protocol` and `data` must agree for numbers to be compared
    queries  the columns query and label (as text), then one per metric in the report's order: fractions, NaN where
             the query does not count
    """

    name: str
    stamp: Mapping[str, Any]
    queries: "pd.DataFrame"

    @property
    def metrics(self) -> list[str]:
        return [str(name) for name in self.queries.columns if name not in ("query", "label")]


@dataclass(frozen=True, eq=False)
class Comparison:
    """B judged against A, over the queries that count in both.

    a, b       their names
    metric     the one that the verdict is about
    table      metrics as rows; a, b, difference (b - a), low and high (its interval of 95 %), in fractions
    p          of the paired test of `metric`
    better     how many queries B finds better, worse, equally well; `left_out` do not count in both
    classes    label, queries, a, b, difference, sorted by how much the class adds to the whole difference
    queries    query, label, a, b of those that changed
    verdict    better: p < 0.05 and the interval lies above 0; worse: p < 0.05 and below 0; cannot tell: all else
    differing  what was evaluated differently, if that was let through, and what was seen of the items, which may differ
    """

    a: str
    b: str
    metric: str
    table: "pd.DataFrame"
    p: float
    better: int
    worse: int
    equal: int
    left_out: int
    classes: "pd.DataFrame"
    queries: "pd.DataFrame"
    verdict: Verdict
    differing: tuple[str, ...]


def load(word: str) -> Evaluated:
    """A model of a report that was saved.

    word  the path of a report.json, that path without .json, or a folder with a report.json; then :MODEL, which may
          be left out where there is one model, or one called "trained"

    Raises InputError where there is no such report or model, and where its files cannot be used.
    """
    path, asked = _located(word)
    models = _models(path)
    model = _chosen(models, asked, "trained", f"models in {path}", f"name one, as {path.with_suffix('')}:MODEL")
    splits = models[model]
    split = _chosen(splits, None, "test", f"splits of {model} in {path}", "evaluate one alone")
    stamp = splits[split].get("stamp") if isinstance(splits[split], dict) else None
    if not isinstance(stamp, dict) or not all(isinstance(stamp.get(part), dict) for part in ("protocol", "data")):
        raise _damaged(path, f"it has no stamp of {model}")
    stamp["protocol"].setdefault("queries", ITEMS)  # of a report that was written before there were others
    queries = _queries(path.with_name(f"{path.name.removesuffix('.json')}.queries.csv"), model)
    return Evaluated(word if asked or len(models) == 1 else f"{word}:{model}", stamp, queries)


def compare(a: Evaluated, b: Evaluated, *, metric: str | None = None, force: bool = False) -> Comparison:
    """B judged against A by a paired test and by an interval of the difference; "better" means that B is.

    metric  what the verdict is about; the first of the report where None
    force   compare although the stamps differ. The comparison says in what

        better        p < 0.05  and  interval above 0
        worse         p < 0.05  and  interval below 0
        cannot tell   all else, as for equal reports (p = 1) and for a single class (no interval)

    p is that of `paired_p` and takes queries as independent. Queries of one class are correlated, so p alone is too
    small; the interval, of `uncertainty.intervals` over the differences, is not. The verdict is about one metric:
    of twenty metrics looked at without a difference, one interval is expected to leave 0 out by chance.

    Raises InputError where stamps differ, for an unknown metric or one that no query counts for, and, whatever
    `force` says, where the queries are not the same, row by row.
    """
    import pandas as pd

    differing = _differing(a.stamp, b.stamp)
    _refuse_unlike(a, b, differing, force)
    differing += _differing(a.stamp, b.stamp, {"made": ["seen"]})
    shared = [name for name in a.metrics if name in b.metrics]
    metric = _checked_metric(metric, a, shared)
    differences = {name: _difference(a, b, name) for name in shared}
    clusters = pd.factorize(a.queries["label"])[0].astype(np.int64)
    bounds = intervals(differences, clusters)
    rows = [(*_means(a, b, name), *bounds[name]) for name in shared]
    table = pd.DataFrame(
        rows, columns=["a", "b", "difference", "low", "high"], index=pd.Index(shared, name="metric"), dtype=float
    )
    pairs = a.queries[["query", "label"]].assign(a=a.queries[metric], b=b.queries[metric])
    pairs["difference"] = differences[metric]
    pairs = pairs[pairs["difference"].notna()]
    if pairs.empty:
        raise InputError(f"no query counts by {metric} in both A ({a.name}) and B ({b.name}); look at another metric.")
    difference = pairs["difference"].to_numpy()
    p = paired_p(difference)
    return Comparison(
        a=a.name,
        b=b.name,
        metric=metric,
        table=table,
        p=p,
        better=int((difference > 0).sum()),
        worse=int((difference < 0).sum()),
        equal=int((difference == 0).sum()),
        left_out=len(a.queries) - len(pairs),
        classes=_by_class(pairs),
        queries=pairs.loc[difference != 0, ["query", "label", "a", "b"]].reset_index(drop=True),
        verdict=_verdict(p, *bounds[metric]),
        differing=tuple(differing),
    )


def paired_p(differences: NDArray[np.float64], *, draws: int = 10_000, seed: int = 0) -> float:
    """How often the mean of differences is as far from 0 as it is, if the sign of each is a coin's: two-sided p.

        p = P( |sum_i s_i d_i| >= |sum_i d_i| ),   s_i = -1 or 1, independent, each as likely

    differences  [Q]  finite; zeros change nothing

    Exact where all that are not 0 are of one size, as for recall without ties: the sign test, which is McNemar's
    exact test. Else from random signs, p = (1 + count) / (1 + draws), which is never 0; the same seed gives the same
    p. Without a difference p = 1. Independent queries are assumed, which those of one class are not.
    Edgington and Onghena, Randomization Tests, 2007; McNemar, Psychometrika 1947.
    """
    changed = differences[differences != 0]
    sizes = np.abs(changed)
    if not len(changed) or np.ptp(sizes) <= SAME * sizes.max():
        return sign_test(int((changed > 0).sum()), int((changed < 0).sum()))
    random = np.random.default_rng(seed)
    enough = abs(changed.sum()) - 1e-12 * sizes.sum()  # the same sum in another order counts as reached
    block = max(1, BLOCK // len(changed))
    reached = 0
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        bits = random.integers(256, size=(rows, -(-len(changed) // 8)), dtype=np.uint8)
        up = np.unpackbits(bits, axis=1, count=len(changed)).astype(np.float64)
        reached += int((np.abs(2 * (up @ changed) - changed.sum()) >= enough).sum())
    return (1 + reached) / (1 + draws)


def sign_test(better: int, worse: int) -> float:
    """Two-sided p of so uneven a split, if each of n = better + worse is a fair coin's: exact.

    p = min( 1, 2 sum_{i <= min(better, worse)} C(n, i) / 2^n )
    """
    n = better + worse
    term = tail = 1
    for i in range(min(better, worse)):
        term = term * (n - i) // (i + 1)  # C(n, i + 1), a whole number
        tail += term
    return min(1.0, 2 * tail / (1 << n))  # whole numbers of any size: rounded once


def text(comparison: Comparison) -> str:
    """The comparison as plain text in percent: a table, counts, the classes that changed most, and the verdict last."""
    c = comparison
    table = [["", "A", "B", "B - A", "95 % interval"]]
    for name, row in _rows(c.table).items():
        table.append([name, *_numbers(row), _interval(row, "+")])
    paragraphs = [
        f"A: {c.a}\nB: {c.b}",
        markdown_table(table),
        f"In %. By {c.metric}, B finds {c.better:,} queries better, {c.worse:,} worse and {c.equal:,} equally well; "
        f"{c.left_out:,} more do not count in both.",
        *_classes_changed(c.classes),
    ]
    if c.differing:
        paragraphs.append(f"Stamps differ: {'; '.join(c.differing)}. The difference may come from that.")
    paragraphs.append(
        "p is how often the queries would differ by as much if a coin were tossed for each. Queries of one class are "
        f"alike, so p alone is too sure. The interval redraws whole classes, {len(c.classes):,} here, which allows for "
        "that. B is called better, or worse, only where p < 0.05 and the interval lies on one side of 0. Another "
        "training run of the same recipe may differ by more than either says."
    )
    if len(c.classes) < FEW_CLASSES:
        paragraphs.append(f"With fewer than {FEW_CLASSES} classes the interval is too narrow.")
    return "\n\n".join([*paragraphs, _sentence(c)])


def save(comparison: Comparison, out: Path) -> None:
    """Writes OUT/comparison.json, OUT/classes.csv and OUT/queries.csv, each whole or not at all; fractions."""
    c = comparison
    facts = {
        "a": c.a,
        "b": c.b,
        "metric": c.metric,
        "verdict": c.verdict,
        "p": c.p,
        "queries": {"better": c.better, "worse": c.worse, "equal": c.equal, "left_out": c.left_out},
        "classes": len(c.classes),
        "metrics": {
            name: {column: None if math.isnan(value) else value for column, value in row.items()}
            for name, row in _rows(c.table).items()
        },
        "differing": list(c.differing),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "comparison.json", json.dumps(facts, indent=2, allow_nan=False) + "\n")
    write_text(out / "classes.csv", c.classes.to_csv(index=False))
    write_text(out / "queries.csv", c.queries.to_csv(index=False))


def _located(word: str) -> tuple[Path, str | None]:
    """The report's path, and the model asked for. Paths may hold colons: the longest that is a report is taken."""
    parts = word.split(":")
    for count in range(len(parts), 0, -1):
        given = ":".join(parts[:count])
        in_folder = sorted(Path(given).glob("*.report.json")) if given else []
        alone = in_folder if len(in_folder) == 1 else []
        named = (Path(given), Path(f"{given}.json"), Path(f"{given}.report.json"), Path(given) / "report.json")
        for path in (*named, *alone):
            if given and path.suffix == ".json" and path.is_file():
                return path, ":".join(parts[count:]) or None
    raise InputError(
        f"there is no report at {word}; name the .json file that an evaluation wrote, or a folder with one, "
        "with :MODEL at the end for one of several models."
    )


def _models(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(report, dict):
        raise _damaged(path, "it holds no report")
    if report.get("schema") != SCHEMA:
        raise InputError(
            f"{path} is a report of another version (schema {report.get('schema')}, and {SCHEMA} is read); "
            "evaluate the embeddings again."
        )
    models = report.get("models")
    if not isinstance(models, dict) or not models or not all(isinstance(m, dict) and m for m in models.values()):
        raise _damaged(path, "it holds no models")
    return models


def _chosen(found: Mapping[str, Any], asked: str | None, usual: str, what: str, do: str) -> str:
    if asked is None and (len(found) == 1 or usual in found):
        return usual if usual in found else next(iter(found))
    if asked in found:
        return str(asked)
    came = f"there is no {asked} among" if asked else "one was not chosen of"
    raise InputError(f"{came} the {what}, which are {', '.join(found)}; {do}.")


def _queries(path: Path, model: str) -> "pd.DataFrame":
    """The rows of one model; labels as text, as they are written."""
    import pandas as pd

    if not path.is_file():
        raise InputError(f"{path} is missing, which holds the single queries of the report; evaluate again to have it.")
    try:
        rows = pd.read_csv(
            path,
            dtype={"model": str, "query": np.int64, "label": str},
            keep_default_na=False,  # a class may be called NA
            na_values=[""],
        )
        metrics = [name for name in rows.columns if name not in ("model", "query", "label")]
        rows = rows.astype(dict.fromkeys(metrics, np.float64)).fillna({"label": ""})
        rows = rows.loc[rows["model"] == model, ["query", "label", *metrics]].reset_index(drop=True)
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path, str(error).strip("\n'\"")) from error
    if rows.empty or not metrics:
        raise _damaged(path, f"it has no queries of {model}" if metrics else "it has no metrics")
    return rows


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is damaged, or not what an evaluation writes ({why}); evaluate again.")


def _differing(
    a: Mapping[str, Any], b: Mapping[str, Any], parts: Mapping[str, Sequence[str] | None] = EVALUATED
) -> list[str]:
    """Fields of some parts that differ, with both values; None: all fields of the part."""
    found = []
    for part, fields in parts.items():
        one, two = a.get(part, {}), b.get(part, {})
        for field in dict.fromkeys([*one, *two]) if fields is None else fields:
            ours, theirs = (repr(facts[field]) if field in facts else "nothing" for facts in (one, two))
            if ours != theirs:
                found.append(f"{part}.{field} is {ours} in A and {theirs} in B")
    return found


def _refuse_unlike(a: Evaluated, b: Evaluated, differing: list[str], force: bool) -> None:
    unlike = _unlike_queries(a.queries, b.queries)
    if unlike:
        raise InputError(
            f"A ({a.name}) and B ({b.name}) did not search for the same: {'; '.join([unlike, *differing])}. "
            "Queries cannot be paired; evaluate both on the same items in the same order."
        )
    if differing and not force:
        raise InputError(
            f"A ({a.name}) and B ({b.name}) were evaluated differently: {'; '.join(differing)}. "
            "Evaluate both alike, or force the comparison."
        )


def _unlike_queries(a: "pd.DataFrame", b: "pd.DataFrame") -> str:
    """The first row in which the queries are not the same, or nothing."""
    if len(a) != len(b):
        return f"A has {len(a):,} queries and B {len(b):,}"
    rows = np.flatnonzero((a["query"] != b["query"]) | (a["label"] != b["label"]))
    if not len(rows):
        return ""
    ours, theirs = (f"{x['query'].iloc[rows[0]]} of class {x['label'].iloc[rows[0]]}" for x in (a, b))
    return f"{len(rows):,} of {len(a):,} queries differ, the first is {ours} in A and {theirs} in B"


def _checked_metric(metric: str | None, a: Evaluated, shared: list[str]) -> str:
    asked = a.metrics[0] if metric is None else metric
    if asked not in shared:
        known = ", ".join(shared) or "none"
        raise InputError(f"{asked} is not a metric of both reports, which share {known}{nearest(asked, shared)}")
    return asked


def _difference(a: Evaluated, b: Evaluated, metric: str) -> NDArray[np.float64]:
    """b - a [Q], NaN where a query does not count in both; what is only rounding is 0."""
    found: NDArray[np.float64] = b.queries[metric].to_numpy(dtype=np.float64) - a.queries[metric].to_numpy(
        dtype=np.float64
    )
    found[np.abs(found) < SAME] = 0
    return found


def _means(a: Evaluated, b: Evaluated, metric: str) -> tuple[float, float, float]:
    """Of A, of B and of the difference, over the queries that count in both; NaN without any."""
    counted = (a.queries[metric].notna() & b.queries[metric].notna()).to_numpy()
    ours, theirs = (float(x.queries[metric][counted].mean()) for x in (a, b))
    return ours, theirs, theirs - ours


def _by_class(pairs: "pd.DataFrame") -> "pd.DataFrame":
    found = pairs.groupby("label", sort=False).agg(
        queries=("query", "size"), a=("a", "mean"), b=("b", "mean"), difference=("difference", "mean")
    )
    order = np.argsort(-(found["difference"] * found["queries"]).abs().to_numpy(), kind="stable")
    return found.iloc[order].reset_index()


def _verdict(p: float, low: float, high: float) -> Verdict:
    if p < 0.05 and low > 0:
        return "better"
    return "worse" if p < 0.05 and high < 0 else "cannot tell"


def _sentence(c: Comparison) -> str:
    row = _rows(c.table)[c.metric]
    start = {"better": "B is better than A:", "worse": "B is worse than A:", "cannot tell": "Cannot tell:"}[c.verdict]
    p = f"p = {c.p:.2g}" if c.p >= 1e-4 else "p < 0.0001"
    interval = f"95 % interval {_interval(row)}" if not math.isnan(row["low"]) else "one class only: no interval"
    return f"{start} {c.metric} {_points(row['difference'], '+')} points ({interval}), {p}."


def _classes_changed(classes: "pd.DataFrame") -> list[str]:
    """The five classes that add most to the difference, and the five that take most from it."""
    found = []
    for title, frame in (("gained", classes[classes["difference"] > 0]), ("lost", classes[classes["difference"] < 0])):
        rows = [["", "queries", "A", "B", "B - A"]]
        for row in frame.head(5).to_dict("records"):
            rows.append([row["label"].replace("|", "\\|"), f"{row['queries']:,}", *_numbers(row)])
        if len(frame):
            found.append(f"{len(frame):,} of {len(classes):,} classes {title}, most of all:\n\n{markdown_table(rows)}")
    return found


def _rows(table: "pd.DataFrame") -> dict[str, dict[str, float]]:
    return {str(name): {str(column): float(x) for column, x in row.items()} for name, row in table.iterrows()}


def _numbers(row: Mapping[Any, Any]) -> list[str]:
    return [_points(row["a"]), _points(row["b"]), _points(row["difference"], "+")]


def _interval(row: Mapping[str, float], sign: str = "") -> str:
    return "none" if math.isnan(row["low"]) else f"{_points(row['low'], sign)} to {_points(row['high'], sign)}"


def _points(fraction: float, sign: str = "") -> str:
    """In percent; zero without a minus."""
    return "-" if math.isnan(fraction) else f"{round(100 * fraction, 2) + 0.0:{sign}.2f}"
