"""How much each frame of a tracklet counts, to be looked at: a table, contact sheets, and how well faults come out."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricweight.checks import InputError, nearest
from metricweight.confidence import own_probability
from metricweight.data import manifest as manifests
from metricweight.data.images import Images
from metricweight.data.loader import Wanted
from metricweight.data.split import Indices
from metricweight.files import whole_file
from metricweight.models import sets
from metricweight.models.heads import Embedder
from metricweight.progress import track
from metricweight.retrieval.report import markdown_table
from metricweight.settings import Settings
from metricweight.training import checkpoint
from metricweight.training.distributed import Processes, joined, several
from metricweight.training.embedding import cut_by_items, embedded
from metricweight.training.objective import Objective
from metricweight.training.pictures import blocks_of, load_images, seen, splits_of
from metricweight.training.sheets import Frame, Strip, sheet, uneven
from metricweight.training.tracklets import TrackletObjective, knowing, rebuilt

if TYPE_CHECKING:
    import pandas as pd

Float64 = NDArray[np.float64]

KINDS = {"train": "own identity", "test": "largest class probability"}  # what p is of
PAGE = 20  # strips
TABLE = "quality.csv"
NOISY = "is_noisy"  # the column of a manifest
ANY = "any of these"


class Judge(NamedTuple):
    """What tells the training identities apart, and how frames are weighed.

    objective  on frames, or where it has no classifier on whole tracklets
    fusion     whose weights they are: quality, class_aware or self_attention
    attention  of fusion=self_attention: embeddings [T, F, D] to weights [T, F]
    source     whose p it is, in words
    weights    whose they are, in words
    """

    objective: Objective
    fusion: str
    attention: Any
    source: str
    weights: str


class Row(NamedTuple):
    """How well quality tells frames with a fault from frames without any.

    kind      what p is of
    truth     name of the fault
    frames    with it
    others    without any
    auroc     share of the pairs of such a frame and one of the others in which it has the lower p; ties count half
    within    the same of what orders weights, over pairs from one tracklet: mean over the tracklets with both
    tracklets how many have both
    """

    split: str
    kind: str
    truth: str
    frames: int
    others: int
    auroc: float
    within: float
    tracklets: int


class Quality(NamedTuple):
    """What was found.

    out        the folder with quality.csv and the sheets
    frames     the table, see `quality`
    rows       of each split and fault
    notes      what else to know, a sentence each
    sheets     names of the pictures in the folder
    by         what `within` is of: p, which orders frames as weights that follow from it do, and more finely; or weight
    """

    run: str
    step: int
    out: Path
    frames: "pd.DataFrame"
    rows: Sequence[Row]
    notes: Sequence[str]
    sheets: Sequence[str]
    by: str

    def json(self) -> str:
        """What could not be measured is null."""
        rows = [
            {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in row._asdict().items()}
            for row in self.rows
        ]
        facts = {
            "run": self.run,
            "step": self.step,
            "frames": {split: len(own) for split, own in _by_split(self.frames)},
            "tracklets": {split: own["tracklet"].nunique() for split, own in _by_split(self.frames)},
            "auroc": rows,
            "within_by": self.by,
            "notes": list(self.notes),
            "table": str(self.out / TABLE),
            "sheets": [str(self.out / name) for name in self.sheets],
        }
        return json.dumps(facts, indent=2)

    def text(self) -> str:
        said = [f"Quality of frames by {self.run} at step {self.step:,}.", *self.notes]
        if self.rows:
            said.append(f"\n{_markdown(self.rows)}\n")
            said.append(
                "AUROC: share of the pairs of such a frame and one that is none of these in which it has the lower p; "
                f"ties count half. Within tracklets: the same, by {self.by}, over pairs from one tracklet; mean over "
                "those that have both."
            )
        else:
            said.append("Which frames are bad is not known; --truth takes a CSV that says so.")
        return "\n".join([*said, f"Written to {self.out}: {TABLE}, {', '.join(self.sheets)}."])


def quality(
    run: Path,
    out: Path | None = None,
    split: str | None = None,
    tracklets: int = 40,
    truth: Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Quality:
    """Judges every frame of the tracklets of a run's data, seen as in a test, and draws those of most uneven weights.

        quality = exp( -(1 - p)^2 / (2 0.68^2) ),    weight = quality / sum of it over the tracklet

    p is, of a training tracklet, the probability of its own identity by the classifier of frames, else by that of
    fused tracklets, whose embeddings lie in the same space, or by the contexts of a class-aware attention. Of a test
    tracklet, whose identity no classifier knows, it is the largest class probability: how typical of some training
    person a frame looks, and no probability that its label is right. Where the training fuses by class_aware or
    self_attention, weights are those instead; with class_aware, p is by the contexts of its attention. Of a network
    with several levels, all are of the last.

    run        its folder, or a checkpoint in it
    out        folder for quality.csv and the sheets train-1.png, ..., test-1.png, ...; None: RUN/quality,
               or RUN/quality-STEP for a checkpoint
    split      train or test; None: both
    tracklets  how many of each split are drawn, at most
    truth      a CSV with `path`, as the manifest has it, and columns of true and false, such as occluded: what is wrong
               with a frame. Frames that it does not list are not compared
    overwrite  whether what an earlier call wrote there may go
    quiet      no progress bars

    Where the manifest has noise (`is_noisy`), its training rows are compared too. quality.csv has a row per frame,
    tracklet by tracklet in order of time: path, split, label, camera, tracklet, frame, p, quality, weight, kind.

    Raises InputError for a run without classes or without tracklets, for other data than those that it was trained on,
    and for a truth that cannot be read or lists none of the frames.
    """
    if split not in ("train", "test", None):
        raise InputError(f"--split is train or test, or is left out for both, got '{split}'.")
    if several():
        raise InputError("torchrun started several processes; quality is the work of one: metricweight quality RUN.")
    model, settings, state = checkpoint.load(run)
    judge = _judge(rebuilt(settings, state, model), settings, run)
    out = out or _home(run)
    _check_free(out, overwrite)
    images, table = _data(settings, state, judge.objective, run)
    device = "cpu" if settings.device == "cpu" else "auto"  # it may have been trained elsewhere
    flags, known = _truth(truth, table)
    splits, parts, damaged = splits_of(images, settings.data), [], []
    with joined(device) as processes:
        for name in KINDS:
            if split in (name, None):
                frames, bad = _frames(model, judge, images, splits[name], name, settings, processes, quiet)
                parts.append(frames)
                damaged += bad
    found = _described(parts, table)
    by = "weight" if judge.attention is not None else "p"
    rows = list(_rows(found, flags, known, by))
    notes = [
        *_notes(judge, settings, found),
        *_not_compared(truth, found, known),
        *(f"{bad} It is left out." for bad in damaged),
    ]
    sheets = _draw(out, found, flags, images, settings, f"{run} at step {state['step']:,}", judge, tracklets, quiet)
    with whole_file(out / TABLE) as file:
        found.drop(columns="picture").to_csv(file, index=False, lineterminator="\n")
    return Quality(str(run), state["step"], out, found, rows, notes, sheets, by)


# ---- what is known of frames


def _judge(objective: Objective | TrackletObjective, settings: Settings, run: Path) -> Judge:
    """What the frames are judged by. Raises InputError where nothing of a run tells identities apart."""
    asked = settings.tracklets
    fuses = asked.frames is not None and asked.fusion in ("class_aware", "self_attention")
    fusion = asked.fusion if fuses else "quality"
    judge = knowing(objective)
    if judge is None:
        add = "loss.name=cce" if asked.frames is None else 'frame_losses="[{name: cce}]"'
        raise InputError(
            f"{run} has no classifier and no class-aware attention, and the quality of a frame is a probability of its "
            f"identity; train with one, such as {add}."
        )
    by_attention = fusion == "class_aware" or not judge.classifiers
    source = "the contexts of the class-aware attention" if by_attention else "the classifier"
    if asked.frames is not None:
        source += " of frames" if judge is objective.frames else " of fused tracklets, used on single frames"
    attention = objective.attentions[-1] if isinstance(objective, TrackletObjective) and objective.attentions else None
    weights = f"those of tracklets.fusion={fusion}, over a whole tracklet"
    if objective.sets.levels > 1:
        weights += ", of the last level"
    if asked.frames is None or asked.fusion != fusion:
        trained = "frame by frame" if asked.frames is None else f"with tracklets.fusion={asked.fusion}"
        weights += f" (this run was trained {trained}, without them)"
    return Judge(judge, fusion, attention, source, weights)


def _judged(judge: Judge, embeddings: Tensor, labels: Tensor | None, lengths: Tensor) -> dict[str, Float64]:
    """p, quality and weight [B] of the frames of whole tracklets.

    embeddings  [B, L D]
    labels      [B]; None: nobody knows, so p is the largest class probability
    lengths     how many frames each tracklet has, which stand together
    """
    x = judge.objective.split(embeddings)[-1]
    attention: Any = judge.objective.attentions[-1] if judge.fusion == "class_aware" else None
    logits = judge.objective.class_logits(x) if attention is None else attention.logits(x)
    assert logits is not None
    own = logits.argmax(1) if labels is None else judge.objective.outputs(labels)
    p = own_probability(logits, own)
    q = sets.quality(p)
    if judge.attention is not None:
        starts = (lengths.cumsum(0) - lengths).tolist()
        w = torch.cat(
            [judge.attention(x[None, at : at + n])[0] for at, n in zip(starts, lengths.tolist(), strict=True)]
        )
    else:
        w = q if attention is None else attention.attention(x, own)
    return {"p": p.numpy(), "quality": q.numpy(), "weight": _shares(w.double(), lengths).numpy()}


def _shares(w: Tensor, lengths: Tensor) -> Tensor:
    """Weights [B] over their sum in each tracklet; all the same where they are all 0."""
    of = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    total = torch.zeros(len(lengths), dtype=w.dtype).index_add_(0, of, w)[of]
    return torch.where(total > 0, w / total, 1 / lengths[of])


@torch.no_grad()
def _frames(
    model: Embedder,
    judge: Judge,
    images: Images,
    indices: Indices,
    split: str,
    settings: Settings,
    processes: Processes,
    quiet: bool,
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """What is known of each frame at `indices`, tracklet after tracklet, in columns; and what could not be read.

    Embeddings are kept of one part of them at a time.
    """
    assert images.tracklets is not None
    assert images.frames is not None
    indices = indices[images.tracklets[indices] >= 0]
    if not len(indices):
        raise InputError(f"there are no {split} tracklets; give the other half alone with --split.")
    cuts = cut_by_items(images, indices[np.lexsort((images.frames[indices], images.tracklets[indices]))])
    blocks = [blocks_of(cut) for cut in cuts]
    network = model.to(processes.device).eval()
    parts: list[dict[str, NDArray[Any]]] = []
    damaged: list[str] = []
    wanted = [Wanted(block) for some in blocks for block in some]
    what = None if quiet else f"judging {split} frames"
    coming = track(seen(images, settings.data, wanted, processes), what, total=len(wanted))
    with closing(coming) as batches:  # type: ignore[type-var]
        for some in blocks:
            embeddings, read = [], []
            for batch in islice(batches, len(some)):
                damaged += batch.damaged
                if len(batch.indices):
                    pictures = batch.images.to(processes.device, non_blocking=True)
                    embeddings.append(embedded(network, pictures, settings.precision).cpu())
                    read.append(batch.indices)
            if read:
                rows = np.concatenate(read)
                lengths = np.unique(images.tracklets[rows], return_counts=True)[1]
                labels = torch.from_numpy(images.labels[rows]) if split == "train" else None
                made = _judged(judge, torch.cat(embeddings), labels, torch.from_numpy(lengths))
                parts.append({"picture": rows, "split": np.full(len(rows), split), **made})
    if not parts:
        raise InputError(f"none of the {split} pictures can be read, so nothing can be judged.")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, damaged


def _described(parts: Sequence[Mapping[str, NDArray[Any]]], table: "pd.DataFrame") -> "pd.DataFrame":
    """The table of frames; `picture` is their place among the images."""
    import pandas as pd

    found = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
    rows = table.iloc[found["picture"].to_numpy()].reset_index(drop=True)
    return pd.DataFrame(
        {
            "path": rows["path"],
            "split": found["split"],
            "label": rows["label"],
            "camera": rows["camera"],
            "tracklet": rows["tracklet"],
            "frame": rows["frame"],
            "p": found["p"],
            "quality": found["quality"],
            "weight": found["weight"],
            "kind": found["split"].map(KINDS),
            "picture": found["picture"],
        }
    )


def _by_split(found: "pd.DataFrame") -> Iterator[tuple[str, "pd.DataFrame"]]:
    for split in KINDS:
        if len(own := found[found["split"] == split]):
            yield split, own


def _data(
    settings: Settings, state: Mapping[str, Any], objective: Objective, run: Path
) -> tuple[Images, "pd.DataFrame"]:
    """The pictures of a run, and the table that lists them, row by row the same."""
    data = settings.data
    images = None if data.root is None else load_images(data, state["channels"])
    if data.root is None or images is None or images.tracklets is None:
        where = data.root or data.source
        raise InputError(
            f"{where}, which {run} was trained on, has no tracklets; quality compares the frames of tracklets, which "
            "a manifest numbers in its columns tracklet and frame."
        )
    trained = images.labels[splits_of(images, data)["train"]]
    same = np.array_equal(np.unique(trained), objective.labels.numpy())
    if not same or state.get("stamp", images.stamp) != images.stamp:
        raise InputError(f"{data.root} holds other pictures, labels or splits than those that {run} was trained on.")
    return images, manifests.read(data.root).table


# ---- how well faults come out


def auroc(low: Float64, others: Float64) -> float:
    """Share of the pairs of one of `low` [A] and one of `others` [B] in which the former is the lower number.

    Equal ones count half. NaN where there are no pairs.
    """
    if not len(low) or not len(others):
        return math.nan
    others = np.sort(others)
    below, upto = (np.searchsorted(others, low, side) for side in ("left", "right"))
    return float((len(others) - (below + upto) / 2).mean() / len(others))


def within(values: Float64, low: NDArray[np.bool_], others: NDArray[np.bool_], of: Indices) -> tuple[float, int]:
    """`auroc` inside each tracklet that has frames of both kinds: mean over these, and how many they are.

    values  [N] of all frames
    low     [N] which are to be low
    others  [N] which these are compared with
    of      [N] which tracklet each is of
    """
    both = np.intersect1d(of[low], of[others])
    chosen = np.isin(of, both) & (low | others)
    order = np.flatnonzero(chosen)[np.argsort(of[chosen], kind="stable")]
    tracklets = np.split(order, np.flatnonzero(np.diff(of[order])) + 1) if len(order) else []
    found = [auroc(values[each[low[each]]], values[each[others[each]]]) for each in tracklets]
    return (float(np.mean(found)) if found else math.nan), len(found)


def _rows(found: "pd.DataFrame", flags: "pd.DataFrame", known: NDArray[np.bool_], by: str) -> Iterator[Row]:
    """Those of each split: of each fault that a frame of it has, and of all of them."""
    for split, own in _by_split(found):
        faults = flags.iloc[own["picture"].to_numpy()]
        faulty = np.asarray(faults.to_numpy(dtype=bool).any(1), dtype=np.bool_)
        others = known[own["picture"].to_numpy()] & ~faulty
        columns: dict[str, NDArray[np.bool_]] = {
            str(name): faults[name].to_numpy(dtype=bool) for name in faults if faults[name].any()
        }
        if len(columns) > 1:
            columns[ANY] = faulty
        p, order, of = (own[name].to_numpy() for name in ("p", by, "tracklet"))
        for name, low in columns.items():
            inside, count = within(order, low, others, of)
            said = (split, KINDS[split], name, int(low.sum()), int(others.sum()))
            yield Row(*said, auroc(p[low], p[others]), inside, count)


def _truth(path: Path | None, table: "pd.DataFrame") -> tuple["pd.DataFrame", NDArray[np.bool_]]:
    """What is wrong with each picture of a table, a column of true and false per fault, and of which it is known."""
    import pandas as pd

    known = np.ones(len(table), dtype=bool)
    flags = pd.DataFrame(index=table.index)
    if path is not None:
        said = _read_truth(path)
        known = table["path"].isin(said.index).to_numpy()
        if not known.any():
            raise InputError(
                f"--truth {path} lists no picture of the manifest: it has {said.index[0]}, and the manifest "
                f"{table['path'].iloc[0]}; write paths as the manifest does."
            )
        flags = said.reindex(table["path"], fill_value=False).reset_index(drop=True)
    noisy = (table[NOISY] & (table["split"] == "train")).to_numpy()
    if noisy.any():
        flags[NOISY] = noisy
    return flags, known


def _read_truth(path: Path) -> "pd.DataFrame":
    """The columns of true and false of a CSV, by path."""
    import pandas as pd

    if not path.exists():
        raise InputError(f"--truth {path} is not there.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except Exception as error:  # pandas raises what a damaged file leads to
        raise InputError(f"--truth {path} cannot be read as a CSV ({error}).") from None
    if "path" not in table:
        raise InputError(f"--truth {path} has no column path{nearest('path', table.columns)}")
    if (twice := table["path"][table["path"].duplicated()]).size:
        raise InputError(f"--truth {path} lists {twice.iloc[0]} twice; a picture has one row.")
    words = table.drop(columns="path").apply(lambda column: column.str.lower())
    told = [name for name in words if len(words) and words[name].isin(["true", "false"]).all()]
    if not told:
        raise InputError(
            f"--truth {path} has no column of true and false beside path{' and ' * bool(len(words.columns))}"
            f"{', '.join(words)}; a column such as occluded, of True and False, says what is wrong with a frame."
        )
    return pd.DataFrame({name: words[name].to_numpy() == "true" for name in told}, index=table["path"])


def _notes(judge: Judge, settings: Settings, found: "pd.DataFrame") -> Iterator[str]:
    yield f"p is by {judge.source}, over {len(judge.objective.labels):,} training identities. Weights: {judge.weights}."
    for split, own in _by_split(found):
        of = own.groupby("tracklet")["weight"]
        least = float((of.min() * of.size()).median())
        p = f"{KINDS[split]}, which is no probability that the label is right" if split == "test" else KINDS[split]
        yield (
            f"{split}: {len(own):,} frames of {of.ngroups:,} tracklets. p ({p}): median {own['p'].median():.3f}, a "
            f"tenth below {own['p'].quantile(0.1):.3f}. The lowest frame of a tracklet has {least:.2f} of an equal "
            "share (median)."
        )


def _not_compared(truth: Path | None, found: "pd.DataFrame", known: NDArray[np.bool_]) -> list[str]:
    left = int((~known[found["picture"].to_numpy()]).sum())
    return [f"{left:,} of {len(found):,} frames are not in {truth} and are not compared."] if left else []


def _markdown(rows: Sequence[Row]) -> str:
    head = ("split", "p", "frames that are", "frames", "others", "AUROC", "within tracklets", "of tracklets")
    cells = [
        (row.split, row.kind, row.truth, f"{row.frames:,}", f"{row.others:,}", _number(row.auroc), _number(row.within),
         f"{row.tracklets:,}")
        for row in rows
    ]  # fmt: skip
    return markdown_table([head, *cells], left=3)


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.3f}"


# ---- sheets


def _home(run: Path) -> Path:
    """Where the sheets go if nothing is said."""
    if run.parent.name == checkpoint.STATES:
        return run.parent.parent / f"quality-{run.stem}"
    return (run if run.is_dir() else run.parent) / "quality"


def _check_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder, which is made if it is not there.")
    if (there := [*_written(out)]) and not overwrite:
        raise InputError(f"{there[0]} is already there; add --overwrite to replace it, or choose another --out.")


def _written(out: Path) -> Iterator[Path]:
    """What an earlier call has written there."""
    for pattern in (TABLE, *(f"{split}-[0-9]*.png" for split in KINDS)):
        yield from sorted(out.glob(pattern))


def _draw(
    out: Path,
    found: "pd.DataFrame",
    flags: "pd.DataFrame",
    images: Images,
    settings: Settings,
    run: str,
    judge: Judge,
    most: int,
    quiet: bool,
) -> list[str]:
    """Writes the sheets, and says their names."""
    for old in _written(out):
        old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    jobs = []
    for split, own in _by_split(found):
        strips = _strips(own, flags, most)
        pages = -(-len(strips) // PAGE)
        for page in range(pages):
            heading = (
                f"{split} {page + 1} of {pages}: {len(strips):,} of {own['tracklet'].nunique():,} tracklets, those of "
                f"most uneven weights first, by {run}",
                f"p: {KINDS[split]}, by {judge.source}. Numbers below the bars are weights, which sum to 1 over the "
                "tracklet.",
                "The line across is an equal share. Bars go from blue, the highest weight, over orange to red, a third "
                "of it. The frame with a red border has the lowest.",
            )
            jobs.append((f"{split}-{page + 1}.png", heading, strips[page * PAGE : (page + 1) * PAGE]))
    for name, heading, some in track(jobs, None if quiet else "drawing", total=len(jobs)):
        with whole_file(out / name) as file:
            sheet(heading, some, images.read, settings.data.shape).save(file, format="png")
    return [name for name, _, _ in jobs]


def _strips(own: "pd.DataFrame", flags: "pd.DataFrame", most: int) -> list[Strip]:
    """The tracklets of most uneven weights, these first."""
    weights = own["weight"].to_numpy()
    cuts = np.flatnonzero(np.diff(own["tracklet"].to_numpy())) + 1
    tracklets = np.split(np.arange(len(own)), cuts)
    order = np.argsort([-uneven(weights[each]) for each in tracklets], kind="stable")[:most]
    return [_of_tracklet(own.iloc[tracklets[at]], flags) for at in order.tolist()]


def _of_tracklet(rows: "pd.DataFrame", flags: "pd.DataFrame") -> Strip:
    first = rows.iloc[0]
    faults = flags.iloc[rows["picture"].to_numpy()]
    marks = [", ".join(name for name in flags.columns if row[name]) for _, row in faults.iterrows()]
    columns = (rows[name].tolist() for name in ("picture", "frame", "p", "weight"))
    frames = [Frame(*values) for values in zip(*columns, marks, strict=True)]
    return Strip(f"label {first.label}, camera {first.camera}, tracklet {first.tracklet}", frames)
