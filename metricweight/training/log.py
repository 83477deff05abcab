"""The log of a training: metrics.jsonl, a progress bar on a terminal, plain lines elsewhere."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from metricweight.progress import console, say


@contextmanager
def training_log(path: Path, steps: int) -> Iterator["TrainingLog"]:
    """A log that writes the lines of metrics.jsonl, and shows steps, loss, images/s and the time left."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with (
        open(path, "w", encoding="utf-8", buffering=1) as file,
        Progress(*columns, *times, console=console, disable=not console.is_terminal) as bar,
    ):
        yield TrainingLog(file, bar, steps)


class TrainingLog:
    def __init__(self, file: TextIO, bar: Progress, steps: int) -> None:
        self.file, self.bar, self.steps = file, bar, steps
        self.task = bar.add_task("training", total=steps, facts="")
        self.every = max(1, steps // 100)
        self.seen, self.since = 0, time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether this step is one to report: a hundred of them, and the last."""
        return step % self.every == 0 or step == self.steps

    def step(self, step: int, loss: float, learning_rate: float, p: NDArray[np.float64]) -> None:
        """Loss, learning rate and p of each image [B] of a step that is due; B images in each step since the last."""
        images = len(p)
        rate = (step - self.seen) * images / (time.perf_counter() - self.since)
        self.seen, self.since = step, time.perf_counter()
        counts, _ = np.histogram(p, bins=20, range=(0, 1))
        spread = {"mean": round(float(p.mean()), 6), "histogram": counts.tolist()}
        self._write(step=step, loss=loss, learning_rate=learning_rate, images_per_second=round(rate, 1), p=spread)
        facts = f"loss {loss:.4f}  {rate:,.0f} images/s"
        self.bar.update(self.task, completed=step, facts=facts)
        if not console.is_terminal and (step // self.every) % 10 == 0:
            say(f"step {step}/{self.steps}  {facts}")

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """What the validation classes say. The time that it took is not counted as training speed."""
        self._write(step=step, validation=metrics)
        recall, precision = 100 * metrics["recall@1"], 100 * metrics["map@r"]
        say(f"step {step}/{self.steps}  validation: R@1 {recall:.1f} %, MAP@R {precision:.1f} %")
        self.seen, self.since = step, time.perf_counter()

    def _write(self, **line: object) -> None:
        self.file.write(json.dumps(line) + "\n")
