"""k-reciprocal re-ranking: sparse and in blocks, against tables and against the definition, dense."""

import tracemalloc

import numpy as np
import pytest

from metricweight.checks import InputError
from metricweight.retrieval.points import together
from metricweight.retrieval.rerank import reranked

QUERIES = np.array([(0, 0), (5, 1.0)])
GALLERY = np.array([(0.3, 0.1), (0.9, -0.4), (1.4, 1.7), (4.2, 0.6), (5.5, 2.2)])
TABLES = {
    (3, 2, 0.3): [[0.000855, 0.015641, 0.091992, 0.85389, 1], [0.964231, 0.916577, 0.855192, 0.009231, 0.063365]],
    (3, 1, 0.3): [[0.005451, 0.022912, 0.138998, 0.85389, 1], [0.964231, 0.916577, 0.855192, 0.056336, 0.06011]],
    (2, 2, 0.0): [[0, 0.01204, 0.666667, 1, 1], [1, 1, 1, 0, 0.062665]],
    (20, 6, 0.3): [
        [0.000855, 0.008293, 0.041465, 0.227572, 0.373682],
        [0.337913, 0.290259, 0.228875, 0.009231, 0.0195],
    ],
}


def by_definition(queries, gallery, similarity, k1=20, k2=6, weight=0.3, itself=None):
    """Dense and in float64. A query that the gallery holds is the node of its row; the other queries come first."""
    free = [q for q in range(len(queries)) if itself is None or itself[q] < 0]
    x = np.concatenate([queries[free], gallery]).astype(np.float64)
    if similarity == "cosine":
        x /= np.sqrt((x**2).sum(axis=1, keepdims=True))
    n = len(x)
    node = [free.index(q) if q in free else len(free) + itself[q] for q in range(len(queries))]
    d = ((x[:, None] - x) ** 2).sum(axis=2)
    order = [sorted(range(n), key=lambda j, i=i: (d[i, j], j != i, j)) for i in range(n)]
    d /= d.max(axis=1, keepdims=True)

    def mutual(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    v = np.zeros((n, n))
    for i in range(n):
        found = mutual(i, k1)
        for j in mutual(i, k1):
            candidates = mutual(j, int(np.around(k1 / 2)))
            if len(candidates & mutual(i, k1)) > 2 / 3 * len(candidates):
                found |= candidates
        v[i, list(found)] = np.exp(-d[i, list(found)])
        v[i] /= v[i].sum()
    v = np.array([v[order[i][:k2]].mean(axis=0) for i in range(n)])
    m = np.minimum(v[node][:, None], v[len(free) :]).sum(axis=2)
    return (1 - weight) * (1 - m / (2 - m)) + weight * d[node][:, len(free) :]


def all_blocks(queries, gallery, similarity="euclidean", **how):
    points = together(queries, None if gallery is queries else gallery, similarity)
    found = np.full((len(queries), len(gallery)), np.nan)
    for rows, block in reranked(*points, **how):
        assert block.dtype == np.float64
        assert np.isnan(found[rows]).all()
        found[rows] = block
    return found


def clusters(n, size=8, seed=0, spread=0.7):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 12), size))
    return centres[rng.integers(len(centres), size=n)] + spread * rng.normal(size=(n, size))


@pytest.mark.parametrize(("k1", "k2", "weight"), TABLES)
def test_distances_are_those_of_the_published_method(k1, k2, weight):
    table = TABLES[k1, k2, weight]
    assert by_definition(QUERIES, GALLERY, "euclidean", k1, k2, weight) == pytest.approx(np.array(table), abs=5e-6)
    found = all_blocks(QUERIES, GALLERY, k1=k1, k2=k2, weight=weight)
    assert found == pytest.approx(np.array(table), abs=5e-6)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(20, 6, 0.3), (5, 3, 0.5), (7, 1, 0.0), (1, 1, 0.2), (3, 9, 0.1), (9, 200, 0.3)]
)
def test_queries_and_a_gallery_give_what_the_dense_definition_gives(similarity, k1, k2, weight):
    x = clusters(120)
    how = {"k1": k1, "k2": k2, "weight": weight}
    found = all_blocks(x[:40], x[40:], similarity, **how)
    assert found == pytest.approx(by_definition(x[:40], x[40:], similarity, **how), abs=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_items_that_search_among_themselves_are_one_node_each(similarity):
    x, itself = clusters(120, seed=1), np.arange(120)
    found = all_blocks(x, x, similarity, itself=itself)
    assert found == pytest.approx(by_definition(x, x, similarity, itself=itself), abs=1e-6)
    assert np.diagonal(found) == pytest.approx(0, abs=1e-12)
    twice = all_blocks(x, x.copy(), similarity)
    assert abs(twice - found).max() > 0.05  # each a neighbour of its own copy


def test_a_gallery_that_holds_some_of_the_queries_has_a_node_for_each_item():
    x = clusters(110, seed=2)
    queries, gallery = x[:40], x[25:]
    itself = np.where(np.arange(40) < 25, -1, np.arange(40) - 25)
    shuffled = np.random.default_rng(0).permutation(40)
    expected = by_definition(queries[shuffled], gallery, "cosine", k1=9, itself=itself[shuffled])
    found = all_blocks(queries[shuffled], gallery, "cosine", k1=9, itself=itself[shuffled])
    assert found == pytest.approx(expected, abs=1e-6)
    nobody = all_blocks(queries[shuffled], gallery, "cosine", k1=9)
    assert abs(found - nobody).max() > 0.05


@pytest.mark.parametrize("k1", [3, 20])
def test_exact_duplicates_are_ordered_by_number_after_the_node_itself(k1):
    x = clusters(60, size=3, seed=3)
    x = np.concatenate([x, x[:20], np.repeat(x[5:6], 30, axis=0)])  # one place holds more than k1 + 1
    itself = np.arange(len(x))
    found = all_blocks(x, x, itself=itself, k1=k1)
    assert found == pytest.approx(by_definition(x, x, "euclidean", itself=itself, k1=k1), abs=1e-6)


def test_duplicates_that_stand_in_the_same_sets_tie_to_the_bit():
    x = clusters(90, size=24, seed=4)
    rows = np.concatenate([x, x[:30]])
    found = all_blocks(clusters(50, size=24, seed=5), rows, "cosine", k1=len(rows) + 50, k2=2 * len(rows))
    assert np.array_equal(found[:, :30], found[:, 90:])
    assert np.array_equal(found, np.round(found, 10))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_blocks_change_nothing(similarity):
    x, itself = clusters(150, seed=6), np.arange(150)
    x[70:80] = x[60:70]
    points = together(x, None, similarity)
    blocks = list(reranked(*points, itself=itself, memory=150 * 48 * 7))
    assert [(rows.start, rows.stop) for rows, _ in blocks[:2]] == [(0, 7), (7, 14)]
    assert blocks[-1][0].stop == 150
    whole = all_blocks(x, x, similarity, itself=itself)
    assert np.concatenate([block for _, block in blocks]) == pytest.approx(whole, abs=2e-10)
    one_by_one = np.concatenate([block for _, block in reranked(*points, itself=itself, memory=1)])
    assert one_by_one == pytest.approx(whole, abs=2e-10)


def test_half_of_k1_is_rounded_to_even():
    x = clusters(120, seed=7)
    found = all_blocks(x[:40], x[40:], k1=5)
    assert found == pytest.approx(by_definition(x[:40], x[40:], "euclidean", k1=5), abs=1e-6)  # np.around(2.5) = 2


def test_the_scale_and_the_place_of_embeddings_change_nothing():
    x = clusters(100, seed=8)
    near = all_blocks(x[:30], x[30:])
    assert all_blocks(1000 * x[:30], 1000 * x[30:]) == pytest.approx(near, abs=1e-6)
    assert all_blocks(x[:30] + 4096, x[30:] + 4096) == pytest.approx(near, abs=1e-5)


def test_a_weight_of_one_leaves_the_first_distances():
    x = clusters(80, seed=9)
    d = ((x[:, None] - x) ** 2).sum(axis=2)
    found = all_blocks(x[:20], x[20:], weight=1.0)
    assert found == pytest.approx((d / d.max(axis=1, keepdims=True))[:20, 20:], abs=1e-6)


def peak(x, **how):
    points = together(x.astype(np.float32), None, "euclidean")
    next(reranked(*points, itself=np.arange(len(x)), **how))  # what is imported and compiled does not count
    tracemalloc.start()
    for _rows, _block in reranked(*points, itself=np.arange(len(x)), **how):
        pass
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_stays_below_that_of_all_pairs():
    assert peak(clusters(2000, size=16, seed=10), memory=2**21) < 2000 * 2000 * 8 / 3


def test_memory_stays_low_where_every_node_overlaps_with_every_other():
    # 18 queries at a time, each with 300 entries that meet 300: 1.6 million meetings of some 48 bytes
    assert peak(clusters(300, seed=11), k2=300, memory=2**18) < 10 * 2**20


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"k1": 0}, "k1 of re-ranking must be at least 1, got 0"),
        ({"k2": 0}, "k2 of re-ranking must be at least 1, got 0"),
        ({"weight": 1.5}, r"must be in \[0, 1\], got 1.5"),
        ({"weight": float("nan")}, r"must be in \[0, 1\], got nan"),
        ({"itself": np.array([0, 5])}, "one of 5 rows of the gallery or -1; got .* from 0 to 5"),
        ({"itself": np.array([0])}, r"for each of 2 queries.* got \[1\]"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_computed(how, words):
    with pytest.raises(InputError, match=words):
        reranked(*together(QUERIES, GALLERY, "euclidean"), **how)
