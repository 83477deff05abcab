"""From ranks to metrics: golden lists, and ties against every order that they could have come out in.

A ranking is written as groups, nearest first: "1" is a hit and "0" a miss; "101" are three items at one distance.
"""

import math
from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest

from metricweight.retrieval import metrics
from metricweight.retrieval.metrics import optimistic, per_query, pessimistic
from metricweight.retrieval.ranking import Ranks

KS = (1, 2, 3, 4, 20)


def ranks_of(*queries):
    start, above, tied, ranked = [0], [], [], []
    for groups in queries:
        closer = 0
        for group in groups:
            above += [closer] * group.count("1")
            tied += [group.count("0")] * group.count("1")
            closer += group.count("0")
        start.append(len(above))
        ranked.append(sum(map(len, groups)))
    return Ranks(*(np.array(x, dtype=np.int64) for x in (start, above, tied, ranked)))


def naive(hits, ks=KS):
    """Every metric of one certain list such as "01011", by loops over its places."""
    hits = [int(hit) for hit in hits]
    places = [place for place, hit in enumerate(hits, start=1) if hit]
    r = len(places)
    precision = [1.0] + [sum(hits[:place]) / place for place in range(1, len(hits) + 1)]
    found = {f"recall@{k}": float(any(hits[:k])) for k in ks} | {f"precision@{k}": sum(hits[:k]) / k for k in ks}
    found["map@r"] = sum(precision[place] for place in places if place <= r) / r
    found["r_precision"] = sum(hits[:r]) / r
    found["map"] = sum(precision[place] for place in places) / r
    old_recall, found["map_trapezoid"] = 0.0, 0.0
    for place in range(1, len(hits) + 1):
        recall = sum(hits[:place]) / r
        found["map_trapezoid"] += (recall - old_recall) * (precision[place - 1] + precision[place]) / 2
        old_recall = recall
    return found | {"minp": r / places[-1], "mrr": 1 / places[0]}


def every_order(groups):
    """Every metric [orders] of all lists that these groups could come out as."""
    lists = ["".join(map("".join, order)) for order in product(*map(permutations, groups))]
    values = {hits: naive(hits) for hits in set(lists)}
    return {name: [values[hits][name] for hits in lists] for name in values[lists[0]]}


def of_one(groups, break_ties=lambda ranks: ranks, ks=KS):
    return {name: float(values[0]) for name, values in per_query(break_ties(ranks_of(groups)), ks).items()}


def some_groups(seed):
    """Up to eight items in groups of up to four, at least one of them a hit."""
    random = np.random.default_rng(seed)
    while True:
        groups, left = [], int(random.integers(1, 9))
        while left:
            size = int(random.integers(1, min(left, 4) + 1))
            groups.append("".join(random.choice(["0", "1"], size, p=[0.55, 0.45])))
            left -= size
        if "1" in "".join(groups):
            return groups


TIES = {
    "at the top": ["010", "1", "0", "1"],
    "in the middle": ["0", "1", "0110", "1", "0"],
    "at the end": ["1", "0", "1", "1001"],
    "after another tie": ["10", "01", "001"],
    "of positives only": ["0", "111", "0", "1"],
    "of negatives only": ["000", "1", "00", "1", "000"],
    "of everything": ["0010110"],
    "of everything, one negative": ["1110"],
    "of everything, one positive": ["10000"],
    "across R": ["1", "0", "0110", "1"],
    "of positives, beside a tie of both": ["11", "100", "11", "0"],
}


def test_six_points_on_a_line():
    """x = 0, .1, .25, 1, 1.2, 3 with labels 0 0 1 0 1 2: hits 10100, 10100, 00010, 00110, 01000; the last is alone."""
    found = per_query(ranks_of("10100", "10100", "00010", "00110", "01000", "00000"), (1, 2, 4))
    means = {name: values[:5].mean() for name, values in found.items()}
    assert [means[f"recall@{k}"] for k in (1, 2, 4)] == [0.4, 0.6, 1.0]
    assert found["r_precision"][:5].tolist() == [0.5, 0.5, 0, 0, 0]
    assert found["map@r"][:5].tolist() == [0.5, 0.5, 0, 0, 0]
    assert found["map"][:5] == pytest.approx([5 / 6, 5 / 6, 1 / 4, 5 / 12, 1 / 2])
    assert means["r_precision"] == means["map@r"] == pytest.approx(0.2)
    assert means["map"] == pytest.approx(0.566667, abs=1e-6)


@pytest.mark.parametrize(
    ("hits", "step", "trapezoid", "minp", "cmc"),
    [
        ("01011", 0.533333, 0.405556, 0.6, [0, 1, 1, 1, 1]),
        ("101", 0.833333, 0.791667, 0.666667, [1, 1, 1]),
        ("111", 1, 1, 1, [1, 1, 1]),
        ("001", 0.333333, 0.166667, 0.333333, [0, 0, 1]),
        ("1", 1, 1, 1, [1]),
        ("01010", 0.5, 0.333333, 0.5, [0, 1, 1, 1, 1]),
    ],
)
def test_lists_of_person_search_as_the_official_code_scores_them(hits, step, trapezoid, minp, cmc):
    found = of_one(hits, ks=range(1, len(hits) + 1))
    assert [found["map"], found["map_trapezoid"], found["minp"]] == pytest.approx([step, trapezoid, minp], abs=1e-6)
    assert [found[f"recall@{k}"] for k in range(1, len(hits) + 1)] == cmc


def test_the_metrics_come_in_a_fixed_order():
    recalls, precisions = ["recall@5", "recall@1"], ["precision@5", "precision@1"]
    others = ["map@r", "r_precision", "map", "map_trapezoid", "minp", "mrr"]
    found = per_query(ranks_of("01", "1"), (5, 1))
    assert list(found) == recalls + precisions + others
    assert all(values.shape == (2,) and values.dtype == np.float64 for values in found.values())


@pytest.mark.parametrize("groups", TIES.values(), ids=TIES.keys())
def test_a_tie_counts_as_the_mean_over_all_its_orders(groups):
    assert of_one(groups) == pytest.approx({k: np.mean(v) for k, v in every_order(groups).items()}, rel=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_random_ties_count_as_the_mean_over_all_their_orders(seed):
    groups = some_groups(seed)
    assert of_one(groups) == pytest.approx({k: np.mean(v) for k, v in every_order(groups).items()}, rel=1e-12)


@pytest.mark.parametrize("groups", [*TIES.values(), *map(some_groups, range(15))], ids=" ".join)
def test_ties_for_and_against_the_query_are_its_best_and_worst_order(groups):
    orders = every_order(groups)
    assert of_one(groups, optimistic) == pytest.approx({name: max(values) for name, values in orders.items()})
    assert of_one(groups, pessimistic) == pytest.approx({name: min(values) for name, values in orders.items()})


def test_the_order_for_or_against_the_query_is_certain():
    ranks = ranks_of(["0", "0110", "1"], ["00"])
    assert optimistic(ranks).above.tolist() == [1, 1, 3]
    assert pessimistic(ranks).above.tolist() == [3, 3, 3]
    for certain in (optimistic(ranks), pessimistic(ranks)):
        assert certain.tied.tolist() == [0, 0, 0]
        assert certain.start.tolist() == [0, 3, 3]
        assert certain.ranked.tolist() == [6, 2]


@pytest.mark.parametrize("part", [1, 3, 10, 2**18])
@pytest.mark.parametrize("block", [(1, 1), (3, 2), (64, 512)])
def test_queries_score_the_same_alone_and_among_others_and_those_without_positives_are_nan(part, block, monkeypatch):
    monkeypatch.setattr(metrics, "PART", part)
    monkeypatch.setattr(metrics, "BLOCK", block)
    nothing = ["0", "00"]
    queries = [nothing, *TIES.values(), nothing, nothing, *map(some_groups, range(20)), nothing]
    together = per_query(ranks_of(*queries), KS)
    for q, groups in enumerate(queries):
        one = {name: values[q] for name, values in together.items()}
        if groups is nothing:
            assert np.isnan(list(one.values())).all()
        else:
            assert one == pytest.approx({name: np.mean(v) for name, v in every_order(groups).items()}, rel=1e-12)


@pytest.mark.parametrize("queries", [[], [["0"]], [["0", "00"], []]], ids=["none", "one", "two"])
def test_no_query_with_a_positive_gives_no_number(queries):
    for ranks in (ranks_of(*queries), optimistic(ranks_of(*queries)), pessimistic(ranks_of(*queries))):
        for values in per_query(ranks, (1, 5)).values():
            assert values.shape == (len(queries),)
            assert values.dtype == np.float64
            assert np.isnan(values).all()


def test_k_beyond_the_ranking_finds_everything_there_is():
    found = of_one(["0", "10", "01"], ks=(5, 6, 50))
    assert [found[f"recall@{k}"] for k in (5, 6, 50)] == [1, 1, 1]
    assert [found[f"precision@{k}"] for k in (5, 6, 50)] == [2 / 5, 2 / 6, 2 / 50]


@pytest.mark.parametrize("seed", range(10))
def test_without_ties_metrics_are_those_of_the_list(seed):
    random = np.random.default_rng(seed)
    lists = ["".join(random.choice(["0", "1"], int(random.integers(2, 60)))) + "1" for _ in range(30)]
    found = per_query(ranks_of(*lists), KS)
    for q, hits in enumerate(lists):
        for name, expected in naive(hits).items():
            if name.startswith("map"):
                assert found[name][q] == pytest.approx(expected, rel=1e-13)
            else:
                assert found[name][q] == expected


@pytest.mark.parametrize("count", [1, 3, 7, 49, 1000])
def test_a_perfect_ranking_is_exactly_one(count):
    found = of_one("1" * count + "0" * 7, ks=(1,))
    assert set(found.values()) == {1.0}


def test_a_recall_that_ties_cannot_touch_is_exactly_zero_or_one():
    found = of_one(["0", "0", "0010000", "1"], ks=(1, 2, 9, 10))
    assert [found[f"recall@{k}"] for k in (1, 2, 9, 10)] == [0.0, 0.0, 1.0, 1.0]


def everything_tied(n, p, closer=0, queries=1):
    """`closer` negatives, then n negatives and p positives at one distance; of which all is known in fractions."""
    above, tied = np.full(queries * p, closer), np.full(queries * p, n)
    return Ranks(np.arange(queries + 1) * p, above, tied, np.full(queries, closer + n + p))


def expected_of_a_tie(n, p, ks, closer=0):
    """From sums over the places of the tie, with exact binomials."""
    size, draws = n + p, math.comb(n + p, p)
    found = {f"recall@{k}": float(1 - Fraction(math.comb(size - k + closer, p), draws)) for k in ks if k > closer}
    found |= {f"precision@{k}": (k - closer) * p / size / k for k in ks if k > closer}
    places = range(1, size + 1)
    hits_before = [(t - 1) * (p - 1) / (size - 1) for t in places]
    precision = [(1 + h) / (closer + t) for t, h in zip(places, hits_before, strict=True)]
    before = [h / max(closer + t - 1, 1) for t, h in zip(places, hits_before, strict=True)]
    before[0] = float(closer == 0)
    first = [math.comb(size - t, p - 1) / draws for t in range(1, n + 2)]
    found["map@r"] = sum(precision[: max(p - closer, 0)]) / size
    found["r_precision"] = max(p - closer, 0) / size
    found["map"] = math.fsum(precision) / size
    found["map_trapezoid"] = (math.fsum(precision) + math.fsum(before)) / 2 / size
    found["minp"] = p * math.fsum(w / (closer + size + 1 - t) for t, w in enumerate(first, start=1))
    found["mrr"] = math.fsum(w / (closer + t) for t, w in enumerate(first, start=1))
    return found


@pytest.mark.parametrize(("p", "closer"), [(1, 0), (3, 0), (3, 2), (3, 1_000_000), (40, 7)])
def test_a_tie_with_a_hundred_thousand_negatives_is_summed_to_the_last_place(p, closer):
    ks = (1, 5, 10, 1000, closer + 60_000)
    found = {name: values[0] for name, values in per_query(everything_tied(100_000, p, closer), ks).items()}
    if closer == 0:
        assert found["recall@1"] == pytest.approx(p / (100_000 + p), rel=1e-10)
        assert found["recall@1"] == pytest.approx(found["precision@1"], rel=1e-10)
    for name, expected in expected_of_a_tie(100_000, p, ks, closer).items():
        assert found[name] == pytest.approx(expected, rel=1e-10), name


@pytest.mark.parametrize("closer", [0, 20, 63, 64, 70, 10**6, 10**9])
def test_a_short_tie_far_down_the_list_loses_no_digits(closer):
    found = {name: values[0] for name, values in per_query(everything_tied(3, 2, closer), (1,)).items()}
    expected = expected_of_a_tie(3, 2, (1,), closer)
    for name in ("map", "map_trapezoid", "minp", "mrr"):
        assert found[name] == pytest.approx(expected[name], rel=1e-12, abs=1e-15), name


def test_short_ties_are_not_disturbed_by_long_ones():
    """They are looked at in the same blocks of places, of which the short ones end long before."""
    sizes = np.array([3, 50_000, 40, 700, 1])
    found = per_query(Ranks(np.arange(6) * 2, np.zeros(10, np.int64), np.repeat(sizes, 2), sizes + 2), (1, 4))
    for q, n in enumerate(sizes.tolist()):
        for name, expected in expected_of_a_tie(n, 2, (1,)).items():
            assert found[name][q] == pytest.approx(expected, rel=1e-11), name


def test_a_million_ties_of_many_positives_stay_between_zero_and_one():
    for p in (1, 1000, 100_000):
        found = per_query(everything_tied(1_000_000, p), (1, 10, 10_000))
        values = np.array(list(found.values()))
        assert np.isfinite(values).all()
        assert (values > 0).all()
        assert (values <= 1).all()
        harmonic = np.sum(1 / np.arange(p, 1_000_000 + p + 1))
        assert found["mrr"][0] == pytest.approx(p / 1_000_001 * harmonic, rel=1e-10)  # sum_t C(L - t, p - 1) / t


def test_fifty_thousand_queries_of_which_all_is_tied():
    """A model that has collapsed onto one point: ties that are the same are summed once, not for each query."""
    found = per_query(everything_tied(100_000, 2, queries=50_000), (1, 10))
    for name, expected in expected_of_a_tie(100_000, 2, (1, 10)).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-10, err_msg=name)


def test_fifty_thousand_queries_each_with_a_tie_of_its_own():
    closer = np.arange(50_000)
    ranks = Ranks(np.arange(50_001) * 2, np.repeat(closer, 2), np.full(100_000, 6), closer + 8)
    found = per_query(ranks, (3,))
    for q in (0, 1, 2, 500, 49_999):
        for name, expected in expected_of_a_tie(6, 2, (3,), q).items():
            assert found[name][q] == pytest.approx(expected, rel=1e-11), name
