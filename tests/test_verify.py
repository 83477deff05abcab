"""What is wrong with pictures is found, each under its own name, and a run that was killed goes on where it was."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from metricweight._data_tools import doubles, looks
from metricweight._data_tools.findings import COLUMNS, KINDS, as_json, text
from metricweight._data_tools.prepare import prepare, write_replica
from metricweight._data_tools.replicas.products import product, save
from metricweight._data_tools.source import Options
from metricweight._data_tools.table import DATASETS
from metricweight._data_tools.verify import verify
from PIL import Image, ImageOps

from metricweight.checks import InputError
from metricweight.data import manifest
from metricweight.data.manifest import About, Manifest

FORMS = [(name, layout) for name, row in DATASETS.items() if row.replica for layout in row.replica.layouts]


def encoded(picture, form="JPEG", **options):
    written = io.BytesIO()
    picture.save(written, format=form, **options)
    return written.getvalue()


def a_picture(number=0, size=(64, 64)):
    return product(number, 0, size)


def a_set(folder, files, **columns):
    """Writes files, {name: bytes or picture}, and a table of them: two of each label, half to train and half to test,
    where the columns do not say otherwise."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            save(content, folder / name)
        else:
            (folder / name).write_bytes(content)
    count = len(files)
    given = {
        "path": list(files),
        "label": [i // 2 for i in range(count)],
        "split": ["train" if i // 2 < (count + 1) // 4 else "test" for i in range(count)],
        **columns,
    }
    pd.DataFrame(given).to_csv(folder / "set.csv", index=False)
    return folder / "set.csv"


def eight(**changed):
    """Eight good pictures, some of them replaced."""
    return {f"{i}.jpg": a_picture(i) for i in range(8)} | changed


def findings(done):
    with open(done.out, newline="") as file:
        return list(csv.DictReader(file))


def told(done, kind):
    """{path: row} of the findings of a kind."""
    return {row["path"]: row for row in findings(done) if row["kind"] == kind}


def kinds(done):
    return {row["kind"] for row in findings(done)}


# ---- all is well


@pytest.mark.parametrize(("name", "layout"), FORMS)
def test_a_replica_is_without_faults(tmp_path, name, layout):
    write_replica(name, tmp_path / "raw", layout)
    made = prepare(name, tmp_path / "raw", tmp_path / "made.csv", Options(pictures=tmp_path))
    done = verify(tmp_path / "made.csv")
    assert done.faults == 0, text(done)
    assert done.pictures == len(made)


def test_a_sound_set_is_called_sound_and_the_exit_code_is_0(tmp_path, metricweight):
    path = a_set(tmp_path, eight())
    code, out, _ = metricweight("verify", path)
    assert code == 0
    assert out.splitlines()[-1] == "sound: nothing to be said of 8 pictures."
    assert (tmp_path / "set.csv.findings.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_faults_make_the_exit_code_1_and_json_is_nothing_else(tmp_path, metricweight):
    path = a_set(tmp_path, eight(**{"3.jpg": b"", "5.jpg": a_picture(5).convert("L")}))
    code, out, _ = metricweight("verify", path, "--json")
    assert code == 1
    facts = json.loads(out)
    assert (facts["faults"], facts["warnings"], facts["notes"]) == (1, 0, 1)
    assert facts["verdict"] == "1 fault, 1 note: mend the faults before training."
    assert facts["kinds"]["damaged"]["count"] == 1
    code, out, _ = metricweight("verify", path)
    assert code == 1
    assert "damaged, such as 3.jpg: the file is empty" in out


def test_a_folder_of_class_folders_is_verified_too(tmp_path, monkeypatch):
    for i in range(6):
        save(a_picture(i), tmp_path / "birds" / f"class{i // 2}" / f"{i}.jpg")
    monkeypatch.chdir(tmp_path)
    done = verify(tmp_path / "birds")
    assert done.faults == 0
    assert done.out.resolve() == tmp_path / "birds.findings.csv"
    (tmp_path / "birds" / "class0" / "0.jpg").write_bytes(b"")
    assert told(verify(tmp_path / "birds"), "damaged")["class0/0.jpg"]["row"] == ""


# ---- each picture by itself


@pytest.mark.parametrize(
    ("content", "kind", "detail"),
    [
        (encoded(a_picture())[:-300], "damaged", "truncated"),
        (encoded(a_picture(), "PNG")[:-300], "damaged", ""),
        (encoded(a_picture())[:20], "damaged", "begins as a picture does"),
        (b"", "damaged", "empty"),
        (b"<html>404 not found</html>", "not_a_picture", "b'<html>404"),
        (encoded(a_picture(), "GIF"), "form", "GIF, its name ends with '.jpg'"),
        (encoded(a_picture().convert("L")), "mode", "L"),
        (encoded(a_picture().convert("CMYK")), "mode", "CMYK"),
        (encoded(a_picture().quantize(16), "PNG"), "mode", "P"),
        (encoded(a_picture().convert("RGBA"), "PNG"), "mode", "RGBA"),
        (encoded(a_picture(size=(64, 7))), "tiny", "64 x 7"),
        (encoded(a_picture(size=(170, 20))), "long", "170 x 20"),
        (encoded(Image.new("RGB", (40, 40), "red")), "flat", "40 x 40"),
        (encoded(a_picture(), "GIF", save_all=True, append_images=[a_picture(1)]), "several", "GIF"),
    ],
)
def test_what_is_odd_about_a_picture_is_told_by_its_own_name(tmp_path, content, kind, detail):
    done = verify(a_set(tmp_path, eight(**{"2.jpg": content})))
    assert list(told(done, kind)) == ["2.jpg"]
    assert detail in told(done, kind)["2.jpg"]["detail"]
    assert told(done, kind)["2.jpg"]["row"] == "4"  # below the header and two others
    assert done.faults == (KINDS[kind].severity == "fault")


def test_an_exif_rotation_is_told_and_the_box_is_in_the_picture_that_is_turned(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    files = eight(**{"2.jpg": encoded(a_picture(size=(100, 40)), exif=turned)})  # 40 x 100 when upright
    boxes = {"x1": [0] * 8, "y1": [0] * 8, "x2": [40] * 8, "y2": [60, 60, 100, 60, 60, 60, 60, 60]}
    done = verify(a_set(tmp_path, files, **boxes))
    assert kinds(done) == {"turned"}
    assert "orientation is 6" in told(done, "turned")["2.jpg"]["detail"]


def test_a_box_that_leaves_its_picture_by_more_than_a_pixel_is_a_fault(tmp_path):
    boxes = {
        "x1": [0, -1, -1.5, 0, 0, "", 0, 0],
        "y1": [0, 0, 0, 0, 0, "", 0, 0],
        "x2": [64, 65, 64, 65.5, 64, "", 64, 64],
        "y2": [64, 65, 64, 64, 66, "", 64, 64],
    }
    done = verify(a_set(tmp_path, eight(), **boxes))
    assert list(told(done, "outside")) == ["2.jpg", "3.jpg", "4.jpg"]
    assert told(done, "outside")["3.jpg"]["detail"] == "box 0, 0 to 65.5, 64 in 64 x 64 pixels"


def test_a_picture_that_is_missing_is_told_with_the_name_that_differs_in_case_alone(tmp_path):
    path = a_set(tmp_path, {f"a/{i}.jpg": a_picture(i) for i in range(8)})
    (tmp_path / "a" / "3.jpg").rename(tmp_path / "a" / "3.JPG")
    (tmp_path / "a" / "4.jpg").unlink()
    (tmp_path / "a" / "5.jpg").unlink()
    (tmp_path / "a" / "5.jpg").mkdir()
    done = verify(path)
    assert list(told(done, "missing")) == ["a/3.jpg", "a/4.jpg", "a/5.jpg"]
    assert "there is 3.JPG, which differs in case" in told(done, "missing")["a/3.jpg"]["detail"]
    (tmp_path / "a").rename(tmp_path / "A")
    kept = (tmp_path / "set.csv.findings.csv.looks").read_bytes()
    with pytest.raises(InputError, match=r"none of the 8 pictures, such as a/0.jpg, lies below .*--root"):
        verify(path)
    assert (tmp_path / "set.csv.findings.csv.looks").read_bytes() == kept


def test_no_flipped_byte_of_a_png_changes_its_pixels_unseen(tmp_path):
    whole = encoded(a_picture(size=(16, 16)), "PNG")
    pixels = np.asarray(a_picture(size=(16, 16)))
    file, damaged = tmp_path / "a.png", 0
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 4
        file.write_bytes(bytes(broken))
        if looks.look(str(file)).fault:
            damaged += 1
        else:
            assert np.array_equal(np.asarray(Image.open(file)), pixels)
    assert damaged > 0.95 * len(whole)


def test_a_folder_that_differs_in_case_alone_is_missing_though_the_disk_would_not_care(tmp_path, monkeypatch):
    path = a_set(tmp_path, {f"a/b/{i}.jpg": a_picture(i) for i in range(8)})
    names = {tmp_path: ["A"], tmp_path / "a": ["b"]}
    monkeypatch.setattr(os, "listdir", names.get)
    assert len(told(verify(path), "missing")) == 8
    names[tmp_path] = ["a"]
    assert not told(verify(path), "missing")


def test_pictures_in_an_array_are_verified_one_by_one(tmp_path):
    pixels = np.stack([np.asarray(a_picture(i)) for i in range(8)])
    pixels[6] = pixels[1]
    np.save(tmp_path / "all.npy", pixels)
    rows = {"path": ["all.npy"] * 9, "member": [*range(8), 8], "label": [0, 0, 1, 1, 2, 2, 3, 3, 3]}
    table = pd.DataFrame({**rows, "split": ["train"] * 4 + ["test"] * 5})
    table.to_csv(tmp_path / "set.csv", index=False)
    done = verify(tmp_path / "set.csv")
    assert kinds(done) == {"damaged", "leak"}
    assert told(done, "damaged")["all.npy"]["member"] == "8"
    leak = told(done, "leak")["all.npy"]
    assert (leak["member"], leak["other_member"]) == ("6", "1")
    (tmp_path / "all.npy").write_bytes((tmp_path / "all.npy").read_bytes()[:-64])
    assert verify(tmp_path / "set.csv").faults == 9


# ---- twice


def test_where_the_same_file_stands_twice_is_told_apart(tmp_path):
    """label 0: 0 1, label 1: 2 3 in train; label 2: 4 5, label 3: 6 7 in test"""
    same = {"1.jpg": a_picture(0), "3.jpg": a_picture(4), "6.jpg": a_picture(5)}
    done = verify(a_set(tmp_path, eight(**same)))
    assert kinds(done) == {"double", "leak", "two_labels"}
    for kind, one, other in (
        ("double", "1.jpg", "0.jpg"),
        ("leak", "4.jpg", "3.jpg"),
        ("two_labels", "6.jpg", "5.jpg"),
    ):
        assert {path: row["other"] for path, row in told(done, kind).items()} == {one: other}
    assert told(done, "leak")["4.jpg"]["detail"] == "label 2 in test; the other is label 1 in train"
    assert (done.count("fault"), done.count("warning"), done.count("note")) == (0, 2, 1)


@pytest.mark.parametrize(
    ("copy", "found"),
    [
        (lambda picture: encoded(picture, quality=60), True),
        (lambda picture: encoded(picture, "BMP"), True),
        (lambda picture: picture.resize((48, 48), Image.Resampling.BICUBIC), True),
        (lambda picture: picture.point(lambda value: min(255, int(value * 1.04))), True),
        (lambda picture: ImageOps.mirror(picture), False),
        (lambda picture: picture.transpose(Image.Transpose.ROTATE_90), False),
        (lambda picture: Image.merge("RGB", picture.split()[::-1]), False),  # the same thing in another colour
    ],
)
def test_copies_that_were_encoded_anew_or_scaled_look_the_same_but_mirrored_ones_do_not(tmp_path, copy, found):
    original = product(3, 1, (96, 96))
    done = verify(a_set(tmp_path, eight(**{"0.jpg": encoded(original, "PNG"), "5.jpg": copy(original)})))
    expected = {"5.jpg": "0.jpg"} if found else {}
    assert {path: row["other"] for path, row in told(done, "near_leak").items()} == expected
    assert not kinds(done) & {"leak", "near_double", "near_two_labels"}


def test_different_views_of_one_thing_are_not_the_same_picture():
    seen = [looks.appearance(product(thing, view)) for thing in range(20) for view in range(5)]
    pattern = np.array([pattern for pattern, _, _ in seen], dtype=np.uint64)
    colours = np.array([list(colours) for _, colours, _ in seen], dtype=np.uint8)
    places = doubles.Places(np.zeros(100, int), np.arange(100) // 5, np.full(100, True), np.full(100, -1))
    found, crowded = doubles.near(np.arange(100, dtype=np.uint64), pattern, colours, places)
    assert crowded == 0
    assert [len(rows) for rows, _ in found.values()] == [0, 0, 0]


def test_pictures_of_one_colour_are_not_said_to_look_the_same(tmp_path):
    flat = {f"{i}.png": encoded(Image.new("RGB", (40, 40), (200, 10, 10 + i)), "PNG") for i in range(8)}
    done = verify(a_set(tmp_path, flat))
    assert kinds(done) == {"flat"}
    assert len(told(done, "flat")) == 8


def test_frames_of_one_tracklet_are_not_compared_but_those_of_two_are(tmp_path):
    one = product(1, 1)
    files = {f"{i}.jpg": encoded(one, quality=50 + 5 * i) for i in range(6)}
    columns = {"label": [1] * 6, "split": ["train"] * 6, "tracklet": [0, 0, 0, 1, 1, 1], "frame": range(6)}
    done = verify(a_set(tmp_path, files, **columns))
    assert kinds(done) == {"near_double"}
    assert sorted(told(done, "near_double")) == ["3.jpg", "4.jpg", "5.jpg"]
    done = verify(a_set(tmp_path, files, **(columns | {"tracklet": [0] * 6})), again=True)
    assert kinds(done) == set()


def test_each_of_several_that_look_the_same_is_told_of(tmp_path):
    """0 and 1 have the same pixels, and 4 and 5, which look like them: each with the nearest in another split."""
    one = product(1, 1)
    files = {"0.jpg": encoded(one, "PNG"), "1.jpg": encoded(one, "BMP")}
    other = one.point(lambda value: min(255, int(value * 1.04)))
    files |= {"4.jpg": encoded(other, "PNG"), "5.jpg": encoded(other, "BMP")}
    done = verify(a_set(tmp_path, eight(**files)))
    assert sorted(told(done, "near_leak")) == ["4.jpg", "5.jpg"]
    assert {path: row["other"] for path, row in told(done, "near_double").items()} == {
        "1.jpg": "0.jpg",
        "5.jpg": "4.jpg",
    }


def test_a_frame_is_told_of_when_it_looks_like_an_earlier_one_that_the_first_of_its_own_tracklet_precedes():
    pattern = np.array([0b1111, 0b0011, 0b1111], dtype=np.uint64)
    places = doubles.Places(np.zeros(3, int), np.zeros(3, int), np.full(3, True), np.array([0, 1, 0]))
    found, _ = doubles.near(np.arange(3, dtype=np.uint64), pattern, np.zeros((3, 48), np.uint8), places)
    assert [x.tolist() for x in found["double"]] == [[1, 2], [0, 1]]


def test_what_is_the_same_is_not_told_again_as_looking_the_same(tmp_path):
    one = product(1, 1)
    files = {"0.jpg": encoded(one), "1.jpg": encoded(one, quality=60), "5.jpg": encoded(one)}
    done = verify(a_set(tmp_path, eight(**files)))
    assert told(done, "leak")["5.jpg"]["other"] == "0.jpg"
    assert not told(done, "near_leak")
    assert list(told(done, "near_double")) == ["1.jpg"]


def places_of(random, count):
    return doubles.Places(
        random.integers(0, 2, count) * 2, random.integers(0, 3, count), random.random(count) < 0.8,
        random.integers(-1, 3, count),
    )  # fmt: skip


def kind_of(places, one, other):
    if places.split[one] != places.split[other]:
        return "leak"
    unlike = places.label[one] != places.label[other] and places.named[one] and places.named[other]
    return "two_labels" if unlike else "double"


@pytest.mark.parametrize("crowded_places", [True, False])
def test_no_pair_that_looks_the_same_is_overlooked(crowded_places):
    """In crowded places, one of several with the very same pattern stands for all, so the other it is told to be like
    looks the same, but need not be the nearest."""
    random = np.random.default_rng(5)
    count = 400
    seeds = random.integers(0, 2**63, 12, dtype=np.uint64)
    pattern = seeds[random.integers(0, 12, count)]
    for _ in range(3):  # pairs are 0 to 6 bits apart, in any places
        pattern = pattern ^ (np.uint64(1) << random.integers(0, 64, count).astype(np.uint64))
    shade = np.where(np.bitwise_count(pattern) % 5 == 0, 100, 7 * (np.bitwise_count(pattern) % 3))
    colours = np.repeat(shade[:, None], 48, axis=1).astype(np.uint8)
    places, digest = places_of(random, count), random.integers(0, 300, count).astype(np.uint64)
    if not crowded_places:
        places = replace(places, label=places.label * count + np.arange(count), tracklet=np.full(count, -1))
        places.label[::7] = 0
        pattern[::7] = seeds[0] ^ np.arange(1, 59, dtype=np.uint64)[: len(pattern[::7])]
    found, crowded = doubles.near(digest, pattern, colours, places)
    assert crowded == 0
    nearest = {kind: {} for kind in doubles.KINDS}
    for b in range(count):
        for a in range(b):
            bits = bin(int(pattern[a] ^ pattern[b])).count("1")
            shade = np.abs(colours[a].astype(int) - colours[b].astype(int)).max()
            together = places.tracklet[a] == places.tracklet[b] >= 0
            if bits <= 4 and shade <= 16 and digest[a] != digest[b] and not together:
                row = a if places.split[a] > places.split[b] else b
                known = nearest[kind_of(places, a, b)]
                known[row] = min(bits, known.get(row, 64))
    assert all(len(known) > 20 for known in nearest.values())
    for kind, (rows, others) in found.items():
        assert rows.tolist() == sorted(nearest[kind]), kind
        for row, other in zip(rows.tolist(), others.tolist(), strict=True):
            bits = bin(int(pattern[row] ^ pattern[other])).count("1")
            assert nearest[kind][row] <= bits <= 4 if crowded_places else nearest[kind][row] == bits
            assert kind_of(places, row, other) == kind
            assert digest[row] != digest[other]


def test_files_that_are_the_same_are_found_as_by_comparing_each_with_each():
    random = np.random.default_rng(6)
    count = 300
    places, digest = places_of(random, count), random.integers(0, 60, count).astype(np.uint64)
    found = doubles.exact(digest, places)
    groups = range(60)
    for kind, (rows, others) in found.items():
        assert (digest[rows] == digest[others]).all()
        assert len(set(rows.tolist())) == len(rows)
        for one, other in zip(rows, others, strict=True):
            if kind == "double":
                assert (places.split[one], places.label[one]) == (places.split[other], places.label[other])
                assert other < one
            else:
                assert kind_of(places, one, other) == kind
    for group in groups:
        mine = np.flatnonzero(digest == group)
        told = {kind: set(rows.tolist()) & set(mine.tolist()) for kind, (rows, _) in found.items()}
        cells = {(places.split[i], places.label[i]) for i in mine}
        assert len(told["double"]) == len(mine) - len(cells)
        splits = [places.split[i] for i in mine]
        assert len(told["leak"]) == sum(split > min(splits) for split in splits)
        named = [[places.label[i] for i in mine if places.split[i] == split and places.named[i]] for split in (0, 2)]
        assert len(told["two_labels"]) == sum(label > min(labels) for labels in named for label in labels)


def test_a_crowd_that_looks_the_same_is_counted_and_takes_no_more_memory(monkeypatch):
    monkeypatch.setattr(doubles, "MOST", 10)
    count = 300
    places = doubles.Places(np.zeros(count, int), np.arange(count), np.full(count, True), np.full(count, -1))
    pattern, colours = np.full(count, 12345, dtype=np.uint64), np.zeros((count, 48), dtype=np.uint8)
    found, crowded = doubles.near(np.arange(count, dtype=np.uint64), pattern, colours, places)
    assert crowded == count - 10
    assert found["two_labels"][0].tolist() == list(range(1, count))


# ---- labels, queries, tracklets


def test_the_same_labels_in_both_splits_are_called_the_classification_split(tmp_path):
    done = verify(a_set(tmp_path, eight(), label=[0, 0, 1, 1] * 2, split=["train"] * 4 + ["test"] * 4))
    assert [row["kind"] for row in findings(done)] == ["closed_set"]
    assert "this is the closed-set classification split, not the zero-shot split" in findings(done)[0]["detail"]
    assert done.faults == 0
    assert done.count("warning") == 1


def test_labels_that_are_in_two_splits_while_others_are_not_are_faults(tmp_path):
    done = verify(a_set(tmp_path, eight(), label=[0, 0, 1, 1, 1, 1, 2, 2], split=["train"] * 4 + ["test"] * 4))
    assert kinds(done) == {"shared_label"}
    row = told(done, "shared_label")["4.jpg"]
    assert row["other"] == "2.jpg"
    assert row["detail"] == "label 1 is in train and in test, as 1 of 2 of test are"


def test_junk_and_distractors_are_no_labels_that_splits_share(tmp_path):
    columns = {
        "label": [1, 1, -1, 0, 2, 2, -1, 0],
        "split": ["train"] * 4 + ["test"] * 4,
        "is_junk": [label == -1 for label in [1, 1, -1, 0, 2, 2, -1, 0]],
        "is_distractor": [label == 0 for label in [1, 1, -1, 0, 2, 2, -1, 0]],
    }
    assert kinds(verify(a_set(tmp_path, eight(), **columns))) == set()


def test_labels_with_one_picture_and_queries_without_a_match_are_noted(tmp_path):
    done = verify(a_set(tmp_path, eight(), label=[0, 0, 1, 2, 3, 3, 4, 5], split=["train"] * 4 + ["test"] * 4))
    assert sorted(told(done, "single")) == ["2.jpg", "3.jpg", "6.jpg", "7.jpg"]
    assert told(done, "single")["3.jpg"]["detail"] == "the only one of label 2 in train"
    assert sorted(told(done, "no_match")) == ["6.jpg", "7.jpg"]
    assert done.faults == 0


def test_a_query_whose_label_is_in_the_gallery_from_its_own_camera_alone_is_noted(tmp_path):
    columns = {
        "label": [1, 1, 2, 2, 3, 3, 4, 5], "split": ["train"] * 2 + ["test"] * 6, "camera": [1, 2, 1, 2, 1, 1, 1, 2],
        "is_query": [False, False, True, False, True, False, True, False],
        "is_gallery": [False, False, False, True, False, True, False, True],
    }  # fmt: skip
    done = verify(a_set(tmp_path, eight(), **columns))
    assert list(told(done, "one_camera")) == ["4.jpg"]
    assert list(told(done, "no_match")) == ["6.jpg"]


def test_a_tracklet_without_a_match_is_noted_once(tmp_path):
    columns = {
        "label": [1, 1, 1, 1, 2, 2, 3, 3], "split": ["train"] * 4 + ["test"] * 4,
        "tracklet": [0, 0, 0, 0, 1, 1, 2, 3], "frame": [0, 1, 2, 3, 0, 1, 0, 0],
    }  # fmt: skip
    done = verify(a_set(tmp_path, eight(), **columns))
    assert list(told(done, "no_match")) == ["4.jpg"]  # its own frames are no match; 3 has two tracklets


def test_tracklets_that_are_mixed_are_faults_and_those_of_one_frame_notes(tmp_path):
    columns = {
        "label": [1, 1, 1, 2, 3, 3, 3, 3], "split": ["train"] * 4 + ["test"] * 4, "camera": [1, 1, 2, 1, 1, 1, 1, 1],
        "tracklet": [0, 0, 0, 0, 1, 1, 2, 3], "frame": [0, 1, 2, 3, 0, 1, 0, 0],
    }  # fmt: skip
    done = verify(a_set(tmp_path, eight(), **columns))
    table = [(row["path"], row["row"], row["detail"]) for row in findings(done) if row["kind"] == "table"]
    assert table == [
        ("3.jpg", "5", "tracklet 0 has label 2 here and 1 above."),
        ("2.jpg", "4", "tracklet 0 has camera 2 here and 1 above."),
    ]
    assert sorted(told(done, "short_tracklet")) == ["6.jpg", "7.jpg"]


@pytest.fixture
def mars_raw(tmp_path):
    write_replica("mars", tmp_path / "raw")
    prepare("mars", tmp_path / "raw", tmp_path / "mars.csv", Options(pictures=tmp_path))
    return tmp_path / "mars.csv"


def test_track_tables_of_mars_that_contradict_their_lists_are_a_fault_that_names_the_line(mars_raw, tmp_path):
    listed = tmp_path / "raw" / "info" / "train_name.txt"
    names = listed.read_bytes().split(b"\r\n")
    names[2], names[-3] = names[-3], names[2]  # swapped
    listed.write_bytes(b"\r\n".join(names))
    done = verify(mars_raw)
    tracks = [row["detail"] for row in findings(done) if row["kind"] == "tracks"]
    assert len(tracks) == 1
    assert f"{listed}, line 3: " in tracks[0]
    assert done.faults == 1


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [("camera", 6, "camera"), ("label", 9, "label"), ("frame", 999, "frame"), ("tracklet", 9999, "")],
)
def test_a_manifest_that_says_otherwise_than_the_lists_of_mars_is_a_fault(mars_raw, column, value, kind):
    made = manifest.read(mars_raw)
    whole = made.table["tracklet"] == made.table["tracklet"].iloc[0]
    rows = [1] if column in ("frame", "tracklet") else np.flatnonzero(whole)
    table = made.table.copy()
    table.loc[rows, column] = value
    table.loc[rows, "clean_label"] = table["label"]
    changed = Manifest(table, made.root, made.about)
    manifest.write(changed, mars_raw, overwrite=True)
    tracks = [row for row in findings(verify(mars_raw)) if row["kind"] == "tracks"]
    assert [row["path"] for row in tracks] == table["path"].iloc[rows].tolist()
    if kind:
        assert tracks[0]["detail"] == f"its {kind} is {made.table[column].iloc[rows[0]]} in the lists, and {value} here"
    else:
        assert tracks[0]["detail"] == "it is in one tracklet with the other in the lists, but not here"


def test_findings_are_not_written_below_a_file(tmp_path):
    path = a_set(tmp_path, eight())
    with pytest.raises(InputError, match="is a file"):
        verify(path, out=path / "findings.csv")


def test_the_tables_of_mars_are_compared_where_they_lie_in_a_clone_and_not_with_other_data(tmp_path):
    write_replica("mars", tmp_path / "MARS")
    (tmp_path / "clone").mkdir()
    (tmp_path / "MARS" / "info").rename(tmp_path / "clone" / "info")
    (tmp_path / "MARS" / "replica.json").rename(tmp_path / "replica.json")
    made = prepare("mars", tmp_path, tmp_path / "set.csv", Options())
    table = made.table.copy()
    table.loc[table["tracklet"] == 0, "camera"] = 6 if table["camera"].iloc[0] != 6 else 5
    manifest.write(Manifest(table, made.root, made.about), tmp_path / "set.csv", overwrite=True)
    assert "tracks" in kinds(verify(tmp_path / "set.csv"))
    other = Manifest(table, made.root, replace(made.about, name="others"))
    manifest.write(other, tmp_path / "other.csv")
    assert "tracks" not in kinds(verify(tmp_path / "other.csv"))


def test_labels_that_noise_touched_are_not_compared_with_the_lists_of_mars(mars_raw):
    made = manifest.read(mars_raw)
    table = made.table.copy()
    rows = table["tracklet"] == table["tracklet"].iloc[0]
    table.loc[rows, "label"] = table["label"][table["label"] > table["label"].iloc[0]].iloc[0]
    table.loc[rows, "is_noisy"] = True
    manifest.write(Manifest(table, made.root, made.about), mars_raw, overwrite=True)
    assert "tracks" not in kinds(verify(mars_raw))


# ---- the table


def test_every_row_that_is_wrong_is_a_finding_and_the_pictures_are_looked_at_all_the_same(tmp_path):
    columns = {"split": ["train", "tain", "train", "train", "test", "tset", "test", "test"]}
    path = a_set(tmp_path, eight(**{"7.jpg": b""}), **columns)
    path.write_text(path.read_text() + "0.jpg,0,train\n")
    done = verify(path)
    table = [(row["path"], row["row"], row["detail"]) for row in findings(done) if row["kind"] == "table"]
    assert table[0] == ("0.jpg", "10", "0.jpg is there already, above.")
    assert [place[:2] for place in table[1:]] == [("1.jpg", "3"), ("5.jpg", "7")]
    assert "split 'tain' is not one of" in table[1][2]
    assert "as in row 3: split 'tain'" in table[2][2]
    assert "7.jpg" in told(done, "damaged")
    assert done.pictures == 8


def test_a_table_that_was_cut_short_is_told_with_both_numbers(tmp_path):
    path = a_set(tmp_path, eight())
    manifest.write(Manifest(manifest.read(path).table, tmp_path, About("birds")), path, overwrite=True)
    assert kinds(verify(path)) == set()
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    done = verify(path)
    assert kinds(done) == {"changed_table", "counts", "single", "no_match"}
    assert [row["detail"] for row in findings(done) if row["kind"] == "counts"] == ["test has 3 images, 4 expected"]


def test_what_cannot_be_verified_is_said_in_a_sentence(tmp_path):
    path = a_set(tmp_path, eight())
    with pytest.raises(InputError, match="not there; give the folder with --root"):
        verify(path, root=tmp_path / "none")
    with pytest.raises(InputError, match="not a file of findings; give another --out"):
        verify(path, out=path)
    with pytest.raises(InputError, match="at least 1, got 0"):
        verify(path, processes=0)
    assert path.read_text().startswith("path,label,split")


# ---- again


def test_a_second_run_looks_at_nothing_that_it_knows(tmp_path, monkeypatch):
    path = a_set(tmp_path, eight(**{"3.jpg": b"", "5.jpg": a_picture(1)}))
    first = verify(path)
    before = first.out.read_bytes()
    looked = []
    see = looks.look
    monkeypatch.setattr(looks, "look", lambda file, member: looked.append(file) or see(file, member))
    second = verify(path)
    assert (first.known, second.known, looked) == (0, 8, [])
    assert second.out.read_bytes() == before
    assert "8 pictures, 8 of them known from before" in text(second)
    save(a_picture(30), tmp_path / "2.jpg")
    third = verify(path)
    assert (third.known, [os.path.basename(file) for file in looked]) == (7, ["2.jpg"])
    assert verify(path, again=True).known == 0
    assert len(looked) == 9


def test_lines_that_are_torn_or_damaged_are_passed_over(tmp_path):
    path = a_set(tmp_path, eight(**{"3.jpg": b""}))
    before = verify(path).out.read_bytes()
    kept = tmp_path / "set.csv.findings.csv.looks"
    lines = kept.read_bytes().splitlines(keepends=True)
    records = [i for i, line in enumerate(lines) if b".jpg" in line]
    for cut in (5, 40, len(lines[records[-1]]) - 2):
        broken = lines[: records[-1] + 1]
        broken[-1] = broken[-1][:cut]
        broken[records[2]] = b'["2.jpg", -1, "x"]\n'
        broken[records[4]] = b"\xff\x00\n"
        kept.write_bytes(b"".join(broken))
        done = verify(path)
        assert done.known == 8 - 3
        assert done.out.read_bytes() == before
        assert verify(path).known == 8


def test_what_is_known_of_another_folder_is_not_used(tmp_path):
    path = a_set(tmp_path, eight())
    verify(path)
    (tmp_path / "other").mkdir()
    for i in range(8):
        state = (tmp_path / f"{i}.jpg").stat()
        (tmp_path / "other" / f"{i}.jpg").write_bytes(bytes(state.st_size))
        os.utime(tmp_path / "other" / f"{i}.jpg", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert verify(path, root=tmp_path / "other").faults == 8


def test_a_changed_byte_and_swapped_files_are_seen_by_the_next_run(tmp_path):
    path = a_set(tmp_path, eight())
    verify(path)
    whole = (tmp_path / "1.jpg").read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1  # still a picture, to all decoders
    (tmp_path / "1.jpg").write_bytes(bytes(broken))
    a, b = (tmp_path / "4.jpg").read_bytes(), (tmp_path / "6.jpg").read_bytes()
    (tmp_path / "4.jpg").write_bytes(b)
    (tmp_path / "6.jpg").write_bytes(a)
    os.utime(tmp_path / "7.jpg")  # touched, and the same
    done = verify(path)
    assert sorted(told(done, "changed")) == ["1.jpg", "4.jpg", "6.jpg"]
    assert done.faults == 0
    assert kinds(verify(path)) == set()  # since it was last verified, nothing changed


def test_a_change_that_keeps_size_and_time_is_seen_when_all_is_looked_at_again(tmp_path):
    path = a_set(tmp_path, eight())
    verify(path)
    state = (tmp_path / "1.jpg").stat()
    broken = bytearray((tmp_path / "1.jpg").read_bytes())
    broken[len(broken) // 2] ^= 1
    (tmp_path / "1.jpg").write_bytes(bytes(broken))
    os.utime(tmp_path / "1.jpg", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert kinds(verify(path)) == set()
    assert list(told(verify(path, again=True), "changed")) == ["1.jpg"]


# ---- processes


def test_several_processes_find_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "FEW", 0)
    monkeypatch.setattr(looks, "TOGETHER", 3)
    files = {f"{i}.jpg": a_picture(i) for i in range(40)} | {"7.jpg": b"", "9.jpg": a_picture(30), "11.jpg": b"text"}
    path = a_set(tmp_path, files)
    one = verify(path, out=tmp_path / "one.csv", processes=1)
    two = verify(path, out=tmp_path / "two.csv", processes=2)
    assert one.out.read_bytes() == two.out.read_bytes()
    assert len(findings(two)) >= 3


def test_a_process_that_looks_at_pictures_loads_nothing_heavy():
    code = (
        "import sys, metricweight._data_tools.looks\n"
        "print([name for name in ('torch', 'pandas', 'scipy', 'rich', 'typer') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(wanted, seconds=30):
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_a_run_that_was_killed_goes_on_and_finds_what_a_whole_one_finds(tmp_path):
    large = [encoded(a_picture(i).resize((700, 700))) for i in range(10)]
    files = {f"{i}.jpg": large[i % 10] + bytes([i % 251, i // 251]) for i in range(320)}
    files |= {"100.jpg": b"", "300.jpg": large[0][:-500], "319.jpg": large[3]}
    path = a_set(tmp_path, files)
    words = [sys.executable, "-m", "metricweight", "verify", str(path), "--processes", "2"]
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = tmp_path / "set.csv.findings.csv.looks"
    soon(lambda: kept.exists() and kept.read_bytes().count(b".jpg") > 60)
    helpers = children(run.pid)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert len(helpers) >= 2
    soon(lambda: not any(map(alive, helpers)))  # they end with it
    assert not (tmp_path / "set.csv.findings.csv").exists()
    looked = kept.read_bytes().count(b".jpg")
    assert looked < 320
    done = verify(path, processes=1)
    assert done.known >= 60
    whole = verify(path, out=tmp_path / "whole.csv", processes=1)
    assert whole.known == 0
    assert done.out.read_bytes() == whole.out.read_bytes()
    assert {"100.jpg", "300.jpg"} == set(told(done, "damaged"))


def test_ctrl_c_keeps_what_was_seen_and_says_how_to_go_on(tmp_path, monkeypatch, metricweight):
    path = a_set(tmp_path, eight())
    see = looks.look

    def stopped_at_5(file, member):
        if file.endswith("5.jpg"):
            raise KeyboardInterrupt
        return see(file, member)

    monkeypatch.setattr(looks, "TOGETHER", 1)
    monkeypatch.setattr(looks, "look", stopped_at_5)
    code, _, err = metricweight("verify", path)
    assert code == 130
    assert err == "stopped: 5 of 8 pictures are known; the same command goes on.\n"
    monkeypatch.setattr(looks, "look", see)
    assert verify(path).known == 5


def test_json_and_text_tell_of_the_same_findings(tmp_path):
    done = verify(a_set(tmp_path, eight(**{"3.jpg": b"", "5.jpg": a_picture(0)})))
    counted = pd.Series([row["kind"] for row in findings(done)]).value_counts().to_dict()
    assert {kind: facts["count"] for kind, facts in json.loads(as_json(done))["kinds"].items()} == counted
    assert all(kind in text(done) for kind in counted)
