"""Nearest neighbours: exact whatever the engine, and how much an approximate index misses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metricweight.checks import InputError
from metricweight.retrieval import search
from metricweight.retrieval.points import together
from metricweight.retrieval.search import build, kmeans, load, neighbours, overlap, save

ENGINES = [None, "cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
KINDS = ["ivf_flat", "ivf_pq", "hnsw"]


def by_the_book(queries, gallery, k, itself=None):
    """A full sort of float64 keys by (key, id), one query at a time."""
    columns = np.arange(len(gallery))
    ids, keys = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf)
    for i in range(len(queries)):
        key = queries.key(np.full(len(gallery), i), gallery, columns)
        order = [j for j in sorted(columns, key=lambda j: (-key[j], j)) if itself is None or j != itself[i]][:k]
        ids[i, : len(order)], keys[i, : len(order)] = order, key[order]
    return ids, keys


def assert_same(found, expected):
    assert np.array_equal(found.ids, expected[0])
    assert np.array_equal(found.keys, expected[1])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def grid(count, size, seed=0):
    """Whole numbers, so that distances tie exactly, and no row of zeros."""
    rows = np.random.default_rng(seed).integers(0, 3, (count, size))
    rows[:, 0] += 1
    return rows


def clustered(count, size, classes, seed=0):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((classes, size))
    return (centres[np.arange(count) % classes] + 0.3 * random.standard_normal((count, size))).astype(np.float32)


def test_keys_and_order_are_those_of_distances_by_hand():
    queries, gallery = together(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 1.0]]), "euclidean")
    found = neighbours(queries, gallery, 3)
    assert found.ids.tolist() == [[1, 2, 0]]
    assert found.keys[0] / found.keys[0, 0] == pytest.approx([1, 1, 25])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 7, 200])
def test_exact_neighbours_are_those_of_a_full_sort(engine, similarity, k):
    queries, gallery = together(normal(30, 9), normal(200, 9, seed=1) + 0.5, similarity)
    assert_same(neighbours(queries, gallery, k, device=engine), by_the_book(queries, gallery, k))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_of_items_as_near_as_each_other_those_with_the_smallest_ids_are_found(engine, similarity, k):
    points, _ = together(grid(400, 3), None, similarity)
    itself = np.arange(400)
    found = neighbours(points, points, k, itself=itself, device=engine)
    assert (found.keys[:, :-1] == found.keys[:, 1:]).any() or k == 1  # there are ties
    assert_same(found, by_the_book(points, points, k, itself))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("extra", [0, 1])
def test_few_candidates_at_first_change_no_answer(monkeypatch, engine, extra):
    monkeypatch.setattr(search, "EXTRA", extra)
    points, _ = together(np.repeat(normal(12, 5), 25, axis=0), None, "cosine")
    shuffled = np.random.default_rng(0).permutation(300)
    points, _ = together(points.raw[shuffled], None, "cosine")
    for k in (1, 24, 26, 299):
        expected = by_the_book(points, points, k, np.arange(300))
        assert_same(neighbours(points, points, k, itself=np.arange(300), device=engine), expected)


def test_candidates_double_until_the_answer_is_settled(monkeypatch):
    points, _ = together(np.concatenate([np.ones((500, 2)), [[1, -1]]]), None, "cosine")
    asked, made = [], search._engine

    def counted(*given):
        engine = made(*given)
        return lambda x, count: asked.append((len(x), count)) or engine(x, count)

    monkeypatch.setattr(search, "_engine", counted)
    neighbours(points, points, 2)
    assert asked == [(501, 35), (501, 70), (501, 140), (501, 280), (501, 501)]
    asked.clear()
    neighbours(search._only(points, np.arange(495, 501)), search._only(points, np.arange(499, 501)), 2)
    assert asked == [(6, 2)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("k", [1, 100, 500])
def test_what_float32_cannot_tell_apart_is_told_apart(engine, k):
    """Distances to one query that differ by less than float32 distances are off by."""
    near = 1 + 1e-9 * np.random.default_rng(0).permutation(500)
    queries, gallery = together(np.zeros((25, 8)), np.outer([*near, *np.full(500, -3)], np.ones(8)), "euclidean")
    assert len(np.unique(gallery.compared()[:500], axis=0)) < 500
    assert (neighbours(queries, gallery, k, device=engine).ids == np.argsort(near)[:k]).all()


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("size", [1, 2, 100, 768])
def test_float32_distances_are_off_by_less_than_is_allowed_for(similarity, size):
    points, _ = together(
        np.concatenate([normal(60, size), 1 + 0.01 * normal(60, size), np.full((60, size), 1 / 3)]), None, similarity
    )
    rows = points.compared()
    for device in (None, "cpu"):
        distances, ids = search._engine(points, device, 2**30)(rows, len(rows))
        off = np.abs(distances - ((rows[:, None].astype(np.float64) - rows[ids]) ** 2).sum(-1))
        allowed = np.stack([search._rounding(rows, column) for column in distances.T], axis=1)
        assert (off < allowed).all()
        assert off.max() > 0.001 * allowed.max()


def test_an_item_far_away_does_not_make_every_query_compare_everything(monkeypatch):
    """The rounding of distances to it is as large as the others are, and does not matter: it is near no other."""
    points, _ = together(np.concatenate([normal(3000, 4), [[1e5, 0, 0, 0]]]), None, "euclidean")
    compared, key = [], type(points).key

    def counted(own, rows, gallery, columns):
        compared.append(len(rows))
        return key(own, rows, gallery, columns)

    monkeypatch.setattr(type(points), "key", counted)
    queries, gallery = search._only(points, np.arange(2000)), points
    neighbours(queries, gallery, 1)
    assert sum(compared) < 2 * len(queries)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_query_is_not_its_own_neighbour_though_crowded_out_by_duplicates(engine):
    points, _ = together(np.concatenate([np.ones((100, 4)), -np.ones((1, 4))]), None, "cosine")
    found = neighbours(points, points, 3, itself=np.arange(101), device=engine)
    assert found.ids[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert (found.ids[4:] == [0, 1, 2]).all()
    assert not (found.ids == np.arange(101)[:, None]).any()


@pytest.mark.parametrize("kind", [*ENGINES, *KINDS])
def test_where_the_gallery_is_used_up_ids_are_minus_one_and_keys_minus_infinity(kind):
    count = 300
    points, _ = together(clustered(count, 4, 10), None, "euclidean")
    index = {"index": build(points, kind)} if kind in KINDS else {"device": kind}
    found = neighbours(points, points, count + 2, itself=np.arange(count), **index)
    assert found.ids.shape == (count, count + 2)
    assert (found.ids[:, -3:] == -1).all()
    assert np.array_equal(found.ids == -1, found.keys == -np.inf)
    if kind not in KINDS:
        assert (np.sort(found.ids[:, :-3]) == [np.delete(np.arange(count), i) for i in range(count)]).all()


def test_only_the_queries_that_are_in_the_gallery_leave_themselves_out():
    queries, gallery = together(normal(3, 4), normal(20, 4), "cosine")  # the queries are rows 0, 1, 2
    assert neighbours(queries, gallery, 1, itself=np.array([-1, 1, -1])).ids[:, 0].tolist()[::2] == [0, 2]
    assert neighbours(queries, gallery, 1, itself=np.array([-1, 1, -1])).ids[1, 0] != 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_embeddings_of_any_dtype_are_searched(engine, dtype):
    x = (10 * normal(120, 6)).astype(dtype)
    points, _ = together(x, None, "cosine")
    assert_same(neighbours(points, points, 9, device=engine), by_the_book(points, points, 9))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("memory", [1, 2**12, 2**15])
def test_little_memory_changes_no_answer(monkeypatch, engine, memory):
    monkeypatch.setattr(search, "TILE", 30)
    points, _ = together(grid(80, 3), None, "euclidean")
    whole = by_the_book(points, points, 6, np.arange(80))
    assert_same(neighbours(points, points, 6, itself=np.arange(80), device=engine, memory=memory), whole)


def test_memory_bounds_what_is_compared_at_a_time(monkeypatch):
    queries, gallery = together(normal(500, 8), normal(3000, 8, seed=1), "cosine")
    made = []
    product = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: made.append(product(*a, **k)) or made[-1])
    found = neighbours(queries, gallery, 2, device="cpu", memory=2**20)
    assert max(4 * block.numel() for block in made) <= 2**18
    assert_same(found, neighbours(queries, gallery, 2))


def test_an_engine_forms_products_in_float32_and_leaves_the_settings_as_they_were(monkeypatch):
    newer = hasattr(torch.backends, "fp32_precision")
    before = torch.backends.cuda.matmul.fp32_precision if newer else torch.get_float32_matmul_precision()
    seen = []
    product = torch.addmm

    def watched(*tensors, **more):
        own = torch.backends.cuda.matmul.fp32_precision if newer else torch.get_float32_matmul_precision()
        seen.append((own, torch.is_autocast_enabled("cpu")))
        return product(*tensors, **more)

    monkeypatch.setattr(torch, "addmm", watched)
    points, _ = together(normal(40, 4), None, "cosine")
    try:
        if newer:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("high")
        with torch.autocast("cpu", torch.bfloat16):
            found = neighbours(points, points, 3, device="cpu")
            assert torch.is_autocast_enabled("cpu")
        after = torch.backends.cuda.matmul.fp32_precision if newer else torch.get_float32_matmul_precision()
    finally:
        if newer:
            torch.backends.cuda.matmul.fp32_precision = before
        else:
            torch.set_float32_matmul_precision(before)
    assert set(seen) == {("ieee" if newer else "highest", False)}
    assert after == ("tf32" if newer else "high")
    assert_same(found, neighbours(points, points, 3))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_finds_nearly_all_neighbours_of_clustered_embeddings(kind, similarity):
    queries, gallery = together(clustered(200, 19, 40, seed=0)[::-1], clustered(4000, 19, 40), similarity)
    index = build(gallery, kind)
    assert overlap(index, queries, gallery, 10) > 0.95
    found = neighbours(queries, gallery, 10, index=index)
    rows = np.repeat(np.arange(200), 10)
    assert np.array_equal(found.keys.ravel(), queries.key(rows, gallery, found.ids.ravel()))
    assert (np.diff(found.keys) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_leaves_the_query_itself_out(kind):
    points, _ = together(clustered(600, 8, 20), None, "cosine")
    index = build(points, kind)
    assert (neighbours(points, points, 5, index=index).ids == np.arange(600)[:, None]).any(axis=1).mean() > 0.9
    found = neighbours(points, points, 5, itself=np.arange(600), index=index)
    assert not (found.ids == np.arange(600)[:, None]).any()
    assert (found.ids >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_an_index_serves_queries_that_came_later_and_moved_the_mean(kind, similarity):
    table = clustered(1000, 6, 20)
    index = build(together(table, None, similarity)[0], kind)
    far = clustered(2000, 6, 20) + 90 * np.eye(6)[0]
    queries, gallery = together(np.concatenate([clustered(50, 6, 20, seed=1), far]), table, similarity)
    near = search._only(queries, np.arange(50))
    assert np.linalg.norm(queries.mean - index.mean) > 0.3
    found = index.candidates(near, 40 if kind == "ivf_pq" else 5)
    exact = neighbours(near, gallery, 5).ids
    assert np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]) > 0.95


class Finds:
    """An index that finds what it is told to find."""

    def __init__(self, gallery, ids):
        self.ids, self.ntotal, self.d = np.array(ids), len(gallery), gallery.size

    def search(self, x, count):
        return None, self.ids


def test_overlap_is_the_share_of_exact_neighbours_by_hand():
    """Queries 0, 10, 20 with items at 1, 2, -2, 11, 21, 22, 23: nearest two 1 and either of 2, -2; 11 and 2; 21, 22."""
    queries, gallery = together(
        np.array([[0.0], [10], [20]]), np.array([[1.0], [2], [-2], [11], [21], [22], [23]]), "euclidean"
    )
    index = build(gallery, "hnsw")
    for ids, share in [
        ([[1, 0, -1], [1, 3, 0], [4, 6, 5]], 1),
        ([[2, 0, -1], [1, 3, 0], [4, 6, 5]], 1),  # -2 is as near as 2
        ([[1, 2, -1], [3, 4, 5], [6, 0, 1]], 3 / 6),  # both count, though only one would with the nearest there
        ([[-1, -1, -1], [-1, -1, -1], [4, -1, -1]], 1 / 6),
        ([[3, 4, 5], [0, 5, 6], [3, 2, 1]], 0),
    ]:
        assert overlap(replace(index, faiss=Finds(gallery, ids)), queries, gallery, 2) == pytest.approx(share)
    assert overlap(replace(index, faiss=Finds(gallery, [range(7)] * 3)), queries, gallery, 9) == 1  # of 7 there are
    own = np.array([0, -1, 4])  # now 2 and -2; 11 and 2; 22 and 23
    told = replace(index, faiss=Finds(gallery, [[0, 1, 2], [3, 5, 6], [4, 6, 3]]))
    assert overlap(told, queries, gallery, 2, itself=own) == pytest.approx(4 / 6)


def test_overlap_does_not_count_the_query_itself_whichever_queries_are_drawn():
    points, _ = together(normal(50, 3), None, "euclidean")
    rows = points.compared()

    class FindsItself(Finds):
        def search(self, x, count):
            return None, np.abs(rows - x[:, None]).sum(-1).argmin(1)[:, None]

    index = replace(build(points, "hnsw"), faiss=FindsItself(points, []))
    assert overlap(index, points, points, 2, itself=np.arange(50), sample=20) == 0
    assert overlap(index, points, points, 2, sample=20) == 1 / 2


def test_overlap_of_an_index_that_looks_into_one_cell_is_visibly_below_one():
    points, _ = together(np.random.default_rng(0).random((3000, 16)), None, "euclidean")
    index = build(points, "ivf_flat")
    good = overlap(index, points, points, 10, itself=np.arange(3000), sample=200)
    index.faiss.nprobe = 1
    bad = overlap(index, points, points, 10, itself=np.arange(3000), sample=200)
    assert bad < 0.6 < good
    assert bad == overlap(index, points, points, 10, itself=np.arange(3000), sample=200)
    assert bad != overlap(index, points, points, 10, itself=np.arange(3000), sample=200, seed=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_a_saved_index_finds_the_same(tmp_path, kind, similarity):
    table = clustered(500, 5, 20)
    points, _ = together(table, None, similarity)
    index = build(points, kind)
    save(index, tmp_path / "gallery.index")
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.index"]
    queries, gallery = together(normal(20, 5) + 7, table, similarity)
    loaded = load(tmp_path / "gallery.index", gallery)
    assert loaded.kind == kind
    assert np.array_equal(loaded.candidates(queries, 8), index.candidates(queries, 8))
    assert_same(neighbours(queries, gallery, 8, index=loaded), neighbours(queries, gallery, 8, index=index))


def test_two_builds_of_cells_are_the_same():
    points, _ = together(normal(2000, 8), None, "cosine")
    for kind in ("ivf_flat", "ivf_pq"):
        first, second = build(points, kind), build(points, kind, memory=1000)
        assert_same(neighbours(points, points, 5, index=first), neighbours(points, points, 5, index=second))


def test_an_index_of_other_embeddings_is_refused(tmp_path):
    table = clustered(300, 5, 20)
    path = tmp_path / "x.index"
    save(build(together(table, None, "cosine")[0], "hnsw"), path)
    changed = table.copy()
    changed[7, 3] += 1e-3
    for other in (changed, table[::-1], table[:299], table.astype(np.float64), table[:, :4]):
        with pytest.raises(InputError, match=r"built for other embeddings.*build an index of these"):
            load(path, together(other, None, "cosine")[0])
    with pytest.raises(InputError, match="built for cosine similarity, and euclidean is asked for"):
        load(path, together(table, None, "euclidean")[0])


def test_a_damaged_index_is_refused(tmp_path):
    points, _ = together(clustered(300, 5, 20), None, "cosine")
    path = tmp_path / "x.index"
    save(build(points, "ivf_flat"), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[:-1], whole[: len(whole) // 2], b"", b"text", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged or not an index.*build it again"):
            load(path, points)
    np.savez(tmp_path / "embeddings.npz", embeddings=points.raw, labels=np.arange(300))
    with pytest.raises(InputError, match="damaged or not an index"):
        load(tmp_path / "embeddings.npz", points)
    with pytest.raises(InputError, match="is not there"):
        load(tmp_path / "none.index", points)
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path, points)


def test_what_cannot_be_searched_is_refused():
    points, _ = together(clustered(300, 5, 20), None, "cosine")
    queries, _ = together(normal(10, 5), None, "cosine")
    with pytest.raises(InputError, match="not brought together"):
        neighbours(queries, points, 1)
    with pytest.raises(InputError, match="1 at least, got 0"):
        neighbours(points, points, 0)
    for itself in (np.arange(299), np.arange(300) + 1, np.arange(300) - 2, np.arange(300) / 1):
        with pytest.raises(InputError, match=r"itself must be \[300\]"):
            neighbours(points, points, 1, itself=itself)
    with pytest.raises(InputError, match="device 'nowhere'"):
        neighbours(points, points, 1, device="nowhere")
    with pytest.raises(InputError, match="an index or a device"):
        neighbours(points, points, 1, index=build(points, "hnsw"), device="cpu")
    with pytest.raises(InputError, match="300 x 5 by cosine, the gallery 10 x 5 by cosine"):
        neighbours(queries, queries, 1, index=build(points, "hnsw"))


def test_what_cannot_be_indexed_is_refused():
    points, _ = together(normal(255, 5), None, "cosine")
    with pytest.raises(InputError, match=r"256 at least.*got 255"):
        build(points, "ivf_pq")
    with pytest.raises(InputError, match="got 'hsnw'; did you mean hnsw"):
        build(points, "hsnw")
    with pytest.raises(InputError, match="exact search needs no index"):
        build(points, "exact")


def test_small_galleries_are_indexed_without_a_word(capfd):
    for count, kinds in ((2, ["ivf_flat", "hnsw"]), (256, KINDS)):
        points, _ = together(normal(count, 5), None, "cosine")
        for kind in kinds:
            assert overlap(build(points, kind), points, points, 1, itself=np.arange(count)) > 0.8
    assert capfd.readouterr() == ("", "")


def test_k_means_finds_clusters_that_are_far_apart():
    x = clustered(300, 5, 3) + 50 * np.eye(5)[np.arange(300) % 3]
    found = kmeans(x.astype(np.float32), 3)
    assert found.dtype == np.int64
    assert sorted(np.unique(found[i::3]).tolist() for i in range(3)) == [[0], [1], [2]]


def test_the_same_seed_gives_the_same_clusters_and_another_others():
    x = normal(500, 6)
    assert np.array_equal(kmeans(x, 20), kmeans(x, 20))
    assert not np.array_equal(kmeans(x, 20), kmeans(x, 20, seed=1))


def test_every_point_takes_part_in_k_means(capfd):
    """faiss would draw 256 points per cluster, and the one far away would hardly be among them."""
    x = np.concatenate([np.zeros((3000, 1)), [[1000.0]]]).astype(np.float32) + 1e-3 * normal(3001, 1)
    found = [kmeans(x, 2, seed=seed) for seed in range(10)]
    assert sum((clusters == clusters[-1]).sum() == 1 for clusters in found) == 10
    kmeans(normal(20, 2), 20)
    assert capfd.readouterr() == ("", "")


def test_clusters_from_one_to_the_number_of_points_are_made():
    x = normal(12, 3)
    assert not kmeans(x, 1).any()
    assert len(np.unique(kmeans(x, 12))) == 12
    for k in (0, 13):
        with pytest.raises(InputError, match=f"from 1 to 12 clusters.*k = {k}"):
            kmeans(x, k)
