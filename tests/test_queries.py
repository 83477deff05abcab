"""Queries that search with other embeddings than those they have in the gallery."""

import numpy as np
import pytest
import torch

from metricweight.checks import InputError
from metricweight.retrieval import Expand, Rerank, evaluate
from metricweight.retrieval.comparison import Evaluated, compare, text
from metricweight.retrieval.points import together
from metricweight.retrieval.rerank import reranked

PERSONS = ("market1501", "mars-official", "mars-ap3d", "mars-torchreid")
pytestmark = pytest.mark.filterwarnings("ignore::metricweight.retrieval.report.EvaluationWarning")
MULTI = {"multi_query": True}


class People:
    """Tracklets of thirty people in four cameras; of some label and camera there is the query alone. Among the queries
    are junk and distractors, which nobody may ask for; the first frame of a query is near its tracklet."""

    def __init__(self, seed=0):
        random = np.random.default_rng(seed)
        rows = [(label, camera, 1) for label in range(1, 31) for camera in range(4)]
        rows += [(label, camera, 0) for label, camera, _ in rows if camera == 2 or label % 3 for _ in range(2)]
        rows += [(label, camera, camera == 2) for label in (0, -1) for camera in range(4) for _ in range(6)]
        table = np.array(rows)[random.permutation(len(rows))]
        self.labels, self.cameras, self.queries = table[:, 0], table[:, 1], table[:, 2].astype(bool)
        x = random.standard_normal((32, 8))[self.labels] + 1.5 * random.standard_normal((len(table), 8))
        self.x = (x * random.uniform(0.2, 5, (len(x), 1))).astype(np.float32)  # lengths say nothing
        first = self.x[self.queries] + random.standard_normal((self.queries.sum(), 8))
        self.first = first.astype(np.float32)

    def report(self, protocol, **options):
        return evaluate(self.x, self.labels, cameras=self.cameras, queries=self.queries,
                        **{"protocol": protocol, "ks": (1, 2), **options})  # fmt: skip

    def of_two_tables(self, protocol, holds_queries=False, order=None, **options):
        q = np.flatnonzero(self.queries) if order is None else np.flatnonzero(self.queries)[order]
        g = np.ones(len(self.x), dtype=bool) if holds_queries else ~self.queries
        return evaluate(
            self.x[q], self.labels[q], cameras=self.cameras[q], gallery=self.x[g], gallery_labels=self.labels[g],
            gallery_cameras=self.cameras[g], protocol=protocol, ks=(1, 2), **options,
        )  # fmt: skip


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def means(p):
    """What each query searches with, one after the other: the mean over its label and camera."""
    found = []
    for q in np.flatnonzero(p.queries):
        own = [unit(p.x[i]) for i in range(len(p.x)) if p.labels[i] == p.labels[q] and p.cameras[i] == p.cameras[q]]
        found.append(unit(sum(own)))
    return np.array(found)


def hits_of(p, searching, protocol):
    """The hits of each query, best first, by cosine with what it searches with."""
    found = []
    for vector, q in zip(unit(searching), np.flatnonzero(p.queries), strict=True):
        if p.labels[q] in (0, -1):
            continue
        hits = []
        for g in np.argsort(-(unit(p.x) @ vector), kind="stable"):
            mine = p.labels[g] == p.labels[q] and p.cameras[g] == p.cameras[q]  # the query itself too
            gone = p.queries[g] and protocol in ("market1501", "mars-torchreid")
            if p.labels[g] != -1 and not mine and not gone:
                hits.append(p.labels[g] == p.labels[q])
        found.append(hits)
    return found


def metrics_of(lists):
    step, trapezoid, first = [], [], []
    for hits in lists:
        places = [k for k, hit in enumerate(hits, start=1) if hit]
        precision = [1, *(sum(hits[:k]) / k for k in range(1, len(hits) + 1))]
        if places:
            step.append(np.mean([precision[k] for k in places]))
            trapezoid.append(np.mean([(precision[k] + precision[k - 1]) / 2 for k in places]))
            first.append(hits[0])
    return {"map": np.mean(step), "map_trapezoid": np.mean(trapezoid), "recall@1": np.mean(first)}


@pytest.mark.parametrize("protocol", PERSONS)
@pytest.mark.parametrize("how", ["first frames", "multi-query"])
def test_queries_search_with_other_embeddings_for_the_same_positives(protocol, how):
    p = People()
    given, searching = ({"query_embeddings": p.first}, p.first) if how == "first frames" else (MULTI, means(p))
    report, plain = p.report(protocol, **given), p.report(protocol)
    lists = hits_of(p, searching, protocol)
    expected = metrics_of(lists)
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected)
    assert np.mean(report.values["map"] != plain.values["map"]) > 0.5
    assert report.positives.tolist() == plain.positives.tolist() == [sum(hits) for hits in lists]
    assert report.rows.tolist() == plain.rows.tolist()
    assert report.stamp["data"] == plain.stamp["data"]
    without = 0 if protocol in ("mars-official", "mars-ap3d") else 10  # they search for what queries alone have
    assert report.stamp["data"]["queries_without_positives"] == without
    assert report.stamp["made"]["embeddings_sha256"] != plain.stamp["made"]["embeddings_sha256"]


@pytest.mark.parametrize("protocol", PERSONS)
def test_a_query_that_is_alone_in_its_camera_is_its_own_mean(protocol):
    p = People()
    q = np.flatnonzero(p.queries & (p.labels > 0))
    alone = np.array([((p.labels == p.labels[i]) & (p.cameras == p.cameras[i])).sum() == 1 for i in q])
    assert alone.sum() == 30
    many, plain = (report.values["map"] for report in (p.report(protocol, **MULTI), p.report(protocol)))
    assert np.array_equal(many[alone], plain[alone], equal_nan=True)
    assert np.mean(many[~alone] != plain[~alone]) > 0.9


@pytest.mark.parametrize("more", [{}, {"rerank": Rerank(5, 2)}, {"expand": Expand(2)}])
def test_where_all_queries_are_alone_nothing_changes(more):
    p = People()
    keep = p.queries & (p.labels > 0) | (p.labels == 0)
    for name in ("x", "labels", "cameras", "queries"):
        setattr(p, name, getattr(p, name)[keep])
    assert p.report("mars-ap3d", **MULTI, **more).metrics == p.report("mars-ap3d", **more).metrics


@pytest.mark.parametrize("protocol", [*PERSONS, "mars-torchreid:gallery=given"])
@pytest.mark.parametrize("holds_queries", [False, True])
def test_one_table_and_two_tables_give_the_same_means_and_first_frames(protocol, holds_queries):
    p = People()
    p.x[np.flatnonzero(p.queries)[4]] = p.x[np.flatnonzero(p.queries)[3]]  # the same look is not the same item
    one = p.report(protocol, **MULTI)
    if protocol.endswith("given") and holds_queries:
        one = p.report("mars-ap3d", **MULTI)
    assert p.of_two_tables(protocol, holds_queries, **MULTI).metrics == one.metrics
    turned = np.arange(p.queries.sum())[::-1]
    first = p.report(protocol, query_embeddings=p.first)
    if protocol.endswith("given") and holds_queries:
        first = p.report("mars-ap3d", query_embeddings=p.first)
    found = p.of_two_tables(protocol, holds_queries, turned, query_embeddings=p.first[turned])
    assert found.metrics == pytest.approx(first.metrics, abs=1e-12)


def test_two_queries_and_a_gallery_item_of_one_look_are_three_items():
    """Of one camera thrice (1, 0) and once (0, 1): their mean has the direction (3, 1), and not that of a stranger."""
    x = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1], [3, 1], [2, 1]])
    labels, cameras = np.array([1, 1, 1, 1, 1, 2]), np.array([1, 1, 1, 1, 2, 2])
    q = np.array([True, True, False, False, False, False])
    one = evaluate(x, labels, cameras=cameras, queries=q, protocol="mars-ap3d", ks=(1,), **MULTI)
    two = evaluate(x[q], labels[q], cameras=cameras[q], gallery=x, gallery_labels=labels, gallery_cameras=cameras,
                   protocol="mars-ap3d", ks=(1,), **MULTI)  # fmt: skip
    assert one.metrics["recall@1"] == two.metrics["recall@1"] == 1


def test_a_first_frame_that_is_that_of_another_label_is_counted_as_a_duplicate():
    p = People()
    assert p.report("mars-ap3d", query_embeddings=p.first).stamp["made"]["duplicates_across_labels"] == 0
    row = np.flatnonzero(p.labels[p.queries] == 3)[0]
    p.first[row] = p.x[np.flatnonzero(p.labels == 4)[0]]
    assert p.report("mars-ap3d", query_embeddings=p.first).stamp["made"]["duplicates_across_labels"] == 2


def test_a_querys_own_item_stays_left_out_though_it_looks_otherwise():
    """Its first frame is at 0 degrees. Of the gallery, its own item at 1 is nearest, then a stranger and a positive."""
    angles = np.radians([1, 2, 3, 180])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    given = {"embeddings": x, "labels": [1, 2, 1, 3], "cameras": [1, 1, 2, 2], "ks": (1, 2)}
    given |= {"queries": np.array([True, False, False, False]), "query_embeddings": [[1.0, 0.0]]}
    for protocol in ("mars-official", "mars-official:same_camera=ranked", "self"):
        report = evaluate(**given, protocol=protocol)
        assert (report.metrics["recall@1"], report.metrics["map"]) == (0, 0.5), protocol
        assert report.positives.tolist() == [1]


def test_first_frames_are_in_the_order_of_the_queries():
    p = People()
    p.first[:] = p.x[p.queries]
    plain = p.report("mars-official")
    assert p.report("mars-official", query_embeddings=p.first).metrics == plain.metrics
    for given in (torch.from_numpy(p.first), p.first.astype(np.float64), p.first.tolist()):
        assert p.report("mars-official", query_embeddings=given).metrics == pytest.approx(plain.metrics)
    assert p.report("mars-official", query_embeddings=p.first[::-1]).metrics["map"] < plain.metrics["map"] / 2


@pytest.mark.parametrize("more", [{"rerank": Rerank(5, 2)}, {"expand": Expand(3, 1.0)}, {"index": "ivf_flat"}])
def test_other_queries_are_re_ranked_expanded_and_looked_up(more):
    """The same as the embeddings that search in a table of their own."""
    p = People()
    wanted = p.queries & (p.labels > 0)
    rest = ~p.queries & (p.labels != -1)
    for given, searching in (({"query_embeddings": p.first}, p.first), (MULTI, means(p).astype(np.float32))):
        expected = evaluate(
            searching[wanted[p.queries]], p.labels[wanted], cameras=p.cameras[wanted], gallery=p.x[rest], ks=(1, 2),
            gallery_labels=p.labels[rest], gallery_cameras=p.cameras[rest], protocol="mars-torchreid", **more,
        )  # fmt: skip
        found = p.report("mars-torchreid", **given, **more)
        assert found.metrics == pytest.approx(expected.metrics, abs=1e-6)
        assert found.metrics["recall@2"] != p.report("mars-torchreid", **more).metrics["recall@2"]


def test_means_are_re_ranked_among_queries_that_stay_in_the_gallery():
    p = People()
    keep, q = p.labels != -1, p.queries & (p.labels > 0)
    points, gallery = together(means(p).astype(np.float32)[q[p.queries]], p.x[keep], "cosine")
    alone = ((p.labels[q][:, None] == p.labels) & (p.cameras[q][:, None] == p.cameras)).sum(axis=1) == 1
    itself = np.where(alone, np.cumsum(keep)[q] - 1, -1)  # such a query has one look, and is one node with its item
    distances = np.concatenate([block for _, block in reranked(points, gallery, k1=5, k2=2, itself=itself)])
    right = []
    for far, label, camera in zip(distances, p.labels[q], p.cameras[q], strict=True):
        order = [g for g in np.argsort(far, kind="stable")
                 if not (p.labels[keep][g] == label and p.cameras[keep][g] == camera)]  # fmt: skip
        right.append([p.labels[keep][g] == label for g in order])
    report = p.report("mars-ap3d", rerank=Rerank(5, 2), **MULTI)
    assert report.metrics["map"] == pytest.approx(metrics_of(right)["map"])


def test_what_queries_search_with_is_in_the_stamp_and_below_the_table():
    p = People()
    reports = [p.report("mars-ap3d", **how) for how in ({}, {"query_embeddings": p.first}, MULTI)]
    plain, first, many = reports
    told = [report.stamp["protocol"]["queries"] for report in reports]
    assert told == ["the items themselves", "other embeddings of the items", "mean of own label and camera"]
    assert "search with" not in plain.markdown()
    assert "Queries search with other embeddings of them than stand in the gallery." in first.markdown()
    assert "Each query searches with the mean of all items that have its label and camera." in many.markdown()
    models = [Evaluated(name, report.stamp, report.queries().drop(columns="positives").astype({"label": str}))
              for name, report in zip(("plain", "first", "many"), reports, strict=True)]  # fmt: skip
    for other in models[1:]:
        with pytest.raises(InputError, match=r"evaluated differently: protocol.queries is 'the items themselves' in A"):
            compare(models[0], other)
        forced = compare(models[0], other, force=True)
        assert len(forced.differing) == 1
        assert "protocol.queries" in text(forced)


def test_opposite_items_have_no_mean_so_the_query_stays_as_it_is():
    x = np.array([[1.0, 0], [-2, 0], [1, 0.1], [-1, 0.2]])
    given = {"cameras": [1, 1, 2, 2], "queries": np.array([True, False, False, False]), "protocol": "mars-ap3d"}
    assert evaluate(x, [1, 1, 1, 2], **given, ks=(1,), **MULTI).metrics["recall@1"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"multi_query": True, "query_embeddings": np.ones((1, 8))}, "both say what queries search with; give one of"),
        ({"multi_query": True, "protocol": "gallery"}, "label and camera, which protocol gallery ranks; use one"),
        ({"multi_query": True, "protocol": "self"}, "which protocol self ranks"),
        ({"multi_query": True, "similarity": "euclidean"}, "a mean of directions, so it needs cosine, got euclidean"),
        ({"multi_query": True, "cameras": None}, "so it needs the cameras of all"),
        ({"query_embeddings": np.ones((5, 8))}, r"must be \[132, 8\], one for each query in their order.*got \[5, 8\]"),
        ({"query_embeddings": np.ones((132, 3))}, r"must be \[132, 8\].*got \[132, 3\]"),
        ({"query_embeddings": np.ones(132)}, r"query_embeddings must be numbers \[N, D\], got \[132\]"),
        ({"query_embeddings": np.full((132, 8), np.nan)}, "query embeddings are not finite"),
        ({"query_embeddings": np.ones((300, 8)), "protocol": "self", "queries": None},
         "query_embeddings are of some items that are queries; say which with queries="),
        ({"query_embeddings": "first", "protocol": "mars-official", "rerank": Rerank(5, 2)},
         "by protocol mars-official a query's own item is in the gallery, and re-ranking would show the query what is"),
    ],
)  # fmt: skip
def test_other_queries_that_cannot_be_are_refused(change, words):
    p = People()
    if isinstance(change.get("query_embeddings"), str):
        change = change | {"query_embeddings": p.first}
    given = {"cameras": p.cameras, "queries": p.queries, "protocol": "mars-torchreid", **change}
    with pytest.raises(InputError, match=words):
        evaluate(p.x, p.labels, **given)


@pytest.mark.parametrize(("value", "words"), [(np.nan, "are not finite"), (0, "have zero norm")])
def test_an_item_of_a_mean_without_a_direction_is_refused_though_it_is_in_no_gallery(value, words):
    p = People()
    p.x[np.flatnonzero(p.queries & (p.labels > 0))[2]] = value
    with pytest.raises(InputError, match=f"1 of .* embeddings of the queries' labels and cameras {words}"):
        p.report("mars-torchreid", **MULTI)
