"""Which network is reported, beside which baselines, and what is said of it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from metricweight.checks import InputError
from metricweight.retrieval import evaluate
from metricweight.settings import read
from metricweight.training import checkpoint, loop
from metricweight.training.distributed import Processes
from metricweight.training.engine import prepared
from metricweight.training.loop import train

WORDS = [
    "data.size=16", "data.transform=none", "model.backbone=small_cnn", "model.embedding_size=8", "data.workers=0",
    "batch.classes=4", "batch.images=2", "steps=6", "validations=3", "ks=[1]", "data.validation=0.25",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    draw = np.random.default_rng(0)
    for label in range(20):
        mean = draw.integers(0, 256, (1, 1, 3))
        for number in range(4):
            path = folder / f"class {label:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = draw.integers(-60, 60, (20, 20, 3))
            Image.fromarray((mean + noise).clip(0, 255).astype(np.uint8)).save(path)
    return folder


def run(photos, tmp_path, *words, name="run"):
    return train(read("folder", [f"data.root={photos}", *WORDS, *words]), "folder", tmp_path / name)


def looks(folder, what="validation"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return {line["step"]: line[what]["map@r"] for line in lines if what in line}


def trained(folder):
    return json.loads((folder / "report.json").read_text())["models"]["trained"]["test"]


def falling(monkeypatch, values):
    """Looks that find these values, one after another."""
    found = iter(values)
    own = loop.validate

    def made_up(t):
        return {**own(t), "map@r": next(found)}

    monkeypatch.setattr(loop, "validate", made_up)


def test_the_network_that_was_best_on_the_validation_classes_is_reported(photos, tmp_path, monkeypatch):
    falling(monkeypatch, [0.4, 0.6, 0.5])
    folder = run(photos, tmp_path, "checkpoints.every=1", "checkpoints.keep=6")
    assert trained(folder)["stamp"]["chosen"] == {"by": "validation", "step": 4}
    chosen, at_4 = checkpoint.load(folder)[2], torch.load(folder / "checkpoints" / "00000004.pt")
    assert chosen["step"] == 4
    assert all(torch.equal(chosen["model"][name], value) for name, value in at_4["model"].items())
    assert all(torch.equal(chosen["objective"][name], value) for name, value in at_4["objective"].items())


def test_of_two_that_are_as_good_the_first_is_reported(photos, tmp_path, monkeypatch):
    falling(monkeypatch, [0.6, 0.6, 0.5])
    assert trained(run(photos, tmp_path))["stamp"]["chosen"]["step"] == 2


@pytest.mark.parametrize("words", [["checkpoints.choose=last"], ["data.validation=0"], ["validations=0"]])
def test_the_last_network_is_reported_where_that_is_asked_for_or_nothing_to_choose_by(photos, tmp_path, words):
    folder = run(photos, tmp_path, *words)
    assert trained(folder)["stamp"]["chosen"] == {"by": "last", "step": 6}
    assert checkpoint.load(folder)[2]["step"] == 6
    assert trained(folder)["notes"] == []


def test_choosing_on_the_test_classes_marks_the_report(photos, tmp_path):
    folder = run(photos, tmp_path, "checkpoints.choose=test")
    found = looks(folder, "test")
    best = max(found, key=lambda step: (found[step], -step))
    assert trained(folder)["stamp"]["chosen"] == {"by": "test", "step": best}
    assert trained(folder)["map@r"] == found[best]
    assert "trained: Chosen on the test classes themselves" in (folder / "report.md").read_text()
    assert not looks(folder)  # the validation classes are not looked at


def test_a_backbone_that_started_from_weights_is_reported_frozen(photos, tmp_path):
    first = run(photos, tmp_path, name="first")
    folder = run(photos, tmp_path, f"model.weights={first / 'checkpoint.pt'}")
    models = json.loads((folder / "report.json").read_text())["models"]
    assert list(models) == ["pixels", "frozen", "trained"]
    t = prepared(
        read("folder", [f"data.root={photos}", *WORDS, f"model.weights={first / 'checkpoint.pt'}"]), Processes()
    )
    indices = t.splits["test"]
    from metricweight.training.embedding import embed_images
    from metricweight.training.judging import Features

    made = embed_images({"": Features(t.model)}, t.images, indices, t.settings.data, Processes(), None, "fp32")
    found = made.embeddings
    assert found[""].shape[1] == 4096
    expected = evaluate(found[""], t.images.labels[indices], ks=[1]).metrics
    assert models["frozen"]["test"]["map@r"] == expected["map@r"]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["weights"]["sha256"]
    assert "checkpoint.pt" in environment["weights"]["weights"]


def test_damaged_pictures_stop_a_training_before_its_first_step_or_are_left_out_and_counted(photos, tmp_path, capfd):
    import shutil

    spoiled = tmp_path / "spoiled"
    shutil.copytree(photos, spoiled)
    for label in range(20):
        path = spoiled / f"class {label:02d}" / "2.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"2.png cannot be read as a picture"):
        run(spoiled, tmp_path)
    assert not (tmp_path / "run").exists()
    folder = run(spoiled, tmp_path, "data.damaged=skip", "steps=20")
    out = capfd.readouterr().out
    assert "Another of its class takes its place." in out
    assert "2.png" in out
    last = [json.loads(line) for line in (folder / "metrics.jsonl").open() if "loss" in line][-1]
    assert 1 <= last["unreadable"] <= 20
    assert trained(folder)["stamp"]["data"]["unreadable"] == 10
    assert trained(folder)["notes"][-1] == "10 of 40 test pictures could not be read and are left out."
    names = np.load(folder / "embeddings.npz")["names"]
    assert len(names) == 10 * 3
    assert not any(name.endswith("2.png") for name in names)


def test_a_cache_of_decoded_pictures_changes_nothing(photos, tmp_path):
    plain = run(photos, tmp_path, name="plain")
    cached = run(photos, tmp_path, f"data.cache={tmp_path / 'cache'}", name="cached")
    assert any((tmp_path / "cache").rglob("*"))
    again = run(photos, tmp_path, f"data.cache={tmp_path / 'cache'}", "data.workers=2", name="again")
    for name, value in checkpoint.load(plain)[2]["model"].items():
        assert torch.equal(value, checkpoint.load(cached)[2]["model"][name])
        assert torch.equal(value, checkpoint.load(again)[2]["model"][name])
