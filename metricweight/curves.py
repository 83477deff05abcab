"""How much examples count over p, drawn: the one file, beside that of the glyphs, that imports matplotlib."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.emphasis import Weighting, emphasis_mode, emphasis_variance
from metricweight.emphasis.density import area
from metricweight.files import whole_file
from metricweight.losses.table import LOSSES
from metricweight.settings import Settings, read, weighting, weighting_spec

COMPARED = ("cce", "mae", "imae", "dm")  # what a run on pairs or targets is drawn with
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
LINES = ("-", "--", "-.", ":")
OWN = "the probability of the own label"
HEAD = ("weighting", "mode", "variance of w", "variance of h")
P = np.linspace(0, 1, 2001)


@dataclass(frozen=True)
class Curve:
    """A weighting over p.

    spec               the word that it was asked for with
    w                  the weight at each of `P`
    area               the integral of w, so that the emphasis density is h = w / area
    mode               the p that counts most, None where no single one does
    variance           of w, for p spread evenly over [0, 1]
    density_variance   of h, which does not depend on the scale of w
    """

    spec: str
    w: NDArray[np.float64]
    area: float
    mode: float | None
    variance: float
    density_variance: float


@dataclass(frozen=True)
class Histogram:
    """Where the p of a run were: the share of examples in each of its equal bins, early and late in its training."""

    early: NDArray[np.float64]
    late: NDArray[np.float64]
    early_steps: str
    late_steps: str
    early_mean: float
    late_mean: float


def emphasis(specs: Sequence[str], run: Path | None, out: Path | None, overwrite: bool) -> tuple[Path, str]:
    """Draws weights and emphasis densities over p, and returns the file and what there is to say, with a table.

    specs  words such as `imae`, `dm:mode=0.67,beta=12`; none with a run: its own loss, or, where that is no weighting
           of examples, some to compare with
    run    folder of a run: the curves are drawn over the histogram of p in it
    out    .png, .svg or .pdf; None: curves.png, or RUN/emphasis.png

    The histogram is that of the first and the last tenth of the logged steps.

    Raises InputError for a weighting that is not known or cannot be drawn, a run without p, and a file that is there.
    """
    if not specs and run is None:
        raise InputError("no weighting was given; name some, as in metricweight emphasis imae:temperature=8 cce")
    out = out or (Path("curves.png") if run is None else run / "emphasis.png")
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--out must be a .png, .svg or .pdf file, got {out}.")
    if out.exists() and not overwrite:
        raise InputError(f"{out} is already there; add --overwrite to replace it, or choose another --out.")
    said = []
    histogram = settings = None
    if run is not None:
        histogram, settings = _histogram(run), read(str(run / "settings.yaml"))
        said.append(_about(run, settings, histogram))
        if not specs and (part := settings.weighed_by(settings.of_pictures)):
            specs = [weighting_spec(part)]
        elif not specs:
            specs = COMPARED
            said.append(f"{_names(settings)} is no weighting of examples by p; these are some to compare with.")
    found = [curve(spec) for spec in dict.fromkeys(specs)]
    figure = draw(found, histogram, _p_of(settings))
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as file:
        figure.savefig(file, format=out.suffix[1:], dpi=150)
    return out, "\n\n".join([*said, table(found)])


def curve(spec: str) -> Curve:
    """What a word such as `dm:mode=0.67,beta=12` looks like over p."""
    made = weighting(spec)
    total, variance = area(made), emphasis_variance(made)
    if not 1e-100 < total < 1e100:
        what = "as good as zero everywhere" if total < 1 else "too large for their integral to be a number"
        raise InputError(f"the weights of {spec} are {what}, so they have no emphasis density; choose other arguments.")
    w = made(torch.from_numpy(P)).numpy()
    return Curve(spec, w, total, _mode(made, variance), variance, variance / total**2)


def table(curves: Sequence[Curve]) -> str:
    """Mode and variance of each, a line each."""
    rows = [HEAD, *map(_cells, curves)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([x[0].ljust(widths[0]), *map(str.rjust, x[1:], widths[1:])]) for x in rows)


def _cells(c: Curve) -> tuple[str, ...]:
    return c.spec, _number(c.mode), _number(c.variance), _number(c.density_variance)


def draw(curves: Sequence[Curve], histogram: Histogram | None = None, p: str = OWN) -> Any:
    """A matplotlib figure: weights on the left, emphasis densities on the right, and what is what below.

    p  what p is, for the axes
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = len(curves) + 1 + (histogram is not None)
    below = 0.75 + 0.24 * rows  # inches
    height = 4.3 + below
    figure = Figure(figsize=(11, height))
    figure.subplots_adjust(left=0.065, right=0.985 if histogram is None else 0.93, top=1 - 0.4 / height,
                           bottom=below / height, wspace=0.16)  # fmt: skip
    panels = figure.subplots(1, 2)
    for axes, title in zip(panels, ("weight  w(p)", "emphasis density  h(p) = w(p) / ∫ w"), strict=True):
        axes.set_title(title, fontsize=13, loc="left")
        axes.set_xlabel(f"p, {p}", fontsize=12)
        axes.set_xlim(0, 1)
        axes.tick_params(labelsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
    for axes, heights in zip(panels, ([c.w for c in curves], [c.w / c.area for c in curves]), strict=True):
        top = 1.06 * max(float(y[10:-10].max()) for y in heights) or 1.0
        axes.set_ylim(0, top)
        for i, (c, y) in enumerate(zip(curves, heights, strict=True)):
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}
            shown = np.minimum(y, 2 * top)  # weights may be infinite at an end
            axes.plot(P, shown, linewidth=2.2, label=c.spec, **look)
    if histogram is not None:
        shades = [
            Patch(facecolor="#d4d4d4", label=f"examples, {histogram.early_steps}"),
            Patch(facecolor="none", edgecolor="#606060", linewidth=1.6, label=f"examples, {histogram.late_steps}"),
        ]
        _shade(panels, histogram)
        figure.legend(handles=shades, loc="lower left", bbox_to_anchor=(0.06, 0.05 / height), ncols=2, fontsize=11,
                      frameon=False)  # fmt: skip
    _legend(figure, panels[0].lines, list(zip(*map(_cells, curves), strict=True)), height, below)
    return figure


def _legend(figure: Any, marks: Sequence[Any], words: Sequence[Sequence[str]], height: float, below: float) -> None:
    """A table under the panels: each line, with its name, mode and variances in columns."""
    from matplotlib.lines import Line2D

    first = max(0.42, 0.18 + 0.0088 * max(map(len, words[0])))
    columns = (0.115, first, first + 0.14, first + 0.28)
    for x, head, cells in zip(columns, HEAD, words, strict=True):
        side = "left" if x == columns[0] else "right"
        for row, text in enumerate((head, *cells)):
            y = (below - 0.68 - 0.24 * row) / height
            figure.text(x, y, text, ha=side, va="center", fontsize=11, color="#606060" if row == 0 else "black")
    for row, mark in enumerate(marks):
        y = (below - 0.68 - 0.24 * (row + 1)) / height
        look = {"color": mark.get_color(), "linestyle": mark.get_linestyle(), "linewidth": 2.6}
        figure.add_artist(Line2D([0.07, 0.105], [y, y], transform=figure.transFigure, **look))


def _shade(panels: Sequence[Any], histogram: Histogram) -> None:
    """The share of examples in each bin, behind the curves, on an axis of its own at the right."""
    edges = np.linspace(0, 1, len(histogram.early) + 1)
    for axes in panels:
        behind = axes.twinx()
        behind.set_zorder(axes.get_zorder() - 1)
        axes.patch.set_visible(False)
        behind.stairs(100 * histogram.early, edges, fill=True, color="#d4d4d4")
        behind.stairs(100 * histogram.late, edges, color="#606060", linewidth=1.6)
        behind.set_ylim(0, 106 * max(histogram.early.max(), histogram.late.max()))
        behind.tick_params(labelsize=11, colors="#606060", right=axes is panels[-1], labelright=axes is panels[-1])
        behind.spines[["top", "right", "left", "bottom"]].set_visible(False)
    behind.set_ylabel("share of examples, %", fontsize=12, color="#606060")


def _histogram(run: Path) -> Histogram:
    """The first and the last tenth of the logged steps, each a step at least."""
    path = run / "metrics.jsonl"
    if not path.is_file() or not (run / "settings.yaml").is_file():
        raise InputError(f"{run} holds no metrics.jsonl and settings.yaml; give a folder of `metricweight train`.")
    logged = [line for line in map(_line, path.read_text(encoding="utf-8").splitlines()) if "p" in line]
    if not logged:
        raise InputError(f"{path} holds no histogram of p: no step was logged, or an older version did; train again.")
    tenth = max(1, len(logged) // 10)
    parts = (logged[:tenth], logged[-tenth:])
    counts = [np.sum([line["p"]["histogram"] for line in part], axis=0) for part in parts]
    return Histogram(
        *(count / count.sum() for count in counts),
        *(_steps(part[0]["step"], part[-1]["step"]) for part in parts),
        *(float(np.mean([line["p"]["mean"] for line in part])) for part in parts),
    )


def _line(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return {}  # the last line of a run that was killed
    return found if isinstance(found, dict) else {}


def _steps(first: int, last: int) -> str:
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def _about(run: Path, settings: Settings, histogram: Histogram) -> str:
    return (
        f"{run}: {_names(settings)}. Mean p, {_p_of(settings)}: {histogram.early_mean:.3f} in "
        f"{histogram.early_steps}, {histogram.late_mean:.3f} in {histogram.late_steps}."
    )


def _p_of(settings: Settings | None) -> str:
    if settings is not None and all(LOSSES[part["name"]].kind == "pair" for part in settings.of_pictures):
        return "the match probability"
    return OWN


def _names(settings: Settings) -> str:
    of_frames = "of its frames, " if settings.frame_losses else ""
    return of_frames + " + ".join(part["name"] for part in settings.of_pictures)


def _mode(made: Weighting, variance: float) -> float | None:
    flat = variance < 1e-12 or getattr(made, "mode", 0.0) is None
    return None if flat else emphasis_mode(made)


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return "infinite" if math.isinf(value) else f"{value + 0.0:.2f}" if value < 1000 else f"{value:.2e}"
