"""Who searches for whom."""

import numpy as np
import pytest

from metricweight.checks import InputError
from metricweight.retrieval import PROTOCOLS, Protocol, Rerank, evaluate
from metricweight.retrieval.points import together
from metricweight.retrieval.protocol import named
from metricweight.retrieval.rerank import reranked

MARS = ("mars-official", "mars-ap3d", "mars-torchreid", "market1501")


class Table:
    """Items as a benchmark has them, and a reference that goes through them one query at a time."""

    def __init__(self, x, labels, cameras, queries):
        self.x, self.labels, self.cameras = (np.asarray(given) for given in (x, labels, cameras))
        self.queries = np.asarray(queries, dtype=bool)

    def report(self, protocol, **options):
        """All in one table, with a mark on the queries."""
        given = {"ks": (1, 2), "similarity": "euclidean", "protocol": protocol, **options}
        return evaluate(self.x, self.labels, cameras=self.cameras, queries=self.queries, **given)

    def report_of_two_tables(self, protocol, gallery, **options):
        """Queries in one table; in the other what `gallery` [N] says."""
        given = {"ks": (1, 2), "similarity": "euclidean", "protocol": protocol, **options}
        q, g = self.queries, gallery
        return evaluate(
            self.x[q], self.labels[q], cameras=self.cameras[q],
            gallery=self.x[g], gallery_labels=self.labels[g], gallery_cameras=self.cameras[g], **given,
        )  # fmt: skip

    def by_the_book(self, gallery, *, same_camera="left out", junk=(-1,), distractors=(0,), distances=None):
        """For each query its hits, best first: `gallery` is all or rest."""
        found = []
        for q in np.flatnonzero(self.queries & ~np.isin(self.labels, junk)):
            hits = []
            far = [np.linalg.norm(y - self.x[q]) for y in self.x] if distances is None else distances[q]
            for g in np.argsort(far, kind="stable"):
                same = self.labels[g] == self.labels[q]
                if g == q or self.labels[g] in junk or (gallery == "rest" and self.queries[g]):
                    continue
                if same and self.cameras[g] == self.cameras[q] and same_camera == "left out":
                    continue
                hits.append(bool(same and self.labels[g] not in distractors))
            found.append(hits)
        return found


def average_precisions(hits):
    """Step and trapezoid, the latter written as the official code goes through the list."""
    step = trapezoid = recall_before = right = 0.0
    precision_before = 1.0
    for k, hit in enumerate(hits, start=1):
        right += hit
        recall, precision = right / sum(hits), right / k
        step += (recall - recall_before) * precision
        trapezoid += (recall - recall_before) * (precision_before + precision) / 2
        recall_before, precision_before = recall, precision
    return step, trapezoid


# query t0; then label, camera and distance as data of a tiny MARS: junk -1, distractor 0
TINY = Table(
    x=[[0.0], [0.05], [0.10], [0.20], [0.30], [0.40], [0.50], [0.60]],
    labels=[2, -1, 2, 0, 2, 4, 2, 4],
    cameras=[1, 1, 1, 2, 2, 1, 3, 2],
    queries=[1, 0, 0, 0, 0, 0, 0, 0],
)


@pytest.mark.parametrize("protocol", MARS)
def test_a_tiny_mars_by_hand(protocol):
    """Junk, the query and its own camera out, the list is 0 1 0 1 0."""
    report = TINY.report(protocol)
    expected = {"map_trapezoid": 1 / 3, "map": 1 / 2, "recall@1": 0, "recall@2": 1, "minp": 2 / 4, "mrr": 1 / 2}
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected)
    assert report.stamp["protocol"]["name"] == protocol
    assert report.stamp["data"]["left_out: junk"] == 1
    assert report.stamp["data"]["left_out: distractors"] == 1


@pytest.mark.parametrize(
    ("hits", "step", "trapezoid"),
    [
        ("01011", 8 / 15, 0.405556), ("101", 5 / 6, 0.791667), ("111", 1, 1), ("001", 1 / 3, 1 / 6), ("1", 1, 1),
    ],
)  # fmt: skip
def test_both_average_precisions_of_lists_by_hand(hits, step, trapezoid):
    labels = [7, *(7 if hit == "1" else 8 for hit in hits)]
    x = np.arange(len(labels))[:, None] + 1.0
    report = evaluate(x[:1], labels[:1], gallery=x[1:], gallery_labels=labels[1:], protocol="gallery", ks=(1,),
                      similarity="euclidean")  # fmt: skip
    assert (report.metrics["map"], report.metrics["map_trapezoid"]) == pytest.approx((step, trapezoid), abs=1e-6)
    assert average_precisions([hit == "1" for hit in hits]) == pytest.approx((step, trapezoid), abs=1e-6)


def synthetic(seed=0, labels=40, cameras=5):
    """Each label with one query per camera; of every fourth, other cameras are seen by queries alone."""
    random = np.random.default_rng(seed)
    rows = []
    for label in range(1, labels + 1):
        seen = random.choice(cameras, random.integers(2, cameras + 1), replace=False)
        for camera in seen:
            rows += [(label, camera, 1)]
            if label % 4 or camera == seen[0]:
                rows += [(label, camera, 0)] * random.integers(1, 4)
    rows += [(label, camera, 0) for label in (0, -1) for camera in range(cameras) for _ in range(10)]
    found = np.array(rows)[random.permutation(len(rows))]
    x = random.standard_normal((labels + 2, 3))[found[:, 0]] + random.standard_normal((len(found), 3))
    return Table(x, found[:, 0], found[:, 1], found[:, 2])


@pytest.mark.parametrize("protocol", MARS)
def test_each_person_protocol_counts_what_its_rules_say(protocol):
    table = synthetic()
    lists = table.by_the_book("all" if protocol in ("mars-official", "mars-ap3d") else "rest")
    report = table.report(protocol)
    valid = [hits for hits in lists if any(hits)]
    expected = {
        "map": np.mean([average_precisions(hits)[0] for hits in valid]),
        "map_trapezoid": np.mean([average_precisions(hits)[1] for hits in valid]),
        "recall@1": np.mean([hits[0] for hits in valid]),
        "recall@2": np.mean([any(hits[:2]) for hits in valid]),
        "minp": np.mean([sum(hits) / (max(np.flatnonzero(hits)) + 1) for hits in valid]),
    }
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected)
    data = report.stamp["data"]
    assert (data["queries"], data["valid_queries"]) == (len(lists), len(valid))
    assert data["queries_without_positives"] == len(lists) - len(valid)
    assert data["left_out: junk"] == data["left_out: distractors"] == 50
    assert [*report.positives] == [sum(hits) for hits in lists]


def test_re_ranking_leaves_out_what_the_protocol_leaves_out():
    table = synthetic(labels=12)
    keep, q = np.flatnonzero(table.labels != -1), np.flatnonzero(table.queries)
    points, gallery = together(table.x[q], table.x[keep], "euclidean")
    blocks = reranked(points, gallery, k1=6, k2=3, itself=np.searchsorted(keep, q))
    distances = np.full((len(table.x), len(table.x)), np.inf)
    distances[np.ix_(q, keep)] = np.concatenate([block for _, block in blocks])
    lists = table.by_the_book("all", distances=distances)
    report = table.report("mars-official", rerank=Rerank(6, 3))
    assert report.metrics["map_trapezoid"] == pytest.approx(np.mean([average_precisions(hits)[1] for hits in lists]))
    assert report.metrics["recall@1"] == pytest.approx(np.mean([hits[0] for hits in lists]))
    assert report.metrics["map"] != table.report("mars-official").metrics["map"]


def test_queries_whose_positives_are_queries_are_scored_where_queries_stay_in_the_gallery():
    table = synthetic()
    counts = {name: table.report(name).stamp["data"]["valid_queries"] for name in MARS}
    alone = (table.labels % 4 == 0) & table.queries & (table.labels > 0)
    reach = [
        bool(np.any((table.labels == label) & (table.cameras != camera) & ~table.queries))
        for label, camera in zip(table.labels[alone], table.cameras[alone], strict=True)
    ]
    assert counts["mars-official"] == counts["mars-ap3d"] == table.queries.sum()
    assert counts["mars-torchreid"] == counts["market1501"] == table.queries.sum() - reach.count(False)
    assert reach.count(False) == 10  # of each such label the query of the camera that tracks were seen by


@pytest.mark.parametrize(
    ("protocol", "holds_queries"),
    [(name, False) for name in ("gallery", "inshop")]
    + [(name, holds) for name in (*MARS, "mars-ap3d:same_camera=ranked") for holds in (False, True)],
)
def test_one_table_and_two_tables_give_the_same(protocol, holds_queries):
    table = synthetic()
    one = table.report(protocol)
    two = table.report_of_two_tables(protocol, ~table.queries | holds_queries)
    assert two.metrics == one.metrics
    assert two.ties == one.ties
    assert two.intervals == one.intervals
    assert two.positives.tolist() == one.positives.tolist()
    assert two.stamp["protocol"] == one.stamp["protocol"]
    counted = ("queries", "valid_queries", "gallery", "classes", "left_out: junk")
    for name in counted:
        assert two.stamp["data"].get(name) == one.stamp["data"].get(name), name
    moved = {name for name in two.stamp["data"] if "queries" in name and name.startswith("left_out")}
    expected = {("all", False): {"left_out: queries added to the gallery"},
                ("rest", True): {"left_out: queries taken out of the gallery"}}  # fmt: skip
    assert moved == expected.get((named(protocol).gallery, holds_queries), set())


@pytest.mark.parametrize("protocol", MARS)
def test_a_duplicate_from_another_camera_is_not_the_query_itself(protocol):
    given = {"gallery": [[0.0], [1.0]], "gallery_labels": [1, 2], "similarity": "euclidean", "protocol": protocol}
    report = evaluate([[0.0]], [1], cameras=[5], gallery_cameras=[6, 5], ks=(1,), **given)
    assert report.metrics["recall@1"] == 1
    with pytest.raises(InputError, match="no query has a positive"):
        evaluate([[0.0]], [1], cameras=[5], gallery_cameras=[5, 5], ks=(1,), **given)


@pytest.mark.filterwarnings("ignore::metricweight.retrieval.report.EvaluationWarning")
def test_queries_in_a_given_gallery_are_no_trouble_where_their_own_camera_is_left_out():
    table = synthetic()
    report = table.report_of_two_tables("mars-ap3d:gallery=given", np.ones(len(table.x), dtype=bool))
    assert report.metrics == table.report("mars-ap3d").metrics
    assert not report.notes
    with_itself = table.report_of_two_tables("gallery", np.ones(len(table.x), dtype=bool))
    assert "are in the gallery too, with the same embedding and label, and find themselves" in with_itself.notes[0]


@pytest.mark.parametrize("protocol", ["mars-official", "mars-torchreid"])
def test_a_gallery_that_holds_some_of_the_queries_gives_the_same(protocol):
    table = synthetic()
    some = ~table.queries | (np.random.default_rng(0).random(len(table.x)) < 0.5)
    assert table.report_of_two_tables(protocol, some).metrics == table.report(protocol).metrics


@pytest.mark.parametrize("protocol", MARS)
def test_junk_is_never_ranked_wherever_it_lies(protocol):
    near, far = synthetic(), synthetic()
    junk = near.labels == -1
    near.x[junk] = near.x[near.queries][: junk.sum()] + 1e-3
    far.x[junk] += 50
    assert near.report(protocol).metrics == far.report(protocol).metrics
    without = Table(*(given[~junk] for given in (near.x, near.labels, near.cameras, near.queries)))
    assert without.report(protocol).metrics == near.report(protocol).metrics
    assert near.report(f"{protocol}:junk=none").metrics["recall@1"] < near.report(protocol).metrics["recall@1"]


@pytest.mark.parametrize("protocol", MARS)
def test_distractors_are_ranked_and_nobody_searches_for_them(protocol):
    near, far = synthetic(), synthetic()
    distractors = near.labels == 0
    near.x[distractors] = near.x[near.queries][: distractors.sum()] + 1e-3
    far.x[distractors] += 50
    assert near.report(protocol).metrics["recall@1"] < far.report(protocol).metrics["recall@1"]
    asks = synthetic()
    asks.queries |= distractors & (asks.cameras == 0)
    report = asks.report(protocol)
    assert report.stamp["data"]["queries"] == synthetic().queries.sum()
    assert report.stamp["data"]["left_out: queries that are distractors"] == 10
    if protocol in ("mars-official", "mars-ap3d"):
        assert report.metrics == synthetic().report(protocol).metrics


def test_distractors_in_self_retrieval_are_ranked_by_all_others():
    table = synthetic()
    report = evaluate(table.x, table.labels, similarity="euclidean", protocol="self:distractors=0", ks=(1,))
    everybody = Table(table.x, table.labels, table.cameras, table.labels != 0)
    lists = everybody.by_the_book("all", same_camera="ranked", junk=())
    assert report.metrics["map"] == pytest.approx(np.mean([average_precisions(hits)[0] for hits in lists]))
    assert report.stamp["data"]["queries"] == (table.labels != 0).sum()
    assert report.stamp["data"]["gallery"] == len(table.x) - 1


def test_the_same_camera_is_neither_right_nor_wrong():
    table = synthetic()
    lists = table.by_the_book("all", same_camera="ranked")
    report = table.report("mars-ap3d:same_camera=ranked")
    assert report.metrics["map"] == pytest.approx(np.mean([average_precisions(hits)[0] for hits in lists]))
    assert report.metrics["map"] != table.report("mars-ap3d").metrics["map"]
    moved = Table(TINY.x.copy(), TINY.labels, TINY.cameras, TINY.queries)
    moved.x[2] = 0.55  # the track of the query's own camera
    assert moved.report("mars-ap3d").metrics == TINY.report("mars-ap3d").metrics
    assert moved.report("mars-ap3d:same_camera=ranked").metrics["map"] == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)


def test_a_query_with_all_of_its_gallery_left_out_has_no_positive_and_stops_nobody():
    """The second query: all that there is has its label and camera."""
    given = {
        "embeddings": [[0.0], [1.0]], "labels": [1, 2], "cameras": [1, 1],
        "gallery": [[0.5], [2.0]], "gallery_labels": [2, 2], "gallery_cameras": [1, 1],
        "similarity": "euclidean", "protocol": "market1501", "ks": (1,),
    }  # fmt: skip
    with pytest.raises(InputError, match="no query has a positive: none of the 2 labels is found again"):
        evaluate(**given)
    given |= {"embeddings": [[0.0], [1.0], [0.4]], "labels": [1, 2, 2], "cameras": [1, 1, 3]}
    report = evaluate(**given)
    assert report.metrics["recall@1"] == 1
    assert report.stamp["data"]["queries_without_positives"] == 2
    assert evaluate(**given, missing="zero").metrics["recall@1"] == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="2 of 3 queries have no positive, the first in row 0"):
        evaluate(**given, missing="error")


def test_rows_of_a_report_are_rows_of_what_was_given_though_junk_is_out():
    table = synthetic()
    table.queries |= (table.labels == -1) & (table.cameras == 1)  # who marks junk as a query is not answered
    report = table.report("market1501")
    rows = np.flatnonzero(table.queries & (table.labels != -1))
    assert report.queries()["query"].tolist() == rows.tolist()
    assert report.queries()["label"].tolist() == table.labels[rows].tolist()
    two = table.report_of_two_tables("market1501", ~table.queries)
    assert two.queries()["label"].tolist() == table.labels[rows].tolist()
    assert two.stamp["data"]["left_out: junk"] == report.stamp["data"]["left_out: junk"] == 50
    assert table.labels[table.queries][two.queries()["query"]].tolist() == table.labels[rows].tolist()


def test_strings_can_be_junk_and_distractors_in_a_protocol_of_ones_own():
    table = synthetic()
    names = np.array([{0: "anybody", -1: "nothing"}.get(label, f"person {label}") for label in table.labels])
    mine = Protocol("mine", "all", same_camera="left out", junk=("nothing",), distractors=("anybody",), ks=(1, 3),
                    shown=("map", "recall"))  # fmt: skip
    report = evaluate(table.x, names, cameras=table.cameras, queries=table.queries, similarity="euclidean",
                      protocol=mine)  # fmt: skip
    assert report.metrics["map"] == table.report("mars-ap3d").metrics["map"]
    assert report.markdown().split("\n")[0].replace(" ", "") == "||mAP|R@1|R@3|"
    assert report.stamp["protocol"] | {"ties": "", "recall": ""} == {
        "name": "mine", "gallery": "all", "same_camera": "left out", "junk": ["nothing"], "distractors": ["anybody"],
        "average_precision": "step", "recall": "", "ties": "", "ks": [1, 3], "similarity": "euclidean",
        "missing": "skip", "rerank": None, "expand": None, "index": "exact", "queries": "the items themselves",
    }  # fmt: skip


def test_a_protocol_by_name_may_be_changed_and_the_stamp_says_so():
    changed = named("market1501:ap=step,junk=-1+-2,distractors=none,gallery=all,same_camera=ranked")
    assert changed == Protocol(
        "market1501:ap=step,junk=-1+-2,distractors=none,gallery=all,same_camera=ranked", "all", "ranked",
        ("-1", "-2"), (), "step", PROTOCOLS["market1501"].ks, PROTOCOLS["market1501"].shown,
    )  # fmt: skip
    for name, protocol in PROTOCOLS.items():
        assert named(name) == protocol
        assert named(protocol) is protocol
        assert named(f"self:{protocol.rules()}").rules() == protocol.rules()
    report = synthetic().report("market1501:ap=step,junk=none")
    assert report.stamp["protocol"]["name"] == "market1501:ap=step,junk=none"
    assert report.stamp["protocol"]["average_precision"] == "step"
    assert report.stamp["protocol"]["junk"] == []
    assert "junk" not in report.stamp["data"]


@pytest.mark.parametrize(
    ("protocol", "heading"),
    [
        ("mars-official", "mAP (trapezoid)"), ("mars-official:ap=step", "mAP"), ("mars-ap3d", "mAP"),
        ("mars-ap3d:ap=trapezoid", "mAP (trapezoid)"),
    ],
)  # fmt: skip
def test_the_table_shows_the_average_precision_of_the_protocol(protocol, heading):
    headings = [cell.strip() for cell in synthetic().report(protocol).markdown().split("\n")[0].split("|")]
    assert [cell for cell in headings if "mAP" in cell] == [heading]
    text = synthetic().report(protocol).markdown()
    assert ("Its mAP is the trapezoid." in text) == (heading == "mAP (trapezoid)")


def test_market_shows_both_average_precisions():
    headings = synthetic().report("market1501").markdown().split("\n")[0].replace(" ", "")
    assert headings == "||mAP(trapezoid)|mAP|R@1|R@2|mINP|"


def test_what_was_left_out_is_said_below_the_table():
    text = synthetic().report("mars-torchreid").markdown()
    count = synthetic().report("mars-torchreid").stamp["data"]["valid_queries"]
    assert f"left out; 10 without a positive left out, so {count} count. 50 junk, 50 distractors." in text
    table = synthetic()
    text = table.report_of_two_tables("mars-official", ~table.queries).markdown()
    assert f"50 junk, {table.queries.sum():,} queries added to the gallery, 50 distractors." in text


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("market", "'market' is not a protocol; did you mean market1501? Known: self, gallery, inshop, market1501, "),
        ("marsofficial", "'marsofficial' is not a protocol; did you mean mars-official?"),
        ("", "'' is not a protocol"),
        ("market1501:camera=ranked", "'camera' is not a rule of a protocol; did you mean same_camera? Known: "),
        ("market1501:", "'' is not a rule of a protocol"),
        ("market1501:ap=trapezium", "ap of a protocol is step, trapezoid, got 'trapezium'; did you mean trapezoid?"),
        ("market1501:gallery=al", "gallery of a protocol is self, rest, all, given, got 'al'; did you mean all?"),
        ("market1501:same_camera=out", "same_camera of a protocol is ranked, left out, got 'out'"),
        ("market1501:ap", "ap of a protocol is step, trapezoid, got ''"),
    ],
)  # fmt: skip
def test_a_protocol_that_is_not_known_is_refused_with_the_nearest(protocol, words):
    with pytest.raises(InputError) as refusal:
        synthetic().report(protocol)
    assert words in str(refusal.value)


@pytest.mark.parametrize("name", ["junk", "distractors"])
def test_labels_of_a_protocol_are_a_tuple(name):
    with pytest.raises(InputError, match=rf"{name} of a protocol is a tuple of labels such as \(-1,\), got -1"):
        Protocol("mine", "all", **{name: -1})


def test_cameras_that_are_missing_are_asked_for():
    table = synthetic()
    words = "protocol market1501 leaves a query's own camera out, so it needs the cameras of all"
    with pytest.raises(InputError, match=words):
        evaluate(table.x, table.labels, queries=table.queries, protocol="market1501")
    q = table.queries
    for cameras in ({"cameras": table.cameras[q]}, {"gallery_cameras": table.cameras[~q]}, {}):
        with pytest.raises(InputError, match=words):
            evaluate(table.x[q], table.labels[q], gallery=table.x[~q], gallery_labels=table.labels[~q],
                     protocol="market1501", **cameras)  # fmt: skip


@pytest.mark.parametrize("protocol", MARS)
def test_an_unknown_camera_is_no_camera_of_its_own(protocol):
    """Of junk and distractors, the camera may be unknown."""
    table, q = synthetic(), synthetic().queries
    told = table.report(protocol).metrics
    table.cameras[np.isin(table.labels, (0, -1))] = -1
    assert table.report(protocol).metrics == table.report_of_two_tables(protocol, ~q).metrics == told
    people = np.flatnonzero(table.labels > 0)
    table.cameras[people[[7, 40]]] = -1
    first = people[7]
    with pytest.raises(
        InputError,
        match=rf"protocol {protocol} leaves a query's own camera out, and that of 2 of {len(q)} embeddings is not "
        rf"known \(below 0\), the first in row {first}; give their cameras, or use a protocol .*, such as gallery",
    ):
        table.report(protocol)
    assert table.report("gallery").metrics == synthetic().report("gallery").metrics
    table = synthetic()
    table.cameras[np.flatnonzero(~q & (table.labels > 0))[9]] = -2
    row = np.cumsum(~q)[np.flatnonzero(~q & (table.labels > 0))[9]] - 1
    with pytest.raises(InputError, match=rf"that of 1 of {(~q).sum()} gallery is not known .* the first in row {row}"):
        table.report_of_two_tables(protocol, ~q)


@pytest.mark.parametrize("protocol", ["mars-official", "market1501", "gallery"])
def test_query_and_gallery_of_two_models_are_refused(protocol):
    table = synthetic()
    q = table.queries
    with pytest.raises(InputError, match="queries have 3 numbers each and the gallery 2; both must come from one"):
        evaluate(table.x[q], table.labels[q], cameras=table.cameras[q], gallery=table.x[:, :2],
                 gallery_labels=table.labels, gallery_cameras=table.cameras, protocol=protocol)  # fmt: skip


def test_a_gallery_that_a_protocol_leaves_empty_is_named():
    table = synthetic()
    table.queries[:] = True
    with pytest.raises(
        InputError, match=r"by protocol market1501 nothing that was given is left as gallery \(gallery="
    ):
        table.report("market1501")
    with pytest.raises(InputError, match="by protocol market1501:junk=7 nothing that was given is left as queries"):
        evaluate([[0.0], [1.0], [2.0]], [7, 7, 1], cameras=[1, 2, 3], queries=[True, True, False],
                 protocol="market1501:junk=7")  # fmt: skip
