"""The run folder: made once, never written over by accident, and the network in it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metricweight.checks import InputError
from metricweight.files import whole_file
from metricweight.models.heads import embedder
from metricweight.settings import Settings, resolve

FILES = (
    "settings.yaml", "environment.json", "labels.csv", "metrics.jsonl", "checkpoint.pt", "embeddings.npz",
    "report.json", "report.md", "report.csv", "report.tex", "report.queries.csv", "report.classes.csv",
)  # fmt: skip


@contextmanager
def claimed_folder(out: Path | None, recipe: str, overwrite: bool) -> Iterator[Path]:
    """A folder for a run: `out`, or a new `runs/<recipe>-<date-time>`.

    An empty settings.yaml holds the place, so that of two runs which want the same folder one is refused. Nothing
    that is there is deleted yet, and if the block fails before the run has written anything, nothing stays behind.

    Raises InputError where `out` already holds a run, unless `overwrite` says that it may go, and where it cannot be
    written.
    """
    try:
        run = _make_new(Path("runs") / f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}") if out is None else out
        held = [file for file in FILES if (run / file).exists()]
        if held and not overwrite:
            raise InputError(
                f"{run} already holds a run ({', '.join(held)}); choose another --out, or add --overwrite."
            )
        run.mkdir(parents=True, exist_ok=True)
        if not held:
            (run / "settings.yaml").touch(exist_ok=False)
    except OSError as error:
        where = out or Path("runs").absolute()
        raise InputError(f"cannot write to {where}: {error.strerror}; choose another folder with --out.") from None
    try:
        yield run
    except BaseException:
        with suppress(OSError):
            if not held and not (run / "settings.yaml").stat().st_size:
                (run / "settings.yaml").unlink()
                run.rmdir()  # which only an empty folder allows
        raise


def clear(run: Path) -> None:
    """Takes away the files of an earlier run, and no others; settings.yaml holds the place until it is replaced."""
    for file in (*FILES, "emphasis.png"):
        if file != "settings.yaml":
            (run / file).unlink(missing_ok=True)


def _make_new(folder: Path) -> Path:
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        attempt = folder.with_name(folder.name + suffix)
        try:
            attempt.mkdir(parents=True)
        except FileExistsError:
            continue
        return attempt
    raise FileExistsError(17, "a hundred runs began in this second", str(folder))


def save(run: Path, model: nn.Module, objective: nn.Module, settings: Settings, channels: int, step: int) -> None:
    """Writes checkpoint.pt: what `load` needs to embed again, what else was learned, and the step it was saved at."""
    state = {
        "schema": 1,
        "step": step,
        "channels": channels,
        "settings": settings.model_dump(mode="json"),
        "model": _on_cpu(model),
        "objective": _on_cpu(objective),  # the classifier, and the state of the loss
    }
    with whole_file(run / "checkpoint.pt") as file:
        torch.save(state, file)


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in module.state_dict().items()}


def load(run: Path) -> tuple[nn.Module, Settings, int]:
    """The network of a run, ready to embed, with its settings and its number of channels."""
    path = run / "checkpoint.pt"
    if not path.is_file():
        raise InputError(f"{run} holds no checkpoint.pt; give the folder that `metricweight train` wrote.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        settings = resolve(state["settings"])
        network = settings.model.model_copy(update={"pretrained": False})
        model = embedder(network.backbone, state["channels"], network.embedding_size)
        model.load_state_dict(state["model"])
    except InputError:
        raise
    except Exception as error:  # a damaged file fails in many ways, all of them meaning the same
        raise InputError(f"{path} is damaged or not a checkpoint of ours: {error}") from None
    return model.eval(), settings, state["channels"]


def environment(settings: Settings, device: str) -> str:
    """What a run was made with, as JSON."""
    packages = ("metricweight", "torch", "torchvision", "faiss-cpu", "numpy", "scikit-learn", "matplotlib", "pillow")
    facts: dict[str, Any] = {
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": settings.seed,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }
    return json.dumps(facts, indent=2) + "\n"


def _commit() -> str | None:
    """The commit of metricweight's own checkout, with '+' where files differ from it; None where it is no checkout."""
    home = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", home, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != home.resolve():
            return None  # installed, below somebody else's checkout
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
