"""Speed of a training step, beside a bare loop with the same network, loader, batches and optimiser.

    python benchmarks/training.py
    python benchmarks/training.py --backbone resnet18 --size 128 --classes 16 --rounds 9
    python benchmarks/training.py --device cuda --backbone resnet50 --size 224 --precision bf16

Pictures are JPEG files of noise and colour, drawn for the purpose. Ours is the loop of `metricweight train` without
validation and checkpoints: Ranked List Loss, watch, and once in each round statistics and log. The bare loop is

    for images, labels in loader: loss = cross_entropy(classifier(model(images)), labels); backward; step

Both take the same number of steps in turn, round after round, in one process; the smallest time of each counts.
The share outside the backbone is what a step of ours takes beyond forward, backward and update of the network alone,
on pictures that are there already.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from metricweight.data.loader import Batch
from metricweight.progress import console
from metricweight.settings import read
from metricweight.training.distributed import Processes
from metricweight.training.engine import Training, autocast, gradients, prepared, update
from metricweight.training.log import training_log
from metricweight.training.loop import coming
from metricweight.training.watch import Watch


def draw(folder: Path, classes: int, images: int, side: int) -> None:
    random = np.random.default_rng(0)
    for label in range(classes):
        colour = random.integers(0, 256, (1, 1, 3))
        for number in range(images):
            coarse = (colour + random.integers(-80, 80, (side // 16, side // 16, 3))).clip(0, 255).astype(np.uint8)
            path = folder / f"{label:03d}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


def ours(t: Training, batches: Iterator[Batch], steps: int, run: Path) -> float:
    with training_log(run, 0, 10**9) as log:
        watch = Watch(t, run)
        started = time.perf_counter()
        for place in range(steps):
            with log.waiting():
                micro = [next(batches)]
            done = gradients(t, micro)
            facts = watch.look(done, closely=place == 0)
            update(t)
            if place == 0:
                log.step(place + 1, float(done.loss), len(done.labels), facts)
        _finished(t)
        return time.perf_counter() - started


def bare(t: Training, head: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Batch], steps: int) -> float:
    device, labels = t.processes.device, t.labels
    started = time.perf_counter()
    for _ in range(steps):
        batch = next(batches)
        images, own = batch.images.to(device, non_blocking=True), labels[torch.from_numpy(batch.indices).to(device)]
        optimizer.zero_grad()
        with autocast(t.settings.precision, device):
            loss = F.cross_entropy(head(t.model(images)), own)
        loss.backward()
        optimizer.step()
    _finished(t)
    return time.perf_counter() - started


def network_alone(t: Training, batch: Batch, steps: int) -> float:
    images = batch.images.to(t.processes.device)
    started = time.perf_counter()
    for _ in range(steps):
        t.optimizer.zero_grad()
        with autocast(t.settings.precision, t.processes.device):
            found = t.model(images)
        found.backward(torch.ones_like(found))
        t.optimizer.step()
    _finished(t)
    return time.perf_counter() - started


def step_alone(t: Training, batch: Batch, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        gradients(t, [batch])
        update(t)
    _finished(t)
    return time.perf_counter() - started


def _finished(t: Training) -> None:
    if t.processes.device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--classes", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    asked = parser.parse_args()
    console.quiet = True
    folder = Path(tempfile.mkdtemp())
    try:
        draw(folder / "pictures", 2 * asked.classes + 4, 4, asked.size * 9 // 8)
        words = [
            f"data.root={folder / 'pictures'}", f"data.size={asked.size}", f"model.backbone={asked.backbone}",
            f"batch.classes={asked.classes}", "batch.images=4", f"data.workers={asked.workers}",
            f"precision={asked.precision}", f"device={asked.device}", "steps=1000000", "data.validation=0",
        ]  # fmt: skip
        t = prepared(read("folder", words), Processes(device=asked.device))
        head = nn.Linear(t.model.dim, len(t.images.classes)).to(asked.device)
        own = torch.optim.AdamW([*t.model.parameters(), *head.parameters()], 1e-5)
        first, second = coming(t), coming(t)
        batch = next(first)
        times: dict[str, list[float]] = {"ours": [], "bare": [], "step": [], "network": []}
        for _ in range(asked.rounds + 1):
            times["ours"].append(ours(t, first, asked.steps, folder))
            times["bare"].append(bare(t, head, own, second, asked.steps))
            times["step"].append(step_alone(t, batch, asked.steps))
            times["network"].append(network_alone(t, batch, asked.steps))
        best = {name: min(found[1:]) for name, found in times.items()}  # the first round warms up
    finally:
        shutil.rmtree(folder)
    count = asked.steps * asked.classes * 4
    place = torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"`python benchmarks/training.py {' '.join(sys.argv[1:])}`".replace(" `", "`") + "\n")
    print(
        f"torch {torch.__version__}, {place}, {asked.rounds} rounds of {asked.steps} steps, "
        f"{time.strftime('%Y-%m-%d')}\n"
    )
    print(f"{asked.backbone}, {asked.size} x {asked.size}, {asked.classes} x 4 pictures, {asked.precision}\n")
    print(f"images/s: ours {count / best['ours']:,.1f}, bare {count / best['bare']:,.1f}")
    print(f"ours / bare: {best['bare'] / best['ours']:.3f}")
    print(f"share of a step outside the backbone: {100 * (1 - best['network'] / best['step']):.1f} %")


if __name__ == "__main__":
    main()
