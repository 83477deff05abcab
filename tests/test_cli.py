"""The command line: help, and a plain sentence for every mistake."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from metricweight.cli import _repeat_option, app
from metricweight.data import manifest
from metricweight.losses import LOSSES
from metricweight.retrieval import PROTOCOLS, evaluate
from metricweight.retrieval.report import EvaluationWarning

X, Y = np.random.default_rng(0).standard_normal((12, 3)), np.arange(12) % 3


def test_every_command_has_help(metricweight):
    commands = [[command.callback.__name__] for command in app.registered_commands]
    assert ["compare"] in commands
    for words in [[], *commands]:
        code, out, _ = metricweight(*words, "--help")
        assert code == 0
        assert "Usage" in out


def test_recipes_tells_what_there_is_and_what_can_be_set(metricweight):
    assert [line.split()[0] for line in metricweight("recipes")[1].splitlines()[1:7:2]] == [
        "digits",
        "folder",
        "glyphs",
    ]
    assert "loss.negative_temperature=10.0" in metricweight("recipes", "glyphs")[1]


def test_losses_lists_them_all_in_plain_lines_when_piped(metricweight):
    code, out, _ = metricweight("losses")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1 : len(LOSSES) + 1]] == list(LOSSES)
    assert "\x1b" not in out
    assert "metricweight losses NAME shows it" in out


def test_losses_fits_a_terminal():
    seen, code = on_a_terminal("losses")
    assert code == 0
    lines = seen.split("\r\n")
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
    saved = json.loads((tmp_path / "mine.report.json").read_text())
    assert (saved["schema"], saved["source"]) == (2, "mine.npz")
    found = saved["models"]["mine"]["all"]
    expected = evaluate(X, Y, ks=(1, 3, 10))
    assert {name: found[name] for name in expected.metrics} == expected.metrics
    assert (tmp_path / "mine.report.md").read_text() in out + "\n"
    assert out.startswith("12 x 3 of mine.npz.\n\n|      | ")
    endings = ("md", "json", "csv", "tex", "queries.csv", "classes.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.npz", *(f"mine.report.{ending}" for ending in endings)}
    assert all(f"mine.report.{ending}" in out for ending in ("md", "queries.csv", "classes.csv"))


def test_labels_that_are_strings_are_the_labels_of_the_report(metricweight, tmp_path):
    pd.DataFrame(X).assign(label=[f"bird {y}" for y in Y]).to_csv("birds.csv", index=False)
    assert metricweight("evaluate", "birds.csv")[0] == 0
    assert pd.read_csv(tmp_path / "birds.report.classes.csv")["label"].tolist() == ["bird 0", "bird 1", "bird 2"]


def test_a_report_can_be_saved_elsewhere(metricweight, tmp_path):
    np.savez("mine.npz", embeddings=X, labels=Y)
    assert metricweight("evaluate", "mine.npz", "--out", "some/where")[0] == 0
    assert (tmp_path / "some" / "where" / "mine.report.json").exists()
    assert not (tmp_path / "mine.report.json").exists()


def test_json_is_all_that_is_printed_where_it_is_asked_for(metricweight, tmp_path):
    warnings.simplefilter("error", EvaluationWarning)
    np.savez("x.npz", embeddings=X[:2].repeat(6, axis=0), labels=Y)  # ties are noted in the report, not warned of
    for more in ([], ["--clustering", "--thresholds", "--rerank", "--expand", "2"], ["--index", "hnsw"]):
        code, out, err = metricweight("evaluate", "x.npz", "--ks", 1, "--json", *more)
        assert code == 0, err
        assert out == (tmp_path / "x.report.json").read_text()
        models = json.loads(out)["models"]
        assert len(models) == 1 + 2 * ("--rerank" in more)
        assert models["x"]["all"]["notes"][0].startswith("Ties decide ")


def on_a_terminal(*words):
    """What a command shows there, and then its exit code."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "118", "TERM": "xterm-256color"}
    process = subprocess.Popen([sys.executable, "-m", "metricweight", *words], stdout=theirs, env=environment)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # its end
        while piece := os.read(ours, 65536):
            seen += piece
    os.close(ours)
    return seen.decode(), process.wait()


def test_a_terminal_sees_how_far_a_search_is_but_not_among_json(tmp_path):
    np.savez(tmp_path / "x.npz", embeddings=X, labels=Y)
    seen, code = on_a_terminal("evaluate", str(tmp_path / "x.npz"))
    assert code == 0
    for word in ("searching", "100 %", "| x | "):
        assert word in seen
    seen, code = on_a_terminal("evaluate", str(tmp_path / "x.npz"), "--json")
    assert code == 0
    assert list(json.loads(seen)["models"]) == ["x"]


def test_re_ranked_and_expanded_numbers_are_rows_of_their_own(metricweight, tmp_path):
    np.savez("x.npz", embeddings=X, labels=Y)
    code, out, _ = metricweight("evaluate", "x.npz", "--rerank", "--expand", "3:2", "--clustering", "--thresholds")
    assert code == 0
    rows = json.loads((tmp_path / "x.report.json").read_text())["models"]
    assert list(rows) == ["x", "x, expanded", "x, re-ranked"]
    plain, expanded, reranked = (row["all"] for row in rows.values())
    assert plain["map"] == evaluate(X, Y).metrics["map"]
    assert expanded["stamp"]["protocol"]["expand"] == {"k": 3, "alpha": 2.0}
    assert reranked["stamp"]["protocol"]["rerank"] == {"k1": 20, "k2": 6, "weight": 0.3}
    assert plain["stamp"]["protocol"]["rerank"] is plain["stamp"]["protocol"]["expand"] is None
    assert "\n- x: Protocol self: 12 queries of 3 classes" in out
    assert "\n- x, re-ranked: as x. Re-ranked: k1=20, k2=6, weight=0.3." in out
    assert "nmi" in plain
    assert "thresholds" in plain
    assert "nmi" not in reranked


def person(name, **changes):
    """Tracks of eight labels in three cameras, the first of each label and camera a query."""
    random = np.random.default_rng(0)
    labels, cameras = np.arange(96) % 8 + 1, np.arange(96) // 8 % 3
    labels[90:] = [0, 0, 0, -1, -1, -1]
    x = random.standard_normal((10, 4))[labels] + random.standard_normal((96, 4))
    arrays = {"embeddings": x, "labels": labels, "cameras": cameras, "queries": np.arange(96) < 24, **changes}
    np.savez(name, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_all_protocols_that_the_items_allow_stand_side_by_side(metricweight, tmp_path):
    def rows(*words):
        code, out, err = metricweight("evaluate", "x.npz", "--all-protocols", "--ks", 1, 5, *words)
        assert code == 0, err
        assert all(f"\n| {name}" in out for name in json.loads((tmp_path / "x.report.json").read_text())["models"])
        return json.loads((tmp_path / "x.report.json").read_text())["models"]

    arrays = person("x.npz")
    found = rows()
    persons = ("market1501", "mars-official", "mars-ap3d", "mars-torchreid")
    assert list(found) == [f"x, {name}" for name in persons]
    given = {name: arrays[name] for name in ("embeddings", "labels", "cameras", "queries")}
    for name in persons:
        report = evaluate(**given, protocol=name, ks=(1, 5))
        assert {metric: found[f"x, {name}"]["all"][metric] for metric in report.metrics} == report.metrics
    assert list(rows("--rerank"))[:2] == ["x, market1501", "x, market1501, re-ranked"]
    person("x.npz", cameras=None)
    assert list(rows()) == ["x, gallery"]
    person("x.npz", cameras=None, queries=None)
    assert list(rows()) == ["x, self"]


def test_image_to_video_and_multi_query_are_rows_of_their_own(metricweight, tmp_path):
    arrays = person("x.npz")
    first = arrays["embeddings"][:24] + np.random.default_rng(1).standard_normal((24, 4))
    arrays = person("x.npz", query_images=first, seen="all frames, mean", protocol="mars-official", split="test")
    code, out, err = metricweight("evaluate", "x.npz", "--image-to-video", "--multi-query", "--rerank", "--ks", 1, 5)
    assert code == 0, err
    rows = {name: row["test"] for name, row in json.loads((tmp_path / "x.report.json").read_text())["models"].items()}
    assert list(rows) == ["x", "x, image-to-video", "x, multi-query", "x, re-ranked"]
    given = {name: arrays[name] for name in ("embeddings", "labels", "cameras", "queries")}
    for name, more in (
        ("", {}),
        (", image-to-video", {"query_embeddings": first}),
        (", multi-query", {"multi_query": True}),
    ):
        expected = evaluate(**given, protocol="mars-official", ks=(1, 5), **more).metrics
        assert {metric: rows[f"x{name}"][metric] for metric in expected} == expected
    seen = [row["stamp"]["made"]["seen"] for row in rows.values()]
    assert seen == ["all frames, mean", "all frames, mean; of queries the first frame alone"] + 2 * seen[:1]
    assert (
        "\n- x, image-to-video: as x. Queries search with other embeddings of them than stand in the gallery. " in out
    )
    code, out, err = metricweight(
        "evaluate", "x.npz", "--image-to-video", "--multi-query", "--all-protocols", "--ks", 1
    )
    assert code == 0, err
    names = list(json.loads((tmp_path / "x.report.json").read_text())["models"])
    persons = ("mars-official", "market1501", "mars-ap3d", "mars-torchreid")  # that of the file first
    assert names == [f"x, {name}{more}" for name in persons for more in ("", ", image-to-video", ", multi-query")]


def test_first_frames_of_some_rows_cannot_stand_for_all_that_search_a_gallery(metricweight):
    arrays = person("x.npz")
    person("x.npz", query_images=arrays["embeddings"][:24])
    person("gallery.npz")
    code, _, err = metricweight("evaluate", "x.npz", "--gallery", "gallery.npz", "--image-to-video")
    rows = len(arrays["embeddings"])
    assert code == 2
    assert f"with --gallery all {rows} rows of x.npz search, but it holds query_images of 24" in err


def test_first_frames_of_queries_in_a_file_of_their_own_search_a_gallery(metricweight, tmp_path):
    arrays = person("all.npz")
    q, first = arrays["queries"], arrays["embeddings"][:24] + 0.3
    np.savez("q.npz", query_images=first, seen="first", **{name: x[q] for name, x in arrays.items()})
    np.savez("g.npz", **{name: x[~q] for name, x in arrays.items()})
    code, out, err = metricweight("evaluate", "q.npz", "--gallery", "g.npz", "--image-to-video", "--ks", 1)
    assert code == 0, err
    found = json.loads((tmp_path / "q.report.json").read_text())["models"]["q, image-to-video"]["all"]
    x, y = arrays["embeddings"], arrays["labels"]
    expected = evaluate(first, y[q], gallery=x[~q], gallery_labels=y[~q], protocol="gallery", ks=(1,)).metrics
    assert {metric: found[metric] for metric in expected} == expected
    assert "seen of each item: first (queries), not said (gallery); of queries the first frame alone." in out


def test_all_protocols_where_cameras_are_not_known(metricweight, tmp_path):
    """Where none is known, those that need none; where some are not, that is a mistake to be told of."""
    arrays = person("x.npz", cameras=np.full(96, -1))
    assert metricweight("evaluate", "x.npz", "--all-protocols", "--ks", 1)[0] == 0
    assert list(json.loads((tmp_path / "x.report.json").read_text())["models"]) == ["x, gallery"]
    person("x.npz", cameras=np.where(np.arange(96) == 30, -1, np.arange(96) // 8 % 3))
    code, _, err = metricweight("evaluate", "x.npz", "--all-protocols", "--ks", 1)
    assert code == 2
    assert "and that of 1 of 96 embeddings is not known (below 0), the first in row 30; give their cameras" in err
    person("x.npz", cameras=np.where(arrays["labels"] < 1, -1, np.arange(96) // 8 % 3))
    assert metricweight("evaluate", "x.npz", "--all-protocols", "--ks", 1)[0] == 0


def test_queries_and_gallery_may_be_two_files(metricweight, tmp_path):
    arrays = person("all.npz")
    q = arrays["queries"]
    np.savez("query.npz", **{name: arrays[name][q] for name in ("embeddings", "labels", "cameras")})
    np.save("gallery.npy", arrays["embeddings"][~q])
    pd.DataFrame({"label": arrays["labels"][~q], "camera": arrays["cameras"][~q]}).to_csv("gallery.csv", index=False)
    more = ["--gallery", "gallery.npy", "--gallery-labels", "gallery.csv", "--ks", 1, 5]

    def found(file, *words):
        code, out, err = metricweight("evaluate", file, "--json", "--ks", 1, 5, *words)
        assert code == 0, err
        (model,) = json.loads(out)["models"].values()
        return {name: value for name, value in model["all"].items() if isinstance(value, float)}

    for protocol in ("market1501", "mars-official"):
        assert found("query.npz", *more, "--protocol", protocol) == found("all.npz", "--protocol", protocol)
    plain = evaluate(arrays["embeddings"], arrays["labels"], queries=q, protocol="gallery", ks=(1, 5)).metrics
    assert found("query.npz", *more) == found("all.npz") == plain
    out = metricweight("evaluate", "query.npz", *more)[1]
    assert out.startswith("24 x 4 of query.npz. 72 x 4 of gallery.npy.\n\n|       | ")


def test_a_column_may_name_the_labels_of_query_and_gallery(metricweight):
    table = pd.DataFrame(X).assign(species=Y)
    table[:6].to_csv("query.csv", index=False)
    table[6:].to_csv("gallery.csv", index=False)
    words = ["evaluate", "query.csv", "--gallery", "gallery.csv", "--label-column", "species", "--ks", 1, "--json"]
    code, out, err = metricweight(*words)
    assert code == 0, err
    expected = evaluate(X[:6], Y[:6], gallery=X[6:], gallery_labels=Y[6:], protocol="gallery", ks=(1,)).metrics
    assert json.loads(out)["models"]["query"]["all"]["map"] == pytest.approx(expected["map"])


def test_a_run_folder_is_evaluated_by_its_embeddings(metricweight, digits_run):
    code, out, err = metricweight("evaluate", digits_run, "--out", "here", "--json")
    assert code == 0, err
    trained = json.loads((digits_run / "report.json").read_text())["models"]["trained"]["test"]
    again = json.loads(out)["models"]["embeddings"]["test"]
    assert {name: again[name] for name in ("recall@1", "map", "ties")} == {
        name: trained[name] for name in ("recall@1", "map", "ties")
    }
    assert Path("here/embeddings.report.json").exists()
    assert metricweight("compare", digits_run, "here/embeddings.report", "--force")[1].endswith("p = 1.\n")


def test_an_index_is_kept_and_used_again_but_not_for_other_embeddings(metricweight, tmp_path):
    np.savez("x.npz", embeddings=X, labels=Y)
    words = ["evaluate", "x.npz", "--index", "hnsw", "--index-file", "x.index", "--ks", 1, 2]
    code, out, _ = metricweight(*words)
    assert code == 0
    assert "Approximate: index hnsw, which finds 100.00 % of the 2 exact nearest neighbours." in out
    assert "mAP" not in out
    kept = (tmp_path / "x.index").read_bytes()
    assert metricweight(*words)[1] == out
    assert (tmp_path / "x.index").read_bytes() == kept
    np.savez("x.npz", embeddings=X + 1, labels=Y)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = metricweight(*words)
    assert code == 2
    assert err == "error: x.index was built for other embeddings than these; build an index of these.\n"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_protocols_lists_them_with_their_rules(metricweight):
    code, out, _ = metricweight("protocols")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[: 2 * len(PROTOCOLS) : 2]] == list(PROTOCOLS)
    assert lines[2 * list(PROTOCOLS).index("mars-official") + 1].strip() == (
        "gallery=all,same_camera=left-out,junk=-1,distractors=0,ap=trapezoid"
    )


def two_models(metricweight):
    """Reports of embeddings of forty classes, those of `better` less noisy."""
    random = np.random.default_rng(0)
    labels = np.arange(400) % 40
    centres, noise = random.standard_normal((40, 8))[labels], random.standard_normal((400, 8))
    for name, scale in (("worse", 1.5), ("better", 0.7), ("same", 1.5)):
        np.savez(f"{name}.npz", embeddings=centres + scale * noise, labels=labels)
        assert metricweight("evaluate", f"{name}.npz")[0] == 0


def test_compare_gives_one_verdict(metricweight, tmp_path):
    two_models(metricweight)
    for words, verdict in (
        (["worse.report", "better.report.json"], "B is better than A: recall@1 +"),
        (["better.report", "worse.report"], "B is worse than A: recall@1 -"),
        (["worse.report", "same.report"], "Cannot tell: recall@1 +0.00 points (95 % interval 0.00 to 0.00), p = 1."),
        (["worse.report:worse", "better.report:better", "--metric", "map@r"], "B is better than A: map@r +"),
    ):
        code, out, err = metricweight("compare", *words)
        assert code == 0, err
        assert out.splitlines()[-1].startswith(verdict)
    assert metricweight("compare", "worse.report", "better.report", "--out", "both")[0] == 0
    assert json.loads((tmp_path / "both" / "comparison.json").read_text())["verdict"] == "better"
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [
        "classes.csv", "comparison.json", "queries.csv",
    ]  # fmt: skip


def test_compare_refuses_what_was_measured_differently_unless_forced(metricweight):
    two_models(metricweight)
    assert metricweight("evaluate", "better.npz", "--similarity", "euclidean")[0] == 0
    code, out, err = metricweight("compare", "worse.report", "better.report", "--out", "both")
    assert (code, out) == (2, "")
    assert "were evaluated differently: protocol.similarity is 'cosine' in A and 'euclidean' in B." in err
    assert not Path("both").exists()
    code, out, _ = metricweight("compare", "worse.report", "better.report", "--force")
    assert code == 0
    assert "Stamps differ: protocol.similarity is 'cosine' in A and 'euclidean' in B." in out
    assert "B is better than A" in out
    np.savez("better.npz", embeddings=np.load("better.npz")["embeddings"][1:], labels=np.arange(1, 400) % 40)
    assert metricweight("evaluate", "better.npz")[0] == 0
    code, _, err = metricweight("compare", "worse.report", "better.report", "--force")
    assert code == 2
    assert "A has 400 queries and B 399" in err


def npz(**arrays):
    np.savez("x.npz", **{"embeddings": X, "labels": Y, **arrays})
    return ["evaluate", "x.npz"]


def csv(table):
    table.to_csv("x.csv", index=False)
    return ["evaluate", "x.csv"]


def npz_and_gallery(*words, **arrays):
    person("gallery.npz", **arrays)
    return [*npz(embeddings=np.ones((12, 4)) * X[:, :1], cameras=Y), "--gallery", "gallery.npz", *words]


def truncated():
    words = npz()
    Path("x.npz").write_bytes(Path("x.npz").read_bytes()[:300])
    return words


def wrong_index(kind, content):
    Path("x.index").write_bytes(content)
    return [*npz(), "--index", kind, "--index-file", "x.index"]


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
        (run_folder, "already holds a run (embeddings.npz); choose another --out, add --resume to go on with it, or"),
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
        (truncated, "x.npz is damaged or not a NumPy file"),
        (lambda: npz(labels=Y / 2), "labels must be integers or strings, got float64"),
        (lambda: npz(cameras=Y / 2), "cameras must be [12] integers, got [12] of float64"),
        (lambda: npz(queries=Y), "x.npz: which items are queries must be true or false, or 1 or 0"),
        (lambda: [*npz(), "--memory", "1MB"], "memory of 1000000 bytes is too small for these 12 queries of 3 numbers"),
        (lambda: [*npz(), "--memory", "lots"], "memory is a size such as 1GiB or 500MB, got 'lots'"),
        (lambda: [*npz(), "--similarity", "dot"], "similarity is 'cosine' or 'euclidean', got 'dot'"),
        (lambda: [*npz(), "--missing", "drop"], "missing is 'skip', 'zero' or 'error', got 'drop'"),
        (lambda: [*npz(), "--expand", "many"], "--expand is a number of neighbours, or K:ALPHA such as 10:3, got many"),
        (lambda: [*npz(), "--expand", "0"], "k, the number of neighbours, is 1 at least, got 0"),
        (lambda: [*npz(cameras=Y.astype(str), queries=Y == 0), "--all-protocols"], "cameras must be [12] integers"),
        (lambda: [*npz(), "--image-to-video"],
         "x.npz holds no query_images, the first frame alone of each query, so --image-to-video cannot be; `metr"),
        (lambda: [*npz(queries=Y == 0, query_images=X), "--image-to-video"],
         "query_images must have a row for each of the 4 queries, got [12, 3]"),
        (lambda: [*npz(query_images=X), "--image-to-video"], "query_embeddings are of some items that are queries"),
        (lambda: [*npz(), "--multi-query"], "label and camera, which protocol self ranks; use one that leaves"),
        (lambda: [*npz(), "--protocol", "market"], "'market' is not a protocol; did you mean market1501?"),
        (lambda: [*npz(), "--protocol", "inshop"], "protocol inshop needs queries and a gallery"),
        (lambda: [*npz(), "--protocol", "self", "--all-protocols"], "--all-protocols and --protocol were both given"),
        (lambda: [*npz(), "--gallery", "none.npz"], "none.npz is not there"),
        (lambda: [*npz(), "--gallery-labels", "y.txt"], "--gallery-labels are of a gallery; give its embeddings with"),
        (lambda: [*npz(), "--index", "faiss"], "an index is ivf_flat, ivf_pq, hnsw, got 'faiss'"),
        (lambda: [*npz(), "--index", "ivf_pq"], "ivf_pq needs a gallery of 256 at least to learn its codes"),
        (lambda: [*npz(), "--index-file", "x.index"], "say which kind with index='hnsw', or another"),
        (lambda: wrong_index("hnsw", b"no index"), "x.index is damaged or not an index that was saved here"),
        (lambda: npz_and_gallery(embeddings=np.ones((96, 5)) * np.arange(96)[:, None]),
         "queries have 4 numbers each and the gallery 5; both must come from one model"),
        (lambda: npz_and_gallery("--ks", "1", "97"), "but a query has 96 others to be compared with; use ks from 1 to"),
        (lambda: npz_and_gallery(labels=np.arange(96) / 2), "gallery_labels must be integers or strings, got float64"),
        (lambda: npz_and_gallery("--protocol", "market1501", cameras=None), "so it needs the cameras of all"),
        (lambda: npz_and_gallery("--protocol", "self"), "protocol self has no gallery"),
        (lambda: ["compare", "nothing", "nothing"], "there is no report at nothing; name the .json file"),
    ],
)  # fmt: skip
def test_every_mistake_gets_a_plain_sentence_and_exit_code_2(metricweight, monkeypatch, make, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = metricweight(*make())
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not list(Path().glob("*report*"))


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


def test_a_manifest_trains_and_tests_by_its_own_splits(metricweight, tmp_path):
    assert metricweight("prepare", "cub200", "--replica", "birds", "--size", 2)[0] == 0
    small = ["data.size=32", "model.backbone=small_cnn", "steps=2", "validations=1", "ks=[1,2]", "data.validation=0.25"]
    code, _, err = metricweight("train", "folder", "data.root=birds/manifest.csv", *small, "--out", "run")
    assert code == 0, err
    splits = pd.read_csv(tmp_path / "run" / "labels.csv").set_index("label")["split"]
    assert set(splits[splits == "test"].index.str[:3].astype(int)) == set(range(101, 109))
    assert splits.value_counts().to_dict() == {"test": 8, "train": 6, "validation": 2}
    with np.load(tmp_path / "run" / "embeddings.npz") as found:
        assert len(found["labels"]) == 8 * 6


@pytest.mark.parametrize(("name", "protocol"), [("inshop", "inshop"), ("market1501", "market1501")])
def test_what_has_queries_and_a_gallery_is_trained_embedded_and_judged_by_its_protocol(
    metricweight, tmp_path, name, protocol
):
    assert metricweight("prepare", name, "--replica", "raw", "--size", 2)[0] == 0
    table = pd.read_csv(tmp_path / "raw" / "manifest.csv")
    small = ["data.size=32", "model.backbone=small_cnn", "steps=2", "validations=1", "ks=[1,5]", "batch.classes=4"]
    code, _, err = metricweight("train", "folder", "data.root=raw/manifest.csv", *small, "--out", "run")
    assert code == 0, err
    trained = json.loads((tmp_path / "run" / "report.json").read_text())["models"]["trained"]["test"]
    assert trained["stamp"]["protocol"]["name"] == protocol
    assert trained["stamp"]["data"]["queries"] == table["is_query"].sum()
    code, _, err = metricweight("embed", "run", "--data", "raw/manifest.csv", "--out", "again.npz")
    assert code == 0, err
    with np.load(tmp_path / "again.npz") as again, np.load(tmp_path / "run" / "embeddings.npz") as first:
        assert {key: again[key].tolist() for key in again} == {key: first[key].tolist() for key in first}
        assert again["labels"].tolist() == table["label"][table["split"] == "test"].tolist()
        assert str(again["protocol"]) == protocol
    code, out, err = metricweight("evaluate", "again.npz", "--ks", 1, 5, "--json")
    assert code == 0, err
    judged = next(iter(json.loads(out)["models"]["again"].values()))
    for metric in ("recall@1", "map", "map_trapezoid", "minp", "intervals"):
        assert judged[metric] == trained[metric]


def test_tracklets_are_judged_by_the_means_of_their_frames(metricweight, tmp_path):
    assert metricweight("prepare", "mars", "--replica", "raw", "--size", 2)[0] == 0
    whole = manifest.read(tmp_path / "raw" / "manifest.csv")
    small = ["data.size=32", "model.backbone=small_cnn", "steps=2", "validations=1", "ks=[1,5]", "batch.classes=4"]
    code, _, err = metricweight("train", "folder", "data.root=raw/manifest.csv", *small, "--out", "run")
    assert code == 0, err
    stamp = json.loads((tmp_path / "run" / "report.json").read_text())["models"]["trained"]["test"]["stamp"]
    assert stamp["protocol"]["name"] == "mars-official"
    assert stamp["data"]["queries"] == whole.about.counts["query"]["tracklets"]

    stills = whole.changed(whole.table.assign(tracklet=-1, frame=-1), "frames alone")
    manifest.write(stills, tmp_path / "stills.csv")
    code, _, err = metricweight("embed", "run", "--data", "stills.csv", "--out", "stills.npz")
    assert code == 0, err
    test = whole.table[whole.table["split"] == "test"].reset_index(drop=True)
    with np.load(tmp_path / "stills.npz") as stills, np.load(tmp_path / "run" / "embeddings.npz") as tracklets:
        frames = pd.DataFrame(stills["embeddings"].astype(np.float64)).groupby(test["tracklet"], sort=False)
        np.testing.assert_allclose(tracklets["embeddings"], frames.mean().to_numpy(), atol=1e-6)
        for name, column in (("labels", "label"), ("cameras", "camera"), ("queries", "is_query")):
            first = test.groupby("tracklet", sort=False)[column].first()
            assert tracklets[name].tolist() == first.tolist()
        assert len(tracklets["labels"]) == whole.about.counts["test"]["tracklets"]
    code, out, err = metricweight("evaluate", "run", "--ks", 1, 5, "--all-protocols")
    assert code == 0, err
    for protocol in ("mars-official", "mars-ap3d", "mars-torchreid"):
        assert f"| embeddings, {protocol}" in out


def test_the_training_half_of_a_benchmark_alone_is_trained_and_tested_each_among_all(metricweight, tmp_path):
    assert metricweight("prepare", "market1501", "--replica", "raw", "--size", 2)[0] == 0
    assert metricweight("data", "raw/manifest.csv", "--where", "split == 'train'", "--out", "half.csv")[0] == 0
    small = ["data.size=32", "model.backbone=small_cnn", "steps=2", "validations=1", "ks=[1]", "batch.classes=2"]
    code, _, err = metricweight("train", "folder", "data.root=half.csv", *small, "data.validation=0", "--out", "run")
    assert code == 0, err
    stamp = json.loads((tmp_path / "run" / "report.json").read_text())["models"]["trained"]["test"]["stamp"]
    assert stamp["protocol"]["name"] == "self"
    assert stamp["data"]["queries"] == 4 * 4  # four people of four pictures


def test_other_splits_than_the_test_half_are_embedded_without_its_protocol(metricweight, tmp_path):
    assert metricweight("prepare", "market1501", "--replica", "raw", "--size", 2)[0] == 0
    small = ["data.size=32", "model.backbone=small_cnn", "steps=2", "validations=1", "ks=[1]", "batch.classes=2"]
    assert metricweight("train", "folder", "data.root=raw/manifest.csv", *small, "--out", "run")[0] == 0
    for split in ("train", "all"):
        code, _, err = metricweight("embed", "run", "--split", split)
        assert code == 0, err
        with np.load(tmp_path / "run" / f"embeddings-{split}.npz") as found:
            assert not {"queries", "protocol", "cameras"} & set(found)
        code, out, err = metricweight("evaluate", f"run/embeddings-{split}.npz", "--ks", 1)
        assert code == 0, err
        assert "Protocol self" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.assign(split=np.where(t["split"] == "train", "all", "test")),
            "has the splits all, test; training",
        ),
        (lambda t: t[t["split"] == "test"], "has the splits test; training needs train and test"),
        (lambda t: t.assign(split=np.where(t["is_junk"], "train", t["split"])), "rows of junk or distractors, such as"),
        (lambda t: t.assign(split="all"), "16 rows of junk or distractors, such as"),
        (lambda t: t[(t["split"] == "test") | (t["label"] < 10)], "2 training classes are too few"),
    ],
)
def test_rows_that_would_be_lost_or_learned_wrongly_are_refused(metricweight, tmp_path, change, words):
    assert metricweight("prepare", "market1501", "--replica", "raw", "--size", 2)[0] == 0
    whole = manifest.read(tmp_path / "raw" / "manifest.csv")
    table = change(whole.table).reset_index(drop=True)
    kept = table.drop(columns=["is_query", "is_gallery"]) if "train" in set(table["split"]) else table
    manifest.write(whole.changed(manifest.complete(kept, str, "t"), "changed"), tmp_path / "changed.csv")
    code, _, err = metricweight("train", "folder", "data.root=changed.csv", "model.backbone=small_cnn", "data.size=32")
    assert code == 2
    assert words in err


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
