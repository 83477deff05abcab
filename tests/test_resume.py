"""A training that is killed goes on to the weights that it would have come to."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from metricweight.checks import InputError
from metricweight.settings import read
from metricweight.training import checkpoint, loop
from metricweight.training.loop import train

# everything that has a state: a classifier, a memory, attention, an average, momentum, a schedule, drawn crops
WORDS = [
    "data.size=16", "data.transform=crop", "model.backbone=small_cnn", "model.embedding_size=8", "data.workers=0",
    "batch.classes=4", "batch.images=2", "steps=24", "validations=2", "checkpoints.every=1", "checkpoints.keep=3",
    "loss.name=online_soft_mining", "attention.form=poster", "plus=[{name: proselflc, weight: 0.3}]",
    "memory.size=32", "memory.start=3", "optimizer.name=sgd", "optimizer.learning_rate=0.01", "ema=0.9",
    "optimizer.schedule=steps", "optimizer.milestones=[10,20]", "batch.accumulate=2", "ks=[1]",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    draw = np.random.default_rng(0)
    for label in range(16):
        mean = draw.integers(0, 256, (1, 1, 3))
        for number in range(4):
            path = folder / f"class {label:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = draw.integers(-60, 60, (24, 20, 3))
            Image.fromarray((mean + noise).clip(0, 255).astype(np.uint8)).save(path)
    return folder


def words(photos, *more):
    return [f"data.root={photos}", *WORDS, *more]


def weights(run):
    """All that was learned: of the last state, and of the network that is tested."""
    state = checkpoint.latest(run)
    found = [state["model"], state["objective"], state["average"], checkpoint.load(run)[2]["model"]]
    optimizer = [value for part in state["optimizer"]["state"].values() for value in part.values()]
    return [*(tensor for part in found for tensor in part.values()), *optimizer]


def same(a, b):
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def uninterrupted(photos, tmp_path_factory):
    return train(read("folder", words(photos)), "folder", tmp_path_factory.mktemp("runs") / "whole")


def start(photos, run):
    command = [sys.executable, "-m", "metricweight", "train", "folder", *words(photos)]
    return subprocess.Popen([*command, "--out", str(run), "--resume"], start_new_session=True, stdout=subprocess.PIPE)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(photos, uninterrupted, tmp_path):
    run, draw = tmp_path / "killed", random.Random(0)
    for _ in range(4):
        process = start(photos, run)
        before = set(run.glob("checkpoints/*.pt"))
        more = draw.randrange(1, 4)
        while len(set(run.glob("checkpoints/*.pt")) - before) < more:  # a checkpoint each step: most of the time is
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(draw.random() * 0.1)  # spent on writing them, so some kills come in the midst of it
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert 0 < checkpoint.latest(run)["step"] < 24
    train(read("folder", words(photos)), "folder", run, resume=True)
    assert same(weights(run), weights(uninterrupted))
    numbers = [json.loads((folder / "report.json").read_text())["models"] for folder in (run, uninterrupted)]
    assert numbers[0] == numbers[1]
    assert not list(run.glob("checkpoints/.*"))  # nothing half written is left


@pytest.fixture
def stopped(photos, tmp_path, monkeypatch):
    """A run that was stopped after 12 steps."""

    class Killed(BaseException):
        pass

    own = loop.update

    def until_12(t):
        own(t)
        if t.step == 13:
            raise Killed

    monkeypatch.setattr(loop, "update", until_12)
    with pytest.raises(Killed):
        train(read("folder", words(photos)), "folder", tmp_path / "run")
    monkeypatch.setattr(loop, "update", own)
    return tmp_path / "run"


def test_a_run_goes_on_where_it_was_and_its_log_has_each_step_once(photos, stopped, uninterrupted, capfd):
    train(read("folder", words(photos)), "folder", stopped, resume=True)
    assert "goes on after step 12 of 24" in capfd.readouterr().out
    assert same(weights(stopped), weights(uninterrupted))
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (stopped, uninterrupted)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    assert [line.get("loss") for line in logs[0]] == [line.get("loss") for line in logs[1]]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(photos, stopped, uninterrupted, capfd):
    newest = sorted(stopped.glob("checkpoints/*.pt"))[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1  # one bit
    newest.write_bytes(data)
    train(read("folder", words(photos)), "folder", stopped, resume=True)
    out = capfd.readouterr().out
    assert f"{newest} is damaged" in out
    assert "goes on after step 11 of 24" in out
    assert same(weights(stopped), weights(uninterrupted))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optimizer.learning_rate=0.02", r"optimizer.learning_rate was 0.01, and is 0.02"),
        ("batch.images=3", r"batch.images was 2, and is 3"),
        ("plus=[]", r"plus was"),
        ("seed=1", r"seed was 0, and is 1.*metricweight train \S+/settings.yaml --out \S+ --resume"),
    ],
)
def test_a_setting_that_changed_is_refused_with_what_it_was(photos, stopped, word, message):
    with pytest.raises(InputError, match=message):
        train(read("folder", words(photos, word)), "folder", stopped, resume=True)


def test_other_pictures_are_refused_and_what_changes_no_number_is_not(photos, stopped, uninterrupted, tmp_path):
    other = tmp_path / "other"
    os.symlink(photos, other)
    train(read("folder", [*words(photos), f"data.root={other}", "data.workers=1"]), "folder", stopped, resume=True)
    assert same(weights(stopped), weights(uninterrupted))
    changed = tmp_path / "changed"
    subprocess.run(["cp", "-r", photos, changed], check=True)
    (changed / "class 03" / "1.png").unlink()
    with pytest.raises(InputError, match=r"the pictures, labels or splits of .*changed are others"):
        train(read("folder", [*words(photos), f"data.root={changed}"]), "folder", stopped, resume=True)


def test_a_full_disk_is_said_and_what_was_saved_is_gone_on_with(photos, stopped, uninterrupted, monkeypatch):
    own = torch.save

    def full(state, file):
        if state.get("step") == 15:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        own(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(InputError, match=r"step 15 cannot be written .*No space left on device.*--resume"):
            train(read("folder", words(photos)), "folder", stopped, resume=True)
    train(read("folder", words(photos)), "folder", stopped, resume=True)
    assert same(weights(stopped), weights(uninterrupted))


def test_only_the_last_states_and_the_first_are_kept(uninterrupted):
    names = [path.stem for path in sorted(uninterrupted.glob("checkpoints/*.pt"))]
    assert names == ["00000000", "00000022", "00000023", "00000024"]


def test_to_go_on_needs_the_folder(photos):
    with pytest.raises(InputError, match="--resume goes on with the run in --out: give --out"):
        train(read("folder", words(photos)), "folder", resume=True)


def test_to_go_on_nothing_is_needed_that_the_network_started_from(photos, uninterrupted, tmp_path):
    weights_file, run = tmp_path / "weights.pt", tmp_path / "run"
    weights_file.write_bytes((uninterrupted / "checkpoint.pt").read_bytes())
    given = words(photos, f"model.weights={weights_file}", "steps=2", "validations=1", "memory.start=1")
    train(read("folder", given), "folder", run)
    (run / "checkpoints" / "00000002.pt").unlink()
    weights_file.unlink()
    train(read("folder", given), "folder", run, resume=True)
    assert checkpoint.latest(run)["origin"]["weights"].endswith("weights.pt")
    assert checkpoint.load(run)[0].origin["sha256"]


def test_a_deep_network_that_starts_as_one_point_trains_all_the_same(photos, tmp_path, monkeypatch, capfd):
    from metricweight.training import judging

    class OnePoint(judging.RawPixels):
        def forward(self, images):
            return torch.ones(len(images), 4)

    monkeypatch.setattr(judging, "RawPixels", OnePoint)
    run = train(read("folder", words(photos, "steps=2", "validations=1", "memory.start=1")), "folder", tmp_path / "run")
    assert set(json.loads((run / "report.json").read_text())["models"]) == {"untrained", "trained"}
    assert "pixels: no report, " in capfd.readouterr().out


@pytest.fixture
def finished(photos, tmp_path):
    """A short run that came to its end."""
    given = read("folder", words(photos, "steps=4", "optimizer.milestones=[2]", "memory.start=1"))
    return given, train(given, "folder", tmp_path / "run")


def test_a_finished_run_whose_checkpoints_are_gone_or_damaged_is_not_thrown_away(finished):
    given, run = finished
    report = (run / "report.json").read_bytes()
    states = sorted(run.glob("checkpoints/*.pt"))
    for path in states:
        path.write_bytes(path.read_bytes()[:999])
    with pytest.raises(InputError, match=r"cannot go on: all its checkpoints are damaged. To begin anew: --overwrite"):
        train(given, "folder", run, resume=True)
    for path in run.glob("checkpoints/*"):
        path.unlink()
    with pytest.raises(InputError, match=r"cannot go on: .*checkpoints holds no checkpoint. To begin anew: --overwr"):
        train(given, "folder", run, resume=True)
    assert (run / "report.json").read_bytes() == report


def test_a_finished_run_gives_its_report_again_also_without_its_first_checkpoint(finished, capfd):
    given, run = finished
    models = json.loads((run / "report.json").read_text())["models"]
    (run / "checkpoints" / "00000000.pt").write_bytes(b"nothing")
    train(given, "folder", run, resume=True)
    again = json.loads((run / "report.json").read_text())
    assert again["models"]["trained"] == models["trained"]
    assert set(again["models"]) == {"pixels", "trained"}
    assert "The network as it was before the training is not tested" in capfd.readouterr().out
    assert again["training_seconds"] > 0  # of all its stretches


def test_no_checkpoint_of_weights_that_are_not_finite_is_written(photos, tmp_path, monkeypatch):
    own = loop.gradients

    def spoiled(t, micro):
        done = own(t, micro)
        if t.step == 5:  # a finite loss whose gradient is not
            next(iter(t.model.parameters())).grad.fill_(float("nan"))
        return done

    monkeypatch.setattr(loop, "gradients", spoiled)
    with pytest.raises(
        InputError, match=r"the weights are not finite at step 6: lower optimizer.learning_rate in a new"
    ):
        train(read("folder", words(photos)), "folder", tmp_path / "run")
    assert checkpoint.latest(tmp_path / "run")["step"] == 5
    assert json.loads((tmp_path / "run" / "stopped.json").read_text())["step"] == 6
    monkeypatch.setattr(loop, "gradients", own)
    train(read("folder", words(photos)), "folder", tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "stopped.json").exists()


def test_of_another_loss_its_name_is_the_difference(photos, stopped):
    other = [*words(photos), "attention.form=null", "loss.name=triplet"]
    with pytest.raises(InputError, match=r"loss.name was online_soft_mining, and is triplet") as raised:
        train(read("folder", other), "folder", stopped, resume=True)
    assert "loss.margin" not in str(raised.value)


def test_a_checkpoint_is_due_when_some_minutes_have_passed(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "KEEP_EVERY", -1)
    kept = words(photos, "checkpoints.every=null", "steps=6", "validations=1", "optimizer.milestones=[2]")
    run = train(read("folder", kept), "folder", tmp_path / "run")
    assert [path.stem for path in sorted(run.glob("checkpoints/*.pt"))] == [f"{n:08d}" for n in (0, 4, 5, 6)]


def test_a_passing_trouble_harms_no_checkpoint(finished, monkeypatch):
    given, run = finished
    names = sorted(path.name for path in run.glob("checkpoints/*"))

    def no_memory(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", no_memory)
        with pytest.raises(InputError, match="out of memory"):
            train(given, "folder", run, resume=True)
    assert sorted(path.name for path in run.glob("checkpoints/*")) == names
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SCHEMA", 99)
        with pytest.raises(InputError, match=r"another version of metricweight \(schema 2, this one reads 99\)"):
            train(given, "folder", run, resume=True)
    assert sorted(path.name for path in run.glob("checkpoints/*")) == names
    (run / "checkpoints" / ".ipynb_checkpoints").mkdir()
    train(given, "folder", run, resume=True)


def test_a_larger_k_that_cannot_be_is_refused_before_the_steps_that_are_left(photos, stopped):
    with pytest.raises(InputError, match="K = 100000"):
        train(read("folder", words(photos, "ks=[100000]")), "folder", stopped, resume=True)
    assert checkpoint.latest(stopped)["step"] == 12


def test_fewer_images_at_a_time_may_go_on_after_too_little_memory(photos, stopped):
    train(read("folder", words(photos, "batch.chunk=4")), "folder", stopped, resume=True)
    assert checkpoint.latest(stopped)["step"] == 24


def test_states_alone_are_enough_to_go_on(photos, stopped, uninterrupted, tmp_path):
    copied = tmp_path / "copied"
    copied.mkdir()
    (stopped / "checkpoints").rename(copied / "checkpoints")
    (copied / "checkpoint.pt").write_bytes((stopped / "checkpoint.pt").read_bytes())
    train(read("folder", words(photos)), "folder", copied, resume=True)
    assert same(weights(copied), weights(uninterrupted))
    assert read(str(copied / "settings.yaml")) == read("folder", words(photos))
    assert (copied / "labels.csv").stat().st_size > 0
