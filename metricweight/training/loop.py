"""`train`, top to bottom: the steps, what is written on the way, and the report."""

import signal
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from metricweight.checks import InputError, Interrupted
from metricweight.data.images import Images
from metricweight.data.loader import Batch, Wanted
from metricweight.data.split import Indices
from metricweight.data.tracklets import ClipSampler
from metricweight.files import write_text
from metricweight.losses.table import LOSSES
from metricweight.progress import console, say
from metricweight.retrieval import report as reports
from metricweight.settings import Settings
from metricweight.training import checkpoint
from metricweight.training.distributed import joined, plainly
from metricweight.training.engine import Training, gradients, prepared, update
from metricweight.training.judging import check_judging, chosen_by, tested, validate
from metricweight.training.log import training_log
from metricweight.training.pictures import classes_of, items_of, read_all, seen
from metricweight.training.watch import Watch

KEEP_EVERY = 600  # seconds after which a checkpoint is due, wherever the training is


def train(
    settings: Settings,
    recipe: str,
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    as_json: bool = False,
) -> Path:
    """Trains as the settings say, tests on unseen classes beside raw pixels and the network as it was before, and
    returns the run folder with everything that is known about it.

    resume   go on with the run in `out` from its last checkpoint, if it has one: on a CPU, to the weights that it
             would have come to if it had not been stopped, bit for bit

    as_json  print the report as JSON and nothing else

    Started by torchrun, all processes train one network by batches that they share.

    Raises InputError before the first step for whatever is wrong with settings, data or folder, and where a run that
    goes on is not what it was; `Interrupted` after Ctrl-C, which leaves a checkpoint of the step that was reached (of
    the last one that was saved, where there are several processes).
    """
    if resume and (overwrite or out is None):
        raise InputError("--resume goes on with the run in --out: give --out, and no --overwrite.")
    saved: list[int] = []  # steps of which there is a checkpoint
    with _quiet(as_json), joined(settings.device) as processes:
        folder = checkpoint.claimed_folder(out, recipe, overwrite, resume) if processes.first else nullcontext(None)
        with folder as claimed:
            run = processes.tell(claimed)
            assert run is not None
            try:
                state = processes.tell(checkpoint.latest(run) if resume and processes.first else None)
                if resume and state is None:
                    if processes.first:
                        checkpoint.check_unused(run)
                    say(f"{run} holds no checkpoint: the training begins.")
                with plainly():
                    _run(prepared(settings, processes, state is not None), state, recipe, run, saved)
            except KeyboardInterrupt:
                raise Interrupted(_stopped(run, saved, settings) if processes.first else "") from None
            except InputError as error:
                if not (saved and saved[-1]) or "--resume" in str(error) or "stopped.json" in str(error):
                    raise  # it says itself what there is, or there is nothing
                raise InputError(
                    f"{error} The training up to step {saved[-1]} is saved; --resume goes on with it."
                ) from None
            if as_json and processes.first:
                print((run / "report.json").read_text(encoding="utf-8"), end="")
    return run


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    before, console.quiet = console.quiet, quiet or console.quiet
    try:
        yield
    finally:
        console.quiet = before


def _stopped(run: Path, saved: list[int], settings: Settings) -> str:
    if not saved:
        return "stopped before there was anything to save."
    again = " --overwrite" if (run / "embeddings.npz").exists() else ""
    return (
        f"stopped; the training up to step {saved[-1]} of {settings.steps} is saved. To go on with it:\n"
        f"  metricweight train {run}/settings.yaml --out {run} --resume\n"
        "To see how good the network is:\n"
        f"  metricweight embed {run}{again}\n  metricweight evaluate {run / 'embeddings.npz'}"
    )


def _run(t: Training, state: checkpoint.State | None, recipe: str, run: Path, saved: list[int]) -> None:
    """Trains and tests, from a state or from the beginning."""
    say(_described(t))
    check_judging(t)
    if state is None:
        read_all(t.images, np.concatenate(list(t.splits.values())), t.settings.data, t.processes)
        if t.processes.first:
            checkpoint.clear(run)
            _write_facts(t, run)
        _save(t, run, saved)
    else:
        checkpoint.check_same(state, t.settings, t.images.stamp, run)
        t.go_on(state)
        if t.processes.first and not checkpoint.is_described(run):  # its states alone were put here
            _write_facts(t, run)
        say(f"The training goes on after step {t.step} of {t.settings.steps}.")
        if state["processes"] != t.processes.size:
            say(
                f"It was done by {state['processes']} processes, and is by {t.processes.size} now: rounding differs, "
                "and what depends on a process's share of a batch, as batch normalisation and dropout do."
            )
        saved.append(t.step)
    _train(t, run, saved)
    models = tested(t, run)
    if t.processes.first:
        stem = run / "report"
        reports.save(models, stem, recipe=recipe, steps=t.settings.steps, training_seconds=round(t.seconds, 1))
    chosen = models["trained"].stamp["chosen"]
    best = "the last" if chosen["by"] == "last" else f"the best on the {chosen['by']} classes"
    say(
        f"\n{reports.markdown(models)}\n\nTrained for {t.seconds:.0f} s; tested is the network of step "
        f"{chosen['step']}, {best}. Everything is in {run}."
    )


def _write_facts(t: Training, run: Path) -> None:
    """What is known of a run before its first step."""
    write_text(run / "settings.yaml", t.settings.yaml())
    write_text(run / "environment.json", checkpoint.environment(t.settings, t.processes, t.model.origin))
    _write_labels(run / "labels.csv", t.images, t.splits)


def _save(t: Training, run: Path, saved: list[int]) -> None:
    """A checkpoint of the step that was reached; and of the network, where it is the one that is tested."""
    if t.processes.first:
        if t.best is None or t.best["step"] == t.step:
            checkpoint.save_network(run, t.judged_network())
        checkpoint.save(run, t.state(), t.settings.checkpoints.keep)
    saved.append(t.step)


def _train(t: Training, run: Path, saved: list[int]) -> None:
    """The steps that are left, with looks at the validation classes. Saves at each look, every few minutes, at the end,
    and after Ctrl-C."""
    steps, count = t.settings.steps, t.settings.validations
    looks = {round(steps * i / count) for i in range(1, count + 1)}
    every = t.settings.checkpoints.every
    watch = Watch(t, run)
    folder = run if t.processes.first else None
    damaged = set(t.unread)  # what is said of pictures that could not be read
    kept, started, before = time.monotonic(), time.perf_counter(), t.seconds
    if t.processes.first:
        (run / "stopped.json").unlink(missing_ok=True)  # of an earlier stretch
    with (
        training_log(folder, t.step, steps, t.settings.tensorboard) as log,
        _asked(t) as asked,
        closing(coming(t)) as batch,
    ):
        while t.step < steps:
            with log.waiting():
                micro = [next(batch) for _ in range(t.settings.batch.accumulate)]
            damaged |= {name for part in micro for name in part.damaged}
            done = gradients(t, micro)
            stopping = asked.is_set()  # read once: what comes later in this step is answered after the next
            looking = t.step + 1 in looks
            saving = looking or t.step + 1 == steps or stopping or bool(every and (t.step + 1) % every == 0)
            reporting = saving or log.due(t.step + 1)
            facts = watch.look(done, reporting)
            update(t)
            if reporting:
                if t.settings.data.damaged == "skip":
                    damaged = set().union(*t.processes.all_tell(damaged))
                    for bad in sorted(damaged - set(t.unread)):
                        kind = "class" if t.images.tracklets is None else "tracklet, or else of its class,"
                        say(f"{bad} Another of its {kind} takes its place.")
                        t.unread.append(bad)
                rates = {group["name"]: group["lr"] for group in t.optimizer.param_groups}
                facts = {"learning_rate": rates, **facts, "unreadable": len(t.unread)}
                log.step(t.step, float(done.loss), len(done.labels) * len(micro), facts)
            late = time.monotonic() - kept > KEEP_EVERY
            if saving or late:
                watch.check_weights(done)
            if looking and (found := validate(t)):
                log.validation(t.step, found, "test" if chosen_by(t) == "test" else "validation")
                if chosen_by(t) != "last" and (t.best is None or found["map@r"] > t.best["value"]):
                    t.best = {"step": t.step, "value": found["map@r"]}
            if saving or late:
                t.seconds = before + time.perf_counter() - started
                _save(t, run, saved)
                kept = time.monotonic()
            if stopping:
                raise KeyboardInterrupt


def coming(t: Training) -> Generator[Batch, None, None]:
    """This process's part of each batch that is left, in order."""
    accumulate = t.settings.batch.accumulate
    numbers = range(t.step * accumulate, t.settings.steps * accumulate)

    def wanted() -> Iterator[Wanted]:
        for number in numbers:
            mine = t.sampler.share(number, t.processes.rank, t.processes.size)
            yield Wanted(t.splits["train"][mine], (t.settings.seed, number), t.processes.rank * len(mine))

    return seen(t.images, t.settings.data, wanted(), t.processes)


@contextmanager
def _asked(t: Training) -> Iterator[threading.Event]:
    """Ctrl-C, or being told to end, sets the event, so that the step at hand is finished; a second one interrupts at
    once. Of several processes each would finish another step, so there it interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread() or t.processes.size > 1:
        yield asked
        return
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}

    def ask(*_: object) -> None:
        asked.set()
        for which in before:
            signal.signal(which, signal.default_int_handler)

    for which in before:
        signal.signal(which, ask)
    try:
        yield asked
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _described(t: Training) -> str:
    images, settings = t.images, t.settings
    parts = [
        f"{name} {len(indices):,}{_in_tracklets(images, indices)} of {len(classes_of(images, indices, name)):,} classes"
        for name, indices in t.splits.items()
    ]
    parameters = sum(p.numel() for p in t.model.parameters())
    by = " + ".join(_named(part) for part in (settings.loss, *settings.plus))
    if settings.frame_losses:
        by += f", and of their frames by {' + '.join(map(_named, settings.frame_losses))}"
    if settings.weighting:
        by += f", weighed by {settings.weighting['name']}"
    size = t.model.dim if t.model.levels == 1 else f"{t.model.levels} x {t.model.dim}"
    text = (
        f"{len(images):,} images: {', '.join(parts)}.\n"
        f"{settings.model.backbone}, {parameters:,} parameters, embeddings of {size}; "
        f"{settings.steps:,} steps of {settings.batch.classes} classes x {drawn(t)}, by {by}."
    )
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in t.model.train().modules())
    if isinstance(t.sampler, ClipSampler) and t.sampler.few:
        text += (
            f"\nTraining classes with fewer than {settings.batch.images} tracklets: {t.sampler.few}; in a batch, one "
            "of theirs may come again, as another clip."
        )
    mine = t.sampler.size // t.processes.size
    several = t.processes.size > 1 and not settings.sync_batch_norm
    if batch_norm and (several or mine > (settings.batch.chunk or mine)):
        what = "each process" if several else "each chunk"
        text += (
            f"\nBatch normalisation goes by the statistics of {what}, which is not what one big batch would do; "
            "model.frozen_batch_norm=true makes both the same."
        )
    return text


def _in_tracklets(images: Images, indices: Indices) -> str:
    return "" if images.tracklets is None else f" in {len(items_of(images, indices).first):,} tracklets"


def drawn(t: Training) -> str:
    """What a batch has of each class."""
    images, frames = t.settings.batch.images, t.settings.tracklets.frames
    return f"{images} images" if frames is None else f"{images} tracklets x {frames} frames"


def _named(part: Mapping[str, Any]) -> str:
    row = LOSSES[part["name"]]
    times = f"{part['weight']:g} x " if part.get("weight", 1) != 1 else ""
    return f"{times}{row.name}" if row.kind == "pair" else f"{times}{row.name} on the logits of a linear classifier"


def _write_labels(path: Path, images: Images, splits: Mapping[str, Indices]) -> None:
    """Which number stands for which class, and where the class is."""
    import pandas as pd

    where: dict[int, list[str]] = {number: [] for number in range(len(images.classes))}
    for name, indices in splits.items():
        for number in np.unique(images.labels[indices]).tolist():
            where[number].append(name)
    table = pd.DataFrame(
        {"number": range(len(images.classes)), "label": images.classes,
         "split": [", ".join(names) for names in where.values()]}
    )  # fmt: skip
    write_text(path, table.to_csv(index=False))
