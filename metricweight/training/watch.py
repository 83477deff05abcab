"""Looks at every step, and stops a training that can come to nothing."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metricweight.checks import InputError
from metricweight.files import write_text
from metricweight.training import checkpoint
from metricweight.training.engine import Done, Training
from metricweight.training.statistics import weight_statistics

LOWER = (
    "lower optimizer.learning_rate in a new run (one that goes on keeps its own; model.weights=RUN/checkpoint.pt "
    "starts from the network of another)"
)
COLLAPSED = 1e-3  # spread of a batch below which its embeddings are one point


class Watch:
    """Looks at the loss of every step, and stops a training that has diverged or collapsed.

    On a CPU each step is looked at before it is taken; on a GPU when the next one is under way, so that nothing waits.
    """

    def __init__(self, t: Training, run: Path) -> None:
        self.t, self.run = t, run
        self.before: tuple[Tensor, int, Tensor, torch.cuda.Event] | None = None

    def look(self, done: Done, closely: bool) -> dict[str, Any]:
        """Raises InputError where the loss is not finite. `closely`: also where the batch has collapsed; and says how
        the weights were spread."""
        t = self.t
        if self.before is not None:
            loss, step, indices, event = self.before
            event.synchronize()
            self.before = None
            self._check(float(loss), step, indices)
        if t.processes.device == "cpu" or closely:
            self._check(float(done.loss), t.step + 1, done.indices)
        else:
            loss, event = torch.empty((), pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
            loss.copy_(done.loss, non_blocking=True)
            event.record()
            self.before = loss, t.step + 1, done.indices, event
        if not closely:
            return {}
        facts = weight_statistics(t.objective, done.judged, done.embeddings, done.gradient, done.labels, t.step)
        if len(done.labels) > 1 and facts["spread"] is not None and facts["spread"] < COLLAPSED:
            self._stop(
                f"the embeddings have collapsed: those of a batch differ by {facts['spread']:.1e} of their length",
                t.step + 1,
                done.indices,
                f"{LOWER}, or choose another loss or margin",
            )
        return facts

    def check_weights(self, done: Done) -> None:
        """Raises InputError where what was learned is not finite, so that no such checkpoint is written."""
        learned = (p for group in self.t.optimizer.param_groups for p in group["params"])
        if not all(bool(torch.isfinite(p).all()) for p in learned):
            self._stop(
                "the weights are not finite", self.t.step, done.indices, f"{LOWER}, or set optimizer.clip=1"
            )  # fmt: skip

    def _check(self, loss: float, step: int, indices: Tensor) -> None:
        if not math.isfinite(loss):
            self._stop(f"the loss is {loss}", step, indices, f"the training has diverged; {LOWER}")

    def _stop(self, why: str, step: int, indices: Tensor, advice: str) -> None:
        t = self.t
        names = [t.images.names[i] for i in indices.tolist()]
        if t.processes.first:
            facts = {"step": step, "reason": why, "pictures": names}
            write_text(self.run / "stopped.json", json.dumps(facts, indent=2) + "\n")
        raise InputError(
            f"{why} at step {step}: {advice}. The pictures of its batch, such as {names[0]}, are listed in "
            f"{self.run / 'stopped.json'}; the checkpoints before it are in {self.run / checkpoint.STATES}."
        )
