"""The same or not: thresholds against loops over all pairs."""

import math

import numpy as np
import pytest

from metricweight.checks import InputError
from metricweight.retrieval.points import together
from metricweight.retrieval.verification import BINS, BYTES, Threshold, verification

RATES = (0.1, 0.03, 0.01)


def clusters(n, classes, seed=0, spread=1.0, size=6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return rng.normal(size=(classes, size))[labels] + spread * rng.normal(size=(n, size)), labels


def pairs_by_loops(queries, gallery, query_labels, gallery_labels, similarity, itself=None, cameras=None):
    """Scores, larger is closer: those of pairs of one label, and of different labels."""
    scores = {True: [], False: []}
    for q, x in enumerate(queries):
        for g, y in enumerate(gallery):
            same = bool(query_labels[q] == gallery_labels[g])
            if (itself is not None and itself[q] == g) or (cameras and same and cameras[0][q] == cameras[1][g]):
                continue
            cosine = x @ y / math.sqrt(x @ x) / math.sqrt(y @ y)
            scores[same].append(cosine if similarity == "cosine" else -math.sqrt(((x - y) ** 2).sum()))
    return np.array(scores[True]), np.array(scores[False])


def check(found, genuine, impostors, width):
    """A threshold is loosest: one bin looser and more than the rate pass."""
    sign = 1 if found.similarity == "cosine" else -1
    for row in found.table:
        at = sign * row.threshold
        assert row.fmr == (impostors >= at).mean() <= row.rate < (impostors >= at - 1.1 * width).mean()
        assert row.fnmr == pytest.approx((genuine < at).mean(), abs=1e-12)
        assert row.tpr == pytest.approx((genuine >= at).mean(), abs=1e-12)
    at = sign * found.equal_error_threshold
    errors = [(impostors >= at).mean(), (genuine < at).mean()]
    assert found.equal_error_rate == pytest.approx(sum(errors) / 2, abs=1e-12)
    scores = np.concatenate([genuine, impostors]) - 1e-9  # a pair met from both ends has one score
    least = min(abs((impostors >= s).mean() - (genuine < s).mean()) for s in scores)
    assert abs(errors[0] - errors[1]) <= least + 1e-12


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_thresholds_are_those_of_a_loop_over_all_pairs(similarity):
    x, labels = clusters(130, 9)
    queries, gallery = together(x[:40], x[40:], similarity)
    found = verification(queries, gallery, labels[:40], labels[40:], rates=RATES)
    genuine, impostors = pairs_by_loops(x[:40], x[40:], labels[:40], labels[40:], similarity)
    assert (found.genuine, found.impostors) == (len(genuine), len(impostors))
    assert [row.rate for row in found.table] == list(RATES)
    check(found, genuine, impostors, (2 if similarity == "cosine" else 20) / BINS)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_items_that_search_among_themselves_meet_all_others_once_and_not_themselves(similarity):
    x, labels = clusters(60, 5, seed=1)
    itself = np.arange(60)
    points = together(x, None, similarity)
    found = verification(*points, labels, labels, itself=itself, rates=RATES)
    genuine, impostors = pairs_by_loops(x, x, labels, labels, similarity, itself)
    assert (found.genuine, found.impostors) == (len(genuine) / 2, len(impostors) / 2)
    check(found, genuine, impostors, (2 if similarity == "cosine" else 20) / BINS)
    with_itself = verification(*points, labels, labels, rates=RATES)
    assert with_itself.genuine == len(genuine) + 60
    assert with_itself.table[0].fnmr < found.table[0].fnmr


def test_a_gallery_may_hold_some_of_the_queries():
    x, labels = clusters(70, 5, seed=2)
    itself = np.where(np.arange(30) < 20, -1, np.arange(30) - 20)
    points = together(x[:30], x[20:], "cosine")
    found = verification(*points, labels[:30], labels[20:], itself=itself, rates=RATES)
    genuine, impostors = pairs_by_loops(x[:30], x[20:], labels[:30], labels[20:], "cosine", itself)
    assert (found.genuine, found.impostors) == (len(genuine), len(impostors))
    check(found, genuine, impostors, 2 / BINS)


def test_pairs_of_one_label_and_one_camera_are_left_out():
    x, labels = clusters(100, 6, seed=3)
    cameras = np.random.default_rng(0).integers(3, size=100)
    excluded = (cameras[:40], cameras[40:])
    points = together(x[:40], x[40:], "cosine")
    found = verification(*points, labels[:40], labels[40:], excluded=excluded, rates=RATES)
    genuine, impostors = pairs_by_loops(x[:40], x[40:], labels[:40], labels[40:], "cosine", cameras=excluded)
    all_genuine, all_impostors = pairs_by_loops(x[:40], x[40:], labels[:40], labels[40:], "cosine")
    assert found.genuine == len(genuine) < 0.8 * len(all_genuine)
    assert found.impostors == len(impostors) == len(all_impostors)
    check(found, genuine, impostors, 2 / BINS)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_blocks_change_nothing(similarity):
    x, labels = clusters(50, 4, seed=4)
    cameras = np.random.default_rng(0).integers(2, size=50)
    how = {"itself": np.arange(50), "excluded": (cameras, cameras), "rates": RATES}
    points = together(x, None, similarity)
    whole = verification(*points, labels, labels, **how)
    in_blocks = verification(*points, labels, labels, **how, memory=BYTES * 11**2)  # 11 x 11, the last of 6
    assert np.array(in_blocks.table) == pytest.approx(np.array(whole.table), abs=2e-5)
    assert in_blocks[2:4] == pytest.approx(whole[2:4], abs=2e-5)
    assert in_blocks[-2:] == whole[-2:]


def test_classes_that_are_apart_have_no_errors_and_a_threshold_in_the_middle():
    x = np.array([(0.0, 0), (0, 1), (10, 0), (10, 1)])
    labels = np.array([0, 0, 1, 1])
    found = verification(*together(x, None, "euclidean"), labels, labels, itself=np.arange(4), rates=(0.5, 0.3))
    assert found.equal_error_rate == 0
    assert found.equal_error_threshold == pytest.approx((1 + 10) / 2, abs=1e-4)
    assert (found.genuine, found.impostors) == (2, 4)
    # distances of different labels: 10, 10, sqrt(101), sqrt(101)
    assert found.table[0] == pytest.approx((0.5, math.sqrt(101), 0.5, 0, 1), abs=1e-4)
    assert found.table[1] == pytest.approx((0.3, 10, 0, 0, 1), abs=1e-4)


def test_labels_at_random_miss_as_many_as_they_let_not_pass():
    x = np.random.default_rng(5).normal(size=(600, 8))
    labels = np.random.default_rng(6).integers(3, size=600)
    found = verification(*together(x, None, "cosine"), labels, labels, itself=np.arange(600), rates=(0.5, 0.1, 0.01))
    for row in found.table:
        assert row.fnmr == pytest.approx(1 - row.fmr, abs=0.02)
    assert found.equal_error_rate == pytest.approx(0.5, abs=0.01)


def test_a_rate_that_too_few_pairs_can_show_is_not_a_number():
    x, labels = clusters(30, 3, seed=7)
    itself = np.arange(30)
    n = sum(int(labels[i] != labels[j]) for i in range(30) for j in range(i))
    found = verification(*together(x, None, "cosine"), labels, labels, itself=itself, rates=(1 / n, 0.999 / n))
    assert found.impostors == n
    assert found.table[0].fmr == 1 / n
    assert found.table[1].rate == 0.999 / n
    assert np.isnan(found.table[1][1:]).all()
    assert f"cannot be measured with {n} pairs" in found.text()
    nothing = verification(*together(x, None, "cosine"), labels, labels, itself=itself, rates=(0.0001,))
    assert nothing.recommended is None
    assert "Recommended" not in nothing.text()


def test_one_in_a_thousand_is_recommended_where_that_is_a_hundred_pairs():
    def recommended(n, rates):
        x, labels = clusters(2 * n, 2, seed=8)
        labels = np.arange(2 * n) % 2  # n^2 pairs of different labels
        points = together(x, None, "cosine")
        return verification(*points, labels, labels, itself=np.arange(2 * n), rates=rates).recommended.rate

    assert recommended(1000, (0.1, 0.01, 0.001, 0.0001)) == 0.001  # though 0.0001 is 100 of 1,000,000 too
    assert recommended(320, (0.1, 0.01, 0.001, 0.0001)) == 0.001  # 102 of 102,400
    assert recommended(310, (0.1, 0.01, 0.001, 0.0001)) == 0.01  # 96 of 96,100
    assert recommended(320, (0.1, 0.002, 0.02)) == 0.002
    assert recommended(9, (0.1, 0.03, 0.01)) == 0.1  # 8 of 81, and nothing better


def test_distances_are_in_the_units_of_the_embeddings():
    x, labels = clusters(80, 4, seed=9)
    itself = np.arange(80)
    near, far = (
        verification(*together(scale * x, None, "euclidean"), labels, labels, itself=itself, rates=RATES)
        for scale in (1, 1000)
    )
    assert [row.threshold for row in far.table] == pytest.approx([1000 * row.threshold for row in near.table], rel=1e-4)
    assert far.equal_error_threshold == pytest.approx(1000 * near.equal_error_threshold, rel=1e-4)
    assert far.equal_error_rate == pytest.approx(near.equal_error_rate, abs=1e-3)


def test_small_distances_are_told_apart_far_from_the_mean():
    # pairs of one label are 0.001 apart, of different labels 0.002, among points that are 100 apart
    places = np.repeat(np.arange(8), 4)
    steps = np.tile([0, 0.001, 0.003, 0.004], 8)
    x = np.stack([100.0 * places, steps], axis=1)
    labels = 2 * places + np.tile([0, 0, 1, 1], 8)
    found = verification(*together(x, None, "euclidean"), labels, labels, itself=np.arange(32), rates=(0.01,))
    assert found.equal_error_rate == 0
    assert 0.001 < found.equal_error_threshold < 0.0021


def test_where_all_pairs_of_different_labels_coincide_no_threshold_will_do():
    x = np.array([(1.0, 0), (1, 0), (1, 0), (0, 1)])
    labels = np.array([0, 0, 1, 0])
    for similarity, nothing in (("cosine", math.inf), ("euclidean", 0.0)):
        points = together(x, None, similarity)
        found = verification(*points, labels, labels, itself=np.arange(4), rates=(0.5,))
        assert found.table == (Threshold(0.5, nothing, 0.0, 1.0, 0.0),)
        assert "No threshold has a rate of 0.5" in found.text()


def test_the_text_says_what_passes_and_what_is_missed():
    x, labels = clusters(700, 6, seed=10, spread=0.5)
    found = verification(*together(x, None, "cosine"), labels, labels, itself=np.arange(700))
    row = found.recommended
    said = found.text().splitlines()
    assert said[0].startswith(f"Thresholds from {found.genuine:,} pairs of one label and {found.impostors:,} pairs of ")
    assert said[1] == (
        f"Recommended: Call two items the same when their cosine is at least {row.threshold:.4f}: "
        f"1.0 of 1,000 different pairs pass, and {row.fnmr:.1%} of same pairs are missed."
    )
    assert len(said) == 1 + 4 + 1
    assert ": 100.0 of 1,000 different pairs" in said[2]
    assert ": 1.0 of 10,000 different pairs" in said[4]
    assert said[5].startswith("Equal errors: ")
    distances = verification(*together(x, None, "euclidean"), labels, labels, itself=np.arange(700))
    assert f"their distance is below {distances.recommended.threshold:.5g}:" in distances.text()


def test_what_there_are_no_pairs_for_is_refused():
    points = together(np.eye(4), None, "cosine")
    itself = np.arange(4)
    with pytest.raises(InputError, match="no pair of one label"):
        verification(*points, itself, itself, itself=itself)
    with pytest.raises(InputError, match="no pair of different labels"):
        verification(*points, 0 * itself, 0 * itself, itself=itself)


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_rates_are_shares(rate):
    with pytest.raises(InputError, match="between 0 and 1"):
        verification(*together(np.eye(4), None, "cosine"), np.arange(4), np.arange(4), rates=(0.1, rate))
