"""The command line: help, and a plain sentence for every mistake."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from metricweight.cli import _repeat_option
from metricweight.losses import LOSSES

X, Y = np.random.default_rng(0).standard_normal((12, 3)), np.arange(12) % 3


@pytest.mark.parametrize("words", [[], ["train"], ["recipes"], ["losses"], ["emphasis"], ["embed"], ["evaluate"]])
def test_every_command_has_help(metricweight, words):
    code, out, _ = metricweight(*words, "--help")
    assert code == 0
    assert "Usage" in out


def test_recipes_tells_what_there_is_and_what_can_be_set(metricweight):
    assert [line.split()[0] for line in metricweight("recipes")[1].splitlines()[:3]] == ["digits", "folder", "glyphs"]
    assert "loss.negative_temperature=10.0" in metricweight("recipes", "glyphs")[1]


def test_losses_lists_them_all_in_plain_lines_when_piped(metricweight):
    code, out, _ = metricweight("losses")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1 : len(LOSSES) + 1]] == list(LOSSES)
    assert "\x1b" not in out
    assert "metricweight losses NAME shows it" in out


def test_losses_fits_a_terminal():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "118"}
    subprocess.run([sys.executable, "-m", "metricweight", "losses"], check=True, stdout=theirs, env=environment)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # its end
        while piece := os.read(ours, 65536):
            seen += piece
    os.close(ours)
    lines = seen.decode().split("\r\n")
    assert max(map(len, lines)) <= 118
    assert any(line.startswith(" " * 60) for line in lines)  # arguments that go on below


def test_losses_shows_one_with_its_formula_and_its_words(metricweight):
    code, out, _ = metricweight("losses", "proselflc")
    assert code == 0
    assert "target, arXiv:2005.03788" in out
    assert "Progressive self label correction" in out
    assert "  loss.sharpness=12.0\n" in out


def test_emphasis_draws_and_prints_modes_and_variances(metricweight, tmp_path):
    code, out, _ = metricweight("emphasis", "imae:temperature=8", "dm:mode=0.67,beta=12", "cce", "mae")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:5]}
    assert rows["imae:temperature=8"] == ["0.50", "4.55", "0.23"]
    assert rows["dm:mode=0.67,beta=12"][0] == "0.67"
    assert rows["cce"] == ["0.00", "0.33", "0.33"]
    assert rows["mae"][:2] == ["0.50", "0.09"]
    assert "Drawn in curves.png." in out
    assert Image.open(tmp_path / "curves.png").size[0] == 11 * 150
    code, _, err = metricweight("emphasis", "cce")
    assert code == 2
    assert "curves.png is already there; add --overwrite" in err
    assert metricweight("emphasis", "cce", "--overwrite", "--out", "curves.png")[0] == 0
    assert metricweight("emphasis", "cce", "--out", "some/where.svg")[0] == 0
    assert (tmp_path / "some" / "where.svg").read_text().startswith("<?xml")


def test_emphasis_draws_over_the_p_of_a_run(metricweight, digits_run):
    code, out, _ = metricweight("emphasis", "--run", digits_run, "--overwrite")
    assert code == 0
    assert "ranked_list is no weighting of examples by p" in out
    assert "the match probability" in out
    assert "in step 1, " in out
    assert [line.split()[0] for line in out.splitlines()[5:9]] == ["cce", "mae", "imae", "dm"]
    assert (digits_run / "emphasis.png").exists()
    words = ["loss.name=dm", "loss.beta=4", "steps=30"]
    assert metricweight("train", "digits", *words, "--out", "run")[0] == 0
    code, out, _ = metricweight("emphasis", "--run", "run")
    assert code == 0
    assert "the probability of the own label" in out
    assert "in steps 1 to 3, " in out
    assert "\ndm:beta=4.0 " in out
    assert metricweight("emphasis", "--run", "run", "imae")[0] == 2  # run/emphasis.png is there
    out = metricweight("emphasis", "--run", "run", "imae", "--out", "other.png")[1]
    assert "\nimae " in out
    assert "dm:beta" not in out
    assert metricweight("train", "digits", *words, "steps=1", "--out", "run", "--overwrite")[0] == 0
    assert not Path("run/emphasis.png").exists()  # it was of the run that is gone


def test_several_ks_follow_one_option():
    assert _repeat_option(["x.npz", "--ks", "1", "2", "--out", "3"], "--ks") == [
        "x.npz", "--ks", "1", "--ks", "2", "--out", "3",
    ]  # fmt: skip


def test_evaluate_prints_and_saves_a_report(metricweight, tmp_path):
    np.savez("mine.npz", embeddings=X, labels=Y)
    code, out, _ = metricweight("evaluate", "mine.npz", "--ks", 1, 3, 10)
    assert code == 0
    assert "R@1" in out
    assert "R@10" in out
    saved = json.loads((tmp_path / "mine.report.json").read_text())
    assert set(saved["models"]["mine"]["all"]) == {
        "recall@1",
        "recall@3",
        "recall@10",
        "map@r",
        "r_precision",
        "stamp",
    }
    assert (tmp_path / "mine.report.md").read_text() in out + "\n"
    assert pd.read_csv(tmp_path / "mine.report.csv").shape == (1, 6)


def test_labels_that_are_strings_are_mapped_and_the_mapping_is_saved(metricweight, tmp_path):
    pd.DataFrame(X).assign(label=[f"bird {y}" for y in Y]).to_csv("birds.csv", index=False)
    assert metricweight("evaluate", "birds.csv")[0] == 0
    mapping = pd.read_csv(tmp_path / "birds.report.labels.csv")
    assert mapping.to_dict("list") == {"number": [0, 1, 2], "label": ["bird 0", "bird 1", "bird 2"]}


def test_the_mapping_of_an_earlier_report_does_not_stay(metricweight, tmp_path):
    np.savez("x.npz", embeddings=X, labels=Y.astype(str))
    assert metricweight("evaluate", "x.npz")[0] == 0
    assert (tmp_path / "x.report.labels.csv").exists()
    np.savez("x.npz", embeddings=X, labels=Y)
    assert metricweight("evaluate", "x.npz")[0] == 0
    assert not (tmp_path / "x.report.labels.csv").exists()


def test_a_report_can_be_saved_elsewhere(metricweight, tmp_path):
    np.savez("mine.npz", embeddings=X, labels=Y)
    assert metricweight("evaluate", "mine.npz", "--out", "some/where")[0] == 0
    assert (tmp_path / "some" / "where" / "mine.report.json").exists()


def npz(**arrays):
    np.savez("x.npz", **{"embeddings": X, "labels": Y, **arrays})
    return ["evaluate", "x.npz"]


def csv(table):
    table.to_csv("x.csv", index=False)
    return ["evaluate", "x.csv"]


def run_folder():
    np.savez("embeddings.npz", a=1)
    return ["train", "digits", "--out", "."]


def a_file_in_the_way():
    with open("file", "w") as file:
        file.write("")
    return ["train", "digits", "--out", "file/run"]


def run_without_p():
    Path("old").mkdir()
    Path("old/settings.yaml").write_text("data: {source: digits}\nloss: {name: cce}\n")
    Path("old/metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    return ["emphasis", "--run", "old"]


def no_write_for_the_report():
    with open("file", "w") as file:
        file.write("")
    return [*npz(), "--out", "file/sub"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ["train", "glyfs"], "unknown recipe 'glyfs'; did you mean glyphs?"),
        (lambda: ["train", "digits", "loss.margn=1"], "unknown setting loss.margn; did you mean loss.margin?"),
        (lambda: ["train", "digits", "steps=many"], "setting steps: should be a valid integer"),
        (lambda: ["train", "digits", "ks=[1,9999]"], "a query has 895 others to be compared with"),
        (lambda: ["train", "digits", "batch.classes=9"], "set batch.classes=5 or less"),
        (lambda: ["train", "glyphs", "data.size=64"], "the glyphs are drawn 32 x 32; data.size=64 cannot be"),
        (lambda: ["train", "folder"], "setting data.root is needed"),
        (lambda: ["train", "folder", "data.root=nowhere"], "nowhere is not there; give a folder of class folders"),
        (run_folder, "already holds a run (embeddings.npz); choose another --out, or add --overwrite"),
        (a_file_in_the_way, "cannot write to file/run"),
        (lambda: ["train", "digits", "device=cuda"], "device=cuda was asked for, but torch finds no GPU"),
        (lambda: ["train", "digits", "loss=imae"], "setting loss is a group of settings; its name is loss.name=imae"),
        (lambda: ["train", "digits", "loss.name=imea"], "'imea' is not a loss; did you mean imae?"),
        (lambda: ["train", "digits", "loss.name=dm", "loss.mode=1"], "Emphasis mode is a probability in [0, 1), got 1"),
        (lambda: ["losses", "imea"], "'imea' is not a loss; did you mean imae? Known: ranked_list, "),
        (lambda: ["emphasis"], "no weighting was given; name some, as in metricweight emphasis imae:temperature=8"),
        (lambda: ["emphasis", "imea"], "'imea' is not an example weighting; did you mean imae?"),
        (lambda: ["emphasis", "dm:mod=1"], "unknown setting dm:mod; did you mean dm:mode?"),
        (lambda: ["emphasis", "ranked_list"], "'ranked_list' weighs pairs, not examples, so it has no curve over p"),
        (lambda: ["emphasis", "cce", "--out", "x.csv"], "--out must be a .png, .svg or .pdf file, got x.csv"),
        (lambda: ["emphasis", "dm:beta=1e5"], "the weights of dm:beta=1e5 are too large for their integral"),
        (lambda: ["emphasis", "sce:alpha=0,beta=0"], "the weights of sce:alpha=0,beta=0 are as good as zero"),
        (lambda: ["emphasis", "--run", "nowhere"], "nowhere holds no metrics.jsonl and settings.yaml; give a folder"),
        (run_without_p, "old/metrics.jsonl holds no histogram of p"),
        (lambda: ["embed", "nowhere"], "nowhere holds no checkpoint.pt"),
        (lambda: ["embed", "nowhere", "--split", "dev"], "--split is train, validation, test or all, got 'dev'"),
        (lambda: ["evaluate", "nowhere.npz"], "nowhere.npz is not there"),
        (lambda: [*npz(), "--ks", "99"], "a query has 11 others to be compared with; use ks from 1 to 11"),
        (lambda: npz(labels=Y[:5]), "labels must be [12] to match embeddings [12, 3], got [5]"),
        (lambda: npz(embeddings=X * np.nan), "12 of 12 embeddings are not finite"),
        (lambda: npz(embeddings=X * 0 + 1), "the embeddings are collapsed"),
        (lambda: csv(pd.DataFrame(X, columns=["a", "b", "c"])), "has no column 'label'; it has 'a', 'b', 'c'"),
        (no_write_for_the_report, "file/sub: Not a directory"),
    ],
)  # fmt: skip
def test_every_mistake_gets_a_plain_sentence_and_exit_code_2(metricweight, monkeypatch, make, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = metricweight(*make())
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_a_refused_training_leaves_no_folder(metricweight, tmp_path):
    metricweight("train", "digits", "ks=[9999]", "--out", "run")
    metricweight("train", "digits", "ks=[9999]")
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "runs").iterdir())


def test_overwrite_replaces_the_run_and_nothing_else(metricweight, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("old")
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    refused = ["train", "digits", "steps=2", "ks=[9999]", "--out", "run", "--overwrite"]
    assert metricweight(*refused)[0] == 2
    assert (tmp_path / "run" / "report.json").read_text() == "old"  # a run that cannot start replaces nothing
    assert metricweight("train", "digits", "steps=2", "--out", "run", "--overwrite")[0] == 0
    assert "trained" in (tmp_path / "run" / "report.json").read_text()
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


def test_two_runs_without_out_do_not_meet(metricweight, tmp_path):
    for _ in range(2):
        assert metricweight("train", "digits", "steps=1")[0] == 0
    assert len(list((tmp_path / "runs").glob("digits-*"))) == 2


def test_embed_writes_any_split_of_any_data_and_keeps_what_is_there(metricweight, digits_run, tmp_path):
    code, _, err = metricweight("embed", digits_run)
    assert code == 2
    assert "embeddings.npz is already there; add --overwrite" in err
    for split, count in (("train", 901), ("test", 896), ("all", 1797)):
        assert metricweight("embed", digits_run, "--split", split, "--out", f"{split}.npz")[0] == 0
        assert len(np.load(f"{split}.npz")["labels"]) == count
    assert metricweight("embed", digits_run, "--data", "digits", "--out", "again.npz")[0] == 0  # its own: the test half
    assert np.array_equal(np.load("again.npz")["embeddings"], np.load("test.npz")["embeddings"])
    assert metricweight("embed", digits_run, "--split", "train")[0] == 0
    assert (digits_run / "embeddings-train.npz").exists()
    assert metricweight("evaluate", "train.npz")[0] == 0
    assert list(json.loads((tmp_path / "train.report.json").read_text())["models"]["train"]) == ["train"]
    for words, problem in (
        (["--split", "validation"], "there are no validation classes, since data.validation=0.0"),
        (["--out", "x.csv"], "--out must be an .npz file, got x.csv"),
    ):
        code, _, err = metricweight("embed", digits_run, *words)
        assert code == 2
        assert problem in err


def pictures(root, classes, each=3):
    for number in range(classes):
        (root / str(number)).mkdir(parents=True)
        for item in range(each):
            pixels = np.random.default_rng([number, item]).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(number) / f"{item}.png")


SMALL = ["model.backbone=small_cnn", "data.size=16", "data.validation=0", "steps=2", "ks=[1]"]


def test_a_small_folder_trains_without_a_word_about_batches(metricweight, tmp_path):
    pictures(tmp_path / "photos", 4)
    code, out, err = metricweight("train", "folder", "data.root=photos", *SMALL, "--out", "run")
    assert code == 0, err
    assert "2 classes x 4 images" in out
    assert "classes: 2\n" in (tmp_path / "run" / "settings.yaml").read_text()


def test_a_picture_that_is_damaged_is_found_before_the_training(metricweight, tmp_path):
    pictures(tmp_path / "photos", 4)
    path = tmp_path / "photos" / "0" / "2.png"  # of a class that is trained on, so no test sees it
    path.write_bytes(path.read_bytes()[:200])
    code, _, err = metricweight("train", "folder", "data.root=photos", "data.order=given", *SMALL, "--out", "run")
    assert code == 2
    assert "2.png cannot be read as a picture" in err
    assert not (tmp_path / "run").exists()


def test_a_run_embeds_other_pictures_from_any_folder_and_its_own_by_name(metricweight, tmp_path, monkeypatch):
    pictures(tmp_path / "photos", 4)
    pictures(tmp_path / "others", 3)
    assert metricweight("train", "folder", "data.root=photos", *SMALL, "--out", "run")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert metricweight("embed", "../run", "--data", "../others")[0] == 0
    assert len(np.load(tmp_path / "run" / "embeddings-others.npz")["labels"]) == 9
    assert metricweight("embed", "../run", "--out", "own.npz")[0] == 0
    assert metricweight("embed", "../run", "--data", "../photos", "--out", "named.npz")[0] == 0
    assert np.array_equal(np.load("own.npz")["names"], np.load("named.npz")["names"])


def test_a_reader_that_goes_away_does_not_stop_the_training(tmp_path):
    command = [sys.executable, "-m", "metricweight", "train", "digits", "steps=20", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0, process.stderr.read()
    assert (tmp_path / "run" / "report.json").exists()


def test_a_piped_run_prints_plain_lines(digits_run):
    command = [
        sys.executable,
        "-m",
        "metricweight",
        "train",
        "digits",
        "steps=20",
        "--out",
        str(digits_run),
        "--overwrite",
    ]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "\x1b" not in out
    assert "\r" not in out
    assert "step 10/20  loss" in out
    assert "images/s" in out
