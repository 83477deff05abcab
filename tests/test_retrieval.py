"""Embeddings in, report out."""

import json
import math
from itertools import chain, combinations, groupby, product

import numpy as np
import pytest
import torch

from metricweight.checks import InputError
from metricweight.retrieval import Expand, Protocol, Rerank, evaluate, evaluation
from metricweight.retrieval.evaluation import as_bytes
from metricweight.retrieval.expansion import expanded
from metricweight.retrieval.points import together
from metricweight.retrieval.report import EvaluationWarning
from metricweight.retrieval.rerank import reranked

pytestmark = pytest.mark.filterwarnings("ignore::metricweight.retrieval.report.EvaluationWarning")


def metrics_of(hits, ks):
    """Every metric of one list, best first."""
    places = [k for k, hit in enumerate(hits, start=1) if hit]
    r = len(places)
    precision = [1.0, *(sum(hits[:k]) / k for k in range(1, len(hits) + 1))]
    return {
        **{f"recall@{k}": float(any(hits[:k])) for k in ks},
        **{f"precision@{k}": sum(hits[:k]) / k for k in ks},
        "map@r": sum(precision[k] for k in places if k <= r) / r,
        "r_precision": sum(hits[:r]) / r,
        "map": sum(precision[k] for k in places) / r,
        "map_trapezoid": sum((precision[k] + precision[k - 1]) / 2 for k in places) / r,
        "minp": r / places[-1],
        "mrr": 1 / places[0],
    }


def orders(distances, hits):
    """All lists of hits, best first, that differ: items at one distance stand in any order."""
    ranked = sorted(zip(distances, hits, strict=True))
    groups = [[hit for _, hit in group] for _, group in groupby(ranked, key=lambda pair: pair[0])]
    ways = [[[i in where for i in range(len(g))] for where in combinations(range(len(g)), sum(g))] for g in groups]
    return [list(chain.from_iterable(way)) for way in product(*ways)]


def distances_of(embeddings, similarity):
    x = np.asarray(embeddings, dtype=np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if similarity == "cosine" else x
    return np.array([[round(float(np.linalg.norm(b - a)), 9) for b in x] for a in x])


def by_the_book(distances, labels, ks, queries=None, combine=np.mean):
    """Each metric from a full sort of every query's others, one query and one order at a time."""
    rows = []
    for i in range(len(labels)) if queries is None else queries:
        others = [j for j in range(len(labels)) if j != i]
        hits = [labels[j] == labels[i] for j in others]
        if any(hits):
            found = [metrics_of(order, ks) for order in orders([distances[i][j] for j in others], hits)]
            rows.append({name: combine([one[name] for one in found]) for name in found[0]})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(3))
def test_every_metric_is_that_of_a_full_sort(similarity, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 25, 80)  # some of them singletons
    x = random.standard_normal((80, 5)) + 1.5 * random.standard_normal((25, 5))[labels] + 3
    report = evaluate(x.astype(np.float32), labels, ks=(1, 3, 10), similarity=similarity)
    assert report.metrics == pytest.approx(by_the_book(distances_of(x, similarity), labels, (1, 3, 10)))
    assert report.stamp["data"]["queries_without_positives"] == (np.bincount(labels) == 1).sum() > 0
    assert {name: low for name, (low, _) in report.ties.items()} == pytest.approx(report.metrics)
    assert not report.notes


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(4))
def test_ties_count_as_the_mean_over_all_their_orders(similarity, seed):
    random = np.random.default_rng(seed)
    grid = np.array([[a, b] for a in range(-2, 3) for b in range(-2, 3) if a or b])
    x, labels = random.choice(grid, 13), random.integers(0, 4, 13)
    distances = distances_of(x, similarity)
    report = evaluate(x, labels, ks=(1, 2, 5), similarity=similarity)
    assert report.metrics == pytest.approx(by_the_book(distances, labels, (1, 2, 5)))
    worst, best = (by_the_book(distances, labels, (1, 2, 5), combine=f) for f in (min, max))
    assert {name: low for name, (low, _) in report.ties.items()} == pytest.approx(worst)
    assert {name: high for name, (_, high) in report.ties.items()} == pytest.approx(best)
    assert worst["map"] < report.metrics["map"] < best["map"]


SIX, SIX_LABELS = np.array([[0], [0.1], [0.25], [1], [1.2], [3]]), [0, 0, 1, 0, 1, 2]


def test_six_points_on_a_line_by_hand():
    """Hits 10100, 10100, 00010, 00110, 01000; label 2 is alone."""
    report = evaluate(SIX, SIX_LABELS, ks=(1, 2, 4), similarity="euclidean")
    expected = {"recall@1": 0.4, "recall@2": 0.6, "recall@4": 1.0, "r_precision": 0.2, "map@r": 0.2, "map": 17 / 30}
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected)
    frame = report.queries()
    assert frame["map"].tolist()[:5] == pytest.approx([5 / 6, 5 / 6, 1 / 4, 5 / 12, 1 / 2])
    assert frame["r_precision"].tolist()[:5] == [0.5, 0.5, 0, 0, 0]
    assert frame["positives"].tolist() == [2, 2, 1, 2, 1, 0]
    assert np.isnan(frame["map"][5])


def test_queries_without_a_positive_are_left_out_counted_as_0_or_refused():
    def of(missing):
        return evaluate(SIX, SIX_LABELS, ks=(1, 2, 4), similarity="euclidean", missing=missing)

    skipped, zero = of("skip"), of("zero")
    for report in (skipped, zero):
        counts = {"queries": 6, "valid_queries": 5, "queries_without_positives": 1}
        assert {name: report.stamp["data"][name] for name in counts} == counts
    assert [zero.metrics[f"recall@{k}"] for k in (1, 2, 4)] == pytest.approx([2 / 6, 3 / 6, 5 / 6])
    assert zero.metrics == pytest.approx({name: 5 / 6 * value for name, value in skipped.metrics.items()})
    assert zero.ties["recall@1"] == pytest.approx((2 / 6, 2 / 6))
    assert zero.queries()["recall@1"].tolist() == [1, 1, 0, 0, 0, 0]
    assert "1 without a positive left out" in skipped.markdown()
    assert "1 without a positive counted as 0" in zero.markdown()
    with pytest.raises(InputError, match=r"1 of 6 queries have no positive, the first in row 5; missing='skip' leaves"):
        of("error")
    assert evaluate(SIX[:5], SIX_LABELS[:5], ks=(1,), missing="error", similarity="euclidean").metrics["map@r"] == 0.2


def test_recall_is_any_hit_not_the_share_that_is_found():
    x = [[0.0], [1.0], [1.1], [5.0], [5.1]]
    report = evaluate(np.array(x), [0, 0, 0, 1, 1], ks=(1,), similarity="euclidean")
    assert report.metrics["recall@1"] == 1.0  # though query 0 finds one of its two positives


def test_a_duplicate_of_another_label_is_not_mistaken_for_the_query_itself():
    """Code that drops the first neighbour scores 0.5 here."""
    points = np.random.default_rng(0).standard_normal((50, 8)).repeat(2, axis=0)
    labels = np.arange(100) % 2 * 50 + np.arange(100) // 2  # every point twice, under two labels
    labels = np.concatenate([labels, labels])
    far = np.concatenate([points, -points])
    assert evaluate(far, labels, ks=(1,)).metrics["recall@1"] == 0.0


def test_a_query_crowded_out_by_duplicates_still_gets_k_others():
    x = np.eye(2).repeat(20, axis=0)
    report = evaluate(x, np.arange(40) // 20, ks=(1, 2))
    assert report.metrics["recall@1"] == 1.0
    assert report.metrics["r_precision"] == 1.0


def test_exact_duplicates_under_different_labels_are_counted_and_said():
    x = np.random.default_rng(0).standard_normal((3000, 3))
    x[4], x[6] = x[0], x[5]
    labels = np.arange(3000) // 100
    labels[[0, 4, 5, 6]] = [0, 1, 2, 2]  # 0 and 4 differ in label, 5 and 6 do not
    report = evaluate(x, labels, ks=(1,))
    assert report.stamp["made"]["duplicates_across_labels"] == 2
    assert report.notes == ["2 items are exact duplicates under different labels: their order is chance."]
    assert report.notes[0] in report.markdown()
    assert not evaluate(x[1:], labels[1:], ks=(1,)).notes


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize(("value", "noise"), [(1, 0), (1, 1e-9), (-3, 0), (1e30, 0)])
def test_a_constant_embedding_is_refused(similarity, value, noise):
    x = value * (1 + noise * np.random.default_rng(0).standard_normal((100, 4)))
    with pytest.raises(InputError, match=r"collapsed: all 100 lie within .* Every ranking of them is chance"):
        evaluate(x, np.arange(100) % 10, similarity=similarity)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_two_points_for_all_items_give_chance_and_a_warning_with_its_cause(similarity):
    """Of each class 5 items at one point and 5 at the other: of 49 others at the query's point 4 are of its class."""
    points = np.array([[1.0, 2.0, 0.5], [-1.0, 0.3, 2.0]])
    cause = r"all for them. Only 2 of the 100 embeddings of the gallery differ from each other\."
    with pytest.warns(EvaluationWarning, match=rf"^Ties decide \S+: from .* {cause}"):
        report = evaluate(points[np.arange(100) % 2], np.arange(100) // 10, ks=(1, 8), similarity=similarity)
    assert report.metrics["recall@1"] == pytest.approx(4 / 49)
    assert report.metrics["recall@8"] == pytest.approx(1 - math.comb(45, 8) / math.comb(49, 8))
    assert report.ties["recall@1"] == (0, 1)
    assert len(report.notes) == 1


CENTRES = 40 * np.stack([np.arange(10) % 5 - 2, np.arange(10) // 5], axis=1)
AS_NEAR = np.concatenate([CENTRES, np.add(CENTRES, [0, 3]), np.add(CENTRES, [3, 0])])
TWICE = np.concatenate([AS_NEAR[:20], AS_NEAR[10:20], 500 + np.arange(200).reshape(100, 2)])


@pytest.mark.parametrize(
    ("cause", "x"),
    [
        (r"20 items are exact duplicates under different labels\.", TWICE),
        ("Embeddings of float16 have few values, so many are ", AS_NEAR.astype(np.float16)),
        ("Many embeddings are exactly as close as others: their values were rounded, or ", AS_NEAR.astype(np.float64)),
    ],
)
def test_a_wide_band_names_its_cause(cause, x):
    """For each of ten queries, an item of its label and one of another are just as far away."""
    labels = np.concatenate([np.arange(10), np.arange(10), np.arange(20, 30), np.full(len(x) - 30, 99)])
    with pytest.warns(EvaluationWarning, match=rf"^Ties decide .* with all for them\. {cause}"):
        report = evaluate(x, labels, ks=(1,), similarity="euclidean")
    assert report.queries()["recall@1"][:10].tolist() == [0.5] * 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_of_any_float_is_taken_as_the_numbers_it_holds(dtype):
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(30) % 5
    assert evaluate(x.requires_grad_(), labels).metrics == evaluate(x.detach().double().numpy(), labels.numpy()).metrics


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_half_precision_in_a_narrow_cone_is_compared_in_float32(dtype, similarity):
    """Mean cosine .99: similarities in bfloat16 would nearly all be equal, and R@1 from 0.03 to 1."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((60, 32)).repeat(5, axis=0)
    x = torch.from_numpy(5 + 0.5 * (centres + random.standard_normal((300, 32)))).to(dtype)
    labels = np.arange(300) // 5
    report = evaluate(x, labels, similarity=similarity)
    assert report.metrics == evaluate(x.double(), labels, similarity=similarity).metrics
    expected = by_the_book(distances_of(x.double().numpy(), similarity), labels, (1, 2, 4, 8))
    assert report.metrics == pytest.approx(expected)
    assert 0.4 < expected["recall@1"] < 0.9
    assert max(high - low for low, high in report.ties.values()) < 0.001


def test_embeddings_in_a_narrow_cone_are_still_told_apart():
    """Mean cosine 1 - 5e-9: float32 inner products are all 1."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((20, 16)).repeat(5, axis=0)
    x = 1e4 * np.ones(16) + centres + 0.01 * random.standard_normal((100, 16))
    assert evaluate(x, np.arange(100) // 5).metrics["recall@1"] == 1.0


@pytest.mark.parametrize(
    "name",
    [
        lambda label: label + 2**53,
        lambda label: np.uint64(2**64 - 1) - label.astype(np.uint64),
        lambda label: label.astype(np.int8) - 7,
        lambda label: torch.from_numpy(label),
        lambda label: [2**70 + int(x) for x in label],
        lambda label: [2**63 if x == 3 else int(x) - 5 for x in label],  # NumPy alone would make floats of these
        lambda label: [f"bird {x:02}" for x in label],
        lambda label: np.array([f"bird {x:02}" for x in label], dtype=object),
    ],
)
def test_labels_may_be_integers_of_any_size_or_strings(name):
    x, labels = np.random.default_rng(0).standard_normal((60, 4)), np.arange(60) % 15
    found, expected = evaluate(x, name(labels)), evaluate(x, labels)
    assert found.metrics == expected.metrics
    assert found.stamp["data"]["classes"] == 15
    assert [str(x) for x in found.labels] == [str(x) for x in np.asanyarray(name(labels), dtype=object)]


@pytest.mark.parametrize("kinds", [(np.int64, np.uint64), (np.uint64, np.int64), (np.int32, np.uint8)])
def test_labels_and_labels_of_the_gallery_may_be_of_different_integers(kinds):
    x, labels = np.random.default_rng(0).standard_normal((60, 4)), np.arange(60) % 15
    large = 2**62 if np.uint64 in kinds else 0  # as floats, 2^62 and its neighbours would be one label
    own, others = ((labels + large).astype(kind) for kind in kinds)
    found = evaluate(x[:30], own[:30], gallery=x[30:], gallery_labels=others[30:], protocol="gallery")
    expected = evaluate(x[:30], labels[:30], gallery=x[30:], gallery_labels=labels[30:], protocol="gallery")
    assert found.metrics == expected.metrics
    assert found.stamp["data"]["classes"] == 15


def test_scale_does_not_matter_to_cosine_but_does_to_euclidean():
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((60, 3)), np.arange(60) % 15
    scaled = x * random.uniform(0.1, 10, (60, 1))
    assert evaluate(scaled, labels).metrics == evaluate(x, labels).metrics
    assert (
        evaluate(scaled, labels, similarity="euclidean").metrics != evaluate(x, labels, similarity="euclidean").metrics
    )


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1e-300, 1e-25, 1e20, 1e300])
def test_no_scale_overflows_or_vanishes(scale, similarity):
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((60, 3)), np.arange(60) % 15
    assert (
        evaluate(x * scale, labels, similarity=similarity).metrics == evaluate(x, labels, similarity=similarity).metrics
    )


def test_zero_norm_is_fine_for_euclidean():
    assert evaluate(put(4, 0), LABELS, ks=(1,), similarity="euclidean").stamp["data"]["queries"] == 10


def large(classes=300, count=2600):
    """Many enough for several blocks of products."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, count)
    labels[:150] = 0  # a class of many, besides
    labels[-1] = classes  # a singleton
    x = random.standard_normal((classes + 1, 12))[labels] + 2 * random.standard_normal((count, 12))
    x[700:760] = x[1700:1760]
    return x.astype(np.float32), labels


def least_memory(x, labels):
    words = "memory of 1000000 bytes is too small for these 2,600 queries of 12"
    with pytest.raises(InputError, match=words) as refusal:
        evaluate(x, labels, memory="1MB")
    return str(refusal.value).split("; give ")[1].removesuffix(" at least.")


def told(report):
    return {**report.as_dict(), "queries": report.queries().to_csv()}


def test_memory_and_threads_change_nothing():
    x, labels = large()
    expected = told(evaluate(x, labels))
    before = torch.get_num_threads()
    try:
        for threads in (3, 1, 2):
            torch.set_num_threads(threads)
            least = least_memory(x, labels)
            for memory in (least, as_bytes(least) + 3 * 2**20, "2GiB"):
                assert told(evaluate(x, labels, memory=memory)) == expected
    finally:
        torch.set_num_threads(before)


def test_a_memory_that_is_too_small_is_told_what_is_the_least_and_that_works():
    x, labels = large(classes=20)
    least = least_memory(x, labels)
    assert evaluate(x, labels, memory=least).metrics == evaluate(x, labels).metrics
    with pytest.raises(InputError, match="too small"):
        evaluate(x, labels, memory=as_bytes(least) - 2**20)


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("1GiB", 2**30), ("500MB", 500 * 10**6), (" 1.5 kib ", 1536), ("2e9", 2 * 10**9), ("7", 7), ("7 B", 7),
        (123, 123), ("1gb", 10**9), ("3MiB", 3 * 2**20), ("1kb", 1000),
    ],
)  # fmt: skip
def test_memory_is_written_as_people_write_it(word, count):
    assert as_bytes(word) == count


@pytest.mark.parametrize("word", ["much", "-1GiB", "", "1 GiBs", "GiB", "1,5GB", None, "1e9e9"])
def test_a_memory_that_is_no_size_is_refused(word):
    with pytest.raises(InputError, match="memory is a size such as 1GiB or 500MB, got"):
        evaluate(GOOD, LABELS, ks=(1,), memory=word)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f4"])
def test_a_memory_mapped_file_gives_what_the_array_gives(tmp_path, dtype):
    x, labels = large()
    np.save(tmp_path / "x.npy", x.astype(dtype))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    report = evaluate(mapped, labels, memory=least_memory(mapped, labels))
    assert report.metrics == evaluate(x.astype(dtype).astype(np.float64), labels).metrics


def test_an_array_in_any_layout_gives_what_a_plain_one_gives():
    x, labels = large()
    expected = evaluate(x, labels).metrics
    assert evaluate(np.asfortranarray(x), labels).metrics == expected
    assert evaluate(x.repeat(2, axis=1)[:, ::2], labels).metrics == expected


def test_only_the_chosen_items_search_and_all_are_found():
    random = np.random.default_rng(0)
    x, labels, queries = random.standard_normal((60, 4)), np.arange(60) % 15, random.random(60) < 0.3
    report = evaluate(x, labels, queries=queries)
    rows = np.flatnonzero(queries)
    expected = by_the_book(distances_of(x, "cosine"), labels, (1, 2, 4, 8), queries=rows)
    assert report.metrics == pytest.approx(expected)
    assert report.queries()["query"].tolist() == rows.tolist()
    assert report.queries()["label"].tolist() == labels[rows].tolist()
    assert report.stamp["data"]["queries"] == queries.sum()
    assert report.stamp["data"]["gallery"] == 59


def test_queries_search_in_a_gallery_and_nothing_is_left_out():
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((60, 4)), np.arange(60) % 15
    report = evaluate(x[:20], labels[:20], gallery=x[20:], gallery_labels=labels[20:], protocol="gallery", ks=(1, 40))
    rows = [
        metrics_of([labels[j] == labels[i] for j in sorted(range(20, 60), key=lambda j: d[j])], (1, 40))
        for i, d in enumerate(distances_of(x, "cosine")[:20])
    ]
    assert report.metrics == pytest.approx({name: np.mean([row[name] for row in rows]) for name in rows[0]})
    assert report.stamp["data"]["gallery"] == 40
    assert not report.notes
    marked = evaluate(x, labels, queries=np.arange(60) < 20, protocol="gallery", ks=(1, 40))
    assert marked.metrics == report.metrics


def test_queries_that_are_in_the_gallery_find_themselves_and_that_is_said():
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((60, 4)), np.arange(60) % 15
    note = "5 queries are in the gallery too, with the same embedding and label, and find themselves"
    with pytest.warns(EvaluationWarning, match=note):
        report = evaluate(x[:5], labels[:5], gallery=x, gallery_labels=labels, protocol="gallery")
    assert report.metrics["recall@1"] == 1.0
    assert note in report.markdown()
    other = evaluate(x[:5], labels[:5] + 1, gallery=x, gallery_labels=labels, protocol="gallery")
    assert not any("find themselves" in note for note in other.notes)


def test_tables_of_queries_and_classes_have_the_means_that_the_report_has():
    x, labels = large()
    report = evaluate(x, labels, ks=(1, 10))
    queries, classes = report.queries(), report.classes()
    assert len(queries) == 2600
    assert queries["query"].tolist() == list(range(2600))
    assert queries["label"].tolist() == labels.tolist()
    assert queries["positives"].tolist() == (np.bincount(labels)[labels] - 1).tolist()
    assert classes["label"].tolist() == np.unique(labels).tolist()
    assert classes["queries"].tolist() == np.bincount(labels)[np.unique(labels)].tolist()
    assert classes["valid"].sum() == report.stamp["data"]["valid_queries"] < 2600
    for name, value in report.metrics.items():
        assert queries[name].mean() == pytest.approx(value)
        assert (classes[name] * classes["valid"]).sum() / classes["valid"].sum() == pytest.approx(value)
        low, high = report.intervals[name]
        assert low < value < high
        assert report.ties[name][0] <= value <= report.ties[name][1]


def test_one_class_alone_has_no_interval():
    report = evaluate(GOOD, np.zeros(10, dtype=int), ks=(1,))
    assert all(math.isnan(bound) for pair in report.intervals.values() for bound in pair)
    assert json.loads(report.json())["intervals"]["recall@1"] == [None, None]
    assert "±" not in report.markdown().splitlines()[2]


def test_a_report_is_a_table_a_frame_and_json():
    report = evaluate(GOOD, LABELS, ks=(2, 1))
    table = report.markdown().splitlines()
    assert table[0].replace(" ", "") == "||R@1|R@2|MAP@R|R-precision|mAP|"
    low, high = report.intervals["recall@1"]
    assert f"| {100 * report.metrics['recall@1']:.2f} ± {50 * (high - low):.2f} |" in table[2].replace("  ", " ")
    assert "any hit" in table[-1]
    assert "10 queries of 3 classes, each among 9 others by cosine; 0 without a positive left out" in table[-1]
    assert report.frame().loc["embeddings"].to_dict() == report.metrics
    loaded = json.loads(report.json())
    assert loaded["schema"] == 2
    assert {name: loaded[name] for name in report.metrics} == report.metrics
    assert loaded["intervals"]["map"] == list(report.intervals["map"])
    assert loaded["stamp"]["protocol"]["similarity"] == "cosine"
    assert loaded["stamp"]["protocol"]["ks"] == [1, 2]
    assert loaded["stamp"]["protocol"]["name"] == "self"
    assert loaded["stamp"]["made"]["embedding_size"] == 4


def test_the_stamp_names_items_and_embeddings():
    report = evaluate(GOOD, LABELS, ks=(1,))

    def changed(x=GOOD, labels=LABELS):
        stamp = evaluate(x, labels, ks=(1,)).stamp
        names = ("data", "labels_sha256"), ("made", "embeddings_sha256")
        return [stamp[part][name] != report.stamp[part][name] for part, name in names]

    assert changed() == [False, False]
    assert changed(x=GOOD + 1) == [False, True]
    assert changed(labels=LABELS[::-1]) == [True, False]
    assert changed(labels=[f"bird {x}" for x in LABELS]) == [True, False]


def test_pytorch_metric_learning_computes_the_same_where_it_means_the_same():
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    random = np.random.default_rng(0)
    labels = random.integers(0, 100, 400)  # with singletons, which both leave out
    x = random.standard_normal((100, 16))[labels] + random.standard_normal((400, 16))
    unit, numbers = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float(), torch.from_numpy(labels)
    names = {"precision_at_1": "recall@1", "r_precision": "r_precision", "mean_average_precision_at_r": "map@r"}
    theirs = AccuracyCalculator(include=tuple(names), k="max_bin_count", device=torch.device("cpu"))
    gallery = {"gallery": x[150:], "gallery_labels": labels[150:], "protocol": "gallery"}
    for found, expected in (
        (evaluate(x, labels, ks=(1,)), theirs.get_accuracy(unit, numbers)),
        (
            evaluate(x[:150], labels[:150], ks=(1,), **gallery),
            theirs.get_accuracy(unit[:150], numbers[:150], unit[150:], numbers[150:]),
        ),
    ):
        assert found.stamp["data"]["queries_without_positives"] > 0
        assert 0.2 < found.metrics["recall@1"] < 0.8
        assert {name: found.metrics[ours] for name, ours in names.items()} == pytest.approx(expected, abs=1e-6)


def test_re_ranked_numbers_are_those_of_the_re_ranked_distances():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 12
    x = random.standard_normal((12, 4))[labels] + random.standard_normal((60, 4))
    report = evaluate(x, labels, rerank=Rerank(k1=6, k2=2, weight=0.4))
    points, gallery = together(x, None, "cosine")
    blocks = reranked(points, gallery, k1=6, k2=2, weight=0.4, itself=np.arange(60))
    distances = np.concatenate([block for _, block in blocks])
    assert report.metrics == pytest.approx(by_the_book(distances, labels, (1, 2, 4, 8)))
    assert report.metrics != evaluate(x, labels).metrics
    assert report.stamp["protocol"]["rerank"] == {"k1": 6, "k2": 2, "weight": 0.4}
    assert "Re-ranked: k1=6, k2=2, weight=0.4." in report.markdown()


def test_expanded_queries_search_once_more():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 12
    x = random.standard_normal((12, 4))[labels] + random.standard_normal((60, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x @ x.T
    np.fill_diagonal(cosines, -2)
    near = np.argsort(-cosines, axis=1)[:, :3]
    weights = np.maximum(np.take_along_axis(cosines, near, axis=1), 0) ** 2
    queries = x + (weights[:, :, None] * x[near]).sum(axis=1)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    report = evaluate(x, labels, expand=Expand(3, 2.0))
    assert report.metrics == pytest.approx(by_the_book(-queries @ x.T, labels, (1, 2, 4, 8)))
    assert report.stamp["protocol"]["expand"] == {"k": 3, "alpha": 2.0}
    assert "Queries expanded: k=3, alpha=2." in report.markdown()


def test_re_ranking_ranks_for_expanded_queries_where_both_are_asked_for():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 12
    x = random.standard_normal((12, 4))[labels] + random.standard_normal((60, 4))
    report = evaluate(x, labels, rerank=Rerank(6, 2), expand=Expand(3))
    points, gallery = together(x, None, "cosine")
    points, gallery = together(expanded(points, gallery, 3, itself=np.arange(60)), x, "cosine")
    distances = np.concatenate([block for _, block in reranked(points, gallery, k1=6, k2=2)])
    assert report.metrics == pytest.approx(by_the_book(distances, labels, (1, 2, 4, 8)))
    assert report.metrics != evaluate(x, labels, rerank=Rerank(6, 2)).metrics


def test_an_approximate_index_says_how_much_it_finds_and_tells_no_more_than_its_lists(tmp_path):
    x, labels = large()
    file = tmp_path / "x.index"
    report = evaluate(x, labels, ks=(1, 10), index="ivf_flat", index_file=file)
    recall = report.stamp["made"]["index_recall"]
    assert 0.5 < recall < 1
    assert f"index ivf_flat, which finds {100 * recall:.2f} % of the 10 exact nearest neighbours" in report.markdown()
    assert list(report.metrics) == ["recall@1", "recall@10", "precision@1", "precision@10", "map@r", "r_precision"]
    exact = evaluate(x, labels, ks=(1, 10)).metrics
    assert {name: exact[name] for name in report.metrics} == pytest.approx(report.metrics, abs=0.05)
    assert set(report.ties) == set(report.intervals) == set(report.metrics)
    written = file.read_bytes()
    assert told(evaluate(x, labels, ks=(1, 10), index="ivf_flat", index_file=file)) == told(report)
    assert file.read_bytes() == written
    for words, more in (
        ("built for other embeddings", {"embeddings": x + 1}),
        ("built for cosine similarity, and euclidean is asked for", {"similarity": "euclidean"}),
        ("holds an index of kind ivf_flat, and hnsw was asked for; choose another file", {"index": "hnsw"}),
    ):
        with pytest.raises(InputError, match=words):
            evaluate(**{"embeddings": x, "labels": labels, "index": "ivf_flat", "index_file": file, **more})


def test_an_index_that_finds_everything_gives_the_exact_numbers():
    random = np.random.default_rng(0)
    labels = np.arange(120) % 30
    x = random.standard_normal((120, 4))
    x[5:20] = x[60:75]  # ties
    for given in (
        {"embeddings": x, "labels": labels},
        {"embeddings": x[:40], "labels": labels[:40], "gallery": x[40:], "gallery_labels": labels[40:],
         "protocol": "market1501:junk=7,distractors=3", "cameras": random.integers(0, 2, 40),
         "gallery_cameras": random.integers(0, 2, 80)},
    ):  # fmt: skip
        report, exact = (evaluate(**given, ks=(1, 5), index=index) for index in ("hnsw", None))
        assert report.stamp["made"]["index_recall"] == 1
        assert {name: exact.metrics[name] for name in report.metrics} == pytest.approx(report.metrics)
        for name, bounds in report.ties.items():
            assert bounds == pytest.approx(exact.ties[name])


def test_what_a_camera_leaves_out_takes_no_place_on_the_list_of_an_index():
    """Five items of the query's label and camera lie nearest; then come a positive and the rest."""
    x = np.array([[1.0 + 0.1 * i] for i in range(40)])
    given = {
        "embeddings": [[1.0]], "labels": [3], "cameras": [0],
        "gallery": x, "gallery_labels": [3] * 6 + [4] * 34, "gallery_cameras": [0] * 5 + [1] * 35,
        "protocol": "market1501", "similarity": "euclidean", "ks": (1,),
    }  # fmt: skip
    assert evaluate(**given, index="hnsw").metrics["recall@1"] == evaluate(**given).metrics["recall@1"] == 1


def test_what_goes_beyond_the_lists_of_an_index_is_not_told(monkeypatch):
    x, labels = large()
    monkeypatch.setattr(evaluation, "LISTED", 100)  # one class has more
    report = evaluate(x, labels, ks=(1, 10), index="ivf_flat")
    assert list(report.metrics) == ["recall@1", "recall@10", "precision@1", "precision@10"]


def test_clusters_and_thresholds_come_where_they_are_asked_for():
    x, labels = np.eye(3)[np.arange(30) % 3] + 0.01 * np.random.default_rng(0).standard_normal((30, 3)), [0, 1, 2] * 10
    report = evaluate(x, labels, clustering=True, thresholds=True)
    assert [report.metrics[name] for name in ("nmi", "ami", "pairwise_f1")] == pytest.approx([1, 1, 1])
    assert report.thresholds.genuine == 3 * 45
    found = json.loads(report.json())
    assert found["thresholds"]["impostors"] == 3 * 100
    assert "NMI" in report.markdown()
    assert "call two items the same when their cosine" in report.markdown()
    plain = evaluate(x, labels)
    assert plain.thresholds is None
    assert "thresholds" not in plain.as_dict()
    assert "nmi" not in plain.metrics


def test_progress_goes_up_to_all():
    x, labels = large()
    told = []
    evaluate(x, labels, progress=told.append)
    assert told == sorted(told)
    assert len(told) > 2
    assert told[-1] == pytest.approx(1)


GOOD = np.random.default_rng(0).standard_normal((10, 4))
LABELS = np.arange(10) % 3
SEARCHED = {"gallery": GOOD + 1, "gallery_labels": LABELS, "protocol": "gallery"}


def put(row, value):
    x = GOOD.copy()
    x[row] = value
    return x


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (r"1 of 10 embeddings are not finite \(NaN or infinite\), the first in row 3", (put(3, np.nan), LABELS)),
        ("2 of 10 embeddings are not finite", (put([1, 2], np.inf), LABELS)),
        ("1 of 10 embeddings have zero norm, the first in row 4.*similarity='euclidean'", (put(4, 0), LABELS)),
        (r"labels must be \[10\] to match embeddings \[10, 4\], got \[9\]", (GOOD, LABELS[:9])),
        (r"embeddings must be numbers \[N, D\], got \[10\]", (GOOD[:, 0], LABELS)),
        (r"embeddings must be numbers \[N, D\], got \[10, 0\]", (GOOD[:, :0], LABELS)),
        (r"embeddings must be numbers \[N, D\], got \[10, 4\] of <U", (GOOD.astype(str), LABELS)),
        ("needs two embeddings at least, got 1", (GOOD[:1], LABELS[:1])),
        ("needs two embeddings at least, got 0", (GOOD[:0], LABELS[:0])),
        ("labels must be integers or strings, got float64", (GOOD, LABELS / 2)),
        ("labels must be integers or strings, got float64; whole numbers in another dtype", (GOOD, LABELS * 1.0)),
        ("labels must be integers or strings, got float32", (GOOD, torch.from_numpy(LABELS).float())),
        ("labels must be integers or strings, got object", (GOOD, [*LABELS[:9], None])),
        ("embeddings came without labels", (GOOD, None)),
        ("no query has a positive: none of the 10 labels is found again in the gallery of 10", (GOOD, np.arange(10))),
    ],
)
def test_what_would_give_a_meaningless_number_is_refused_in_plain_words(words, arguments):
    with pytest.raises(InputError, match=words):
        evaluate(*arguments, ks=(1, 2))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("K = 1, 10, but a query has 9 others.*from 1 to 9", {"ks": (1, 10)}),
        ("K = 11, but a query has 10 others.*from 1 to 10", {"ks": (11,), **SEARCHED}),
        ("K = 0", {"ks": (0,)}),
        ("whole numbers", {"ks": (1.5,)}),
        ("whole numbers", {"ks": (True,)}),
        ("whole numbers", {"ks": ()}),
        ("whole numbers", {"ks": 1}),
        ("whole numbers", {"ks": [1, "2"]}),
        ("'cosine' or 'euclidean', got 'dot'", {"similarity": "dot"}),
        ("missing is 'skip', 'zero' or 'error', got 'drop'", {"missing": "drop"}),
        ("an index is ivf_flat, ivf_pq, hnsw, got 'hnws'; did you mean hnsw", {"index": "hnws"}),
        ("re-ranking looks at all pairs, an approximate index does not", {"rerank": Rerank(), "index": "hnsw"}),
        ("index_file keeps an approximate index; say which kind", {"index_file": "x.index"}),
        ("query expansion is a mean of directions", {"expand": Expand(1), "similarity": "euclidean"}),
        ("protocol self has no gallery: each item searches among the others", {**SEARCHED, "protocol": "self"}),
        ("gallery came without gallery_labels", {**SEARCHED, "gallery_labels": None}),
        ("gallery_labels and gallery_cameras were given without gallery=", {"gallery_labels": LABELS}),
        ("protocol gallery needs queries and a gallery: give gallery=", {"protocol": "gallery"}),
        ("give queries= or gallery=, not both", {**SEARCHED, "queries": LABELS == 0}),
        (r"queries must be \[10\] true or false, got \[10\] of int64", {"queries": LABELS}),
        (r"queries must be \[10\] true or false, got \[9\] of bool", {"queries": LABELS[:9] == 0}),
        ("by protocol self nothing that was given is left as queries", {"queries": LABELS == 9}),
        ("by protocol gallery nothing that was given is left as gallery", {**SEARCHED, "gallery": GOOD[:0],
                                                                           "gallery_labels": LABELS[:0]}),
        ("queries have 4 numbers each and the gallery 3; both must come from one model",
         {**SEARCHED, "gallery": GOOD[:, :3]}),
        ("1 of 10 gallery embeddings are not finite.*the first in row 7", {**SEARCHED, "gallery": put(7, np.nan)}),
        ("1 of 10 gallery embeddings have zero norm, the first in row 2", {**SEARCHED, "gallery": put(2, 0)}),
        (r"gallery_labels must be \[10\] to match gallery \[10, 4\], got \[4\]",
         {**SEARCHED, "gallery_labels": LABELS[:4]}),
        ("gallery_labels must be integers or strings, got float64", {**SEARCHED, "gallery_labels": LABELS / 1}),
        ("labels and gallery_labels must be of one kind", {**SEARCHED, "gallery_labels": LABELS.astype(str)}),
        (r"cameras must be \[10\] integers, got \[10\] of float64", {"cameras": LABELS / 2}),
        (r"gallery_cameras must be \[10\] integers, got \[3\] of int64", {**SEARCHED, "gallery_cameras": LABELS[:3]}),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(words, options):
    with pytest.raises(InputError, match=words):
        evaluate(GOOD, LABELS, **{"ks": (1,), **options})


def test_sharing_needs_processes_that_were_joined():
    with pytest.raises(InputError, match=r"distributed=True needs torch.distributed.init_process_group"):
        evaluate(np.eye(4) + 1, [0, 0, 1, 1], ks=(1,), distributed=True)


def test_distractors_are_no_class_to_be_clustered():
    random = np.random.default_rng(0)
    labels = np.arange(100) % 10 + 1
    x = 20 * random.standard_normal((11, 8))[labels] + random.standard_normal((100, 8))
    given = {"cameras": np.arange(100) // 10, "queries": np.arange(100) < 20, "protocol": "mars-official", "ks": (1,)}
    alone = evaluate(x, labels, clustering=True, **given).metrics
    y, other = np.concatenate([labels, np.zeros(200, int)]), 20 * random.standard_normal((200, 8))
    given |= {"cameras": np.arange(300) // 10, "queries": np.arange(300) < 20}
    more = evaluate(np.concatenate([x, other]), y, clustering=True, **given).metrics
    assert [more[name] for name in ("nmi", "ami", "pairwise_f1")] == pytest.approx(
        [alone[name] for name in ("nmi", "ami", "pairwise_f1")]
    )


def test_a_query_in_the_gallery_is_one_duplicate_not_two():
    x = np.random.default_rng(0).standard_normal((40, 4))
    x[9] = x[0]  # of another label
    given = {"cameras": np.arange(40) // 8, "queries": np.arange(40) < 20}
    report = evaluate(x, np.arange(40) % 8 + 1, protocol="mars-official", ks=(1,), **given)
    assert report.stamp["made"]["duplicates_across_labels"] == 2


def test_few_classes_are_said_to_have_too_narrow_intervals():
    x = np.random.default_rng(0).standard_normal((60, 4))
    assert "intervals are too narrow" in evaluate(x, np.arange(60) % 19, ks=(1,)).markdown()
    assert "too narrow" not in evaluate(x, np.arange(60) % 20, ks=(1,)).markdown()


def test_a_gallery_that_is_too_small_for_a_k_of_its_protocol_goes_without_it():
    x, labels = np.random.default_rng(0).standard_normal((12, 4)), np.arange(12) % 4
    with pytest.warns(EvaluationWarning, match=r"Without K = 10, 20 of its protocol: a query has 8 others\."):
        report = evaluate(
            x, labels + 1, queries=np.arange(12) < 4, cameras=np.arange(12) // 4, protocol="mars-torchreid"
        )
    assert [name for name in report.metrics if name.startswith("recall")] == ["recall@1", "recall@5"]
    with pytest.raises(InputError, match="Recall@K was asked for K = 10"):
        evaluate(x, labels, ks=(10, 12))
    with pytest.raises(InputError, match="ks must be whole numbers"):
        evaluate(x, labels, protocol=Protocol("own", "self", ks=("1",)))
