"""The manifest: what is read is what was written, and what is wrong is said with its row."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from metricweight._data_tools.prepare import prepare
from metricweight._data_tools.source import Options
from PIL import Image

from metricweight.checks import InputError
from metricweight.data import manifest
from metricweight.data.manifest import About, Manifest
from metricweight.data.split import split_classes

FULL = pd.DataFrame(
    {
        "path": [f"a/{i}.jpg" for i in range(6)],
        "label": [2**31 + 5, 2**31 + 5, 1, 1, 0, -1],
        "label_name": ['é, "x"', 'é, "x"', "NA", "NA", "", "None"],
        "super_label": [3, 3, 4, 4, -1, -1],
        "clean_label": [2**31 + 5, 1, 1, 1, 0, -1],
        "is_noisy": [False, True, False, False, False, False],
        "split": ["train", "train", "test", "test", "test", "test"],
        "is_junk": [False, False, False, False, False, True],
        "is_distractor": [False, False, False, False, True, False],
        "is_query": [False, False, True, False, False, False],
        "is_gallery": [False, False, False, True, True, True],
        "camera": [1, 1, 2, 3, 1, 6],
        "sequence": [1, 2, 1, 1, 1, 1],
        "tracklet": [0, 0, 1, 2, 3, 4],
        "frame": [1, 2, 1, 1, 1, 1],
        "x1": [0.5, np.nan, 0, 0, 0, 0],
        "y1": [1.5, np.nan, 0, 0, 0, 0],
        "x2": [20.25, np.nan, 1, 1, 1, 1],
        "y2": [21, np.nan, 1, 1, 1, 1],
        "fold": [0, 0, -1, -1, -1, -1],
        "note": ["", "mine", "", "", "", ""],
    }
)


def whole(table=FULL, **about):
    table = manifest.complete(table, lambda row: f"row {row}", "the table")
    return Manifest(table, about.pop("root", None) or Path("."), About("mine", **about))


@pytest.fixture(params=[".csv", ".parquet"])
def file(request, tmp_path):
    return tmp_path / f"mine{request.param}"


def test_what_is_written_is_read_again(file):
    written = whole(protocol="inshop", super_names={"3": "bicycle"}, history=["made by hand"], root=file.parent / "raw")
    manifest.write(written, file)
    found = manifest.read(file)
    pd.testing.assert_frame_equal(found.table, written.table, check_categorical=False)
    assert found.table["label"].tolist() == FULL["label"].tolist()
    assert found.root == file.parent / "raw"
    assert found.about.protocol == "inshop"
    assert found.about.super_names == {"3": "bicycle"}
    assert found.about.counts["train"] == {"images": 2, "labels": 1, "tracklets": 1}
    assert found.about.counts["query"] == {"images": 1, "labels": 1, "tracklets": 1}
    assert found.about.counts["gallery"] == {"images": 3, "labels": 1, "tracklets": 3}
    assert found.about.counts["junk"]["images"] == found.about.counts["distractor"]["images"] == 1


def test_a_column_that_says_nothing_is_not_written_and_comes_back(tmp_path):
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": [3, 4], "split": ["train", "test"]})
    manifest.write(whole(table), tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text() == "path,label,split\na.png,3,train\nb.png,4,test\n"
    found = manifest.read(tmp_path / "m.csv").table
    assert found["is_query"].tolist() == found["is_gallery"].tolist() == [False, True]
    assert found["clean_label"].tolist() == [3, 4]
    assert found["camera"].tolist() == [-1, -1]
    assert found["x1"].isna().all()


def test_all_but_training_junk_and_distractors_search_where_nothing_is_said(tmp_path):
    table = FULL[["path", "label", "split", "is_junk", "is_distractor"]].copy()
    table.loc[2, "split"] = "validation"
    found = whole(table).table
    assert found["is_query"].tolist() == [False, False, True, True, False, False]
    assert found["is_gallery"].tolist() == [False, False, True, True, True, True]
    assert "query" not in manifest.counts(found)  # whoever searches is searched, junk and distractors apart


def test_frames_of_a_tracklet_are_queries_together():
    table = FULL.assign(tracklet=[0, 0, 1, 1, 2, 3], camera=1, frame=range(6))
    with pytest.raises(InputError, match="row 3: tracklet 1 has is_query False here and True above"):
        whole(table)


def test_a_manifest_moves_with_pictures_below_it_and_points_at_others(tmp_path):
    inside, outside = tmp_path / "data" / "m.csv", tmp_path / "elsewhere" / "m.csv"
    manifest.write(whole(root=tmp_path / "data" / "pictures"), inside)
    manifest.write(whole(root=tmp_path / "data" / "pictures"), outside)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert manifest.read(tmp_path / "moved" / "m.csv").root == tmp_path / "moved" / "pictures"
    assert manifest.read(outside).root == tmp_path / "data" / "pictures"
    assert manifest.read(outside, root=tmp_path / "moved").root == tmp_path / "moved"


def change(column, row, value):
    def changed(text):
        table = pd.read_csv(text, dtype=str, keep_default_na=False)
        table.loc[row, column] = value
        table.to_csv(text, index=False)

    return changed


def unnumbered(text):
    """Frames 0 and 1, which are of one tracklet, without their numbers."""
    change("frame", [0, 1], "-1")(text)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (change("label", 3, "one"), "row 5: label 'one' is not a whole number"),
        (change("label", 3, "1.5"), "row 5: label '1.5' is not a whole number"),
        (change("label", 3, ""), "row 5: (label '' is not a whole number|the label is empty)"),
        (change("label", 3, "-2"), "row 5: label -2 is below -1"),
        (change("label", 3, "-1"), "row 5: label -1 with is_junk False"),
        (change("is_junk", 3, "True"), "row 5: label 1 with is_junk True"),
        (change("is_query", 0, "True"), "row 2: a query cannot be in the split train"),
        (change("split", 1, "validation"), "row 3: tracklet 0 has split validation here and train above"),
        (change("tracklet", 3, "1"), "row 5: tracklet 1 has camera 3 here and 2 above"),
        (change("y2", 0, "1"), r"row 2: the box \[0.5, 1.5, 20.25, 1.0\] has no area"),
        (change("camera", 4, "70000"), "row 6: camera '70000' is not a whole number of at most 32,767"),
        (change("camera", 1, "2"), "row 3: tracklet 0 has camera 2 here and 1 above"),
        (change("label", 1, "7"), "row 3: tracklet 0 has label 7 here and 2147483653 above"),
        (change("frame", 1, "1"), "row 3: tracklet 0 has two frames numbered 1"),
        (unnumbered, "row 3: tracklet 0 has frames without a number"),
        (change("split", 2, "val"), "row 4: split 'val' is not one of train, validation, test, all"),
        (change("is_query", 4, "True"), "row 6: junk and distractors search for nothing"),
        (change("is_query", 0, "maybe"), "row 2: is_query 'maybe' is not true or false"),
        (change("is_noisy", 1, "0"), "row 3: label 2147483653 is not clean_label 1"),
        (change("x2", 0, "0.25"), r"row 2: the box \[0.5, 1.5, 0.25, 21.0\] has no area"),
        (change("y1", 0, ""), r"row 2: the box \[0.5, nan, 20.25, 21.0\] has no area"),
        (change("y1", 0, "wide"), "row 2: y1 'wide' is not a number"),
        (change("path", 5, "a/0.jpg"), "row 7: a/0.jpg is there already"),
        (change("path", 5, " "), "row 7: the path is empty"),
        (change("path", 5, r"a\5.jpg"), r"row 7: a\\5.jpg has a \\"),
        (lambda path: path.write_text("path,lable\na,1\n"), "no column 'label'; it has 'path', 'lable'"),
        (lambda path: path.write_text("path,label\n"), "has no rows"),
        (lambda path: path.write_text("path,label\na,1\nb,2,3\n"), "line 3"),
        (
            lambda path: path.write_bytes(b"path,label\n\xff\xfe,1\n"),
            "m.csv, byte 11: not UTF-8 text; save it as UTF-8",
        ),
        (lambda path: path.write_bytes(b""), "m.csv is empty; needed: a CSV file"),
        (lambda path: path.write_text("path;label\na;1\n"), "it has 'path;label'.*separated by commas"),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_its_row(tmp_path, fault, words):
    path = tmp_path / "m.csv"
    table = FULL.drop(columns="note")
    manifest.write(whole(table), path)
    fault(path)
    for sidecar in (True, False):
        if not sidecar:
            manifest.sidecar(path).unlink()
        if words.startswith("row 5: label '") and not sidecar:
            continue  # labels without a sidecar may be text
        with pytest.raises(InputError, match=words):
            manifest.read(path, accept=True)


def test_ones_and_zeros_are_true_and_false(tmp_path):
    (tmp_path / "m.csv").write_text("path,label,split,is_query\na.png,1,test,1\nb.png,1,test,0\nc.png,1,test,TRUE\n")
    assert manifest.read(tmp_path / "m.csv").table["is_query"].tolist() == [True, False, True]


@pytest.mark.parametrize(
    "fault",
    [
        lambda text: text[: text.index("a/4.jpg")],
        lambda text: text.replace("a/3.jpg", "a/4.jpg", 1).replace("a/4.jpg", "a/3.jpg", 1),
        lambda text: text.replace("train", "trajn", 1),
    ],
)
def test_a_table_that_is_not_the_one_that_was_written_is_refused_until_it_is_accepted(metricweight, tmp_path, fault):
    path = tmp_path / "m.csv"
    manifest.write(whole(), path)
    path.write_text(fault(path.read_text()).replace("trajn", "train"))
    change("note", 0, "changed")(path)
    with pytest.raises(InputError, match=r"train 2.*metricweight data .*m.csv --accept"):
        manifest.read(path)
    code, out, err = metricweight("data", path, "--accept")
    assert code == 0, err
    assert "mine" in out
    assert manifest.read(path).about.history[-1] == "accepted as it is"


def test_a_sidecar_that_is_none_or_too_new_is_refused(tmp_path):
    path = tmp_path / "m.csv"
    manifest.write(whole(), path)
    about = json.loads(manifest.sidecar(path).read_text())
    manifest.sidecar(path).write_text(json.dumps({**about, "schema": 99}))
    with pytest.raises(InputError, match=r"later version of metricweight \(schema 99\)"):
        manifest.read(path)
    manifest.sidecar(path).write_text("{}")
    with pytest.raises(InputError, match="not the sidecar of a manifest"):
        manifest.read(path)


def test_nothing_is_replaced_unless_it_is_asked_for(tmp_path):
    manifest.write(whole(), tmp_path / "m.csv")
    before = (tmp_path / "m.csv").read_bytes()
    with pytest.raises(InputError, match="already there; add --overwrite"):
        manifest.write(whole(FULL[:2]), tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_bytes() == before
    manifest.write(whole(FULL[:2]), tmp_path / "m.csv", overwrite=True)
    assert len(manifest.read(tmp_path / "m.csv")) == 2
    with pytest.raises(InputError, match=r"written to \.csv or \.parquet"):
        manifest.write(whole(), tmp_path / "m.txt")


def test_labels_in_text_are_numbered_and_keep_their_names(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\na.png,wren\nb.png,NA\nc.png,wren\n")
    found = manifest.read(tmp_path / "m.csv").table
    assert found["label"].tolist() == [1, 0, 1]
    assert found["label_name"].tolist() == ["wren", "NA", "wren"]
    (tmp_path / "m.csv").write_text("path,label\na.png,01\nb.png,1\n")  # these are two
    assert manifest.read(tmp_path / "m.csv").table["label_name"].tolist() == ["01", "1"]
    (tmp_path / "m.csv").write_text(f"path,label\na.png,{2**53 + 1}\nb.png,{2**53}\n")
    assert manifest.read(tmp_path / "m.csv").table["label"].tolist() == [2**53 + 1, 2**53]


def test_a_filter_keeps_what_it_says_and_is_remembered(metricweight, tmp_path):
    manifest.write(whole(), tmp_path / "m.csv")
    code, _, err = metricweight("data", "m.csv", "--where", "camera == 1 and split != 'train'", "--out", "part.csv")
    assert code == 0, err
    part = manifest.read(tmp_path / "part.csv")
    assert part.table["path"].tolist() == ["a/4.jpg"]
    history = ["rows where camera == 1 and split != 'train'"]
    assert part.about.history == history
    assert manifest.matching(part, "frame == 1").about.history == [*history, "rows where frame == 1"]
    for expression in ("kamera == 1", "camera ==", "import os"):
        code, _, err = metricweight("data", "m.csv", "--where", expression)
        assert code == 2
        assert "cannot be used" in err
    for expression in ("split = 'train'", "label", "1", "label.max() > 0", "camera"):
        code, _, err = metricweight("data", "m.csv", "--where", expression, "--out", "none.csv")
        assert code == 2
        assert "is not true or false of each row" in err
    assert not (tmp_path / "none.csv").exists()
    code, _, err = metricweight("data", "m.csv", "--where", "camera == 77")
    assert code == 2
    assert "no row of mine is left" in err


def test_the_summary_counts_labels_by_their_images(metricweight, tmp_path):
    labels = [1] * 3 + [2] * 3 + [3] * 5
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(11)], "label": labels, "split": "train"})
    manifest.write(whole(table), tmp_path / "m.csv")
    code, out, err = metricweight("data", "m.csv", "--json")
    assert code == 0, err
    assert json.loads(out)["parts"] == {"train": {"images": 11, "labels": 3, "per_label": {"3": 2, "5": 1}}}
    _, out, _ = metricweight("data", "m.csv")
    chart = out[out.index("images per label, train") :].splitlines()[1:]
    bars = {line.split()[0]: line.split()[-1] for line in chart if line.strip()}
    assert bars == {"3": "2", "4": "0", "5": "1"}


def test_columns_of_others_are_kept_to_the_letter(tmp_path):
    (tmp_path / "m.csv").write_text("path,label,item,version\na.png,1,000,1.10\nb.png,1,007,2\n")
    manifest.write(manifest.read(tmp_path / "m.csv"), tmp_path / "again.csv")
    manifest.write(manifest.read(tmp_path / "again.csv"), tmp_path / "twice.csv")
    assert (tmp_path / "twice.csv").read_text() == (tmp_path / "m.csv").read_text()


def test_rates_of_noise_are_those_of_the_rows_that_are_left(tmp_path):
    made = whole(noise={"kind": "sym_excl", "rate": 0.5, "realised": 0.5, "noisy": 1, "rows": 2})
    manifest.write(made.where(~made.table["is_noisy"], "clean"), tmp_path / "m.csv")
    noise = manifest.read(tmp_path / "m.csv").about.noise
    assert {key: noise[key] for key in ("kind", "rate", "realised", "noisy", "rows")} == {
        "kind": "sym_excl", "rate": 0.5, "realised": 0.0, "noisy": 0, "rows": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["1", "nan"], "row 3: the label is nan, which pandas writes"),
        (["1", "12345678901234567890"], "row 3: the label is a number of more than 18 digits"),
        (["1", ""], "row 3: the label is empty"),
    ],
)
def test_a_label_that_can_only_be_a_mistake_is_refused(tmp_path, labels, words):
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels)))
    with pytest.raises(InputError, match=words):
        manifest.read(tmp_path / "m.csv")


def test_numbers_that_were_written_with_a_point_are_numbers(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\na.png,10.0\nb.png,2.0\n")
    pd.DataFrame({"path": ["a.png", "b.png"], "label": [10.0, 2.0]}).to_parquet(tmp_path / "m.parquet")
    for name in ("m.csv", "m.parquet"):
        assert manifest.read(tmp_path / name).table["label"].tolist() == [10, 2]


@pytest.mark.parametrize(("column", "words"), [("path", "the path is missing"), ("label", "the label is empty")])
def test_a_parquet_file_with_nothing_in_a_row_is_refused_with_the_row(tmp_path, column, words):
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": ["x", "y"]})
    table.loc[1, column] = None
    table.to_parquet(tmp_path / "m.parquet")
    with pytest.raises(InputError, match=f"row 2: {words}"):
        manifest.read(tmp_path / "m.parquet")


def test_pictures_that_were_moved_are_found_again(metricweight, photos, tmp_path):
    assert metricweight("prepare", "folder", "--root", photos, "--out", "m.csv")[0] == 0
    photos.rename(tmp_path / "moved")
    _, out, _ = metricweight("data", "m.csv")
    assert "photos (which is not there: say with --root where it is)" in out
    code, _, err = metricweight("train", "folder", "data.root=m.csv")
    assert code == 2
    assert "metricweight data" in err
    assert "--root DIR --out NEW.csv" in err
    assert metricweight("data", "m.csv", "--root", "moved", "--out", "n.csv")[0] == 0
    found = manifest.read(tmp_path / "n.csv")
    assert all((found.root / path).is_file() for path in found.table["path"])
    code, _, err = metricweight("data", "m.csv", "--out", "m.csv", "--overwrite")
    assert code == 2
    assert "is what is read; choose another" in err


@pytest.mark.parametrize("where", ["", "file/m.csv", "m.txt"])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(tmp_path, where):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "m.csv").mkdir()
    with pytest.raises(InputError, match=r"written"):
        manifest.check_free(tmp_path / (where or "m.csv"), overwrite=True)


def test_a_table_of_ones_own_becomes_a_manifest(tmp_path):
    made = manifest.of(pd.DataFrame({"path": ["a", "b"], "label": ["x", "w"]}), tmp_path, "mine")
    assert made.table["label"].tolist() == [1, 0]
    assert (made.root, made.about.name) == (tmp_path, "mine")
    with pytest.raises(InputError, match="mine, row 1: a is there already"):
        manifest.of(pd.DataFrame({"path": ["a", "a"], "label": [1, 2]}), tmp_path, "mine")


def test_a_table_with_queries_of_its_own_is_judged_by_them(tmp_path):
    (tmp_path / "m.csv").write_text("path,label,split,is_query,is_gallery\na,1,test,1,0\nb,1,test,0,1\n")
    assert manifest.read(tmp_path / "m.csv").about.protocol == "gallery"
    (tmp_path / "m.csv").write_text("path,label,split\na,1,test\nb,1,test\n")
    assert manifest.read(tmp_path / "m.csv").about.protocol == "self"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\na,1,5\nb,2,6\n", "more fields than its header"),
        ("path,label,camera\na,1,9.223372036854775807e18\n", "camera '9.22.*' is not a whole number"),
        ("path,label,tracklet\na,1,9.223372036854775807e18\n", "tracklet '9.22.*' is not a whole number"),
    ],
)
def test_what_pandas_would_bend_is_refused(tmp_path, text, words):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        manifest.read(tmp_path / "m.csv")


# ---- data of one's own


@pytest.fixture
def photos(tmp_path):
    for species in "abcdef":
        for number in range(3):
            path = tmp_path / "photos" / species / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 12), (40 * number, ord(species), 0)).save(path)
    return tmp_path / "photos"


def test_a_folder_of_class_folders_is_split_by_class_with_a_seed(metricweight, photos, tmp_path):
    code, _, err = metricweight("prepare", "folder", "--root", photos, "--out", "m.csv", "--seed", 1)
    assert code == 0, err
    table = manifest.read(tmp_path / "m.csv").table
    assert table.groupby("label_name", observed=True)["split"].nunique().eq(1).all()
    assert table["split"].value_counts().to_dict() == {"train": 9, "test": 9}
    others = []
    for seed in range(8):
        prepare("folder", photos, tmp_path / f"{seed}.csv", Options(seed=seed))
        others.append(tuple(manifest.read(tmp_path / f"{seed}.csv").table["split"]))
    assert others[1] == tuple(table["split"])
    assert len(set(others)) > 1


def test_the_last_classes_are_tested_on_where_the_order_is_given(photos, tmp_path):
    made = prepare("folder", photos, tmp_path / "m.csv", Options(order="given", test=0.34, validation=0.5))
    by_name = made.table.groupby("label_name", observed=True)["split"].first().to_dict()
    assert by_name == {"a": "train", "b": "train", "c": "validation", "d": "validation", "e": "test", "f": "test"}


def test_a_table_keeps_its_own_splits_and_says_where_a_picture_is_missing(photos, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("path,label,split\nphotos/a/0.png,x,test\nphotos/b/0.png,y,train\n")
    made = prepare("csv", table, tmp_path / "m.csv", Options())
    assert made.table["split"].tolist() == ["test", "train"]
    with pytest.raises(InputError, match="split already"):
        prepare("csv", table, tmp_path / "n.csv", Options(test=0.5))
    table.write_text("path,label\nphotos/a/0.png,x\nphotos/a/0.PNG,y\n")
    with pytest.raises(InputError, match=r"mine.csv, row 3: .*0.PNG is missing \(there is 0.png"):
        prepare("csv", table, tmp_path / "n.csv", Options())


def test_an_option_of_another_data_set_is_refused(photos, tmp_path):
    with pytest.raises(InputError, match="--fold is not for folder"):
        prepare("folder", photos, tmp_path / "m.csv", Options(fold=2))


def test_what_is_left_out_of_a_folder_is_noted_and_the_manifest_has_its_name(metricweight, photos, tmp_path):
    (photos / "empty").mkdir()
    (photos / "loose.jpg").write_bytes((photos / "a" / "0.png").read_bytes())
    _, out, _ = metricweight("prepare", "folder", "--root", photos, "--out", "m.csv")
    assert "1 folders hold no pictures, such as empty." in out
    assert "1 pictures lie in no class folder and are left out, such as loose.jpg." in out
    assert manifest.read(tmp_path / "m.csv").about.name == "photos"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folder", "--root", "photos", "--order", "sorted"], "order is random or given, got 'sorted'"),
        (["folder", "--root", "photos", "--seed", "-1"], "the seed is 0 or more, got -1"),
        (["folder", "--root", "photos", "--folds", "2", "--seed", "-1"], "the seed is 0 or more, got -1"),
        (["folder", "--root", "photos", "--test", "nan"], "test is a share of the classes, from 0 to below 1, got nan"),
        (["folder", "--root", "photos", "--test", "1.5"], "test is a share of the classes, from 0 to below 1, got 1.5"),
        (["folder", "--root", "photos/a/0.png"], "is a file; for a table: metricweight prepare csv"),
        (["csv", "--root", "photos"], "is a folder; for class folders: metricweight prepare folder"),
        (["csv", "--root", "made.csv"], "made.csv is a manifest already; metricweight data"),
        (["csv", "--root", "own.csv", "--out", "own.csv", "--overwrite"], "--out own.csv is what is read"),
        (["folder", "--root", "photos", "--folds", "9"], "9 folds of 3 training labels cannot be"),
        (["--root", "photos"], "say which data set"),
        (["folder"], "give --root"),
        (["folder", "--root", "photos", "--size", "2"], "--layout and --size are of replicas"),
    ],
)
def test_what_cannot_be_prepared_is_refused_in_a_sentence(metricweight, photos, tmp_path, words, message):
    (tmp_path / "own.csv").write_text("path,label\nphotos/a/0.png,x\n")
    assert metricweight("prepare", "folder", "--root", "photos", "--out", "made.csv")[0] == 0
    before = (tmp_path / "own.csv").read_bytes()
    code, _, err = metricweight("prepare", *words, *([] if "--out" in words else ["--out", "m.csv"]))
    assert code == 2
    assert message in err
    assert not (tmp_path / "m.csv").exists()
    assert (tmp_path / "own.csv").read_bytes() == before


def test_junk_and_distractors_are_tested_with_and_queries_are_not_dealt_out():
    table = pd.DataFrame({"path": [f"{i}" for i in range(12)], "label": [-1, 0, *np.repeat(range(1, 6), 2)]})
    odd = {"is_junk": table["label"] == -1, "is_distractor": table["label"] == 0}
    for seed in range(8):
        made = split_classes(manifest.of(table.assign(**odd), Path()), seed=seed, validation=0)
        assert made.table["split"][:2].tolist() == ["test", "test"]
        assert made.table["is_query"][:2].tolist() == [False, False]
        manifest.complete(made.table, str, "still right")
    asked = manifest.of(table.assign(**odd, is_query=table["label"] == 1), Path())
    with pytest.raises(InputError, match="has queries of its own; say in a column split"):
        split_classes(asked)
