"""`train`, top to bottom."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metricweight.checks import InputError, Interrupted
from metricweight.data.images import Images, Indices
from metricweight.data.sampler import ClassBalancedSampler
from metricweight.files import write_text
from metricweight.models.heads import embedder
from metricweight.retrieval import Report, evaluate
from metricweight.retrieval import report as reports
from metricweight.settings import Settings
from metricweight.training import checkpoint
from metricweight.training.embedding import embed_images, load_images, seen, splits_of, write_embeddings
from metricweight.training.log import say, training_log

Batch = tuple[Tensor, Tensor]  # images [B, C, S, S] and labels [B]


def train(settings: Settings, recipe: str, out: Path | None = None, overwrite: bool = False) -> Path:
    """Trains as the settings say, tests on unseen classes beside raw pixels and the untrained network, and returns
    the run folder with everything that is known about it.

    Raises InputError before the first step for whatever is wrong with settings, data or folder, and `Interrupted`
    after Ctrl-C, with a checkpoint of the step that was reached.
    """
    with checkpoint.claimed_folder(out, recipe, overwrite) as run:
        device = _device(settings)
        images = load_images(settings.data)
        splits = splits_of(images, settings.data)
        labels = images.labels[splits["train"]]
        sampler = ClassBalancedSampler(labels, settings.batch.classes, settings.batch.images, settings.seed)
        torch.manual_seed(settings.seed)
        network = settings.model
        model = embedder(network.backbone, images.channels, network.embedding_size, network.pretrained).to(device)
        say(_described(images, splits, model, settings))

        def test(what: str, network: nn.Module) -> Report:
            found = embed_images(network, images, splits["test"], settings.data, device, what)
            return _tested(found, images, splits["test"], settings)

        def validate() -> Mapping[str, float]:
            held_out = splits["validation"]
            if not len(held_out):
                return {}
            found = embed_images(model, images, held_out, settings.data, device, None)
            return evaluate(found, images.labels[held_out], ks=[1]).metrics

        def batch_of(step: int) -> Batch:
            chosen = splits["train"][sampler.batch(step)]
            inputs = seen(images, chosen, settings.data, training=(settings.seed, step))
            return inputs, torch.from_numpy(images.labels[chosen])

        def save(step: int) -> None:
            checkpoint.save(run, model, settings, images.channels, step)

        before = {"pixels": test("raw pixels", _RawPixels()), "untrained": test("untrained network", model)}
        validate()  # here, so that what is wrong with the data is said before the training
        checkpoint.clear(run)
        write_text(run / "settings.yaml", settings.yaml())
        write_text(run / "environment.json", checkpoint.environment(settings, device))
        _write_labels(run / "labels.csv", images, splits)
    try:
        started = time.perf_counter()
        _train(model, settings, device, batch_of, validate, save, run / "metrics.jsonl")
        seconds = time.perf_counter() - started
        found = embed_images(model, images, splits["test"], settings.data, device, "trained network")
    except KeyboardInterrupt as stopped:
        if not (run / "checkpoint.pt").exists():
            raise
        raise Interrupted(
            f"stopped{stopped}; the network is in {run / 'checkpoint.pt'}. To see how good it is:\n"
            f"  metricweight embed {run}\n  metricweight evaluate {run / 'embeddings.npz'}"
        ) from None
    write_embeddings(run / "embeddings.npz", found, images, splits["test"])
    tested = {**before, "trained": _tested(found, images, splits["test"], settings)}
    reports.save(tested, run / "report", recipe=recipe, steps=settings.steps, training_seconds=round(seconds, 1))
    say(f"\n{reports.markdown(tested)}\n\nTrained for {seconds:.0f} s. Everything is in {run}.")
    return run


def _train(
    model: nn.Module,
    settings: Settings,
    device: str,
    batch_of: Callable[[int], Batch],
    validate: Callable[[], Mapping[str, float]],
    save: Callable[[int], None],
    log_file: Path,
) -> None:
    """All steps, with looks at the validation classes. Saves at each look, at the end, and after Ctrl-C."""
    loss_fn = settings.build_loss().to(device)
    rates = settings.optimizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=rates.learning_rate, weight_decay=rates.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_and_cosine(step, settings.steps, rates.warmup)
    )
    looks = {round(settings.steps * i / settings.validations) for i in range(1, settings.validations + 1)}
    images_per_step = settings.batch.classes * settings.batch.images
    with (
        training_log(log_file, settings.steps, images_per_step) as log,
        _stop_when_asked() as asked,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        coming = pool.submit(batch_of, 0)
        for step in range(1, settings.steps + 1):
            inputs, labels = coming.result()
            if step < settings.steps:
                coming = pool.submit(batch_of, step)  # while this one is trained on
            model.train()
            loss = loss_fn(model(inputs.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if log.due(step):
                _refuse_nan(value := float(loss.detach()), step)
                log.step(step, value, float(optimizer.param_groups[0]["lr"]))
            schedule.step()
            if step in looks or step == settings.steps or asked.is_set():
                save(step)
            if asked.is_set():
                raise KeyboardInterrupt(f" after step {step} of {settings.steps}")
            if step in looks and (found := validate()):
                log.validation(step, found)


def _tested(embeddings: NDArray[np.float32], images: Images, indices: Indices, settings: Settings) -> Report:
    """The report of a split of the images, its stamp saying which data these are."""
    report = evaluate(embeddings, images.labels[indices], ks=settings.ks)
    data = {"source": settings.data.source, "stamp": images.stamp[:16], "seed": settings.data.seed}
    return replace(report, stamp={**report.stamp, "data": data})


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
    return (
        f"{len(images):,} images: {', '.join(parts)}.\n"
        f"{settings.model.backbone}, {parameters:,} parameters, embeddings of {settings.model.embedding_size}; "
        f"{settings.steps:,} steps of {settings.batch.classes} classes x {settings.batch.images} images."
    )


def _refuse_nan(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss} at step {step}: the training has diverged; lower optimizer.learning_rate. "
            "A checkpoint of an earlier step stays as it is."
        )


def _write_labels(path: Path, images: Images, splits: dict[str, Indices]) -> None:
    """Which number stands for which class, and where the class is."""
    import pandas as pd

    where = {int(label): name for name, indices in splits.items() for label in np.unique(images.labels[indices])}
    table = pd.DataFrame(
        {"number": range(len(images.classes)), "label": images.classes,
         "split": [where[number] for number in range(len(images.classes))]}
    )  # fmt: skip
    write_text(path, table.to_csv(index=False))
