"""The accuracy of a classifier on the test pictures, where it was trained on all of their classes."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from metricweight.settings import read
from metricweight.training.judging import accuracy
from metricweight.training.loop import train
from metricweight.training.objective import Objective

SHADES = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
THREE = ("green", "blue", "red")
SMALL = [
    *["data.size=16", "data.transform=none", "data.workers=0", "data.validation=0", "batch.classes=2"],
    *["batch.images=4", "model.backbone=small_cnn", "model.embedding_size=4", "steps=6", "ks=[1]"],
    *["optimizer.learning_rate=0.003", "optimizer.warmup=0"],
]


def manifest(folder, splits, count=6):
    """Noisy pictures of one shade each, which are easy to tell apart, some of them with the shade of another class."""
    random = np.random.default_rng(0)
    with open(folder / "pictures.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for split, names in splits.items():
            for name in names:
                for i in range(count):
                    shade = SHADES[name] if i else SHADES["blue"]
                    pixels = np.clip(np.array(shade) + random.normal(0, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
                    path = folder / f"{split}-{name}-{i}.png"
                    Image.fromarray(pixels).save(path)
                    rows.writerow([path.name, name, split])
    return folder / "pictures.csv"


def run(folder, words, **splits):
    splits = splits or {"train": THREE, "test": THREE}
    settings = read("folder", [*SMALL, f"data.root={manifest(folder, splits)}", *words])
    return train(settings, "folder", folder / "run")


def reported(run):
    return json.loads((run / "report.json").read_text())["models"]


def counted(run, levels=1):
    """From the files of a run alone: the share of test pictures whose largest logit is that of their label."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)["objective"]
    weight, bias = (state[f"classifiers.{levels - 1}.{what}"].numpy() for what in ("weight", "bias"))
    names = pd.read_csv(run / "labels.csv", index_col="number")["label"]
    right = []
    with np.load(run / "embeddings.npz") as found:
        for x, label in zip(found["embeddings"], found["labels"], strict=True):
            logits = weight @ x[-4:] + bias
            trained_on = [names[number] for number in state["labels"].tolist()]
            right.append(trained_on[int(np.argmax(logits))] == str(found["classes"][label]))
    return np.mean(right)


@pytest.mark.parametrize(
    "words",
    [
        ["loss.name=cce"],
        ["loss.name=dm", "loss.normalise=true", "model.levels=[low,high]"],
        ["plus=[{name: cce}]"],  # beside the Ranked List Loss
    ],
)
def test_it_is_the_share_of_test_pictures_whose_largest_logit_is_their_label(words, tmp_path):
    folder = run(tmp_path, words)
    models = reported(folder)
    share = models["trained"]["test"]["accuracy"]
    assert share == pytest.approx(counted(folder, levels=2 if "model.levels=[low,high]" in words else 1))
    assert 1 / 3 < share < 1  # so that neither chance nor all of them would do
    note = f"Accuracy of its classifier on the test pictures: {100 * share:.1f} %."
    assert note in models["trained"]["test"]["notes"]
    assert note in (folder / "report.md").read_text()
    assert not any("accuracy" in models[other]["test"] for other in ("pixels", "untrained"))


def test_the_classifier_is_that_of_the_step_whose_network_is_tested(tmp_path, monkeypatch):
    """The first look at the test classes is made the best one; the classifier goes on to learn after it."""
    from metricweight.training import loop

    looks = iter([0.9, 0.1, 0.1])
    monkeypatch.setattr(loop, "validate", lambda t: {"map@r": next(looks), "recall@1": 0.5})
    words = ["loss.name=cce", "checkpoints.choose=test", "validations=3", "optimizer.factors={classifier: 1000}"]
    folder = run(tmp_path, words)
    chosen = torch.load(folder / "checkpoint.pt", weights_only=True)
    last = torch.load(folder / "checkpoints" / "00000006.pt", weights_only=True)
    assert (chosen["step"], last["step"]) == (2, 6)
    share = reported(folder)["trained"]["test"]["accuracy"]
    assert share == pytest.approx(counted(folder))
    chosen["objective"] = last["objective"]
    torch.save(chosen, folder / "checkpoint.pt")
    assert share != pytest.approx(counted(folder))  # that of the last step would have said something else


def test_test_classes_may_be_some_of_those_that_were_trained_on_whatever_their_numbers(tmp_path):
    folder = run(tmp_path, ["loss.name=cce"], train=("blue", "red"), validation=("green",), test=("red",))
    labels = pd.read_csv(folder / "labels.csv").set_index("label")
    assert labels["number"].to_dict() == {"blue": 0, "green": 1, "red": 2}
    assert reported(folder)["trained"]["test"]["accuracy"] == pytest.approx(counted(folder))


def test_there_is_none_where_a_test_class_is_unseen_and_where_there_is_no_classifier(tmp_path):
    for name, words, train_on in [
        ("unseen", ["loss.name=cce"], ("green", "blue")),
        ("pairs", ["loss.name=ranked_list"], THREE),
    ]:
        (tmp_path / name).mkdir()
        folder = run(tmp_path / name, words, train=train_on, test=("red", "blue"))
        trained = reported(folder)["trained"]["test"]
        assert "accuracy" not in trained
        assert not any("Accuracy" in note for note in trained["notes"])


def test_the_last_level_decides():
    objective = Objective(read("folder", ["loss.name=cce", "data.root=x"]), torch.tensor([3, 7]), levels=2, dim=2)
    for classifier in objective.classifiers:
        torch.nn.init.eye_(classifier.weight)
        torch.nn.init.zeros_(classifier.bias)
    embeddings = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0]], np.float32)  # low, low, high, high
    assert accuracy(objective, embeddings, np.array([3, 7, 7])) == pytest.approx(2 / 3)  # by the low one none is right
    assert accuracy(objective, embeddings, np.array([3, 7, 5])) is None
