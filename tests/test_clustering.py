"""k-means clusters beside labels."""

from itertools import combinations

import numpy as np
import pytest

from metricweight.checks import InputError
from metricweight.retrieval.clustering import agreement, clustering
from metricweight.retrieval.points import together


def f1_of_pairs(labels, clusters):
    """One pair at a time."""
    pairs = list(combinations(range(len(labels)), 2))
    label = {(i, j) for i, j in pairs if labels[i] == labels[j]}
    cluster = {(i, j) for i, j in pairs if clusters[i] == clusters[j]}
    precision, recall = len(label & cluster) / len(cluster), len(label & cluster) / len(label)
    return 2 * precision * recall / (precision + recall)


def test_nmi_ami_and_f1_by_hand():
    found = agreement(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]))
    assert list(found) == ["nmi", "ami", "pairwise_f1"]
    assert found["nmi"] == pytest.approx(0.8)  # ln 2 of (ln 2 + 1.5 ln 2) / 2
    assert found["ami"] == pytest.approx(4 / 7)
    assert found["pairwise_f1"] == pytest.approx(2 / 3)  # precision 1 of 1, recall 1 of 2


def test_independent_clusters_have_nothing_in_common():
    found = agreement(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert found["nmi"] == pytest.approx(0, abs=1e-12)
    assert found["ami"] == pytest.approx(-0.5)
    assert found["pairwise_f1"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_f1_is_that_of_all_pairs(seed):
    random = np.random.default_rng(seed)
    labels, clusters = random.integers(-3, 6, 60), random.integers(10, 10 + 3 * (seed + 1), 60)
    assert agreement(labels, clusters)["pairwise_f1"] == pytest.approx(f1_of_pairs(labels, clusters), rel=1e-12)


def test_the_names_of_classes_and_clusters_do_not_matter():
    labels, clusters = np.random.default_rng(0).integers(0, 5, (2, 50))
    assert agreement(7 * labels - 2**60, 40 - clusters) == pytest.approx(agreement(labels, clusters))
    assert agreement(labels, 9 - labels) == pytest.approx({"nmi": 1, "ami": 1, "pairwise_f1": 1})


def test_items_that_are_all_alone_on_both_sides_agree():
    assert agreement(np.arange(4), np.arange(4)[::-1])["pairwise_f1"] == 1
    assert agreement(np.arange(4), np.zeros(4, dtype=int))["pairwise_f1"] == 0


def test_eleven_thousand_classes_and_clusters_need_no_table_of_them():
    """Pairs that are counted in blocks of five: a table would hold a billion bytes."""
    from metricweight.retrieval.clustering import _pairwise_f1

    labels = np.arange(60_000) // 5
    assert _pairwise_f1(labels, np.arange(60_000) // 10) == pytest.approx(2 * 120_000 / (120_000 + 270_000))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_classes_that_are_far_apart_are_the_clusters(similarity):
    labels = np.arange(90) % 3 * 100  # three classes, whatever their numbers
    x = 20 * np.eye(3)[np.arange(90) % 3] + np.random.default_rng(0).standard_normal((90, 3))
    points, _ = together(x, None, similarity)
    assert clustering(points, labels) == pytest.approx({"nmi": 1, "ami": 1, "pairwise_f1": 1})


def test_there_are_as_many_clusters_as_classes_that_are_present(monkeypatch):
    asked = []
    fake = lambda rows, k, seed: asked.append((rows.shape, k, seed)) or np.zeros(len(rows), dtype=np.int64)  # noqa: E731
    monkeypatch.setattr("metricweight.retrieval.clustering.kmeans", fake)
    points, _ = together(np.random.default_rng(0).standard_normal((6, 2)), None, "cosine")
    clustering(points, np.array([5, 5, 5, 9, 9, 2]))  # 2 has one item, and counts
    assert asked == [((6, 2), 3, 1234)]


def test_the_same_seed_gives_the_same_numbers_and_another_others():
    x = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float16)
    points, labels = together(x, None, "cosine")[0], np.arange(200) % 10
    assert clustering(points, labels) == clustering(points, labels)
    assert clustering(points, labels) != clustering(points, labels, seed=1)


def test_labels_that_do_not_fit_are_refused():
    points, _ = together(np.eye(3), None, "cosine")
    with pytest.raises(InputError, match=r"labels must be \[3\].*got \[2\]"):
        clustering(points, np.arange(2))
    with pytest.raises(InputError, match=r"got \[2\] and \[3\]"):
        agreement(np.arange(2), np.arange(3))
