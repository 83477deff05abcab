"""Ranks are those of a full sort in float64, whoever counts them and in whatever blocks."""

import tracemalloc

import numpy as np
import pytest

from metricweight.checks import InputError
from metricweight.retrieval import device as on_device
from metricweight.retrieval import ranking
from metricweight.retrieval.points import as_rows, together
from metricweight.retrieval.ranking import Search, Share, ranks


def by_a_full_look(search):
    """For each query: negatives closer than each positive, as close as each, and how many items it ranks."""
    found = []
    everything = np.arange(len(search.gallery))
    for q in range(len(search.queries)):
        key = search.queries.key(np.full(len(everything), q), search.gallery, everything)
        same = search.gallery_labels == search.query_labels[q]
        positive = same & (everything != search.itself[q])
        if search.query_cameras is not None:
            positive &= search.gallery_cameras != search.query_cameras[q]
        own, others = np.sort(key[positive])[::-1], key[~same]
        above, tied = [(others > k).sum() for k in own], [(others == k).sum() for k in own]
        found.append((above, tied, positive.sum() + len(others)))
    return found


def counted(search, **options):
    found = {}
    for rows, of in ranks(search, **options):
        for b, q in enumerate(rows):
            some = slice(of.start[b], of.start[b + 1])
            assert q not in found
            found[q] = (of.above[some].tolist(), of.tied[some].tolist(), of.ranked[b])
    return [found[q] for q in range(len(search.queries))]


def points(kind, random, n=300, d=5):
    if kind == "distinct":
        return random.standard_normal((n, d))
    if kind == "grid":  # many distances that are equal to the bit
        return random.integers(-2, 3, (n, d)) + np.array([0, 0, 0, 0, 0.5])
    if kind == "two points":
        return random.standard_normal((2, d))[random.integers(0, 2, n)]
    if kind == "duplicates":
        return random.standard_normal((40, d))[random.integers(0, 40, n)]
    if kind == "nearly equal":  # distances that float32 cannot tell apart, though the values are float32's
        return np.float32(1 + 1e-4 * random.standard_normal((n, d)))
    return random.standard_normal((n, d)) * 10.0 ** random.integers(-6, 7, (n, 1))  # "many scales"


MANY = [0, 3, 48]  # positives from which on they are counted the other way
KINDS = ["distinct", "grid", "two points", "duplicates", "nearly equal", "many scales"]


def of_itself(x, labels, similarity="cosine"):
    queries, gallery = together(x, None, similarity)
    return Search(queries, gallery, labels, labels, np.arange(len(x)))


def in_a_gallery(x, labels, random, similarity="cosine", cameras=True):
    """The first 80 items search among all, half of them as items of the gallery."""
    queries, gallery = together(x[:80], x, similarity)
    if not cameras:
        inside = np.where(random.random(80) < 0.5, np.arange(80), -1)
        return Search(queries, gallery, labels[:80], labels, inside)
    camera = random.integers(0, 3, len(x))
    return Search(queries, gallery, labels[:80], labels, np.arange(80), camera[:80], camera)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_those_of_a_full_sort(kind, similarity, dtype, monkeypatch):
    monkeypatch.setattr(ranking, "TILE", 64)
    random = np.random.default_rng(KINDS.index(kind))
    x = points(kind, random)
    if dtype == np.float16:
        x = np.clip(x, -6e4, 6e4)
        x[np.abs(x.astype(np.float16)).max(axis=1) == 0] = 1
    x = x.astype(dtype)
    for labels in (random.integers(0, 60, 300), random.integers(0, 7, 300)):
        for search in (
            of_itself(x, labels, similarity),
            in_a_gallery(x, labels, random, similarity),
            in_a_gallery(x, labels, random, similarity, cameras=False),
        ):
            expected = by_a_full_look(search)
            for many in MANY:
                monkeypatch.setattr(ranking, "MANY", many)
                assert counted(search) == expected


@pytest.mark.parametrize("many", MANY)
@pytest.mark.parametrize("kind", KINDS)
def test_neither_engine_nor_blocks_nor_threads_nor_processes_change_a_rank(kind, many, monkeypatch):
    monkeypatch.setattr(ranking, "MANY", many)
    random = np.random.default_rng(KINDS.index(kind))
    x, labels = points(kind, random, n=160).astype(np.float32), random.integers(0, 20, 160)
    for search in (of_itself(x, labels), in_a_gallery(x, labels, random)):
        expected = counted(search)
        assert counted(search, threads=1) == expected
        assert counted(search, threads=5) == expected
        assert counted(search, device="cpu") == expected
        with monkeypatch.context() as patch:
            patch.setattr(on_device, "ROWS", 37)
            patch.setattr(on_device, "COLUMNS", 41)
            patch.setattr(on_device, "LISTED", 2)  # room for too few undecided entries: it is made again, larger
            assert counted(search, device="cpu") == expected
        with monkeypatch.context() as patch:
            patch.setattr(ranking, "TILE", 32)
            patch.setattr(ranking, "WIDE", (16, 50))
            assert counted(search) == expected
            patch.setattr(ranking._Count, "_plan", small_batches(held=True))
            assert counted(search) == expected
            patch.setattr(ranking._Count, "_plan", small_batches(held=False))
            assert counted(search) == expected


def small_batches(held):
    def plan(self, memory, spare):
        self.batch, self.held, self.rows = 70, held, 64

    return plan


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("many", MANY)
def test_several_processes_share_the_blocks_and_their_counts_add_up(many, device, monkeypatch):
    monkeypatch.setattr(ranking, "MANY", many)
    monkeypatch.setattr(ranking, "TILE", 64)
    monkeypatch.setattr(ranking, "WIDE", (64, 64))
    monkeypatch.setattr(on_device, "ROWS", 32)
    random = np.random.default_rng(0)
    x, labels = points("grid", random), random.integers(0, 40, 300)

    def counts(search, rank, processes):
        found = []
        list(ranks(search, share=Share(rank, processes, lambda some: found.append(some.copy())), device=device))
        return np.concatenate(found)

    for search in (of_itself(x, labels), in_a_gallery(x, labels, random)):
        parts = [counts(search, rank, 2) for rank in range(2)]
        assert np.array_equal(sum(parts), counts(search, 0, 1))
        assert all(part.any() for part in parts)


def test_a_negative_of_the_same_direction_ties_under_cosine_whatever_its_length():
    x = np.array([[1, 2, 3], [2, 0, 1], [6, 0, 3], [0, 1, 0]])  # items 1 and 2 differ by a factor of 3
    queries, gallery = together(as_rows(x, "x"), None, "cosine")
    search = Search(queries, gallery, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), np.arange(4))
    assert counted(search)[0][:2] == ([0], [1])


def test_integers_beyond_float32_are_told_apart():
    x = np.array([[2**30], [2**30 + 1], [2**30 + 3], [0]], dtype=np.int64)
    queries, gallery = together(as_rows(x, "x"), None, "euclidean")
    labels = np.array([0, 1, 0, 1])
    search = Search(queries, gallery, labels, labels, np.arange(4))
    assert counted(search) == by_a_full_look(search)
    assert counted(search)[0][:2] == ([1], [0])


def test_one_huge_outlier_costs_the_others_no_digits():
    random = np.random.default_rng(0)
    x = random.standard_normal((200, 4)).astype(np.float32)
    x[7] = 1e9
    search = of_itself(x, random.integers(0, 40, 200), "euclidean")
    assert counted(search) == by_a_full_look(search)


def test_queries_without_positives_rank_everything_and_find_nothing():
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(90), np.repeat([200, 201], 5)])
    search = of_itself(random.standard_normal((100, 3)), labels)
    found = counted(search)
    assert found[:90] == [([], [], 99)] * 90
    assert found == by_a_full_look(search)
    alone = of_itself(random.standard_normal((100, 3)), np.arange(100))
    assert counted(alone) == [([], [], 99)] * 100


def test_memory_holds_whatever_the_gallery():
    random = np.random.default_rng(0)
    labels = np.arange(30_000) // 3
    x = random.standard_normal((30_000, 256)).astype(np.float32)  # 29 MiB
    queries, gallery = together(x[:600], x, "cosine")
    search = Search(queries, gallery, labels[:600], labels, np.arange(600))
    expected = counted(search)
    budget = least(search) + 2**20
    tracemalloc.start()
    assert counted(search, memory=budget, threads=2) == expected
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < budget < 90 * 2**20


def least(search):
    with pytest.raises(InputError, match="too small") as refused:
        list(ranks(search, memory=1, threads=2))
    number, unit = str(refused.value).split("give ")[1].split(" at least")[0].split()
    return int(float(number) * {"MiB": 2**20, "GiB": 2**30}[unit])


def test_a_budget_that_is_too_small_says_the_least_that_works():
    random = np.random.default_rng(0)
    search = of_itself(random.standard_normal((500, 64)), np.arange(500) % 20)
    enough = least(search)
    assert counted(search, memory=enough, threads=2) == by_a_full_look(search)
    with pytest.raises(InputError, match="500 queries of 64 numbers, with up to 24 positives"):
        list(ranks(search, memory=enough - 2**20, threads=2))


def test_progress_rises_to_one():
    random = np.random.default_rng(0)
    told = []
    list(ranks(of_itself(random.standard_normal((3000, 4)), np.arange(3000) % 900), progress=told.append))
    assert told == sorted(told)
    assert told[-1] > 0.9


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_counts_the_same(kind):
    random = np.random.default_rng(KINDS.index(kind))
    x, labels = points(kind, random, n=3000, d=32 if kind == "distinct" else 5), random.integers(0, 400, 3000)
    for search in (of_itself(x.astype(np.float32), labels), in_a_gallery(x.astype(np.float32), labels, random)):
        assert counted(search, device="cuda") == counted(search)
