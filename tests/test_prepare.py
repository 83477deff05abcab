"""Each converter on each layout of its replica: what it finds is what the replica was made from."""

import json
import os
import re

import numpy as np
import pandas as pd
import pytest
from metricweight._data_tools.prepare import prepare, write_replica
from metricweight._data_tools.source import Options, lines, mat
from metricweight._data_tools.table import DATASETS

from metricweight.checks import InputError
from metricweight.data import manifest

FORMS = [(name, layout) for name, row in DATASETS.items() if row.replica for layout in row.replica.layouts]
FIXED = {"cifar10": 10, "cifar100": 100, "clothing1m": 14}  # these are trained and tested on the same labels


@pytest.mark.parametrize(("name", "layout"), FORMS)
def test_what_is_prepared_from_a_replica_is_what_it_was_made_from(tmp_path, name, layout):
    truth = manifest.complete(write_replica(name, tmp_path / "raw", layout), str, "truth")
    made = prepare(name, tmp_path / "raw", tmp_path / "made.csv", Options(pictures=tmp_path))
    found = made.table.set_index(["path", "member"]).sort_index()
    expected = truth.set_index(["path", "member"]).sort_index()
    pd.testing.assert_frame_equal(found, expected, check_categorical=False, check_dtype=False)
    for path in made.table["path"].unique():
        assert (made.root / path).is_file()


@pytest.mark.parametrize(("name", "layout"), FORMS)
def test_too_little_is_an_error_with_both_numbers_and_allowed_when_asked(tmp_path, name, layout):
    write_replica(name, tmp_path / "raw", layout)
    (tmp_path / "raw" / "replica.json").unlink()  # now it is the real one, with far too little in it
    counts = DATASETS[name].counts
    part, numbers = next(iter(counts.items()))
    what, number = next(iter(numbers.items()))
    with pytest.raises(InputError, match=rf"{part} has [\d,]+ {what}, {number:,} expected.*--allow-counts"):
        prepare(name, tmp_path / "raw", tmp_path / "made.csv", Options(pictures=tmp_path))
    assert not (tmp_path / "made.csv").exists()
    prepare(name, tmp_path / "raw", tmp_path / "made.csv", Options(pictures=tmp_path), allow_counts=True)
    history = json.loads((tmp_path / "made.csv.json").read_text())["history"]
    assert any("expected; taken as it is" in sentence for sentence in history)


@pytest.mark.parametrize("name", [name for name, row in DATASETS.items() if row.replica])
def test_a_folder_that_holds_something_else_is_refused_with_what_it_holds(tmp_path, name):
    (tmp_path / "holiday.txt").write_text("x")
    with pytest.raises(InputError, match=r"does not look like .*holiday\.txt"):
        prepare(name, tmp_path, tmp_path / "made.csv", Options(pictures=tmp_path))
    with pytest.raises(InputError, match="not there"):
        prepare(name, tmp_path / "none", tmp_path / "made.csv", Options(pictures=tmp_path))


@pytest.mark.parametrize("name", [name for name, row in DATASETS.items() if row.replica])
def test_a_replica_of_twice_the_size_has_twice_the_labels_to_train_on_or_pictures_where_labels_are_fixed(
    tmp_path, name
):
    once, twice = (write_replica(name, tmp_path / str(size), size=size) for size in (1, 2))
    labels = [rows["label"][(rows["split"] == "train").to_numpy()] for rows in (once, twice)]
    if name in FIXED:
        assert [found.nunique() for found in labels] == [FIXED[name]] * 2
        assert len(labels[1]) == 2 * len(labels[0])
    else:
        assert labels[1].nunique() == 2 * labels[0].nunique()


@pytest.mark.parametrize("name", [name for name, row in DATASETS.items() if row.replica])
def test_a_replica_is_the_same_each_time(tmp_path, name):
    contents = []
    for folder in ("a", "b"):
        write_replica(name, tmp_path / folder)
        files = sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file())
        contents.append([(path.relative_to(tmp_path / folder), path.read_bytes()) for path in files])
    names = [[name for name, _ in files] for files in contents]
    assert names[0] == names[1]
    changed = [str(one) for (one, first), (_, second) in zip(*contents, strict=True) if first != second]
    assert not changed


def test_a_known_file_that_differs_is_a_note_with_both_checksums(tmp_path):
    write_replica("cub200", tmp_path / "raw")
    (tmp_path / "raw" / "replica.json").unlink()
    (tmp_path / "raw" / "CUB_200_2011.tgz").write_bytes(b"damaged")
    made = prepare("cub200", tmp_path / "raw", tmp_path / "made.csv", Options(), allow_counts=True)
    notes = "\n".join(made.about.history)
    assert "97eceeb196236b17998738112f37df78" in notes
    assert "ca9c491ac66b2c62500882e93f3719a8" not in notes
    assert {key: value for key, value in made.about.sources[-1].items() if key != "md5"} == {
        "name": "CUB_200_2011.tgz",
        "bytes": 7,
    }


def test_lists_and_pictures_that_are_known_and_differ_are_notes_but_not_in_a_replica(tmp_path):
    write_replica("cars196", tmp_path / "raw", "car_ims")
    replica = prepare("cars196", tmp_path / "raw", tmp_path / "replica.csv", Options())
    assert "checksum" not in "\n".join(replica.about.history)
    (tmp_path / "raw" / "replica.json").unlink()
    (tmp_path / "car_ims.tgz").write_bytes(b"beside the folder")
    made = prepare("cars196", tmp_path / "raw", tmp_path / "made.csv", Options(), allow_counts=True)
    doubted = [sentence.split(" has the checksum ")[0] for sentence in made.about.history if "checksum" in sentence]
    found = {tmp_path / "car_ims.tgz"}
    found |= {tmp_path / "raw" / name for name in ("cars_annos.mat", "car_ims/000001.jpg", "car_ims/000002.jpg")}
    assert {str(path) for path in found} == {*map(os.path.normpath, doubted)}


def test_more_than_there_should_be_is_an_error_too(tmp_path):
    write_replica("cub200", tmp_path / "raw")
    mark = tmp_path / "raw" / "replica.json"
    mark.write_text(mark.read_text().replace('"images": 24', '"images": 23', 1))
    with pytest.raises(InputError, match="train has 24 images, 23 expected"):
        prepare("cub200", tmp_path / "raw", tmp_path / "made.csv", Options())


def test_nothing_is_written_where_a_manifest_is_already(tmp_path):
    write_replica("cifar10", tmp_path / "raw")
    (tmp_path / "made.csv").write_text("mine")
    with pytest.raises(InputError, match="already there; add --overwrite"):
        prepare("cifar10", tmp_path / "raw", tmp_path / "made.csv", Options(pictures=tmp_path))
    assert (tmp_path / "made.csv").read_text() == "mine"
    assert not (tmp_path / "cifar10.npy").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cub2000",), "'cub2000' is not a data set; did you mean cub200?"),
        (("folder",), "no form of its own"),
        (("cars196", "devkitt"), "not a layout of cars196; did you mean devkit?"),
        (("cub200", "flat"), "Known: only one, without a name"),
        (("cub200", None, 0), "--size is 1 or more, got 0"),
    ],
)
def test_a_replica_that_cannot_be_is_refused(tmp_path, words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        write_replica(words[0], tmp_path / "raw", *words[1:])
    assert not (tmp_path / "raw").exists()


def test_a_replica_is_not_written_among_other_files(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_replica("cub200", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_folds_of_the_training_labels_are_disjoint_and_even(tmp_path):
    write_replica("cub200", tmp_path / "raw", size=2)
    made = prepare("cub200", tmp_path / "raw", tmp_path / "made.csv", Options(seed=3), folds=4)
    train = made.table[made.table["split"] == "train"]
    assert train.groupby("label")["fold"].nunique().eq(1).all()
    assert train.groupby("fold")["label"].nunique().tolist() == [2, 2, 2, 2]
    assert (made.table["fold"][made.table["split"] == "test"] == -1).all()
    assert np.isin([0, 1, 2, 3], train["fold"]).all()


def test_a_replica_is_not_written_where_its_manifest_cannot_be(metricweight, tmp_path):
    (tmp_path / "birds.csv").write_text("mine")
    code, _, err = metricweight("prepare", "cub200", "--replica", "birds", "--out", "birds.csv")
    assert code == 2
    assert "already there; add --overwrite" in err
    assert not (tmp_path / "birds").exists()


def test_the_folder_in_a_replica_is_of_the_replica_too(tmp_path):
    write_replica("cub200", tmp_path / "raw")
    made = prepare("cub200", tmp_path / "raw" / "CUB_200_2011", tmp_path / "made.csv", Options())
    assert made.about.name == "CUB-200-2011 (replica)"


@pytest.mark.parametrize(
    ("name", "layout"), [form for form in FORMS if form[0] in ("cars196", "clothing1m", "mars", "duke_video")]
)
def test_a_data_set_is_found_from_the_folder_above_it_too(tmp_path, name, layout):
    truth = write_replica(name, tmp_path / "above" / "raw", layout)
    made = prepare(name, tmp_path / "above", tmp_path / "made.csv", Options(pictures=tmp_path))
    assert len(made) == len(truth)
    assert all((made.root / path).is_file() for path in made.table["path"].unique())


def test_a_list_that_is_not_text_or_empty_is_refused_with_its_name(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes("a\r\nb \n\n\n".encode("utf-8-sig"))
    assert lines(file) == ["a", "b"]
    file.write_bytes(b"ab\xff\n")
    with pytest.raises(InputError, match=r"list.txt, byte 2: not UTF-8 text"):
        lines(file)
    file.write_bytes(b"\n")
    with pytest.raises(InputError, match=r"list.txt is empty"):
        lines(file)
    with pytest.raises(InputError, match=r"none.mat is not there"):
        mat(tmp_path / "none.mat")
    with pytest.raises(InputError, match=r"list.txt is damaged or not a MATLAB 5 file"):
        mat(file)
