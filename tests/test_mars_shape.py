"""MARS at its real size, without pictures: tables like its own, read by the converter and judged by its protocols."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from metricweight._data_tools import mars
from metricweight._data_tools.prepare import differences
from metricweight._data_tools.replicas.matlab import save_mat
from metricweight._data_tools.source import Options

from metricweight.data import manifest
from metricweight.retrieval import Report, evaluate

STEP, TRAPEZOID = "map", "map_trapezoid"
HEADLINE = {"mars-official": TRAPEZOID, "mars-ap3d": STEP, "mars-torchreid": STEP}
SUFFIXES = [f"F{frame:03d}.jpg" for frame in range(1, 921)]


class Tracklet(NamedTuple):
    person: int
    camera: int
    searches: bool = False
    lost: bool = False  # it searches, and queries are all that it could find


def people_searched() -> Iterator[Tracklet]:
    """634 people with even numbers, whose 8,062 tracklets search 1,980 times. 140 of these find queries alone."""
    random = np.random.default_rng(0)
    # how many cameras search, in how many cameras others are, and how many others; 482 * 11 + 18 * 10 + 120 * 5 = 6082
    kinds = [(2, 0, 0)] * 14 + [(2, 1, 5)] * 112 + [(3, 3, 11)] * 272 + [(4, 4, 11)] * 210 + [(4, 4, 10)] * 18
    kinds += [(0, 1, 5)] * 8
    for person, kind in enumerate(random.permutation(kinds), start=1):
        searching, seeing, others = map(int, kind)
        cameras = [int(camera) for camera in random.permutation(6) + 1]
        found = [
            Tracklet(2 * person, camera, searches=True, lost=seeing == 0 or (seeing == 1 and camera == cameras[0]))
            for camera in cameras[:searching]
        ]
        found += [Tracklet(2 * person, cameras[i % seeing]) for i in range(others)]
        yield from sorted(found, key=lambda one: one.camera)


def people_learned_from() -> Iterator[Tracklet]:
    """625 people with odd numbers, one of them with a single tracklet and one with 271: 8,298."""
    counts = [1, 271] + [13] * 550 + [12] * 73
    for person, count in enumerate(counts):
        cameras = sorted(1 + (person + i) % 6 for i in range(count))
        yield from (Tracklet(2 * person + 1, camera) for camera in cameras)


def dealt(count: int, frames: int, longest: int, shortest: int = 2) -> np.ndarray:
    """Lengths of so many tracklets that have so many frames in all: one is the longest, some are the shortest."""
    random = np.random.default_rng(frames)
    shares = random.exponential(size=count - 1)
    more = random.multinomial(frames - count * shortest - (longest - shortest), shares / shares.sum())
    return random.permutation(np.append(shortest + more, longest))


def write_half(info: Path, half: str, tracklets: Iterable[Tracklet], lengths: np.ndarray) -> None:
    names: list[str] = []
    table: list[tuple[int, int, int, int]] = []
    numbers: dict[int, int] = {}
    for one, length in zip(tracklets, lengths.tolist(), strict=True):
        number = numbers[one.person] = numbers.get(one.person, 0) + 1
        person = "00-1" if one.person < 0 else f"{one.person:04d}"
        prefix = f"{person}C{one.camera}T{number:04d}"
        table.append((len(names) + 1, len(names) + length, one.person, one.camera))
        names += [prefix + suffix for suffix in SUFFIXES[:length]]
    (info / f"{half}_name.txt").write_text("\r\n".join(names) + "\r\n", newline="")
    save_mat(info / f"tracks_{half}_info.mat", {f"track_{half}_info": np.array(table, dtype=np.int32)})


class Read(NamedTuple):
    """What the converter made of the files, and what they say."""

    table: pd.DataFrame
    test: list[Tracklet]
    lengths: np.ndarray  # of all tracklets, training first


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> Read:
    root = tmp_path_factory.mktemp("mars")
    for folder in ("info", "bbox_train", "bbox_test"):
        (root / folder).mkdir()
    junk = [Tracklet(-1, 1 + i % 6) for i in range(870)]
    distractors = [Tracklet(0, 1 + i % 6) for i in range(3248)]
    test = [*junk, *distractors, *people_searched()]
    learned = dealt(8298, 509_914, longest=900, shortest=5)
    searched = [dealt(870, 23_380, 400), dealt(3248, 147_743, 800), dealt(8062, 681_089 - 23_380 - 147_743, 920)]
    write_half(root / "info", "train", people_learned_from(), learned)
    write_half(root / "info", "test", test, np.concatenate(searched))
    queries = [[row for row, one in enumerate(test, start=1) if one.searches]]
    save_mat(root / "info" / "query_IDX.mat", {"query_IDX": np.array(queries, dtype=np.uint16)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mars, "check_there", lambda root, paths, place: [])
        found = mars.convert(root, Options())
    assert not found.notes
    return Read(manifest.complete(found.rows, str, "rows"), test, np.concatenate([learned, *searched]))


def test_tables_of_the_real_shape_have_the_counts_that_are_expected_of_the_real_ones(read):
    assert differences(manifest.counts(read.table), mars.DATASET.counts) == []
    assert len(read.table) == 1_191_003
    assert read.table.memory_usage(deep=True).sum() < 600e6
    gallery = read.table[(read.table["split"] == "test") & ~read.table["is_query"]]
    assert gallery["tracklet"].nunique() == 10_200
    assert gallery["label"].nunique() == 622  # junk and distractors among them, 14 people are queries alone


def test_each_tracklet_has_the_frames_that_the_tables_cut_for_it(read):
    frames = read.table.groupby("tracklet")["frame"]
    assert frames.size().tolist() == read.lengths.tolist()
    assert frames.size().index.tolist() == list(range(8298 + 12180))
    assert (frames.min() == 1).all()
    assert (frames.max() == frames.size()).all()
    assert (frames.nunique() == frames.size()).all()
    test = read.table["split"] == "test"
    assert (read.lengths[8298:].min(), read.lengths[8298:].max(), read.lengths[:8298].max()) == (2, 920, 900)
    assert read.table["tracklet"][test].min() == 8298
    firsts = read.table[test].drop_duplicates("tracklet")
    said = list(firsts[["label", "camera", "is_query"]].itertuples(index=False, name=None))
    assert said == [(one.person, one.camera, one.searches) for one in read.test]


# ---- protocols


class Judged(NamedTuple):
    """Tracklets as points about a centre for each person, and what protocols say of them."""

    x: np.ndarray
    labels: np.ndarray
    cameras: np.ndarray
    queries: np.ndarray
    reports: dict[str, Report]


@pytest.fixture(scope="module")
def judged(read) -> Judged:
    items = read.table[read.table["split"] == "test"].drop_duplicates("tracklet")
    labels, cameras, queries = (items[name].to_numpy() for name in ("label", "camera", "is_query"))
    random = np.random.default_rng(1)
    centres = random.standard_normal((1 + labels.max(), 8))
    x = np.where((labels > 0)[:, None], centres[labels], random.standard_normal((len(labels), 8)))
    x = x + 0.5 * random.standard_normal(x.shape)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    reports = {
        protocol: evaluate(x, labels, cameras=cameras, queries=queries, protocol=protocol) for protocol in HEADLINE
    }
    return Judged(x, labels, cameras, queries, reports)


def test_each_protocol_has_the_queries_and_the_gallery_that_are_published(judged):
    said = (
        "queries",
        "valid_queries",
        "queries_without_positives",
        "gallery",
        "left_out: junk",
        "left_out: distractors",
    )
    found = {
        protocol: tuple(report.stamp["data"][name] for name in said) for protocol, report in judged.reports.items()
    }
    assert found == {
        "mars-official": (1980, 1980, 0, 11310, 870, 3248),
        "mars-ap3d": (1980, 1980, 0, 11310, 870, 3248),
        "mars-torchreid": (1980, 1840, 140, 9330, 870, 3248),
    }


def test_the_queries_that_torchreid_leaves_out_are_those_that_only_queries_answer(judged, read):
    lost = [row for row, one in enumerate(read.test) if one.lost]
    assert (len(lost), len({read.test[row].person for row in lost})) == (140, 126)
    report = judged.reports["mars-torchreid"]
    assert report.rows[report.positives == 0].tolist() == lost
    official = judged.reports["mars-official"]
    others = [sum(two.searches for two in read.test if two.person == read.test[row].person) - 1 for row in lost]
    assert official.positives[np.isin(official.rows, lost)].tolist() == others


def average_precisions(judged: Judged, q: int, stay: bool) -> tuple[float, float]:
    """Step and trapezoid of a query, by going down its list; `stay`: queries stay in the gallery."""
    own = judged.labels == judged.labels[q]
    kept = (judged.labels != -1) & ~(own & (judged.cameras == judged.cameras[q])) & (stay | ~judged.queries)
    order = np.argsort(-(judged.x[kept] @ judged.x[q]))
    hits, before, step, trapezoid = 0, 1.0, 0.0, 0.0
    for place, hit in enumerate(own[kept][order].tolist(), start=1):
        hits += hit
        precision = hits / place
        if hit:
            step, trapezoid = step + precision, trapezoid + (before + precision) / 2
        before = precision
    return (step / hits, trapezoid / hits) if hits else (np.nan, np.nan)


def test_average_precisions_are_those_of_going_down_the_list(judged):
    unanswered = np.flatnonzero(judged.reports["mars-torchreid"].positives == 0)
    some = np.append(np.arange(0, 1980, 41), unanswered[:3])
    for protocol, report in judged.reports.items():
        expected = [average_precisions(judged, row, protocol != "mars-torchreid") for row in report.rows[some]]
        found = np.stack([report.values[STEP][some], report.values[TRAPEZOID][some]], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=protocol)
        assert np.isnan(found).any() == (protocol == "mars-torchreid")


def test_protocols_differ_in_the_direction_that_their_rules_say(judged):
    official, ap3d, torchreid = (judged.reports[protocol] for protocol in HEADLINE)
    headlines = [report.metrics[HEADLINE[name]] for name, report in judged.reports.items()]
    assert all(0.1 < headline < 0.9 for headline in headlines)
    assert len(set(headlines)) == 3
    np.testing.assert_array_equal(official.values[STEP], ap3d.values[STEP])  # the same ranks
    assert official.metrics["recall@1"] == ap3d.metrics["recall@1"]
    assert official.metrics[TRAPEZOID] < ap3d.metrics[STEP]
    # after a miss precision rises to each hit, so that the mean of it before and after is less; hits alone are equal
    lower, perfect = official.values[TRAPEZOID] < ap3d.values[STEP], ap3d.values[STEP] == 1
    assert (lower | perfect).all()
    assert lower.any()
    assert (torchreid.positives < official.positives).all()
    assert (official.positives - torchreid.positives).sum() == 14 * 2 + 112 * 2 + 272 * 6 + 228 * 12
