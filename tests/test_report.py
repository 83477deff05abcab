"""What is written of an evaluation, and that it is read back as it was."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from metricweight.checks import InputError
from metricweight.retrieval import Rerank, comparison, evaluate
from metricweight.retrieval import report as reports
from metricweight.retrieval.report import latex, markdown, save

ENDINGS = ("json", "md", "csv", "tex", "queries.csv", "classes.csv")
LABELS = np.array([f"0{i % 15}" for i in range(61)])
LABELS[-1] = "NA"  # a class of its own, with a name that tables like to take for nothing
X = np.random.default_rng(0).standard_normal((61, 4))
CENTRES = np.random.default_rng(1).standard_normal((15, 4))[np.arange(61) % 15]


@pytest.fixture(scope="module")
def models():
    return {
        "plain": evaluate(X, LABELS, ks=(1, 5)),
        "better": evaluate(X + 3 * CENTRES, LABELS, ks=(1, 5)),
        "a_b 50%": evaluate(X, LABELS, ks=(1, 5), rerank=Rerank(5, 2)),
    }


@pytest.fixture
def stem(models, tmp_path):
    save(models, tmp_path / "x.report", recipe="mine")
    return tmp_path / "x.report"


def beside(stem, ending):
    return stem.with_name(f"{stem.name}.{ending}")


def test_a_report_is_six_files_and_nothing_else(stem):
    assert sorted(path.name for path in stem.parent.iterdir()) == sorted(f"x.report.{ending}" for ending in ENDINGS)


def test_the_json_file_has_what_the_reports_have(stem, models):
    saved = json.loads(beside(stem, "json").read_text())
    assert saved["schema"] == 2
    assert saved["recipe"] == "mine"
    assert list(saved["models"]) == list(models)
    for name, report in models.items():
        found = saved["models"][name]["test"]
        assert {metric: found[metric] for metric in report.metrics} == report.metrics
        assert {metric: tuple(pair) for metric, pair in found["intervals"].items()} == report.intervals
        assert {metric: tuple(pair) for metric, pair in found["ties"].items()} == report.ties
        assert found["notes"] == list(report.notes)
        assert found["stamp"] == report.stamp
        assert list(found["stamp"]) == ["protocol", "data", "made"]


def test_the_tables_have_a_row_per_model_query_and_class(stem, models):
    table = pd.read_csv(beside(stem, "csv"), index_col="model")
    queries, classes = (pd.read_csv(beside(stem, f"{what}.csv"), keep_default_na=False, na_values=[""])
                        for what in ("queries", "classes"))  # fmt: skip
    assert list(table.index) == list(models)
    assert list(queries.columns) == ["model", "query", "label", *models["plain"].metrics]
    assert len(queries) == 3 * 61
    assert len(classes) == 3 * 16
    for name, report in models.items():
        assert table.loc[name].to_dict() == pytest.approx(report.metrics)
        own = queries[queries["model"] == name]
        assert own["query"].tolist() == list(range(61))
        assert own["label"].tolist()[-1] == "NA"
        assert own["map"].mean() == pytest.approx(report.metrics["map"])
        assert np.isnan(own["map"].iloc[-1])
        some = classes[(classes["model"] == name) & (classes["label"] == "NA")]
        assert some[["queries", "valid"]].to_numpy().tolist() == [[1, 0]]
        assert classes.loc[classes["model"] == name, "queries"].sum() == 61


def test_the_markdown_file_shows_the_table_and_what_was_measured(stem, models):
    lines = beside(stem, "md").read_text().splitlines()
    assert lines == markdown(models).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["plain", "better", "a_b 50%"]
    assert len({len(line) for line in lines[:5]}) == 1
    low, high = models["plain"].intervals["map"]
    assert f" {100 * models['plain'].metrics['map']:.2f} ± {50 * (high - low):.2f} |" in lines[2]
    assert "- plain: Protocol self: 61 queries of 16 classes, each among 60 others by cosine; " in "\n".join(lines)
    assert "- a_b 50%: " in lines[-1]
    assert lines[-1].endswith("Re-ranked: k1=5, k2=2, weight=0.3.")


def test_reports_with_one_stamp_say_once_what_was_measured(models):
    text = markdown({"plain": models["plain"], "better": models["better"]})
    assert text.count("Protocol self: 61 queries") == 1


@pytest.fixture(scope="module")
def persons():
    """The same tracklets by several protocols. Of label 1, cameras other than 0 are seen by queries alone."""
    random = np.random.default_rng(0)
    labels, cameras = np.arange(120) % 8 - 1, np.arange(120) // 8 % 3
    queries = (np.arange(120) < 24) & (labels > 0) | (labels == 1) & (cameras > 0)
    x = random.standard_normal((8, 5))[labels] + random.standard_normal((120, 5))
    given = {"embeddings": x, "labels": labels, "cameras": cameras, "queries": queries, "seen": "all frames, mean"}

    def of(protocol, **more):
        return evaluate(**given | more, protocol=protocol, ks=(1, 5))

    first = {"query_embeddings": x[queries] + 0.1, "seen": "all frames, mean; of queries the first frame alone"}
    return {
        "a": of("mars-official"),
        "a, first": of("mars-official", **first),
        "a, more": of("mars-official", rerank=Rerank()),
        "b": of("mars-ap3d", multi_query=True),
        "c": of("mars-torchreid"),
        "d": of("market1501"),
        "b, plain": of("mars-ap3d"),
        "e": of("mars-torchreid", missing="zero"),
    }


def test_protocols_side_by_side_say_how_many_queries_count_among_how_many(persons):
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(persons).splitlines()[:10]]
    assert head == ["", "queries", "gallery", "mAP (trapezoid)", "R@1", "R@5", "mINP", "mAP"]
    found = {row[0]: row[1:] for row in rows}
    # of 120, 15 are junk; a query of each of 6 labels and 3 cameras, and 8 more of label 1; one finds only queries
    assert [row[:2] for row in found.values()] == [["26", "105"]] * 4 + [["25", "79"]] * 2 + [
        ["26", "105"],
        ["26", "79"],
    ]
    trapezoid, step = ({model for model, row in found.items() if row[column]} for column in (2, 6))
    assert trapezoid == {"a", "a, first", "a, more", "d"}
    assert step == {"b", "c", "d", "b, plain", "e"}
    assert "Queries: how many count." in markdown(persons)
    assert latex(persons).count("&") == 9 * 7
    alone = markdown({name: persons[name] for name in ("a", "a, first", "a, more")})
    assert "| queries |" not in alone.replace("  ", "")
    assert "how many count" not in alone


def test_what_is_the_same_as_above_is_said_once(persons):
    lines = [line for line in markdown(persons).splitlines() if line.startswith("- ")]
    told = "What was seen of each item: all frames, mean"
    who = "26 queries of 6 classes, each among 105 gallery items by cosine, those of its class and camera left out; "
    items = "15 junk, 15 distractors."
    assert lines[:3] == [
        f"- a: Protocol mars-official: {who}0 without a positive left out. Its mAP is the trapezoid. {items} "
        f"With so few classes the intervals are too narrow. {told}.",
        "- a, first: as a. Queries search with other embeddings of them than stand in the gallery. "
        f"{told}; of queries the first frame alone.",
        "- a, more: as a. Re-ranked: k1=20, k2=6, weight=0.3.",
    ]
    assert lines[3].startswith(f"- b: Protocol mars-ap3d: {who}0 without a positive left out. {items}")
    assert lines[3].endswith(f"Each query searches with the mean of all items that have its label and camera. {told}.")
    assert "; 1 without a positive left out, so 25 count." in lines[4]
    assert lines[6].startswith("- b, plain: Protocol mars-ap3d: 26")  # it is not as b, which has something more
    assert "the mean of all" not in lines[6]


def test_models_that_saw_other_frames_of_the_same_items_are_compared_and_it_is_said(persons, tmp_path):
    one = persons["a"]
    for name, seen in (("a", "all frames, mean"), ("b", "first"), ("c", None)):
        made = {key: value for key, value in one.stamp["made"].items() if key != "seen"} | (
            {"seen": seen} if seen else {}
        )
        save({name: replace(one, stamp={**one.stamp, "made": made})}, tmp_path / name)
    a, b, c = (comparison.load(str(tmp_path / name)) for name in "abc")
    assert comparison.compare(a, b).differing == ("made.seen is 'all frames, mean' in A and 'first' in B",)
    assert "Stamps differ: made.seen is 'all frames, mean' in A" in comparison.text(comparison.compare(a, b))
    assert comparison.compare(a, c).differing == ("made.seen is 'all frames, mean' in A and nothing in B",)
    assert comparison.compare(a, a).differing == comparison.compare(c, c).differing == ()


def test_notes_stand_below_the_table_with_their_model(models):
    with pytest.warns(reports.EvaluationWarning):
        tied = evaluate(X[np.arange(61) % 2], LABELS, ks=(1, 5))
    assert f"tied: {tied.notes[0]}" in markdown({"plain": models["plain"], "tied": tied}).splitlines()
    assert tied.notes[0] in tied.markdown().splitlines()


def test_the_latex_table_is_plausible_latex(stem, models):
    text = beside(stem, "tex").read_text()
    assert text == latex(models)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 3
    assert {row.count("&") for row in rows} == {5}
    assert r"\begin{tabular}{lrrrrr}" in text
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
        assert text.count(word) == 1
    assert rows[3].startswith(r"a\_b 50\% &")
    assert not re.search(r"(?<!\\)[_%#]", text)
    assert text.count(r"$\pm$") == 3 * 5
    assert text.isascii()


def test_a_saved_report_is_read_and_compared(stem, models):
    for word in (f"{stem}:plain", f"{stem}.json:plain"):
        a = comparison.load(word)
        assert a.metrics == list(models["plain"].metrics)
        assert a.stamp == models["plain"].stamp
        assert a.queries["label"].tolist() == LABELS.tolist()
        assert a.queries["map"].to_numpy() == pytest.approx(models["plain"].values["map"], nan_ok=True)
    found = comparison.compare(a, comparison.load(f"{stem}:better"))
    assert found.metric == "recall@1"
    assert found.verdict == "better"
    assert found.left_out == 1
    row = found.table.loc["map"]
    assert [row["a"], row["b"]] == pytest.approx([models[name].metrics["map"] for name in ("plain", "better")])
    with pytest.raises(InputError, match=r"were evaluated differently: protocol.rerank is None in A and {'k1': 5"):
        comparison.compare(a, comparison.load(f"{stem}:a_b 50%"))
    forced = comparison.compare(a, comparison.load(f"{stem}:a_b 50%"), force=True)
    assert any("rerank" in words for words in forced.differing)


def test_approximate_numbers_compare_though_their_indexes_find_different_shares(tmp_path):
    random = np.random.default_rng(0)
    labels = np.arange(2000) % 400
    for name in ("a", "b"):
        x = random.standard_normal((400, 12))[labels] + random.standard_normal((2000, 12))
        save({name: evaluate(x, labels, index="ivf_flat")}, tmp_path / name)
    a, b = (comparison.load(str(tmp_path / name)) for name in ("a", "b"))
    assert a.stamp["made"]["index_recall"] != b.stamp["made"]["index_recall"]
    assert comparison.compare(a, b).metric == "recall@1"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_write_that_fails_leaves_whole_files_alone(models, tmp_path, monkeypatch, ending):
    """Those that were there, or the new ones, and no pieces."""
    stem = tmp_path / "x.report"
    save({"plain": models["plain"]}, stem)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = reports.write_text

    def disk_full(path, text):
        if path.name == f"x.report.{ending}":
            monkeypatch.setattr("os.fsync", no_space)
        write(path, text)

    def no_space(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reports, "write_text", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save(models, stem)
    monkeypatch.undo()
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save(models, stem)
    new = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(after) == set(before) == set(new)
    assert all(content in (before[name], new[name]) for name, content in after.items())
    assert after[f"x.report.{ending}"] == before[f"x.report.{ending}"] != new[f"x.report.{ending}"]
    assert after["x.report.json"] == before["x.report.json"]  # it is written last: what it says, the others have
