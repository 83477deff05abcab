"""Embeddings in, report out."""

import json

import numpy as np
import pytest
import torch

from metricweight.retrieval import evaluate
from metricweight.retrieval.metrics import map_at_r, r_precision, recall_at_k


def by_the_book(embeddings, labels, ks, similarity):
    """Every metric from a full sort of every query's gallery, one query at a time."""
    x = np.asarray(embeddings, dtype=np.float64)
    if similarity == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        others.sort(key=lambda j: np.linalg.norm(x[j] - x[i]))
        hits = [labels[j] == labels[i] for j in others]
        r = sum(hits)
        if r:
            recalls = [float(any(hits[:k])) for k in ks]
            precisions = [hits[k] * sum(hits[: k + 1]) / (k + 1) for k in range(r)]
            rows.append([*recalls, sum(precisions) / r, sum(hits[:r]) / r])
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(5))
def test_every_metric_is_that_of_a_full_sort(similarity, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 12, 80)
    x = random.standard_normal((80, 5)) + 1.5 * random.standard_normal((12, 5))[labels] + 3
    report = evaluate(x.astype(np.float32), labels, ks=(1, 3, 10), similarity=similarity)
    assert list(report.metrics) == ["recall@1", "recall@3", "recall@10", "map@r", "r_precision"]
    assert list(report.metrics.values()) == pytest.approx(by_the_book(x, labels, (1, 3, 10), similarity))


def test_six_points_on_a_line_by_hand():
    """x = 0, .1, .25, 1, 1.2, 3 with labels 0 0 1 0 1 2: hits 10100, 10100, 00010, 00110, 01000; 2 is alone."""
    x, labels = np.array([[0], [0.1], [0.25], [1], [1.2], [3]]), [0, 0, 1, 0, 1, 2]
    report = evaluate(x, labels, ks=(1, 2, 4), similarity="euclidean")
    assert list(report.metrics.values()) == pytest.approx([2 / 5, 3 / 5, 5 / 5, 1 / 5, 1 / 5])
    assert report.stamp["queries_without_positives"] == 1
    assert report.stamp["similarity"] == "euclidean"


def test_metrics_of_hits_by_hand():
    hits = np.array([[0, 1, 1, 0], [1, 0, 1, 1]], dtype=bool)
    positives = np.array([3, 2])
    assert recall_at_k(hits, 1).tolist() == [0, 1]
    assert recall_at_k(hits, 2).tolist() == [1, 1]
    assert r_precision(hits, positives) == pytest.approx([2 / 3, 1 / 2])
    assert map_at_r(hits, positives) == pytest.approx([(1 / 2 + 2 / 3) / 3, (1 / 1) / 2])


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_of_any_float_is_taken_and_compared_in_float32(dtype):
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(30) % 5
    assert evaluate(x.requires_grad_(), labels).metrics == evaluate(x.detach().double().numpy(), labels.numpy()).metrics


def test_embeddings_in_a_narrow_cone_are_still_told_apart():
    """Mean cosine 1 - 5e-9: float32 inner products are all 1."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((20, 16)).repeat(5, axis=0)
    x = 1e4 * np.ones(16) + centres + 0.01 * random.standard_normal((100, 16))
    assert evaluate(x, np.arange(100) // 5).metrics["recall@1"] == 1.0


def test_labels_above_2_to_the_24_and_strings_are_as_good_as_small_integers():
    x, labels = np.random.default_rng(0).standard_normal((60, 4)), np.arange(60) % 15
    expected = evaluate(x, labels).metrics
    assert evaluate(x, labels + 2**53).metrics == expected
    named = evaluate(x, [f"bird {label:02}" for label in labels])
    assert named.metrics == expected
    assert list(named.classes) == [f"bird {label:02}" for label in range(15)]


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


def test_exact_duplicates_under_different_labels_are_counted_and_said():
    x = np.random.default_rng(0).standard_normal((10, 3))
    x[4], x[6] = x[0], x[5]
    report = evaluate(x, [0, 0, 1, 1, 1, 2, 2, 2, 3, 3], ks=(1,))  # 0 and 4 differ in label, 5 and 6 do not
    assert report.stamp["duplicates_across_labels"] == 2
    assert "2 items are exact duplicates under different labels" in report.markdown()
    assert "duplicates" not in evaluate(x[1:], [0, 0, 1, 1, 2, 2, 2, 3, 3], ks=(1,)).markdown()


GOOD = np.random.default_rng(0).standard_normal((10, 4))
LABELS = np.arange(10) % 3


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
        ("collapsed: all 10", (np.ones((10, 4)), LABELS)),
        ("collapsed", (1 + 1e-9 * GOOD, LABELS)),
        (r"labels must be \[10\] to match embeddings \[10, 4\], got \[9\]", (GOOD, LABELS[:9])),
        (r"embeddings must be numbers \[N, D\], got \[10\]", (GOOD[:, 0], LABELS)),
        (r"embeddings must be numbers \[N, D\], got \[10, 0\]", (GOOD[:, :0], LABELS)),
        ("needs two embeddings at least, got 1", (GOOD[:1], LABELS[:1])),
        ("needs two embeddings at least, got 0", (GOOD[:0], LABELS[:0])),
        ("labels must be integers or strings, got float64", (GOOD, LABELS / 2)),
        ("no label occurs twice among the 10 items", (GOOD, np.arange(10))),
    ],
)
def test_what_would_give_a_meaningless_number_is_refused_in_plain_words(words, arguments):
    with pytest.raises(ValueError, match=words):
        evaluate(*arguments, ks=(1, 2))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("K = 1, 10, but a query has 9 others.*from 1 to 9", {"ks": (1, 10)}),
        ("K = 0", {"ks": (0,)}),
        ("whole numbers", {"ks": (1.5,)}),
        ("whole numbers", {"ks": ()}),
        ("whole numbers", {"ks": 1}),
        ("whole numbers", {"ks": [1, "2"]}),
        ("'cosine' or 'euclidean', got 'dot'", {"similarity": "dot"}),
    ],
)
def test_options_that_cannot_be_are_refused(words, options):
    with pytest.raises(ValueError, match=words):
        evaluate(GOOD, LABELS, **{"ks": (1,), **options})


def test_zero_norm_is_fine_for_euclidean():
    assert evaluate(put(4, 0), LABELS, ks=(1,), similarity="euclidean").stamp["queries"] == 10


def test_a_report_is_a_table_a_frame_and_json():
    report = evaluate(GOOD, LABELS, ks=(1, 2))
    table = report.markdown().splitlines()
    assert table[0].replace(" ", "") == "||R@1|R@2|MAP@R|R-precision|"
    assert f"{100 * report.metrics['recall@1']:.2f}" in table[2]
    assert "any hit" in table[-1]
    assert "cosine" in table[-1]
    assert report.frame().loc["embeddings"].to_dict() == report.metrics
    loaded = json.loads(report.json())
    assert loaded["schema"] == 1
    assert loaded["recall@1"] == report.metrics["recall@1"]
    assert loaded["stamp"]["similarity"] == "cosine"


def test_blocks_of_queries_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((60, 4)), np.arange(60) % 15
    whole = evaluate(x, labels)
    monkeypatch.setattr("metricweight.retrieval.search.BLOCK_BYTES", 12 * 10 * 7)
    assert evaluate(x, labels).metrics == whole.metrics
