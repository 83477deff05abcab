"""The run folder: made once, never written over by accident, and the network in it."""

import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metricweight.checks import InputError
from metricweight.files import whole_file
from metricweight.models.heads import Embedder, embedder
from metricweight.progress import say
from metricweight.settings import Settings, flat, resolve
from metricweight.training.distributed import Processes

FILES = (
    "settings.yaml", "environment.json", "labels.csv", "metrics.jsonl", "checkpoint.pt", "embeddings.npz",
    "report.json", "report.md", "report.csv", "report.tex", "report.queries.csv", "report.classes.csv",
)  # fmt: skip
MAYBE = ("emphasis.png", "stopped.json")  # written by what not every run comes to
STATES = "checkpoints"  # folder of the states that a training goes on from
SCHEMA = 2
ANYWHERE = (
    "data.root",
    "data.workers",
    "data.cache",
    "device",
    "checkpoints.keep",
    "tensorboard",
    "ks",
    "batch.chunk",
    "data.damaged",
)  # may differ when a run goes on

State = dict[str, Any]


@contextmanager
def claimed_folder(out: Path | None, recipe: str, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """A folder for a run: `out`, or a new `runs/<recipe>-<date-time>`.

    An empty settings.yaml holds the place, so that of two runs which want the same folder one is refused. Nothing
    that is there is deleted yet, and if the block fails before the run has written anything, nothing stays behind.

    Raises InputError where `out` already holds a run, unless `overwrite` says that it may go or `resume` that it goes
    on, and where it cannot be written.
    """
    try:
        run = _make_new(Path("runs") / f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}") if out is None else out
        held = [file for file in FILES if (run / file).exists()]
        if held and not (overwrite or resume):
            raise InputError(
                f"{run} already holds a run ({', '.join(held)}); choose another --out, add --resume to go on with it, "
                "or --overwrite."
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


def is_described(run: Path) -> bool:
    """Whether the run's settings are in its folder, and not only an empty file that holds the place."""
    path = run / "settings.yaml"
    return path.is_file() and path.stat().st_size > 0


def clear(run: Path) -> None:
    """Takes away the files of an earlier run, and no others; settings.yaml holds the place until it is replaced."""
    states = sorted(f"{STATES}/{path.name}" for path in (run / STATES).glob("[0-9]*"))[::-1]
    for file in (*states, *FILES, *MAYBE):  # states first: without them nobody goes on with a half of it
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


def save(run: Path, state: State, keep: int) -> None:
    """Writes the state of a training after `state["step"]` steps, whole, and keeps the last `keep` and the first.

    Raises InputError where it cannot be written; the states before it are still there then.
    """
    _write(run / STATES / f"{state['step']:08d}.pt", state)
    for old in _states(run)[1:-keep]:
        old.unlink(missing_ok=True)


def _write(path: Path, state: State) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch has its own words for a disk that takes no more
        full = "no more can be written there; is the disk full?"
        why = full if isinstance(error, RuntimeError) else f"{error.strerror or error}"
        raise InputError(
            f"the checkpoint of step {state['step']} cannot be written to {path} ({why}). Make room, and go on from "
            "the one before with --resume."
        ) from None


def latest(run: Path) -> State | None:
    """The last state of a run that is whole; None where there is none. One that is damaged is named and passed over.

    Raises InputError where a state is of another version.
    """
    for half_written in (*run.glob(".checkpoint.pt.*"), *(run / STATES).glob(".[0-9]*.pt.*")):
        half_written.unlink(missing_ok=True)  # the process that wrote it was killed
    damaged: list[Path] = []
    for path in reversed(_states(run)):
        try:
            state = read(path)
        except DamagedError as error:
            say(f"{error} The one before it is taken.")
            damaged.append(path)
            continue
        for other in damaged:
            with suppress(OSError):
                other.rename(other.with_suffix(".damaged"))  # so that it does not count as one of those to keep
        return state
    return None


def check_unused(run: Path) -> None:
    """Raises InputError where a run that has no state to go on from has come to something that would be lost."""
    damaged = _states(run)
    if damaged or (run / "report.json").exists():
        why = "all its checkpoints are damaged" if damaged else f"{run / STATES} holds no checkpoint"
        raise InputError(f"{run} holds a run that cannot go on: {why}. To begin anew: --overwrite.")


def initial(run: Path) -> State:
    """The state that a run started with."""
    return read(run / STATES / f"{0:08d}.pt")


def _states(run: Path) -> list[Path]:
    return sorted((run / STATES).glob("[0-9]*.pt"))


class DamagedError(InputError):
    """A checkpoint that can never be read again."""


def read(path: Path) -> State:
    """A checkpoint of ours.

    Raises InputError where it is not there or of another version, `DamagedError` where it is damaged. What the disk or
    the memory says now, and may not say later, is raised as it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums in the file
            if (wrong := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {wrong} is wrong")
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        schema = state["schema"]
    except FileNotFoundError:
        raise InputError(f"{path} is not there.") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in many ways, all of them meaning the same
        raise DamagedError(f"{path} is damaged or not a checkpoint of ours ({error}).") from None
    if schema != SCHEMA:
        raise InputError(
            f"{path} is of another version of metricweight (schema {schema}, this one reads {SCHEMA}); "
            "use that version, or train anew."
        )
    return state


def check_same(state: State, settings: Settings, stamp: str, run: Path) -> None:
    """Raises InputError, with every difference, where a run would not go on as what it was."""
    before, now = flat(resolve(state["settings"])), flat(settings)
    other_loss = before["loss.name"] != now["loss.name"]
    changed = [
        f"{key} was {before.get(key, 'not given')}, and is {now.get(key, 'not given')}"
        for key in dict.fromkeys((*before, *now))
        if before.get(key) != now.get(key)
        and key.split(".")[0] not in ANYWHERE
        and key not in ANYWHERE
        and not (other_loss and key.startswith("loss.") and key != "loss.name")
    ]
    if state["stamp"] != stamp:
        changed.append(f"the pictures, labels or splits of {settings.data.root or settings.data.source} are others")
    if changed:
        raise InputError(
            f"{run} cannot go on with other settings or data: {'; '.join(changed)}. Give those that it began with "
            f"(metricweight train {run}/settings.yaml --out {run} --resume), or train anew with --overwrite."
        )


def save_network(run: Path, state: State) -> None:
    """Writes checkpoint.pt, the network that is tested, with what `load` needs to embed with it again."""
    _write(run / "checkpoint.pt", {"schema": SCHEMA, **state})


def on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def load(run: Path) -> tuple[Embedder, Settings, State]:
    """The network of a run, ready to embed, with its settings and its checkpoint.

    run  its folder, or a checkpoint in it: of the state of a training, its average, if it has one
    """
    path = run if run.is_file() else run / "checkpoint.pt"
    if not path.is_file():
        raise InputError(f"{run} holds no checkpoint.pt; give the folder that `metricweight train` wrote.")
    state = read(path)
    try:
        settings = resolve(state["settings"])
        model = blank(settings, state["channels"])
        model.load_state_dict(learned_of(state, "model"))
        model.origin = dict(state["origin"])
    except (RuntimeError, KeyError) as error:
        raise InputError(f"{path} does not fit this version of metricweight: {error}") from None
    return model.eval(), settings, state


def learned_of(state: Mapping[str, Any], part: Literal["model", "objective"]) -> Mapping[str, Tensor]:
    """What the network or the objective of a state has learned: its average, where the training has one."""
    own = {"model": "module.0.", "objective": "module.1."}[part]
    average = state.get("average") or {}
    learned: Mapping[str, Tensor] = state[part]
    return {name.removeprefix(own): x for name, x in average.items() if name.startswith(own)} or learned


def blank(settings: Settings, channels: int) -> Embedder:
    """The network of some settings, for weights that are there already: nothing is fetched."""
    return embedder(channels, **{**settings.model.model_dump(), "pretrained": False, "weights": None})


def environment(settings: Settings, processes: Processes, weights: Mapping[str, str]) -> str:
    """What a run was made with, as JSON."""
    packages = ("metricweight", "torch", "torchvision", "faiss-cpu", "numpy", "scikit-learn", "matplotlib", "pillow")
    facts: dict[str, Any] = {
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": settings.seed,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if processes.device.startswith("cuda") else "cpu",
        "processes": processes.size,
        "weights": dict(weights),
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
