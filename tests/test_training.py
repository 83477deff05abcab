"""A run: what it leaves, that it can be repeated, stopped, and not be lost."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from metricweight.checks import InputError, Interrupted
from metricweight.data.loader import Wanted, batches
from metricweight.retrieval import evaluate
from metricweight.settings import OptimizerSettings, read
from metricweight.training import checkpoint
from metricweight.training.engine import rate
from metricweight.training.log import TrainingLog
from metricweight.training.loop import train
from metricweight.training.objective import Objective
from metricweight.training.pictures import load_images, view_of

FEW_GLYPHS = ["data.test=0.02", "data.validation=0.02", "steps=4", "validations=2", "batch.classes=4"]


@pytest.fixture(scope="module")
def glyphs_run(tmp_path_factory):
    return train(read("glyphs", FEW_GLYPHS), "glyphs", tmp_path_factory.mktemp("runs") / "few")


def test_a_run_leaves_everything_that_is_known_about_it(glyphs_run):
    assert sorted(path.name for path in glyphs_run.iterdir()) == sorted([*checkpoint.FILES, "checkpoints"])
    report = json.loads((glyphs_run / "report.json").read_text())
    assert report["schema"] == 2
    assert report["training_seconds"] > 0
    assert list(report["models"]) == ["pixels", "untrained", "trained"]
    for model in report["models"].values():
        found = model["test"]
        assert {"recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "map"} <= set(found)
        assert set(found["intervals"]) == set(found["ties"]) == set(found) - {"intervals", "ties", "notes", "stamp"}
        assert found["stamp"]["protocol"]["name"] == "self"
        assert found["stamp"]["data"]["source"] == "glyphs"
        assert found["stamp"]["data"]["labels_sha256"]
        assert found["stamp"]["made"]["embeddings_sha256"]
    environment = json.loads((glyphs_run / "environment.json").read_text())
    assert environment["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["seed"] == 0
    assert read(str(glyphs_run / "settings.yaml")) == read("glyphs", FEW_GLYPHS)
    table = pd.read_csv(glyphs_run / "report.csv", index_col="model")
    assert table.loc["trained", "recall@1"] == pytest.approx(report["models"]["trained"]["test"]["recall@1"])
    assert "any hit" in (glyphs_run / "report.md").read_text()


def test_the_log_has_a_line_per_reported_step_and_per_validation(glyphs_run):
    lines = [json.loads(line) for line in (glyphs_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "validation" in line] == [2, 4]


def test_each_reported_step_tells_how_p_was_spread_over_its_batch(glyphs_run):
    lines = [json.loads(line) for line in (glyphs_run / "metrics.jsonl").read_text().splitlines()]
    for p in [line["p"] for line in lines if "loss" in line]:
        counts = np.array(p["histogram"])
        assert len(counts) == 20
        assert counts.sum() == 4 * 4  # 4 classes x 4 images
        lowest, highest = ((counts * (np.arange(20) + end) / 20).sum() / 16 for end in (0, 1))
        assert lowest <= p["mean"] <= highest


@pytest.mark.parametrize(
    ("name", "weights"), [("imae", "example"), ("proselflc", "target"), ("online_soft_mining", "pair")]
)
def test_losses_of_every_kind_train_and_nothing_that_was_learned_is_lost(name, weights, tmp_path):
    settings = read("digits", ["steps=6", "validations=0", f"loss.name={name}", "seed=3"])
    assert settings.loss_row.kind == weights
    run = train(settings, "digits", tmp_path / "run")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(sum(line["p"]["histogram"]) == 80 for line in logged)
    state = torch.load(run / "checkpoint.pt", weights_only=True)["objective"]
    again = Objective(settings, torch.arange(5), 1, 64)
    again.load_state_dict(state)  # strict: all of it, and no more
    if weights == "pair":
        assert not state
        return
    assert state["labels"].tolist() == [0, 1, 2, 3, 4]
    assert state["classifiers.0.weight"].shape == (5, 64)
    short = train(settings.model_copy(update={"steps": 1}), "digits", tmp_path / "short")
    sooner = torch.load(short / "checkpoint.pt", weights_only=True)["objective"]
    for learned in ("classifiers.0.weight", "classifiers.0.bias"):
        assert not torch.equal(state[learned], sooner[learned])
    if name == "proselflc":
        assert [value for name, value in state.items() if name.endswith(".step")] == [6]
        assert settings.loss["total"] == 6


def test_a_classifier_learns_beside_the_network(tmp_path):
    words = ["steps=60", "loss.name=cce", "optimizer.learning_rate=0.002"]
    run = train(read("digits", words), "digits", tmp_path / "run")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged[0]["p"]["mean"] == pytest.approx(1 / 5, abs=0.05)  # it knows nothing yet
    assert logged[-1]["p"]["mean"] > 0.9
    assert logged[-1]["loss"] < 0.1 < 1.4 < logged[0]["loss"]  # ln 5 = 1.61


def test_the_network_starts_alike_whatever_the_loss(tmp_path):
    def untrained(name):
        run = train(read("digits", ["steps=1", f"loss.name={name}"]), "digits", tmp_path / name)
        return json.loads((run / "report.json").read_text())["models"]["untrained"]

    assert untrained("ranked_list") == untrained("imae")


def test_no_class_is_on_two_sides_and_every_class_is_listed(glyphs_run):
    table = pd.read_csv(glyphs_run / "labels.csv")
    assert table["label"].is_unique
    assert set(table["split"]) == {"train", "validation", "test"}
    tested = set(table["number"][table["split"] == "test"])
    assert set(np.load(glyphs_run / "embeddings.npz")["labels"]) == tested


def test_the_embeddings_give_the_reported_numbers_and_so_does_the_checkpoint(glyphs_run, metricweight):
    report = json.loads((glyphs_run / "report.json").read_text())["models"]["trained"]["test"]
    arrays = np.load(glyphs_run / "embeddings.npz")
    again = evaluate(arrays["embeddings"], arrays["labels"])
    assert again.metrics == {name: report[name] for name in again.metrics}
    code, _, _ = metricweight("embed", glyphs_run, "--out", "again.npz")
    assert code == 0
    assert np.array_equal(np.load("again.npz")["embeddings"], arrays["embeddings"])


def test_the_same_seed_gives_the_same_weights_and_numbers_bit_for_bit(glyphs_run, tmp_path):
    again = train(read("glyphs", FEW_GLYPHS), "glyphs", tmp_path / "again")
    other = train(read("glyphs", [*FEW_GLYPHS, "seed=1"]), "glyphs", tmp_path / "other")

    def weights(run):
        return torch.load(run / "checkpoint.pt", weights_only=True)["model"]

    def numbers(run):
        return json.loads((run / "report.json").read_text())["models"]

    assert all(torch.equal(a, b) for a, b in zip(weights(glyphs_run).values(), weights(again).values(), strict=True))
    assert numbers(glyphs_run) == numbers(again)
    assert numbers(glyphs_run)["trained"] != numbers(other)["trained"]
    assert numbers(glyphs_run)["pixels"] == numbers(other)["pixels"]  # the test images are those of data.seed


def test_an_image_is_seen_alike_in_every_test_whatever_it_comes_with():
    settings = read("glyphs").data
    images = load_images(settings)

    def seen(*indices, training=None):
        wanted = [Wanted(np.array(indices), training)]
        return next(batches(images, view_of(settings), wanted)).images

    once = seen(5, 900, 17, 20_000)
    assert torch.equal(seen(20_000, 17, 900, 5), once.flip(0))
    assert torch.equal(seen(5), once[:1])
    assert not torch.equal(seen(5, training=(0, 0)), once[:1])


def test_training_makes_the_network_better(tmp_path):
    run = train(read("glyphs", [*FEW_GLYPHS, "steps=40", "batch.classes=16"]), "glyphs", tmp_path / "run")
    models = json.loads((run / "report.json").read_text())["models"]
    recall = {name: model["test"]["recall@1"] for name, model in models.items()}
    assert recall["trained"] > max(recall["untrained"], recall["pixels"]) + 0.1


def test_the_rate_rises_over_the_warm_up_and_falls_to_nothing():
    rates = [rate(step, 100, OptimizerSettings(warmup=0.2)) for step in range(100)]
    assert rates[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert rates[19] == max(rates) == 1
    assert all(a > b for a, b in pairwise(rates[19:]))
    assert 0 < rates[-1] < 0.001
    for steps, warmup in ((1, 0.2), (5, 0.2), (3, 0.0), (3, 1.0)):
        assert all(0 < rate(step, steps, OptimizerSettings(warmup=warmup)) <= 1 for step in range(steps))


def test_the_rate_falls_by_steps_or_not_at_all():
    by_steps = OptimizerSettings(warmup=0.02, schedule="steps", milestones=[4, 6, 6], decay=0.5)
    assert [rate(step, 100, by_steps) for step in range(8)] == [0.5, 1, 1, 1, 0.5, 0.5, 0.125, 0.125]
    assert {rate(step, 9, OptimizerSettings(warmup=0, schedule="constant")) for step in range(9)} == {1}


def start(run, *words):
    command = [sys.executable, "-m", "metricweight", "train", "digits", "steps=100000", "--out", str(run), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_evaluate_it(tmp_path, metricweight):
    run = tmp_path / "run"
    process = start(run)
    time.sleep(1)
    wait_for(lambda: (run / "metrics.jsonl").exists())
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the training up to step" in err
    commands = [line.split()[1:] for line in err.splitlines() if line.startswith("  metricweight")]
    assert [words[0] for words in commands] == ["train", "embed", "evaluate"]
    assert commands[0][2:] == ["--out", str(run), "--resume"]
    for words in commands[1:]:
        code, out, problem = metricweight(*words)
        assert code == 0, problem
    assert "R@1" in out


def test_ctrl_c_at_any_moment_of_a_step_is_answered_after_a_checkpoint(tmp_path, monkeypatch):
    own = TrainingLog.step

    def interrupted(self, step, *rest):
        own(self, step, *rest)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingLog, "step", interrupted)
    with pytest.raises(Interrupted, match="up to step 2 of 3 is saved"):
        train(read("digits", ["steps=3", "validations=0"]), "digits", tmp_path / "run")
    checkpoint.load(tmp_path / "run")


def test_ctrl_c_before_the_training_says_so_and_leaves_nothing(tmp_path):
    run = tmp_path / "run"
    process = start(run)
    while "by ranked_list" not in process.stdout.readline():  # data and network are there; raw pixels come next
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # to a shell both are 130
    assert "stopped before there was anything to save" in err
    assert not run.exists()


def test_of_two_runs_that_want_one_folder_the_second_is_refused(tmp_path):
    with checkpoint.claimed_folder(tmp_path / "run", "glyphs", False):
        with (
            pytest.raises(InputError, match="already holds a run"),
            checkpoint.claimed_folder(tmp_path / "run", "glyphs", False),
        ):
            pass
        assert (tmp_path / "run").exists()


def test_a_run_killed_while_it_trains_leaves_no_half_written_file(tmp_path):
    run = tmp_path / "run"
    process = start(run, "validations=50000")  # a checkpoint every other step
    wait_for(lambda: (run / "checkpoint.pt").exists())
    time.sleep(0.5)
    process.kill()
    process.communicate()
    checkpoint.load(run)


def test_a_terminal_sees_a_bar_with_loss_speed_and_time_left(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "metricweight", "train", "glyphs", *FEW_GLYPHS, "steps=30", "--out", str(tmp_path)]
    environment = {**os.environ, "COLUMNS": "140", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait() == 0
    text = seen.decode()
    for word in ("training", "/30", "loss 0.", "images/s", "left", "validation: R@1", "| trained"):
        assert word in text


def test_a_damaged_checkpoint_is_refused(digits_run, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((digits_run / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"checkpoint.pt is damaged or not a checkpoint of ours"):
        checkpoint.load(tmp_path)
    with pytest.raises(InputError, match=r"holds no checkpoint.pt; give the folder"):
        checkpoint.load(tmp_path / "none")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    settings = read("digits", ["steps=20", "optimizer.learning_rate=1e30"])
    with pytest.raises(InputError, match=r"the loss is nan at step \d+: the training has diverged; lower"):
        train(settings, "digits", tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], 0),
        (["batch.chunk=20"], 1),
        (["batch.chunk=20", "model.frozen_batch_norm=true"], 0),
        (["batch.chunk=80"], 0),
    ],
)
def test_batch_normalisation_over_chunks_is_told_once(words, said, tmp_path, capfd):
    train(read("digits", ["steps=2", *words]), "digits", tmp_path / "run")
    assert capfd.readouterr().out.count("Batch normalisation goes by the statistics of each chunk") == said


def test_the_log_has_the_rate_of_each_part_that_has_its_own(tmp_path):
    words = ["steps=2", "optimizer.factors={head: 10, block1: 0.5}", "optimizer.learning_rate=0.0001"]
    run = train(read("digits", words), "digits", tmp_path / "run")
    rates = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["learning_rate"]
    base = rates["default"]
    assert rates == {"default": base, "head": pytest.approx(10 * base), "block1": pytest.approx(base / 2)}
