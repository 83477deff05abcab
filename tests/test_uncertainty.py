"""Intervals from redrawing classes, against arithmetic, a loop, and data whose truth is known."""

import tracemalloc

import numpy as np
import pytest

from metricweight.checks import InputError
from metricweight.retrieval import uncertainty
from metricweight.retrieval.uncertainty import intervals


def correlated(seed, classes=60):
    """Hits [Q] whose rate is 1/2 on average and differs from class to class, and the class of each query."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), random.integers(5, 25, classes))
    return (random.random(len(labels)) < random.beta(2, 2, classes)[labels]).astype(float), labels


def redrawn_by_hand(values, clusters, resamples, random):
    """Draw classes, pool their queries, take the mean; again and again."""
    groups = [[v for v, c in zip(values, clusters, strict=True) if c == own] for own in sorted(set(clusters))]
    means = []
    for _ in range(resamples):
        pool = [v for place in random.integers(len(groups), size=len(groups)) for v in groups[place]]
        means.append(sum(pool) / len(pool))
    return means


def test_two_classes_have_four_draws_and_the_interval_is_made_of_their_means():
    values = {"recall@1": np.array([1.0, 0, 0, 0])}
    clusters = np.array([7, -3, -3, -3])
    # both once: 1/4, half of the time; the first twice: 1; the other twice: 0
    assert intervals(values, clusters) == {"recall@1": (0, 1)}
    assert intervals(values, clusters, confidence=0.4) == {"recall@1": (0.25, 0.25)}


def test_the_interval_is_that_of_a_loop_that_pools_the_queries_of_drawn_classes():
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(12), [2, 2, 3, 3, 4, 5, 6, 8, 10, 12, 14, 16])
    values = random.random(len(clusters)) + 0.02 * clusters
    means = redrawn_by_hand(values.tolist(), clusters.tolist(), 20_000, random)
    shuffled = random.permutation(len(values))
    low, high = intervals({"m": values[shuffled]}, clusters[shuffled], resamples=20_000)["m"]
    # of 20,000 draws a 2.5 % quantile is known to 0.02 standard deviations, more in a long tail; 5 % is 0.3 away
    tolerance = 0.15 * np.std(means)
    assert [low, high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=tolerance)
    narrower = intervals({"m": values}, clusters, resamples=20_000, confidence=0.8)["m"]
    assert narrower == pytest.approx(np.quantile(means, [0.1, 0.9]), abs=tolerance)


def test_the_truth_lies_in_19_of_20_intervals_and_not_if_queries_are_taken_as_independent():
    held = naive = 0
    random = np.random.default_rng(2)
    for seed in range(300):
        values, labels = correlated(seed)
        low, high = intervals({"m": values}, labels, resamples=400, seed=seed)["m"]
        held += low <= 0.5 <= high
        means = values[random.integers(len(values), size=(200, len(values)))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        naive += low <= 0.5 <= high
    assert 0.91 <= held / 300 <= 0.98  # 0.945 with a standard error of 0.013
    assert naive / 300 < 0.8


def test_the_interval_of_a_paired_difference_is_narrower_than_two_intervals_allow():
    values, labels = correlated(0)
    other = np.where(np.random.default_rng(3).random(len(values)) < 0.05, 1.0, values)
    found = intervals({"a": values, "b": other, "b - a": other - values}, labels)
    width = {name: high - low for name, (low, high) in found.items()}
    assert 0 < found["b - a"][0] < (other - values).mean() < found["b - a"][1]
    assert width["b - a"] < 0.5 * width["a"]
    assert found["a"][1] > found["b"][0]


def test_queries_that_do_not_count_are_as_if_they_were_not_there():
    values, labels = correlated(4)
    left_out = (np.arange(len(values)) % 5 == 0) | (labels < 3)  # three classes whole
    alone = intervals({"m": values[~left_out]}, labels[~left_out])
    assert intervals({"m": np.where(left_out, np.nan, values)}, labels) == alone


def test_a_metric_that_few_classes_have_does_not_touch_the_others():
    values, labels = correlated(5)
    few = np.where(labels < 2, values, np.nan)  # many draws hold neither of the two classes
    found = intervals({"m": values, "few": few}, labels)
    assert found["m"] == intervals({"m": values}, labels)["m"]
    means = sorted(values[labels == c].mean() for c in (0, 1))
    assert found["few"] == pytest.approx(means)


def test_one_class_or_none_has_no_interval():
    values = np.array([0.0, 1, 1])
    for given in (
        intervals({"m": values}, np.array([4, 4, 4])),
        intervals({"m": np.array([0, np.nan, np.nan])}, np.array([4, 5, 6])),
        intervals({"m": np.full(3, np.nan)}, np.array([4, 5, 6])),
        intervals({"m": values[:0]}, np.zeros(0, dtype=np.int64)),
    ):
        assert np.isnan(given["m"]).all()
    assert intervals({}, np.array([1, 2])) == {}
    assert intervals({"m": np.ones(3)}, np.array([4, 5, 6])) == {"m": (1, 1)}


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others(monkeypatch):
    values, labels = correlated(6)
    found = intervals({"m": values}, labels)
    assert intervals({"m": values}, labels) == found
    assert intervals({"m": values}, labels, seed=1) != found
    monkeypatch.setattr(uncertainty, "BLOCK", 7 * 60)  # classes; 1000 draws are not a multiple of 7
    assert intervals({"m": values}, labels)["m"] == pytest.approx(found["m"], rel=1e-12)


def test_ten_thousand_classes_take_little_memory():
    random = np.random.default_rng(7)
    labels = np.arange(60_000) % 11_316
    values = {str(m): random.random(60_000) for m in range(15)}
    tracemalloc.start()
    intervals(values, labels, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"map@r and clusters must be \[Q\].*got \[3\] and \[2\]"):
        intervals({"map@r": np.zeros(3)}, np.array([1, 2]))
    with pytest.raises(InputError, match=r"confidence between 0 and 1 .* got 95 "):
        intervals({}, np.array([1, 2]), confidence=95)
    with pytest.raises(InputError, match=r"one resample at least, got 0\.95 and 0"):
        intervals({}, np.array([1, 2]), resamples=0)
