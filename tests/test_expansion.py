"""Query expansion."""

from dataclasses import replace

import numpy as np
import pytest

from metricweight.checks import InputError
from metricweight.retrieval import expansion
from metricweight.retrieval.expansion import expanded
from metricweight.retrieval.points import together
from metricweight.retrieval.search import build


def by_the_book(queries, gallery, k, alpha, itself=None):
    """One query at a time, from a full sort of cosines."""
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    found = []
    for i, query in enumerate(np.asarray(queries, dtype=np.float64)):
        others = [unit(x) for j, x in enumerate(np.asarray(gallery, dtype=np.float64)) if itself is None or j != i]
        others.sort(key=lambda x: -(x @ unit(query)))
        total = unit(query) + sum(max(x @ unit(query), 0) ** alpha * x for x in others[:k])
        found.append(unit(total))
    return np.array(found)


@pytest.mark.parametrize("alpha", [0, 0.5, 1, 3])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_an_expanded_query_is_the_weighted_mean_of_unit_vectors(alpha, k):
    random = np.random.default_rng(0)
    x, y = 5 * random.standard_normal((20, 3)), random.standard_normal((30, 3)) * random.uniform(0.01, 100, (30, 1))
    queries, gallery = together(x, y, "cosine")
    found = expanded(queries, gallery, k, alpha)
    assert found.dtype == np.float32
    assert found == pytest.approx(by_the_book(x, y, k, alpha), abs=1e-6)


def test_two_neighbours_by_hand():
    """Query (1, 0); neighbours at cosine .8 and .6. Means (2.4, 1.4) of AQE, (1 + .8^4 + .6^4, ...) of alpha 3."""
    queries, gallery = together(np.array([[2.0, 0.0]]), np.array([[0.6, 0.8], [8.0, 6.0], [-1.0, 0.0]]), "cosine")
    assert expanded(queries, gallery, 2)[0] == pytest.approx(np.array([2.4, 1.4]) / np.hypot(2.4, 1.4))
    a, b = 1 + 0.8**4 + 0.6**4, 0.8**3 * 0.6 + 0.6**3 * 0.8
    assert expanded(queries, gallery, 2, 3)[0] == pytest.approx(np.array([a, b]) / np.hypot(a, b))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_query_of_the_gallery_does_not_count_twice(dtype):
    x = np.random.default_rng(1).standard_normal((40, 4)).astype(dtype)
    points, _ = together(x, None, "cosine")
    found = expanded(points, points, 3, 2, itself=np.arange(40))
    assert found == pytest.approx(by_the_book(x, x, 3, 2, itself=True), abs=1e-6)


def test_blocks_engines_and_indexes_change_no_answer(monkeypatch):
    x = np.random.default_rng(2).standard_normal((50, 4))
    points, _ = together(x, None, "cosine")
    whole = expanded(points, points, 5, 1, itself=np.arange(50))
    monkeypatch.setattr(expansion, "BLOCK", 7)
    assert np.array_equal(expanded(points, points, 5, 1, itself=np.arange(50)), whole)
    assert np.array_equal(expanded(points, points, 5, 1, itself=np.arange(50), device="cpu", memory=1000), whole)
    assert np.array_equal(expanded(points, points, 5, 1, itself=np.arange(50), index=build(points, "hnsw")), whole)


def test_the_neighbours_are_those_that_an_index_finds():
    class FindsFirst:
        ntotal, d = 30, 3

        def search(self, x, count):
            return None, np.zeros((len(x), 1), dtype=np.int64)

    x = np.random.default_rng(4).standard_normal((30, 3))
    points, _ = together(x, None, "cosine")
    index = replace(build(points, "hnsw"), faiss=FindsFirst())
    found = expanded(points, points, 5, index=index, itself=np.full(30, -1))
    assert found == pytest.approx(np.array([by_the_book([row], x[:1], 1, 0)[0] for row in x]), abs=1e-6)


def test_fewer_neighbours_than_are_asked_for_are_taken_as_they_are():
    x = np.random.default_rng(3).standard_normal((6, 3))
    points, _ = together(x, None, "cosine")
    assert expanded(points, points, 9, 0, itself=np.arange(6)) == pytest.approx(by_the_book(x, x, 5, 0, True), abs=1e-6)


def test_a_neighbour_that_points_the_other_way_weighs_nothing_and_a_sum_of_zero_leaves_the_query():
    queries, gallery = together(np.array([[3.0, 4.0]]), np.array([[-6.0, -8.0]]), "cosine")
    assert expanded(queries, gallery, 1, 1)[0] == pytest.approx([0.6, 0.8])
    assert expanded(queries, gallery, 1, 0)[0] == pytest.approx([0.6, 0.8])


def test_what_has_no_direction_or_no_power_is_refused():
    points, _ = together(np.eye(3), None, "euclidean")
    with pytest.raises(InputError, match="needs cosine, got euclidean"):
        expanded(points, points, 1)
    points, _ = together(np.eye(3), None, "cosine")
    for alpha in (-1, np.nan, np.inf):
        with pytest.raises(InputError, match="alpha"):
            expanded(points, points, 1, alpha)
