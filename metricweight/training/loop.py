"""`train`, top to bottom."""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metricweight.checks import InputError, Interrupted
from metricweight.data.images import Images
from metricweight.data.sampler import ClassBalancedSampler
from metricweight.data.split import Indices
from metricweight.files import write_text
from metricweight.models.heads import embedder
from metricweight.progress import say, track
from metricweight.retrieval import Report, evaluate
from metricweight.retrieval import report as reports
from metricweight.retrieval.report import EvaluationWarning
from metricweight.settings import BatchSettings, Settings
from metricweight.training import checkpoint
from metricweight.training.embedding import (
    blocks_of,
    embed_images,
    items_of,
    load_images,
    seen,
    splits_of,
    write_embeddings,
)
from metricweight.training.log import training_log
from metricweight.training.objective import Objective

Batch = tuple[Tensor, Tensor]  # images [B, C, S, S] and labels [B]


def train(settings: Settings, recipe: str, out: Path | None = None, overwrite: bool = False) -> Path:
    """Trains as the settings say, tests on unseen classes beside raw pixels and the untrained network, and returns
    the run folder with everything that is known about it.

    Raises InputError before the first step for whatever is wrong with settings, data or folder, and `Interrupted`
    after Ctrl-C, which leaves a checkpoint of the step that was reached.
    """
    saved: list[int] = []  # steps of which there is a checkpoint
    with checkpoint.claimed_folder(out, recipe, overwrite) as run:
        try:
            _run(settings, recipe, run, saved)
        except KeyboardInterrupt:
            if not saved:
                raise Interrupted("stopped before there was anything to save.") from None
            again = " --overwrite" if (run / "embeddings.npz").exists() else ""
            raise Interrupted(
                f"stopped; the network after step {saved[-1]} of {settings.steps} is saved. To see how good it is:\n"
                f"  metricweight embed {run}{again}\n  metricweight evaluate {run / 'embeddings.npz'}"
            ) from None
    return run


def _run(settings: Settings, recipe: str, run: Path, saved: list[int]) -> None:
    device = _device(settings)
    images = load_images(settings.data)
    splits = splits_of(images, settings.data)
    labels = images.labels[splits["train"]]
    classes = settings.batch.classes or min(32, len(np.unique(labels)))
    sampler = ClassBalancedSampler(labels, classes, settings.batch.images, settings.seed)
    settings = settings.model_copy(update={"batch": BatchSettings(classes=classes, images=settings.batch.images)})
    torch.manual_seed(settings.seed)
    network = settings.model
    model = embedder(network.backbone, images.channels, network.embedding_size, network.pretrained).to(device)
    objective = Objective(
        settings.build_loss(), settings.loss_row.kind, network.embedding_size, torch.from_numpy(labels)
    ).to(device)
    say(_described(images, splits, model, settings))

    def embedded(network: nn.Module, split: str, what: str | None) -> NDArray[np.float32]:
        return embed_images(network, images, splits[split], settings.data, device, what)

    def tested(embeddings: NDArray[np.float32]) -> Report:
        report = _judged(embeddings, images, splits["test"], settings.ks)
        data = {"source": settings.data.source, "stamp": images.stamp[:32], "seed": settings.data.seed}
        return replace(report, stamp={**report.stamp, "data": {**report.stamp["data"], **data}})

    def validate() -> Mapping[str, float]:
        if not len(splits["validation"]):
            return {}
        held_out = splits["validation"]
        return _judged(embedded(model, "validation", None), images, held_out, [1], among_all=True).metrics

    def batch_of(step: int) -> Batch:
        chosen = splits["train"][sampler.batch(step)]
        return seen(images, chosen, settings.data, (settings.seed, step)), torch.from_numpy(images.labels[chosen])

    def save(step: int) -> None:
        checkpoint.save(run, model, objective, settings, images.channels, step)
        saved.append(step)

    models = {
        "pixels": tested(embedded(_RawPixels(), "test", "raw pixels")),
        "untrained": tested(embedded(model, "test", "untrained network")),
    }
    validate()  # here, and each picture read once, so that what is wrong with the data is said before the training
    for block in track(blocks_of(splits["train"]), "training pictures"):
        images.read(block)
    checkpoint.clear(run)
    write_text(run / "settings.yaml", settings.yaml())
    write_text(run / "environment.json", checkpoint.environment(settings, device))
    _write_labels(run / "labels.csv", images, splits)

    started = time.perf_counter()
    _train(model, objective, settings, device, batch_of, validate, save, run / "metrics.jsonl")
    seconds = time.perf_counter() - started

    found = embedded(model, "test", "trained network")
    write_embeddings(run / "embeddings.npz", found, images, splits["test"], "test")
    models["trained"] = tested(found)
    reports.save(models, run / "report", recipe=recipe, steps=settings.steps, training_seconds=round(seconds, 1))
    say(f"\n{reports.markdown(models)}\n\nTrained for {seconds:.0f} s. Everything is in {run}.")


def _judged(
    embeddings: NDArray[np.float32], images: Images, indices: Indices, ks: Sequence[int] | None, among_all: bool = False
) -> Report:
    """By the protocol of the images, or each among all others; ks: None for those of the protocol."""
    first, roles = items_of(images, indices).first, images.roles
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvaluationWarning)  # they are printed below the table
        if roles is None or among_all:
            return evaluate(embeddings, images.labels[first], ks=ks)
        labels, queries, cameras = (x[first] for x in (roles.numbers, roles.queries, roles.cameras))
        known = cameras if (cameras >= 0).any() else None
        return evaluate(embeddings, labels, queries=queries, cameras=known, protocol=roles.protocol, ks=ks)


def _train(
    model: nn.Module,
    objective: Objective,
    settings: Settings,
    device: str,
    batch_of: Callable[[int], Batch],
    validate: Callable[[], Mapping[str, float]],
    save: Callable[[int], None],
    log_file: Path,
) -> None:
    """All steps, with looks at the validation classes. Saves at each look, at the end, and after Ctrl-C."""
    rates = settings.optimizer
    learned = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=rates.learning_rate, weight_decay=rates.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_and_cosine(step, settings.steps, rates.warmup)
    )
    looks = {round(settings.steps * i / settings.validations) for i in range(1, settings.validations + 1)}
    with (
        training_log(log_file, settings.steps) as log,
        _stop_when_asked() as asked,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        coming = pool.submit(batch_of, 0)
        for step in range(1, settings.steps + 1):
            inputs, labels = coming.result()
            if step < settings.steps:
                coming = pool.submit(batch_of, step)  # while this one is trained on
            model.train()
            labels = labels.to(device)
            loss, judged = objective(model(inputs.to(device)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stopping = asked.is_set()  # read once: what comes later in this step is answered after the next
            saving = step in looks or step == settings.steps or stopping
            if saving or log.due(step):
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise InputError(
                        f"the loss is {value} at step {step}: the training has diverged; lower optimizer.learning_rate."
                    )
                p = objective.confidence(judged, labels).cpu().numpy()
                log.step(step, value, float(optimizer.param_groups[0]["lr"]), p)
            schedule.step()
            if saving:
                save(step)
            if stopping:
                raise KeyboardInterrupt
            if step in looks and (found := validate()):
                log.validation(step, found)


def warm_up_and_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate at `step` of `steps`: linear up to 1, then half a cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising + 1) / (steps - rising + 1))) / 2


class _RawPixels(nn.Module):
    """What the network sees, as an embedding; at most 32 x 32, larger pictures are averaged down to it."""

    def forward(self, images: Tensor) -> Tensor:
        size = min(32, images.shape[-1])
        return nn.functional.adaptive_avg_pool2d(images, size).flatten(1)


@contextmanager
def _stop_when_asked() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that the step at hand is finished; a second Ctrl-C interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _device(settings: Settings) -> str:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda was asked for, but torch finds no GPU; use device=cpu.")
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device


def _described(images: Images, splits: dict[str, Indices], model: nn.Module, settings: Settings) -> str:
    parts = [
        f"{name} {len(indices):,} of {len(np.unique(images.labels[indices])):,} classes"
        for name, indices in splits.items()
    ]
    parameters = sum(p.numel() for p in model.parameters())
    loss = settings.loss_row
    by = loss.name if loss.kind == "pair" else f"{loss.name} on the logits of a linear classifier"
    return (
        f"{len(images):,} images: {', '.join(parts)}.\n"
        f"{settings.model.backbone}, {parameters:,} parameters, embeddings of {settings.model.embedding_size}; "
        f"{settings.steps:,} steps of {settings.batch.classes} classes x {settings.batch.images} images, by {by}."
    )


def _write_labels(path: Path, images: Images, splits: dict[str, Indices]) -> None:
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
