"""The log of a training: metrics.jsonl, TensorBoard, a progress bar on a terminal, plain lines elsewhere."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from metricweight.checks import InputError
from metricweight.files import write_text
from metricweight.progress import console, say


@contextmanager
def training_log(run: Path | None, done: int, steps: int, tensorboard: bool = False) -> Iterator["TrainingLog"]:
    """A log that writes the lines of RUN/metrics.jsonl, and shows steps, loss, images/s and the time left.

    run          None: nothing is written, as by the processes of a training that are not the first
    done         steps that are behind: what the log says of later ones is taken out, they are trained again
    tensorboard  also events in RUN/tensorboard

    Raises what `event_writer` raises.
    """
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with ExitStack() as open_files:
        file = board = None
        if run is not None:
            path = run / "metrics.jsonl"
            kept = path.read_text(encoding="utf-8").splitlines(keepends=True) if done and path.is_file() else []
            write_text(path, "".join(line for line in kept if _is_before(line, done)))
            file = open_files.enter_context(open(path, "a", encoding="utf-8", buffering=1))
            if tensorboard:
                board = open_files.enter_context(event_writer()(str(run / "tensorboard"), purge_step=done + 1))
        bar = Progress(*columns, *times, console=console, disable=not console.is_terminal)
        yield TrainingLog(file, board, open_files.enter_context(bar), done, steps)


def _is_before(line: str, done: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= done)
    except (ValueError, KeyError):
        return False  # it was cut short when the process was killed


def event_writer() -> Any:
    """torch's writer of TensorBoard events. Raises InputError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "tensorboard=true needs the package tensorboard: pip install 'metricweight[tensorboard]'."
        ) from None
    return SummaryWriter


class TrainingLog:
    def __init__(self, file: TextIO | None, board: Any, bar: Progress, done: int, steps: int) -> None:
        self.file, self.board, self.bar, self.steps = file, board, bar, steps
        self.task = bar.add_task("training", total=steps, completed=done, facts="")
        self.every = max(1, steps // 100)
        self.seen, self.since, self.waited = done, time.perf_counter(), 0.0

    def due(self, step: int) -> bool:
        """Whether this step is one to report: a hundred of them, and the last."""
        return step % self.every == 0 or step == self.steps

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the next batch is waited for."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def step(self, step: int, loss: float, images: int, facts: Mapping[str, Any]) -> None:
        """What is known of a step that is due.

        images  of each step since the last that was reported
        facts   what else there is to say: learning rates, how its weights were spread
        """
        seconds = time.perf_counter() - self.since
        speed = (step - self.seen) * images / seconds
        line = {
            "step": step,
            "loss": loss,
            "images_per_second": round(speed, 1),
            "data_wait": round(self.waited / seconds, 4),  # share of the time
            **facts,
        }
        if torch.cuda.is_available():
            line["gpu_bytes"] = torch.cuda.max_memory_allocated()
        self._starts_anew(step)
        self._write(line)
        shown = f"loss {loss:.4f}  {speed:,.0f} images/s"
        self.bar.update(self.task, completed=step, facts=shown)
        if not console.is_terminal and (step // self.every) % 10 == 0:
            say(f"step {step}/{self.steps}  {shown}")

    def validation(self, step: int, metrics: Mapping[str, float], what: str) -> None:
        """What the validation classes say. The time that it took is not counted as training speed."""
        self._write({"step": step, what: dict(metrics)})
        recall, precision = 100 * metrics["recall@1"], 100 * metrics["map@r"]
        say(f"step {step}/{self.steps}  {what}: R@1 {recall:.1f} %, MAP@R {precision:.1f} %")
        self._starts_anew(step)

    def _starts_anew(self, step: int) -> None:
        self.seen, self.since, self.waited = step, time.perf_counter(), 0.0

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in _numbers(line):
                self.board.add_scalar(name, value, line["step"])


def _numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            yield prefix + name, value
