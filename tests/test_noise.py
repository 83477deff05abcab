"""The noise laboratory: how much noise there is, where, and that it is the same everywhere."""

import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from metricweight.checks import InputError
from metricweight.data import manifest as manifests
from metricweight.data.manifest import About, Manifest
from metricweight.data.noise import KINDS, add_list, add_noise, draw, frames, near

# fine label -> superclass of CIFAR-100
SUPERCLASS = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
]  # fmt: skip
LABELS = ["sym_excl", "sym_incl", "pairflip", "asym_cifar10", "asym_block5_circular", "asym_block5_pair"]
SUPER = ["asym_superclass_pair", "asym_superclass_circular"]


def pictures(classes, per_class, root=Path("."), test_per_class=1, **columns):
    """Labels 0 to classes - 1 of the split train, and as many others above them of the split test."""
    label = np.repeat(np.arange(classes), per_class)
    test = np.repeat(np.arange(classes, 2 * classes), test_per_class)
    raw = pd.DataFrame({
        "path": [f"c{c:03d}/p{i:06d}.png" for i, c in enumerate([*label, *test])],
        "label": [*label, *test],
        "label_name": [f"name of {c}" for c in [*label, *test]],
        "split": ["train"] * len(label) + ["test"] * len(test),
        **columns,
    })  # fmt: skip
    return Manifest(manifests.complete(raw, str, "made"), root, About("made"))


def cifar100(per_class):
    made = pictures(100, per_class, test_per_class=0)
    made.table["super_label"] = np.repeat(SUPERCLASS, per_class).astype("int32")
    return made


def tracklets(root=Path("."), people=6, per_person=3, frames=5):
    """Tracklets of some people to train on and as many other people to test on."""
    rows = [
        (f"{person}/{track}/{frame}.png", person, "train" if person < people else "test", track, frame)
        for person in range(2 * people)
        for track in range(person * per_person, (person + 1) * per_person)
        for frame in range(frames)
    ]
    raw = pd.DataFrame(rows, columns=["path", "label", "split", "tracklet", "frame"])
    raw["camera"] = raw["tracklet"] % 2
    return Manifest(manifests.complete(raw, str, "made"), root, About("made"))


def train(made):
    return made.table[draw.training_rows(made.table)].reset_index(drop=True)


def wrong(made):
    rows = train(made)
    return (rows["label"] != rows["clean_label"]).to_numpy()


def number(*words):
    """By its definition: the first eight bytes of the SHA-256 of five lines."""
    return int(hashlib.sha256("\n".join(map(str, words)).encode()).hexdigest()[:16], 16)


def embedded(tmp_path, made, embeddings, name="e.npz"):
    np.savez(tmp_path / name, embeddings=embeddings, names=np.array(train(made)["path"].tolist()))
    return tmp_path / name


def noisy_by(kind, made, tmp_path, rate, **more):
    """Each kind, with what it needs."""
    if KINDS[kind].needs == "embeddings":
        place = train(made)["path"].rank().astype(int) - 1  # so that a picture has its embedding in any order of rows
        points = np.random.default_rng(0).standard_normal((len(place), 8)).astype(np.float32)
        more["embeddings"] = embedded(tmp_path, made, points[place])
    return add_noise(made, kind, rate, pictures=tmp_path / "new", **more)


def some_for(kind, tmp_path):
    """A manifest that a kind can work on, with files where it needs them."""
    if kind == "foreign_frames":
        return tracklets()
    if kind == "occlusion":
        made = pictures(4, 5, root=tmp_path)
        for i, path in enumerate(made.table["path"]):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            Image.new("RGB", (20, 10), (i, 255 - i, 0)).save(tmp_path / path)
        return made
    return (
        pictures(10, 20) if KINDS[kind].labels == 10 else cifar100(4) if kind in (*LABELS, *SUPER) else pictures(8, 6)
    )


# ---- how much


def test_ten_classes_at_two_fifths_of_50000_are_20000_wrong_without_the_true_class_and_18000_with_it():
    made = pictures(10, 5000)
    assert wrong(add_noise(made, "sym_excl", 0.4)).sum() == 20_000
    with_truth = wrong(add_noise(made, "sym_incl", 0.4)).sum()
    sigma = np.sqrt(20_000 * 0.9 * 0.1)
    assert abs(with_truth - 18_000) < 4 * sigma


@pytest.mark.parametrize(("rate", "n", "expected"), [(0.29, 100, 29), (0.57, 100, 57), (1 / 3, 9, 3), (0.25, 7, 1)])
def test_an_exact_count_is_the_rate_as_it_is_written_rounded_down(rate, n, expected):
    made = pictures(2, n)
    made = made.where(~((made.table["label"] == 1) & (made.table.index >= n + 3)), "three of the second class")
    share_of_all = Fraction(str(round(rate, 4)) if rate != 1 / 3 else "1/3") * (n + 3)
    assert wrong(add_noise(made, "sym_excl", rate)).sum() == share_of_all.__floor__()
    per_class = train(add_noise(made, "sym_excl", rate, count="exact_per_class"))
    assert per_class["is_noisy"][per_class["clean_label"] == 0].sum() == expected


@pytest.mark.parametrize("kind", ["sym_excl", "pairflip"])
@pytest.mark.parametrize("rate", [0, 0.1, 0.37, 0.5, 0.99])
def test_each_class_has_its_share_of_exact_per_class(kind, rate):
    sizes = [1, 2, 7, 50, 100]
    table = pictures(5, 100).table
    first = table.groupby("label").cumcount()
    keep = [n < sizes[label] if label < 5 else True for n, label in zip(first, table["label"], strict=True)]
    made = Manifest(table[keep].reset_index(drop=True), Path("."), About("uneven"))
    rows = train(add_noise(made, kind, rate, count="exact_per_class"))
    found = rows.groupby("clean_label")["is_noisy"].sum().tolist()
    assert found == [int(Fraction(str(rate)) * n) for n in sizes]


@pytest.mark.parametrize("kind", ["sym_excl", "pairflip"])
def test_each_row_by_itself_comes_near_the_rate(kind):
    for seed in range(5):
        found = wrong(add_noise(pictures(10, 2000), kind, 0.3, seed, "bernoulli")).sum()
        assert abs(found - 6000) < 4 * np.sqrt(20_000 * 0.3 * 0.7)
        assert found != 6000


def test_all_other_labels_are_as_likely_when_the_true_one_is_left_out():
    made = add_noise(pictures(10, 3000), "sym_excl", 0.9)
    rows = train(made)[wrong(made)]
    seen = np.zeros((10, 10))
    np.add.at(seen, (rows["clean_label"].to_numpy(), rows["label"].to_numpy()), 1)
    assert (np.diag(seen) == 0).all()
    expected = seen.sum(axis=1, keepdims=True) / 9
    chi2 = ((seen - expected) ** 2 / expected)[~np.eye(10, dtype=bool)].sum()
    freedom = 10 * 8  # mean and half the variance of chi-square
    assert freedom - 4 * np.sqrt(2 * freedom) < chi2 < freedom + 4 * np.sqrt(2 * freedom)


def test_all_labels_are_as_likely_when_the_true_one_is_not_left_out():
    rows = train(add_noise(pictures(10, 3000), "sym_incl", 0.999999))
    seen = np.zeros((10, 10))
    np.add.at(seen, (rows["clean_label"].to_numpy(), rows["label"].to_numpy()), 1)
    chi2 = ((seen - 300) ** 2 / 300).sum()
    assert 90 - 4 * np.sqrt(180) < chi2 < 90 + 4 * np.sqrt(180)
    assert (rows["is_noisy"] == (rows["label"] != rows["clean_label"])).all()


# ---- where to


def flips(made):
    """{class: the classes that its wrong rows have}"""
    rows = train(made)[wrong(made)]
    return {int(c): set(x["label"]) for c, x in rows.groupby("clean_label")}


def test_cifar10_flips_five_classes_and_is_half_as_noisy_over_all():
    made = add_noise(pictures(10, 1000), "asym_cifar10", 0.4, count="exact_per_class")
    assert flips(made) == {9: {1}, 2: {0}, 4: {7}, 3: {5}, 5: {3}}
    assert made.about.noise["realised"] == 0.2
    assert made.about.noise["per_class"] == {"least": 0.0, "mean": 0.2, "most": 0.4}
    assert wrong(add_noise(pictures(10, 1000), "asym_cifar10", 0.4)).sum() == 2000  # of 5,000 that may change


def test_pair_flip_turns_each_label_into_the_next_and_the_last_into_the_first():
    assert flips(add_noise(pictures(7, 10), "pairflip", 0.5)) == {c: {(c + 1) % 7} for c in range(7)}


def test_only_six_of_the_hundred_legacy_circular_flips_stay_in_their_superclass():
    found = flips(add_noise(cifar100(10), "asym_block5_circular", 0.4, count="exact_per_class"))
    assert found == {c: {c // 5 * 5 + (c + 1) % 5} for c in range(100)}
    assert sum(SUPERCLASS[c] == SUPERCLASS[next(iter(to))] for c, to in found.items()) == 6


def test_legacy_pairs_are_two_labels_of_each_block_of_five():
    found = flips(add_noise(cifar100(10), "asym_block5_pair", 0.4, count="exact_per_class"))
    assert len(found) == 40
    for block in range(20):
        a, b = (c for c in found if c // 5 == block)
        assert (found[a], found[b]) == ({b}, {a})


def test_circular_flips_by_true_superclasses_go_round_the_five_labels_of_each():
    found = flips(add_noise(cifar100(10), "asym_superclass_circular", 0.4, count="exact_per_class"))
    for superclass in range(20):
        members = [c for c in range(100) if SUPERCLASS[c] == superclass]
        assert [found[c] for c in members] == [{c} for c in members[1:] + members[:1]]


def test_pairs_by_true_superclasses_are_two_labels_of_each_and_two_fifths_of_the_rate():
    made = add_noise(cifar100(10), "asym_superclass_pair", 0.4, count="exact_per_class")
    found = flips(made)
    for superclass in range(20):
        a, b = (c for c in found if SUPERCLASS[c] == superclass)
        assert (found[a], found[b]) == ({b}, {a})
    assert made.about.noise["realised"] == pytest.approx(0.4 * 0.4)
    others = [set(flips(add_noise(cifar100(10), "asym_superclass_pair", 0.4, seed))) for seed in range(3)]
    assert others[0] != others[1] != others[2]


def test_a_class_alone_in_its_superclass_stays():
    made = pictures(3, 10)
    made.table["super_label"] = (made.table["label"] // 2).astype("int32")  # 0, 0, 1
    assert flips(add_noise(made, "asym_superclass_circular", 0.5)) == {0: {1}, 1: {0}}


@pytest.mark.parametrize("kind", ["open_set", "small_cluster"])
@pytest.mark.parametrize("rate", [0, 0.25, 0.5, 0.75])
def test_whole_classes_dissolve_until_the_rate_is_reached(tmp_path, kind, rate):
    made = noisy_by(kind, pictures(16, 6), tmp_path, rate)
    rows = train(made)
    gone = set(rows["clean_label"][rows["is_noisy"]])
    assert len(gone) == rate * 16 == made.about.noise["classes_gone"]
    assert not gone & set(rows["label"])
    assert (rows["is_noisy"] == rows["clean_label"].isin(gone)).all()
    assert made.about.noise["realised"] == rate


def test_the_last_class_to_dissolve_is_the_one_that_reaches_the_rate(tmp_path):
    assert add_noise(pictures(16, 6), "open_set", 0.26).about.noise["noisy"] == 5 * 6  # 0.26 of 96 are 24.96
    with pytest.raises(InputError, match="would leave 1 of 16 classes"):
        add_noise(pictures(16, 6), "open_set", 0.9)


def test_open_set_scatters_pictures_singly_over_all_that_are_left():
    rows = train(add_noise(pictures(100, 50), "open_set", 0.5))
    lost = rows[rows["is_noisy"]]
    pairs = lost.groupby(["clean_label", "label"]).size()
    assert pairs.max() <= 8  # 50 pictures over 50 classes
    assert lost["label"].nunique() == 50


def test_small_clusters_are_those_that_a_reference_in_plain_python_makes(tmp_path):
    made = pictures(8, 9)
    paths = train(made)["path"].tolist()
    points = np.random.default_rng(1).standard_normal((72, 3))
    whole = dict(zip(paths, near.quantised(points, "e").astype(int).tolist(), strict=True))
    label = dict(zip(paths, train(made)["label"], strict=True))

    def nearest(point, centres):
        scores = [sum(2 * x * c - c * c for x, c in zip(point, centre, strict=True)) for centre in centres]
        return scores.index(max(scores))

    def clusters(points, centres):
        own = []
        for _ in range(20):
            found = [nearest(point, centres) for point in points]
            if found == own:
                break
            own = found
            for k in set(own):
                members = [point for point, place in zip(points, own, strict=True) if place == k]
                centres[k] = [round_half_up(Fraction(sum(x), len(members))) for x in zip(*members, strict=True)]
        return own

    def round_half_up(x):
        return (x + Fraction(1, 2)).__floor__()

    left = sorted(range(8), key=lambda c: number(5, "small_cluster", c, -1, "dissolved"))
    for _ in range(4):  # half of the eight classes
        lost = left.pop(0)
        moved = [path for path in paths if label[path] == lost]
        moved.sort(key=lambda path: number(5, "small_cluster", path, -1, "order"))
        k = len(moved) // 2
        own = clusters([whole[path] for path in moved], [whole[path] for path in moved[:k]])
        for path, cluster in zip(moved, own, strict=True):
            drawn = number(5, "small_cluster", moved[cluster], -1, f"cluster of {lost}") >> 32
            label[path] = sorted(left)[drawn * len(left) >> 32]
    rows = train(add_noise(made, "small_cluster", 0.5, 5, embeddings=embedded(tmp_path, made, points)))
    assert rows["label"].tolist() == list(label.values())


def test_clusters_are_those_of_k_means_by_hand():
    points = np.array([[0, 100], [100, 0], [10, 90], [90, 14], [80, 20]], dtype=np.int16)
    # the first two are the centres, 2 is near the one, 3 and 4 near the other; (5, 95) and (90, 11) do not change that
    assert near.clusters(points, 2).tolist() == [0, 1, 0, 1, 1]
    assert near.clusters(points, 1).tolist() == [0] * 5


def test_near_duplicates_take_the_label_of_what_they_are_like(tmp_path):
    made = pictures(3, 4)
    points = np.eye(12, 16) * 4
    points[5] = points[2] + 0.01 * np.eye(12, 16)[5]  # of class 1, like one of class 0
    points[9] = points[6] + 1.5 * np.eye(12, 16)[9]  # of class 2, less like one of class 1
    found = train(add_noise(made, "near_duplicate", 2 / 12, embeddings=embedded(tmp_path, made, points)))
    assert dict(found["label"][found["is_noisy"]]) == {2: 1, 5: 0}
    found = train(add_noise(made, "near_duplicate", 4 / 12, embeddings=embedded(tmp_path, made, points)))
    assert dict(found["label"][found["is_noisy"]]) == {2: 1, 5: 0, 6: 2, 9: 1}
    each = add_noise(made, "near_duplicate", 0.25, count="exact_per_class", embeddings=tmp_path / "e.npz")
    assert [each.about.noise["per_class"][x] for x in ("least", "most")] == [0.25, 0.25]


def test_the_nearest_of_another_class_is_that_of_a_plain_search(monkeypatch):
    monkeypatch.setattr(near, "ROWS", 7)
    monkeypatch.setattr(near, "COLUMNS", 5)
    random = np.random.default_rng(2)
    points, label = random.integers(-3, 4, (40, 3)).astype(np.int16), random.integers(0, 4, 40)  # many ties
    similarity, found = near._nearest_other(points, label)
    for i in range(40):
        of_others = [
            (int(points[i].astype(int) @ points[j].astype(int)), -j) for j in range(40) if label[j] != label[i]
        ]
        best, j = max(of_others)
        assert (similarity[i], found[i]) == (best, label[-j])


def test_inner_products_of_rounded_embeddings_are_exact_in_float32():
    for width in (1, 7, 2048, 50_000):
        points = np.random.default_rng(width).standard_normal((6, width))
        points[0] = 1
        points[1] = np.arange(width) == 0
        found = near.quantised(points.astype(np.float32), "e")
        exact = found.astype(np.int64) @ found.astype(np.int64).T
        assert (found.astype(np.float32) @ found.astype(np.float32).T == exact).all()
        assert 2 * (np.linalg.norm(found.astype(float), axis=1) + np.sqrt(width) / 2).max() ** 2 < 2**24
        assert np.abs(np.linalg.norm(found.astype(float), axis=1) - 1024).max() <= np.sqrt(width) / 2 + 1


# ---- the same everywhere


def test_numbers_are_those_of_sha256():
    asked = draw.Asked("sym_excl", Fraction(1, 2), 7, "exact")
    found = draw.numbers(asked, ["a/ü.jpg", "b.npy"], [-1, 3], "chosen")
    assert found.tolist() == [
        number(7, "sym_excl", "a/ü.jpg", -1, "chosen"),
        number(7, "sym_excl", "b.npy", 3, "chosen"),
    ]
    assert found.tolist() == [0x4753774693BE9E01, 0x3C4F29B6EF1D0ED1]


def test_one_seed_is_the_noise_that_a_reference_in_plain_python_makes():
    made = pictures(5, 6)
    rows = [(path, label) for path, label in zip(train(made)["path"], train(made)["label"], strict=True)]
    by_number = sorted(rows, key=lambda row: number(11, "sym_excl", row[0], -1, "chosen"))
    expected = dict(rows)
    for path, label in by_number[:12]:
        others = [c for c in range(5) if c != label]
        expected[path] = others[(number(11, "sym_excl", path, -1, "label") >> 32) * 4 >> 32]
    found = train(add_noise(made, "sym_excl", 0.4, 11))
    assert dict(zip(found["path"], found["label"], strict=True)) == expected
    assert "".join(map(str, found["label"])) == "030000141111420220304432241044"


def test_each_row_by_itself_is_the_noise_that_a_reference_in_plain_python_makes():
    made = pictures(5, 6)
    expected = []
    for path, label in zip(train(made)["path"], train(made)["label"], strict=True):
        struck = number(11, "sym_incl", path, -1, "chosen") < 2**64 * 4 // 10
        expected.append((number(11, "sym_incl", path, -1, "label") >> 32) * 5 >> 32 if struck else label)
    found = train(add_noise(made, "sym_incl", 0.4, 11, "bernoulli"))
    assert found["label"].tolist() == expected


def test_classes_dissolve_in_the_order_that_a_reference_in_plain_python_gives():
    order = sorted(range(8), key=lambda c: number(3, "open_set", c, -1, "dissolved"))
    left = sorted(order[4:])
    rows = train(add_noise(pictures(8, 6), "open_set", 0.5, 3))
    for path, true, label in zip(rows["path"], rows["clean_label"], rows["label"], strict=True):
        drawn = left[(number(3, "open_set", path, -1, "label") >> 32) * 4 >> 32]
        assert label == (drawn if true in order[:4] else true)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_does_not_matter_and_the_seed_does(tmp_path, kind):
    made = some_for(kind, tmp_path)
    shuffled = replace(made, table=made.table.sample(frac=1, random_state=0).reset_index(drop=True))
    key = ["tracklet", "frame"] if kind == "foreign_frames" else ["path", "member"]
    one, other = (noisy_by(kind, x, tmp_path, 0.3).table.sort_values(key) for x in (made, shuffled))
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True), check_categorical=False)
    again = noisy_by(kind, made, tmp_path, 0.3, seed=1).table
    if kind != "near_duplicate":  # which draws only among equals
        seen = [set(zip(x[key[0]], x[key[1]], x["label"], x["is_noisy"], strict=True)) for x in (one, again)]
        assert seen[0] != seen[1]
    assert one["is_noisy"].any()


@pytest.mark.parametrize("kind", ["sym_excl", "asym_cifar10", "pairflip"])
@pytest.mark.parametrize("count", ["exact", "exact_per_class", "bernoulli"])
def test_more_noise_contains_less_noise_of_the_same_seed(kind, count):
    made = pictures(10, 30)
    less, more = (train(add_noise(made, kind, rate, 5, count)) for rate in (0.2, 0.5))
    struck = less["is_noisy"]
    assert struck.sum() > 20
    assert (more["label"][struck] == less["label"][struck]).all()


# ---- what stays


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_trained_on_stay_bit_for_bit(tmp_path, kind):
    made = some_for(kind, tmp_path)
    table = made.table
    if kind != "foreign_frames":  # whose manifest has a split test
        more = table.tail(4).assign(path=["junk.png", "distractor.png", "v.png", "t.png"], is_query=False)
        more = more.assign(
            label=[-1, 0, 0, 3], clean_label=[-1, 0, 0, 3], split=["train", "train", "validation", "test"]
        )
        more = more.assign(is_junk=more["label"] == -1, is_distractor=more["path"] == "distractor.png")
        table = manifests.complete(pd.concat([table, more]), str, "more")
    before = table.copy(deep=True)
    found = noisy_by(kind, replace(made, table=table), tmp_path, 0.3).table
    pd.testing.assert_frame_equal(table, before)  # what was given is as it was
    still = ~draw.training_rows(table)
    assert still.sum() >= (4 if kind != "foreign_frames" else 90)
    pd.testing.assert_frame_equal(found[still], before[still], check_categorical=False)
    assert found["is_noisy"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_noisy_manifest_is_written_and_read_again_with_its_truth_and_its_names(tmp_path, kind):
    made = some_for(kind, tmp_path)
    noisy = noisy_by(kind, made, tmp_path, 0.3)
    manifests.write(replace(noisy, root=tmp_path), tmp_path / "noisy.csv")
    again = manifests.read(tmp_path / "noisy.csv")
    pd.testing.assert_frame_equal(again.table, noisy.table, check_categorical=False)
    assert again.about.noise == json.loads(json.dumps(noisy.about.noise))
    rows = train(noisy)
    assert again.about.noise["realised"] == rows["is_noisy"].mean()
    assert again.about.noise["kind"] == kind
    if not KINDS[kind].frames:
        assert (rows["clean_label"] == train(made)["label"]).all()
        assert (rows["label_name"] == [f"name of {label}" for label in rows["label"]]).all()
        assert (rows["is_noisy"] == (rows["label"] != rows["clean_label"])).all()


def test_the_super_label_is_that_of_the_new_label():
    rows = train(add_noise(cifar100(5), "sym_excl", 0.5))
    assert rows["super_label"].tolist() == [SUPERCLASS[label] for label in rows["label"]]


def test_a_tracklet_is_mislabelled_as_a_whole():
    made = add_noise(tracklets(), "sym_excl", 0.5)
    rows = train(made)
    assert rows.groupby("tracklet")["label"].nunique().eq(1).all()
    assert rows.groupby("tracklet")["is_noisy"].first().sum() == 9  # half of 18
    assert made.about.noise["of"] == "tracklets"
    named = {t: number(0, "sym_excl", f"{t // 3}/{t}/0.png", -1, "chosen") for t in range(18)}  # by the first frame
    assert set(rows["tracklet"][rows["is_noisy"]]) == set(sorted(named, key=named.get)[:9])


# ---- frames


def test_foreign_frames_are_all_there_once_and_none_is_at_home():
    clean, made = train(tracklets()), train(add_noise(tracklets(), "foreign_frames", 0.3, 2))
    assert sorted(made["path"]) == sorted(clean["path"])
    belong = ["label", "camera", "tracklet", "frame", "split"]
    pd.testing.assert_frame_equal(made[belong], clean[belong])
    assert made["is_noisy"].sum() == 27  # 0.3 of 90
    person = made["path"].str.split("/").str[0].astype(int)  # who is to be seen
    assert (person == made["clean_label"]).all()
    assert ((person != made["label"]) == made["is_noisy"]).all()
    assert (made["path"] == clean["path"])[~made["is_noisy"]].all()


def test_boxes_go_with_their_pictures():
    clean = tracklets()
    clean.table[["x1", "y1", "x2", "y2"]] = np.arange(len(clean.table) * 4).reshape(-1, 4).astype("float32")
    made = train(add_noise(clean, "foreign_frames", 0.5))
    box = clean.table.set_index("path")["x1"]
    assert (box[made["path"]].to_numpy() == made["x1"]).all()


def test_places_of_others_are_found_up_to_one_half_of_one_label():
    random = np.random.default_rng(0)
    for n in (2, 3, 4, 9, 50):
        for _ in range(20):
            most = n // 2
            labels = [0] * most + random.integers(1, n + 1, n - most).tolist()
            if max(np.bincount(labels)) > n // 2:
                continue
            at, shown = random.permutation(n), random.permutation(n)
            order = frames.places_of_others([labels[i] for i in at], [labels[i] for i in shown], shown.tolist())
            assert sorted(order) == list(range(n))
            assert all(labels[place] != labels[picture] for place, picture in zip(at, order, strict=True))


def test_frames_that_cannot_all_go_to_others_are_refused():
    made = tracklets(people=2)
    made = made.where((made.table["label"] != 1) | (made.table["frame"] == 0), "few of the second person")
    with pytest.raises(InputError, match="at most half of them may"):
        add_noise(made, "foreign_frames", 0.9)


def test_covered_pictures_are_covered_from_one_side_and_as_before_elsewhere(tmp_path):
    made = some_for("occlusion", tmp_path)
    rows = train(add_noise(made, "occlusion", 0.5, pictures=tmp_path / "noisy-pictures"))
    clean = train(made)
    assert rows["is_noisy"].sum() == 10
    assert (rows["label"] == clean["label"]).all()
    assert (rows["path"] == clean["path"])[~rows["is_noisy"]].all()
    fillings = set()
    for old, new in zip(clean["path"][rows["is_noisy"]], rows["path"][rows["is_noisy"]], strict=True):
        assert new.startswith("noisy-pictures/")
        before, after = (np.array(Image.open(tmp_path / path)).astype(int) for path in (old, new))
        assert before.shape == after.shape
        changed = (before != after).any(axis=2)
        assert 0.25 < changed.mean() < 0.65  # 30 to 60 %, to half a pixel of 10
        assert changed.all(axis=0).any() or changed.all(axis=1).any()
        assert len(np.unique(after[changed], axis=0)) == 1  # these pictures are of one colour each
        fillings.add(tuple(after[changed][0]))
    others = {(i, 255 - i, 0) for i in range(20)}
    assert (127, 127, 127) in fillings
    assert fillings <= others | {(127, 127, 127)}
    assert len(fillings) > 1


def test_what_covers_a_picture_has_another_label(tmp_path):
    made = some_for("occlusion", tmp_path)
    units = draw.units_of(made, frames=True)
    asked = draw.Asked("occlusion", Fraction(1, 2), 0, "exact")
    found = [
        (row, cover)
        for seed in range(40)
        for row, cover in enumerate(frames.covers(units, replace(asked, seed=seed), np.arange(20)))
    ]
    assert all(units.label[row] != units.label[cover.by] for row, cover in found if cover.by >= 0)
    assert {cover.percent for _, cover in found} == set(range(30, 61))
    assert {cover.side for _, cover in found} == {"left", "top", "right", "bottom"}
    assert 0.4 < np.mean([cover.by < 0 for _, cover in found]) < 0.6
    assert {cover.by for _, cover in found} == set(range(-1, 20))


@pytest.mark.parametrize(("side", "box"), [("left", (0, 0, 8, 10)), ("top", (0, 0, 20, 4)),
                                           ("right", (12, 0, 20, 10)), ("bottom", (0, 6, 20, 10))])  # fmt: skip
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "CMYK"])
def test_forty_per_cent_of_a_picture_are_covered_from_each_side(side, box, mode):
    picture = Image.new("RGB", (20, 10), (51, 51, 51)).convert(mode)
    found = frames.covered(picture, frames.Cover(40, side, -1), None)
    expected = Image.new("L", (20, 10), 51)
    expected.paste(127, box)
    assert (np.abs(np.array(found.convert("L")).astype(int) - np.array(expected)) <= 1).all()
    assert picture.size == found.size


def test_a_picture_in_an_npy_is_covered_too(tmp_path):
    np.save(tmp_path / "all.npy", np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8))
    raw = pd.DataFrame({"path": "all.npy", "member": range(8), "label": np.arange(8) % 2, "split": "train"})
    made = Manifest(manifests.complete(raw, str, "npy"), tmp_path, About("npy"))
    rows = add_noise(made, "occlusion", 0.5, pictures=tmp_path / "new").table
    assert (rows["member"] == -1).sum() == 4
    assert rows["path"].nunique() == 5
    assert all((tmp_path / path).is_file() for path in rows["path"])


def test_new_pictures_outside_of_the_root_have_absolute_paths_and_seeds_do_not_share_them(tmp_path):
    (tmp_path / "root").mkdir()
    made = some_for("occlusion", tmp_path / "root")
    found = [train(add_noise(made, "occlusion", 0.5, seed, pictures=tmp_path / "new")) for seed in (0, 1)]
    new = [set(rows["path"][rows["is_noisy"]]) for rows in found]
    assert all(path.startswith(f"{tmp_path.resolve()}/new/") and Path(path).is_file() for path in new[0] | new[1])
    assert not new[0] & new[1]
    assert len(list((tmp_path / "new").rglob("*.png"))) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_at_rate_zero_nothing_changes_but_the_sidecar(tmp_path, kind):
    made = some_for(kind, tmp_path)
    found = noisy_by(kind, made, tmp_path, 0)
    pd.testing.assert_frame_equal(found.table, made.table, check_categorical=False)
    assert found.about.noise["realised"] == 0


# ---- published lists


def listed(tmp_path, made, labels, name="list.csv", head="/data/CUB/images/"):
    text = "".join(f"{head}{path},{label}\n" for path, label in zip(train(made)["path"], labels, strict=True))
    (tmp_path / name).write_text(text)
    return tmp_path / name


def below(made, before):
    """The same with a folder before each path."""
    return replace(made, table=made.table.assign(path=[f"{before}/{path}" for path in made.table["path"]]))


@pytest.mark.parametrize("first", [0, 1, 57])
def test_listed_labels_may_begin_at_any_number_that_the_manifest_has_or_at_0_or_1(tmp_path, first):
    made = pictures(10, 40)
    made.table["label"] += 57
    made.table["clean_label"] += 57
    noisy = train(add_noise(made, "sym_excl", 0.5))
    file = listed(tmp_path, made, noisy["label"] - 57 + first)
    found = add_list(below(made, "CUB_200_2011/images"), file)
    assert (train(found)["label"] == noisy["label"]).all()
    assert (train(found)["is_noisy"] == noisy["is_noisy"]).all()
    assert (train(found)["label_name"] == noisy["label_name"]).all()
    assert found.about.noise["realised"] == 0.5
    assert found.about.sources[-1]["md5"] == hashlib.md5(file.read_bytes()).hexdigest()


def test_labels_of_small_clusters_that_were_numbered_anew_are_found_by_vote(tmp_path):
    made = pictures(40, 5)
    points = np.random.default_rng(0).standard_normal((200, 8))
    noisy = train(add_noise(made, "small_cluster", 0.5, embeddings=embedded(tmp_path, made, points)))
    anew = {label: i for i, label in enumerate(dict.fromkeys(noisy["label"]))}  # by first appearance
    found = add_list(made, listed(tmp_path, made, noisy["label"].map(anew)))
    assert (train(found)["label"] == noisy["label"]).all()
    assert found.about.noise["classes_gone"] == 20
    assert found.about.noise["labels_numbered"] == "anew"


def test_a_listed_label_of_no_class_gets_a_number_of_its_own_above_all_others(tmp_path):
    made = pictures(10, 20)  # labels 0 to 9 train, 10 to 19 test
    labels = (train(made)["label"] + 1).tolist()
    labels[3] = 11  # such as the label 101 of a list over 100 classes, which is one of the test half
    found = add_list(made, listed(tmp_path, made, labels))
    rows = train(found)
    assert rows["label"][3] == 20
    assert rows["is_noisy"].tolist() == [i == 3 for i in range(200)]
    assert rows["label_name"][3] == ""
    assert found.about.noise["bogus"] == "11 is 20 here"


def test_a_line_is_about_the_picture_that_shares_the_longest_end(tmp_path):
    raw = pd.DataFrame({"path": ["a/train/1.jpg", "a/test/1.jpg", "b/train/1.jpg", "2,3.jpg"], "label": [0, 0, 1, 1]})
    made = Manifest(manifests.complete(raw.assign(split="train"), str, "made"), tmp_path, About("made"))
    file = tmp_path / "list.csv"
    file.write_text("/data/x/b/train/1.jpg,1\n/data/x/a/test/1.jpg,0\n/data/x/a/train/1.jpg,1\n/data/2,3.jpg,1\n")
    assert add_list(made, file).table["label"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines[:-2], "lacks 2 of 12 training pictures, the first is c002/p000010.png"),
        (lambda lines: [*lines, lines[4]], "line 13: c001/p000004.png has line 5 already"),
        (lambda lines: [*lines[:2], "/data/c000/other.png,1"], "line 3: /data/c000/other.png is none of the 12"),
        (lambda lines: [*lines[:2], "/data/c000/p000002.png"], "line 3: .* is not a path, a comma and a label"),
        (lambda lines: [*lines[:2], "/data/c000/p000002.png,x"], "line 3: .* is not a path, a comma and a label"),
        (lambda lines: ["/data/c003/p000012.png,1"], "line 1: .* is none of the 12"),  # of the split test
    ],
)
def test_a_list_that_is_not_about_this_manifest_is_refused_with_its_line(tmp_path, change, sentence):
    made = pictures(3, 4)
    file = listed(tmp_path, made, train(made)["label"])
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(InputError, match=sentence):
        add_list(made, file)


def test_a_picture_that_may_be_several_is_refused(tmp_path):
    raw = pd.DataFrame({"path": ["a/1.jpg", "b/1.jpg"], "label": [0, 1], "split": "train"})
    made = Manifest(manifests.complete(raw, str, "made"), tmp_path, About("made"))
    (tmp_path / "list.csv").write_text("/data/c/1.jpg,1\n")
    with pytest.raises(InputError, match=r"line 1: /data/c/1\.jpg may be several .* such as a/1.jpg"):
        add_list(made, tmp_path / "list.csv")


# ---- wrong use


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("sym_exl", 0.4), "no noise called sym_exl; did you mean sym_excl"),
        (("sym_excl", 1.0), r"from 0 to below 1, got 1\.0"),
        (("sym_excl", -0.1), "from 0 to below 1"),
        (("sym_excl", float("nan")), "from 0 to below 1, got nan"),
        (("sym_excl", 0.4, 0, "exakt"), "count exakt does not fit sym_excl; .*did you mean exact"),
        (("open_set", 0.4, 0, "bernoulli"), "count bernoulli does not fit open_set; there is whole_classes"),
        (("near_duplicate", 0.4, 0, "bernoulli"), "does not fit"),
        (("asym_cifar10", 0.4), "needs the labels 0 to 9, the training rows have 4, from 0 to 3"),
        (("asym_block5_pair", 0.4), "needs the labels 0 to 99"),
        (("asym_superclass_pair", 0.4), "super label"),
        (("small_cluster", 0.4), "--embeddings"),
        (("foreign_frames", 0.4), "needs tracklets"),
    ],
)
def test_what_cannot_be_is_refused_in_words(words, sentence):
    with pytest.raises(InputError, match=sentence):
        add_noise(pictures(4, 5), *words)


def test_noise_on_noise_one_class_and_nothing_to_train_on_are_refused(tmp_path):
    noisy = add_noise(pictures(4, 5), "sym_excl", 0.4)
    for made in (noisy, replace(noisy, about=About("moved"))):
        with pytest.raises(InputError, match="is noisy already"):
            add_noise(made, "pairflip", 0.1)
    with pytest.raises(InputError, match="two labels at least"):
        add_noise(pictures(1, 5), "sym_excl", 0.4)
    made = pictures(4, 5)
    with pytest.raises(InputError, match=r"no rows to train on .*test"):
        add_noise(made.where(made.table["split"] == "test", "test"), "sym_excl", 0.4)


def test_super_labels_must_say_something_and_one_thing_for_each_class():
    made = pictures(4, 5)
    made.table["super_label"] = np.arange(len(made.table), dtype="int32")
    with pytest.raises(InputError, match="label 0 has more than one super label"):
        add_noise(made, "asym_superclass_pair", 0.4)
    made.table["super_label"] = made.table["label"].astype("int32")
    with pytest.raises(InputError, match="each class has its own"):
        add_noise(made, "asym_superclass_circular", 0.4)


def test_embeddings_that_do_not_fit_are_refused(tmp_path):
    made = pictures(4, 5)
    names = train(made)["path"].tolist()
    points = np.random.default_rng(0).standard_normal((20, 3))
    holes = points.copy()
    holes[7] = 0
    nan = points.copy()
    nan[8, 1] = np.nan
    for arrays, sentence in [
        ({"embeddings": points[1:], "names": names[1:]}, "no embedding of 1 of 20 training pictures, .* c000/p000000"),
        ({"embeddings": points[1:]}, "holds 19 embeddings, the manifest has 20"),
        ({"embeddings": points, "names": names[1:]}, "20 embeddings and 19 names"),
        ({"embeddings": points, "names": [*names[:-1], names[0]]}, "names 1 pictures more than once"),
        ({"points": points}, "holds points; needed: embeddings"),
        ({"embeddings": points[:, 0]}, "must hold numbers"),
        ({"embeddings": holes}, "embedding 7 .* is zero throughout"),
        ({"embeddings": nan}, "embedding 8 .* is not finite"),
    ]:
        np.savez(tmp_path / "wrong.npz", **arrays)
        with pytest.raises(InputError, match=sentence):
            add_noise(made, "near_duplicate", 0.2, embeddings=tmp_path / "wrong.npz")
    (tmp_path / "text.npz").write_text("x")
    for file, sentence in [("text.npz", "damaged"), ("none.npy", "not there")]:
        with pytest.raises(InputError, match=sentence):
            add_noise(made, "near_duplicate", 0.2, embeddings=tmp_path / file)
    with pytest.raises(InputError, match="looks at no embeddings"):
        add_noise(made, "sym_excl", 0.2, embeddings=tmp_path / "wrong.npz")
    with pytest.raises(InputError, match="tracklets"):
        add_noise(tracklets(), "near_duplicate", 0.2, embeddings=tmp_path / "wrong.npz")


def test_embeddings_are_found_by_name_or_taken_in_order(monkeypatch, tmp_path):
    made = pictures(4, 5, root=tmp_path)
    points = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    np.save(tmp_path / "e.npy", points)
    order = np.random.default_rng(1).permutation(20)
    monkeypatch.chdir(tmp_path.parent)
    names = np.array([f"{tmp_path.name}/{path}" for path in train(made)["path"]])[
        order
    ]  # as `metricweight embed` writes
    np.savez(tmp_path / "e.npz", embeddings=points[order], names=names)
    a, b = (train(add_noise(made, "near_duplicate", 0.4, embeddings=tmp_path / f"e.np{x}")) for x in "yz")
    pd.testing.assert_frame_equal(a, b)


# ---- the command


def test_the_command_lists_the_kinds_and_writes_a_noisy_manifest(metricweight, tmp_path):
    code, out, _ = metricweight("noise")
    assert code == 0
    assert [line for line in out.splitlines() if line in KINDS] == list(KINDS)
    manifests.write(replace(pictures(10, 10), root=tmp_path), tmp_path / "clean.csv")
    words = ("noise", "clean.csv", "--kind", "sym_excl", "--rate", "0.29", "--seed", "3", "--out", "noisy.csv")
    code, out, _ = metricweight(*words)
    assert code == 0
    assert "29 of 100 training rows are noisy: 0.2900" in out
    again = manifests.read(tmp_path / "noisy.csv")
    assert again.about.noise["seed"] == 3
    assert again.table["is_noisy"].sum() == 29
    assert "noise sym_excl, rate 0.29, count exact, seed 3: 29 of 100" in again.about.history[-1]
    code, _, err = metricweight(*words)
    assert (code, "--overwrite" in err) == (2, True)
    file = listed(
        tmp_path, manifests.read(tmp_path / "clean.csv"), again.table["label"][again.table["split"] == "train"]
    )
    code, out, _ = metricweight("noise", "clean.csv", "--list", file, "--out", "listed.csv")
    assert code == 0
    assert manifests.read(tmp_path / "listed.csv").table["label"].equals(again.table["label"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kind", "sym_excl", "--rate", "0.4"], "--out noisy.csv"),
        (["--kind", "sym_excl", "--out", "n.csv"], "give --kind and --rate"),
        (["--rate", "0.4", "--out", "n.csv"], "give --kind and --rate"),
        (["--list", "l.csv", "--seed", "0", "--out", "n.csv"], "--seed cannot be given with it"),
        (["--list", "l.csv", "--out", "n.csv"], "l.csv is not there"),
        (["--kind", "sym_excl", "--rate", "0.4", "--out", "clean.csv", "--overwrite"], "is the manifest itself"),
        (["--kind", "sym_excl", "--rate", "0.4", "--out", "n.txt"], "is written to .csv or .parquet"),
    ],
)
def test_a_wrong_command_is_one_plain_sentence(metricweight, tmp_path, words, sentence):
    manifests.write(replace(pictures(4, 5), root=tmp_path), tmp_path / "clean.csv")
    code, _, err = metricweight("noise", "clean.csv", *words)
    assert code == 2
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "n.csv").exists()
