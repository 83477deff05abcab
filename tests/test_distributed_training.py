"""Two processes train one network by the steps that one process would take."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from metricweight.settings import read
from metricweight.training import checkpoint
from metricweight.training.loop import train

# a network without batch statistics: its batch normalisation is frozen
WORDS = [
    "data.size=16", "data.transform=crop", "model.backbone=small_cnn", "model.embedding_size=8", "data.workers=0",
    "model.frozen_batch_norm=true", "batch.classes=4", "batch.images=3", "steps=6", "validations=2", "ks=[1]",
    "optimizer.name=sgd", "optimizer.learning_rate=0.05", "plus=[{name: imae, weight: 0.5}]", "memory.size=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    draw = np.random.default_rng(1)
    for label in range(12):
        for number in range(3):
            path = folder / f"class {label:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(path)
    return folder


def launch(photos, run, *more):
    """Two processes, by torchrun."""
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "metricweight", "train", "folder", f"data.root={photos}", *WORDS, *more, "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *how, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory):
    words = [f"data.root={photos}", *WORDS]
    return train(read("folder", words), "folder", tmp_path_factory.mktemp("alone") / "run")


def learned(run):
    state = checkpoint.latest(run)
    return {**state["model"], **state["objective"]}


@pytest.mark.parametrize("more", [[], ["batch.chunk=2"]], ids=["whole", "chunks"])
def test_two_processes_come_to_the_weights_and_the_report_of_one(photos, alone, tmp_path, more):
    two = tmp_path / "two"
    process = launch(photos, two, *more)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    expected, found, initial = learned(alone), learned(two), checkpoint.initial(alone)["model"]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name].double(), value.double(), rtol=0, atol=1e-6), name
    moved = max(float((value - expected[name]).abs().max()) for name, value in initial.items())
    assert moved > 1e-3  # they all moved much more than they differ
    assert out.count("Everything is in") == 1  # one process speaks
    reports = [json.loads((run / "report.json").read_text())["models"] for run in (alone, two)]
    assert reports[0]["pixels"] == reports[1]["pixels"]
    for name in ("untrained", "trained"):
        numbers = [report[name]["test"]["map@r"] for report in reports]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)
    losses = [[json.loads(line).get("loss") for line in (run / "metrics.jsonl").open()] for run in (alone, two)]
    assert len(losses[0]) == len(losses[1]) == 8
    for a, b in zip(*losses, strict=True):
        assert a == b is None or a == pytest.approx(b, abs=1e-5)


def test_when_a_process_is_lost_all_end_and_the_run_goes_on_later(photos, tmp_path):
    run = tmp_path / "run"
    process = launch(photos, run, "steps=100000", "checkpoints.every=1")
    deadline = time.monotonic() + 90
    while len(list(run.glob("checkpoints/*.pt"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    out, _ = process.communicate(timeout=90)
    assert process.returncode != 0, out
    state = checkpoint.latest(run)
    assert state["step"] >= 2


EACH_PROCESS = """
import sys
import numpy as np
import torch
from metricweight.settings import read
from metricweight.training import pictures
from metricweight.training.distributed import joined
from metricweight.training.engine import gradients, prepared, update
from metricweight.training.judging import validate
from metricweight.training.loop import coming

pictures.BLOCK = 4  # so that each process embeds some of the validation pictures


def stepped(words, processes):
    t = prepared(read("folder", words), processes)
    batches = coming(t)
    for _ in range(3):
        gradients(t, [next(batches)])
        update(t)
    batches.close()
    return t


def validated(processes):
    t = stepped(sys.argv[1:], processes)
    before = {name: x.clone() for name, x in t.model.named_buffers()}
    told = processes.all_tell(before)
    assert any(not torch.equal(told[0][name], told[1][name]) for name in before)  # each has those of its own batches
    assert validate(t)
    for name, value in t.model.named_buffers():
        assert torch.equal(value, told[0][name]), name


def trained_in_part(processes):
    timm = ["model.backbone=timm:convnext_atto", "model.pooling=gem", "data.size=32"]
    t = stepped([*sys.argv[1:], *timm], processes)  # its own last norm is left without use
    norms = processes.all_tell([float(p.detach().norm()) for p in t.model.parameters()])
    assert np.allclose(norms[0], norms[1], rtol=1e-6)


with joined("cpu") as processes:
    validated(processes)
    trained_in_part(processes)
    sys.stdout.write("both right\\n")
"""


def test_processes_validate_one_network_and_train_those_that_use_a_part_of_themselves(photos, tmp_path):
    pytest.importorskip("timm")
    (tmp_path / "each.py").write_text(EACH_PROCESS)
    words = [f"data.root={photos}", *WORDS, "model.frozen_batch_norm=false", "data.validation=0.3"]
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "each.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *how, *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("both right") == 2
