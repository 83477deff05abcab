"""Two models on the same queries: the tests against enumeration, the verdict against data whose truth is known."""

import copy
import itertools
import json
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from metricweight.checks import InputError
from metricweight.retrieval import comparison as module
from metricweight.retrieval.comparison import Evaluated, compare, load, paired_p, save, sign_test, text

STAMP = {
    "protocol": {"similarity": "cosine", "ks": [1, 2], "missing": "skip"},
    "data": {"labels": "abc", "queries": 6},
    "made": {"numpy": "2.0", "embeddings": "f00"},
}
ROWS = """\
model,query,label,recall@1,map@r
pixels,0,007,0,0.25
pixels,1,007,1,0.5
pixels,2,NA,,
pixels,3,7,0,0
trained,0,007,1,0.5
trained,1,007,1,0.3333333333333333
trained,2,NA,,
trained,3,7,1,1
"""


def written(stem, rows=ROWS, stamp=STAMP, **changes):
    stem.parent.mkdir(exist_ok=True)
    models = dict.fromkeys(dict.fromkeys(line.split(",")[0] for line in rows.splitlines()[1:]))
    models = {name: {"test": {"recall@1": 0.5, "map@r": 0.25, "stamp": stamp}} for name in models}
    report = {"schema": 2, "models": models, **changes}
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(report))
    stem.with_name(f"{stem.name}.queries.csv").write_text(rows)
    return str(stem)


def evaluated(name, values, labels, stamp=STAMP):
    """`values` [Q] of recall@1, or a dict of metrics."""
    metrics = values if isinstance(values, dict) else {"recall@1": values}
    queries = {"query": np.arange(len(labels)), "label": [str(label) for label in labels]}
    return Evaluated(name, stamp, pd.DataFrame({**queries, **metrics}))


def compared(a, b, labels, **options):
    return compare(evaluated("a", a, labels), evaluated("b", b, labels), **options)


def pair_of_models(seed, gain=0.0, classes=40, by_class=0.0):
    """Hits of two models; `by_class`: how far the difference of their rates varies from class to class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), random.integers(4, 16, classes))
    rate = random.beta(4, 4, classes)
    shift = by_class * random.standard_normal(classes)
    a, b = ((random.random(len(labels)) < (rate + x)[labels]).astype(float) for x in (-shift, gain + shift))
    return a, b, labels


def test_the_sign_test_is_a_count_of_coin_tosses():
    assert sign_test(8, 1) == sign_test(1, 8) == 2 * (1 + 9) / 2**9
    assert sign_test(5, 0) == 2 / 2**5
    assert sign_test(3, 3) == sign_test(0, 0) == sign_test(1, 0) == 1
    assert sign_test(12, 4) == 2 * sum(comb(16, i) for i in range(5)) / 2**16


@pytest.mark.parametrize(("better", "worse"), [(7, 2), (60, 41), (900, 1000), (5400, 5100), (3000, 1)])
def test_the_sign_test_is_the_exact_binomial_at_any_size(better, worse):
    expected = binomtest(better, better + worse).pvalue
    assert sign_test(better, worse) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_recall_is_tested_exactly_and_equal_queries_change_nothing():
    changed = np.array([1.0] * 8 + [-1.0])
    assert paired_p(changed) == sign_test(8, 1)
    assert paired_p(np.concatenate([np.zeros(1000), changed])) == sign_test(8, 1)
    assert paired_p(changed / 3) == sign_test(8, 1)


def test_random_signs_come_to_what_all_signs_give():
    differences = np.array([0.9, -0.2, 0.5, 0.35, -0.1, 0.25, 0.05, 0.6, -0.45, 0.15])
    observed = abs(differences.sum())
    flipped = [abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=10)]
    exact = np.mean([value >= observed - 1e-9 for value in flipped])
    assert 0.05 < exact < 0.3
    assert paired_p(differences) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000))
    assert paired_p(-differences) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000))
    assert paired_p(differences) == paired_p(differences)
    assert paired_p(differences, seed=1) != paired_p(differences)


def test_the_observed_signs_count_whatever_the_order_of_the_sum():
    # all of one sign: 2 of the 2^3 ways reach the sum, and rounding must not lose them
    assert paired_p(np.array([0.1, 0.2, 0.30000000000000004])) == pytest.approx(0.25, abs=0.02)
    assert paired_p(np.array([0.1, 0.7, 0.6, 0.3])) == pytest.approx(0.125, abs=0.015)


def test_random_signs_never_give_a_p_of_zero_and_their_blocks_are_small(monkeypatch):
    differences = np.linspace(0.1, 0.9, 300)
    assert paired_p(differences) == 1 / 10_001
    mixed = differences * np.where(np.arange(300) % 9 < 5, 1, -1)
    monkeypatch.setattr(module, "BLOCK", 300 * 333)  # not a divisor of 10,000
    in_blocks = paired_p(mixed)
    monkeypatch.setattr(module, "BLOCK", 1)
    assert paired_p(mixed) == pytest.approx(in_blocks, abs=0.02)
    assert 0.01 < in_blocks < 0.99


def test_without_a_difference_there_are_at_most_8_false_verdicts_in_100():
    verdicts = [compared(*pair_of_models(seed)).verdict for seed in range(200)]
    assert len(verdicts) - verdicts.count("cannot tell") <= 16


def test_classes_that_differ_at_random_deceive_the_test_but_not_the_verdict():
    found = [compared(*pair_of_models(seed, classes=60, by_class=0.3)) for seed in range(150)]
    assert sum(c.p < 0.05 for c in found) > 0.2 * len(found)
    assert sum(c.verdict != "cannot tell" for c in found) <= 0.1 * len(found)


def test_a_clear_gain_is_better_and_the_other_way_round_worse():
    a, b, labels = pair_of_models(0, gain=0.15)
    forth, back = compared(a, b, labels), compared(b, a, labels)
    assert (forth.verdict, back.verdict) == ("better", "worse")
    assert forth.p == back.p < 0.001
    row, mirrored = forth.table.loc["recall@1"], back.table.loc["recall@1"]
    assert row["difference"] == pytest.approx(b.mean() - a.mean())
    assert [row["a"], row["b"]] == pytest.approx([a.mean(), b.mean()])
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert [mirrored["low"], mirrored["high"]] == pytest.approx([-row["high"], -row["low"]])
    assert (forth.better, forth.worse, forth.equal) == (back.worse, back.better, back.equal)


def test_one_witness_alone_is_not_enough():
    # one class of many queries gains all; by the query it is clear, by the class it is one of ten
    labels = np.repeat(np.arange(10), 20)
    by_one_class = compared(np.zeros(200), (labels == 0).astype(float), labels)
    assert by_one_class.p == 2 / 2**20
    assert by_one_class.table.loc["recall@1", "low"] == 0
    assert by_one_class.verdict == "cannot tell"
    # five queries of five classes gain: every draw of classes gains, and 5 of 5 is no more than a coin may do
    few = compared(np.zeros(5), np.ones(5), np.arange(5))
    assert few.p == 2 / 2**5
    assert few.table.loc["recall@1", "low"] == 1
    assert few.verdict == "cannot tell"


def test_equal_reports_cannot_be_told_apart():
    a, _, labels = pair_of_models(1)
    found = compared(a, a + 1e-15, labels)  # rounding is no difference
    assert (found.verdict, found.p, found.better, found.worse, found.equal) == ("cannot tell", 1, 0, 0, len(a))
    assert found.queries.empty
    assert text(found).endswith("\n\nCannot tell: recall@1 +0.00 points (95 % interval 0.00 to 0.00), p = 1.")


def test_one_class_is_no_evidence_of_others():
    found = compared(np.zeros(30), np.ones(30), ["one"] * 30)
    assert found.p < 1e-6
    assert found.verdict == "cannot tell"
    assert text(found).endswith("recall@1 +100.00 points (one class only: no interval), p < 0.0001.")


def test_every_shared_metric_is_in_the_table_and_the_verdict_is_about_the_first_or_the_chosen():
    a, b, labels = pair_of_models(2, gain=0.2)
    left = evaluated("a", {"recall@1": a, "map@r": b, "ap": a}, labels)
    right = evaluated("b", {"map@r": a, "recall@1": b, "mrr": a}, labels)
    found = compare(left, right)
    assert list(found.table.index) == ["recall@1", "map@r"]
    assert (found.metric, found.verdict) == ("recall@1", "better")
    chosen = compare(left, right, metric="map@r")
    assert (chosen.metric, chosen.verdict) == ("map@r", "worse")
    pd.testing.assert_frame_equal(chosen.table, found.table)
    with pytest.raises(InputError, match=r"map@rr is not a metric of both .*recall@1, map@r; did you mean map@r"):
        compare(left, right, metric="map@rr")
    with pytest.raises(InputError, match="recall@1 is not a metric of both reports, which share none"):
        compare(left, evaluated("b", {"mrr": a}, labels))


def test_queries_that_do_not_count_in_both_are_left_out():
    a = np.array([0, np.nan, 1, 0, np.nan])
    b = np.array([1, 1, np.nan, 0, np.nan])
    found = compared(a, b, [0, 0, 1, 1, 1])
    assert (found.better, found.worse, found.equal, found.left_out) == (1, 0, 1, 3)
    assert found.table.loc["recall@1", ["a", "b", "difference"]].tolist() == [0, 0.5, 0.5]
    assert found.classes["queries"].tolist() == [1, 1]
    with pytest.raises(InputError, match="no query counts by recall@1 in both"):
        compared(np.array([0, np.nan]), np.array([np.nan, 1]), [0, 1])


def test_classes_are_sorted_by_what_they_add_and_only_changed_queries_are_listed():
    labels = ["x"] * 2 + ["y"] * 5 + ["z"] * 3
    a = [0.0, 0.0, 1, 1, 1, 1, 1, 1, 0, 1]
    b = [1.0, 1.0, 0, 0, 0, 1, 1, 0, 1, 1]
    found = compared(a, b, labels)
    assert found.classes.columns.tolist() == ["label", "queries", "a", "b", "difference"]
    assert found.classes.to_numpy().tolist() == [  # 3 hits lost, 2 won, one of each
        ["y", 5, 1.0, 0.4, pytest.approx(-0.6)],
        ["x", 2, 0.0, 1.0, 1.0],
        ["z", 3, pytest.approx(2 / 3), pytest.approx(2 / 3), 0.0],
    ]
    assert found.queries["query"].tolist() == [0, 1, 2, 3, 4, 7, 8]
    assert found.queries.iloc[2].tolist() == [2, "y", 1, 0]


def stamped(**changes):
    stamp = copy.deepcopy(STAMP)
    for place, value in changes.items():
        part, field = place.split("__")
        stamp[part][field] = value
    return stamp


def test_different_stamps_are_refused_field_by_field_unless_forced():
    a, b, labels = pair_of_models(3)
    left = evaluated("left", a, labels)
    right = evaluated("right", b, labels, stamped(protocol__ks=[1, 10], data__rules="own camera"))
    message = (
        r"A \(left\) and B \(right\) were evaluated differently: protocol.ks is \[1, 2\] in A and \[1, 10\] in B; "
        "data.rules is nothing in A and 'own camera' in B. "
    )
    with pytest.raises(InputError, match=message):
        compare(left, right)
    assert "Stamps differ: protocol.ks is [1, 2] in A and [1, 10] in B; data" in text(compare(left, right, force=True))
    made = evaluated("right", b, labels, stamped(made__numpy="1.26"))
    assert compare(left, made).differing == ()
    assert "Stamps differ" not in text(compare(left, made))


@pytest.mark.parametrize("force", [False, True])
def test_different_queries_are_never_compared(force):
    a, b, labels = pair_of_models(4)
    left = evaluated("left", a, labels)
    with pytest.raises(InputError, match=f"A has {len(a)} queries and B {len(a) - 1}.*the same order"):
        compare(left, evaluated("right", b[1:], labels[1:]), force=force)
    other = labels.copy()
    other[[5, 8]] = 99
    message = f"2 of {len(a)} queries differ, the first is 5 of class {labels[5]} in A and 5 of class 99 in B; data.lab"
    with pytest.raises(InputError, match=message):
        compare(left, evaluated("right", b, other, stamped(data__labels="xyz")), force=force)
    moved = evaluated("right", b, labels)
    moved.queries.loc[3, "query"] = 1000
    with pytest.raises(InputError, match=f"the first is 3 of class .* in A and 1000 of class {labels[3]} in B"):
        compare(left, moved, force=force)


def test_a_report_is_found_by_its_file_its_stem_or_its_folder(tmp_path):
    stem = written(tmp_path / "run" / "report")
    for word in (stem, f"{stem}.json", str(tmp_path / "run"), f"{tmp_path / 'run'}/"):
        for model in ("trained", "pixels"):
            found = load(f"{word}:{model}")
            assert found.name == f"{word}:{model}"
            assert found.queries["recall@1"].iloc[0] == (model == "trained")
        assert load(word).name == f"{word}:trained"
    assert load(written(tmp_path / "my.report")).queries["query"].tolist() == [0, 1, 2, 3]


def test_colons_belong_to_the_path_as_far_as_there_is_a_report(tmp_path):
    odd = written(tmp_path / "net:2", ROWS.replace("trained", "net:2"))
    assert load(f"{odd}:net:2").queries["recall@1"].tolist()[0] == 1
    assert load(f"{odd}:pixels").queries["recall@1"].tolist()[0] == 0
    written(tmp_path / "net", ROWS.replace("trained", "2"))
    with pytest.raises(InputError, match=r"not chosen of the models in .*net:2\.json"):
        load(odd)
    (tmp_path / "net:2.json").unlink()
    assert load(odd).queries["recall@1"].tolist()[0] == 1  # model 2 of net


def test_what_was_written_is_read_as_it_was_written(tmp_path):
    found = load(written(tmp_path / "report"))
    now = {**STAMP["protocol"], "queries": "the items themselves"}  # there were no others when it was written
    assert found.stamp == {**STAMP, "protocol": now}
    assert found.metrics == ["recall@1", "map@r"]
    assert found.queries["label"].tolist() == ["007", "007", "NA", "7"]
    assert found.queries["map@r"].tolist() == [0.5, 1 / 3, pytest.approx(np.nan, nan_ok=True), 1]
    comparison = compare(load(f"{tmp_path}:pixels"), found)
    assert (comparison.better, comparison.worse, comparison.equal, comparison.left_out) == (2, 0, 1, 1)
    assert comparison.table.loc["map@r", "a"] == 0.25
    assert comparison.classes["label"].tolist() == ["007", "7"]


def test_one_model_needs_no_name_and_several_do(tmp_path):
    one = written(tmp_path / "one", ROWS.replace("trained", "pixels"))
    assert load(one).name == one
    two = written(tmp_path / "two", ROWS.replace("trained", "fine"))
    with pytest.raises(
        InputError, match=r"not chosen of the models in .*, which are pixels, fine; name one, as .*two:M"
    ):
        load(two)
    with pytest.raises(InputError, match=r"there is no trained among the models in .*, which are pixels, fine"):
        load(f"{two}:trained")


def test_a_report_of_embeddings_is_found_by_their_name_or_its_folder(tmp_path):
    written(tmp_path / "mine.report", ROWS)
    assert load(str(tmp_path / "mine")).queries.equals(load(str(tmp_path)).queries)
    written(tmp_path / "other.report", ROWS)
    with pytest.raises(InputError, match="there is no report at"):
        load(str(tmp_path))  # which of the two?


def test_files_that_cannot_be_used_are_refused_in_plain_words(tmp_path):
    with pytest.raises(InputError, match=r"there is no report at .*none; name the \.json file"):
        load(str(tmp_path / "none"))
    with pytest.raises(InputError, match="there is no report at ;"):
        load("")
    stem = tmp_path / "report"
    files = stem.with_name("report.json"), stem.with_name("report.queries.csv")

    def refused(match):
        with pytest.raises(InputError, match=match):
            load(str(stem))

    written(stem, schema=1)
    refused(r"another version \(schema 1, and 2 is read\); evaluate the embeddings again")
    for models in ({}, [], {"trained": {}}, {"trained": {"test": 1}}, {"trained": {"test": {"stamp": {"data": {}}}}}):
        written(stem, models=models)
        refused(r"report\.json is damaged.*it (holds no models|has no stamp).*evaluate again")
    for content in ('{"schema": 2, "mod', "[]"):
        files[0].write_text(content)
        refused(r"report\.json is damaged.*; evaluate again")
    for rows in (
        "",
        "trained",
        "model,query,label\ntrained,0,x\n",
        ROWS.replace("0.25", "much"),
        ROWS.replace("1,007", ""),
    ):
        written(stem)
        files[1].write_text(rows)
        refused(r"report\.queries\.csv is damaged.*; evaluate again")
    written(stem)
    files[1].write_text(ROWS.replace("trained", "other"))
    refused("it has no queries of trained")
    files[1].unlink()
    refused(r"report\.queries\.csv is missing.*; evaluate again")


def test_the_text_says_what_was_found_in_percent():
    labels = ["a|b"] * 4 + [f"class {c}" for c in range(9)] * 2
    a = np.zeros(22)
    b = np.ones(22)
    a[5:7], b[5:7] = 1, 0
    b[20:] = 0
    lines = text(compared(a, b, labels)).splitlines()
    assert lines[0] == "A: a"
    assert lines[1] == "B: b"
    assert lines[3] == "|          |    A |     B |  B - A |    95 % interval |"
    assert lines[5].startswith("| recall@1 | 9.09 | 81.82 | +72.73 | +")
    assert (
        "In %. By recall@1, B finds 18 queries better, 2 worse and 2 equally well; 0 more do not count in both."
        in lines
    )
    assert "8 of 10 classes gained, most of all:" in lines
    assert "| a\\|b    |       4 | 0.00 | 100.00 | +100.00 |" in lines
    assert "With fewer than 20 classes the interval is too narrow." in lines
    assert sum(line.startswith("| class") for line in lines) == 4
    assert lines[-1].startswith("B is better than A: recall@1 +72.73 points (95 % interval ")
    assert lines[-1].endswith("), p = 0.0004.")  # 2 (1 + 20 + 190) / 2^20
    assert text(compared(b, a, labels)).splitlines()[-1].startswith("B is worse than A: recall@1 -72.73 points (95 % i")


def test_a_change_that_rounds_to_nothing_has_no_minus():
    found = text(compared(np.full(30, 0.5), np.full(30, 0.5 - 1e-6), np.arange(30)))
    assert found.endswith("B is worse than A: recall@1 +0.00 points (95 % interval 0.00 to 0.00), p < 0.0001.")
    assert "-0.00" not in found


def test_what_is_saved_can_be_read_by_anyone(tmp_path):
    a, b, labels = pair_of_models(5, gain=0.15)
    left = evaluated("a", {"recall@1": a, "rare": np.full(len(a), np.nan)}, labels)
    found = compare(left, evaluated("b", {"recall@1": b, "rare": a}, labels))
    out = tmp_path / "deep" / "out"
    save(found, out)
    save(found, out)
    assert sorted(path.name for path in out.iterdir()) == ["classes.csv", "comparison.json", "queries.csv"]
    facts = json.loads((out / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert (facts["a"], facts["b"], facts["metric"], facts["verdict"]) == ("a", "b", "recall@1", "better")
    assert facts["p"] == found.p
    assert facts["metrics"]["recall@1"] == found.table.loc["recall@1"].to_dict()
    assert facts["metrics"]["rare"] == dict.fromkeys(["a", "b", "difference", "low", "high"])
    assert facts["queries"] == {"better": found.better, "worse": found.worse, "equal": found.equal, "left_out": 0}
    for name, frame in (("classes", found.classes), ("queries", found.queries)):
        read = pd.read_csv(out / f"{name}.csv", dtype={"label": str})
        pd.testing.assert_frame_equal(read, frame)
