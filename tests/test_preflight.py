"""A dry run tells what a training would do, tries one batch, and writes nothing."""

import json

import pytest

from metricweight.settings import origins, read

WORDS = ["steps=300", "loss.margin=0.3", "batch.classes=4", "optimizer.factors={head: 10}"]


def test_each_setting_has_the_place_that_its_value_comes_from():
    told = origins("digits", WORDS)
    assert told.keys() == dict(line.partition("=")[::2] for line in told_settings()).keys()
    assert told["steps"] == told["loss.margin"] == told["batch.classes"] == "command line"
    assert told["optimizer.factors.head"] == "command line"
    assert told["batch.images"] == told["data.source"] == told["loss.name"] == "recipe"
    assert told["precision"] == told["optimizer.momentum"] == told["loss.balance"] == "default"
    assert origins("digits", ["plus=[{name: cce}]"])["plus"] == "command line"


def told_settings():
    from metricweight.settings import explain

    return [line.split("  ")[0] for line in explain(read("digits", WORDS)).splitlines()]


def test_a_dry_run_says_everything_and_leaves_nothing(metricweight, tmp_path):
    code, out, err = metricweight("train", "digits", "--dry-run", *WORDS)
    assert code == 0, err
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert lines["loss.margin=0.3"].endswith("command line")
    assert lines["precision=fp32"].endswith("default")
    assert lines["train"].split()[1:3] == ["901", "5"]
    assert "backbone 388,320, head 262,208" in out  # of the small CNN and its linear layer 4096 x 64 + 64
    assert "learned                  650,528" in out
    assert f"epochs                   {300 * 4 * 16 / 901:.4g}" in out
    for word in ("memory", "MiB", "gradient norms", "zero negatives", "collapse risk            low"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_in_json_is_json(metricweight):
    code, out, err = metricweight("train", "digits", "--dry-run", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["data"]["train"]["images"] == 901
    assert found["network"]["parameters"] == {"backbone": 388320, "head": 262208}
    assert found["batch"]["loss"] > 0
    assert found["batch"]["memory_bytes"] > 650528 * 4 * 3  # weights, and two numbers for each in AdamW
    assert found["settings"]["steps"] == 100
    assert found["origins"]["steps"] == "recipe"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ks=[1,5000]"], "5000"),
        (["memory.size=8", "loss.name=cce"], "memory"),
        (["model.backbone=resnet99"], "resnet99"),
        (["model.frozen=[block9]"], "block9"),
        (["optimizer.factors={heads: 3}"], "did you mean head"),
        (["batch.classes=9"], "9 classes"),
        (["model.weights=none.pt"], "none.pt"),
        (["sync_batch_norm=true", "device=cpu"], "sync_batch_norm"),
    ],
)
def test_what_would_fail_later_fails_at_once(words, message, metricweight, tmp_path):
    code, _, err = metricweight("train", "digits", "--dry-run", *words)
    assert code == 2, err
    assert err.startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_without_tensorboard_the_line_that_installs_it_is_said(metricweight, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = metricweight("train", "digits", "tensorboard=true", "--dry-run")
    assert code == 2
    assert "pip install 'metricweight[tensorboard]'" in err


def test_tensorboard_has_the_numbers_of_the_log(metricweight, tmp_path):
    code, _, err = metricweight("train", "digits", "steps=3", "tensorboard=true", "--out", "run")
    assert code == 0, err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])
    assert {"p/mean", "learning_rate/default", "images_per_second", "spread"} <= set(events.Tags()["scalars"])


def test_a_training_in_json_prints_its_report_and_nothing_else(metricweight, tmp_path):
    code, out, err = metricweight("train", "digits", "steps=2", "--json", "--out", "run")
    assert code == 0, err
    assert json.loads(out) == json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(json.loads(out)["models"]) == {"pixels", "untrained", "trained"}


def test_the_lists_of_options(metricweight):
    code, out, _ = metricweight("options")
    assert code == 0
    for word in ("backbones", "resnet50", "transforms", "reality_check", "samplers", "ranked_list"):
        assert word in out
    assert "resnet50" not in metricweight("options", "samplers")[1]
    code, _, err = metricweight("options", "backbone")
    assert code == 2
    assert "did you mean backbones?" in err
