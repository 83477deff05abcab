"""CUB-200-2011, Cars196, Stanford Online Products and In-Shop: forms they come in, and damage that must not pass."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from metricweight._data_tools.prepare import prepare, write_replica
from metricweight._data_tools.replicas import cars196 as cars196_replica
from metricweight._data_tools.replicas.matlab import save_mat
from metricweight._data_tools.replicas.products import product
from metricweight._data_tools.source import Options
from PIL import Image
from scipy.io import loadmat

from metricweight.checks import InputError

CUB = "CUB_200_2011"
SOP = "Stanford_Online_Products"
INSHOP = "In-shop Clothes Retrieval Benchmark"


@pytest.fixture(scope="session")
def replica(tmp_path_factory):
    """A copy of a replica that the test may spoil."""
    written: dict[tuple[str, str | None], Path] = {}

    def copied(folder: Path, name: str, layout: str | None = None) -> Path:
        if (name, layout) not in written:
            written[name, layout] = tmp_path_factory.mktemp(name) / "raw"
            write_replica(name, written[name, layout], layout)
        return Path(shutil.copytree(written[name, layout], folder / "raw"))

    return copied


def refused(name, root, message):
    """Preparing fails with a message that has these words (... stands for any), and nothing is written."""
    with pytest.raises(InputError, match=re.escape(message).replace(r"\.\.\.", ".*")):
        prepare(name, root, root.parent / "refused.csv", Options())
    assert not (root.parent / "refused.csv").exists()


def made(name, root, **options):
    return prepare(name, root, root.parent / "made.csv", Options(), **options)


def notes(manifest):
    return "\n".join(manifest.about.history)


def edit_line(path, number, change):
    """Replaces a line, counted from 1, by what `change` makes of it; None drops it, a list is more lines."""
    lines = path.read_bytes().decode().split("\n")
    new = change(lines[number - 1])
    lines[number - 1 : number] = [] if new is None else [new] if isinstance(new, str) else new
    path.write_bytes("\n".join(lines).encode())


def swap(path, first, second, field=None, separator=" "):
    """Exchanges two lines, or one field of them."""
    lines = path.read_text().split("\n")
    one, other = (lines[i - 1].split(separator) for i in (first, second))
    for i in range(len(one)) if field is None else [field]:
        one[i], other[i] = other[i], one[i]
    lines[first - 1], lines[second - 1] = separator.join(one), separator.join(other)
    path.write_text("\n".join(lines))


def line_of(path, number):
    return path.read_text().split("\n")[number - 1]


def with_crlf(path):
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def annotations(path, change):
    """Rewrites a .mat file after `change` had its annotations, [N] records of 1 x 1 arrays.

    Numbers must be replaced, not written into: SciPy lays them over bytes that the whole process shares.
    """
    variables = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    records = change(variables["annotations"].ravel())
    if records is not None:
        variables["annotations"] = records.reshape(1, -1)
    save_mat(path, variables)


def number(value):
    return np.array([[value]], dtype=np.min_scalar_type(value))


# ---- the pictures of replicas


def test_views_of_a_product_are_told_from_others_of_its_kind_but_not_by_pixels():
    """40 products of one outline, 6 views each: by pixels 17 % have a right neighbour, by hues about half; chance is
    5 of 239."""
    hues, pixels, things = [], [], np.repeat(np.arange(40), 6)
    for thing in range(40):
        for view in range(6):
            picture = product(thing, view, kind=1)
            middle = np.asarray(picture.convert("HSV"))[16:48, 16:48, 0]
            hues.append(np.histogram(middle, 8, (0, 256))[0])
            pixels.append(np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=float).ravel())
    right = []
    for features in (hues, pixels):
        away = np.abs(np.array(features)[:, None] - np.array(features)[None]).sum(-1).astype(float)
        np.fill_diagonal(away, np.inf)
        right.append((things[away.argmin(1)] == things).mean())
    assert 0.35 < right[0] < 0.75
    assert 0.08 < right[1] < 0.35


# ---- CUB-200-2011


def test_cub_with_lines_of_windows_is_the_same(tmp_path, replica):
    root = replica(tmp_path, "cub200")
    plain = prepare("cub200", root, tmp_path / "plain.csv", Options()).table
    for path in (root / CUB).glob("*.txt"):
        with_crlf(path)
    assert made("cub200", root).table.equals(plain)


@pytest.mark.parametrize("name", ["image_class_labels", "bounding_boxes"])
def test_cub_without_a_line_is_refused_where_the_picture_is_listed(tmp_path, replica, name):
    root = replica(tmp_path, "cub200")
    edit_line(root / CUB / f"{name}.txt", 8, lambda line: None)
    refused("cub200", root, f"images.txt, line 8: image 8 is not in {root / CUB / name}.txt.")


def test_cub_without_a_picture_that_has_a_class_is_refused(tmp_path, replica):
    root = replica(tmp_path, "cub200")
    edit_line(root / CUB / "images.txt", 8, lambda line: None)
    refused("cub200", root, f"image_class_labels.txt, line 8: image 8 is not in {root / CUB / 'images.txt'}.")


def test_cub_with_a_flipped_class_is_refused(tmp_path, replica):
    root = replica(tmp_path, "cub200")
    assert line_of(root / CUB / "image_class_labels.txt", 8) == "8 2"
    edit_line(root / CUB / "image_class_labels.txt", 8, lambda line: "8 3")
    refused("cub200", root, "image_class_labels.txt, line 8: class 3 is 003.Small_billed_Bird3 in ...image 8 is 002.")


def test_cub_with_a_class_that_nobody_names_is_refused(tmp_path, replica):
    root = replica(tmp_path, "cub200")
    edit_line(root / CUB / "classes.txt", 2, lambda line: None)
    refused("cub200", root, "image_class_labels.txt, line 7: class 2 is None in ")


def test_cub_with_a_flipped_letter_in_a_path_is_refused(tmp_path, replica):
    root = replica(tmp_path, "cub200")
    edit_line(root / CUB / "images.txt", 8, lambda line: line.replace("Billed", "Bilked"))
    refused("cub200", root, "images.txt, line 8: ...is missing.")
    edit_line(root / CUB / "images.txt", 8, lambda line: line.replace("Bilked", "billed"))
    refused("cub200", root, "images.txt, line 8: ...is missing (there is ...which differs in case).")


def test_cub_with_swapped_paths_of_two_classes_is_refused(tmp_path, replica):
    root = replica(tmp_path, "cub200")
    swap(root / CUB / "images.txt", 1, 8, field=1)
    refused("cub200", root, "image_class_labels.txt, line 1: class 1 is 001.Small_billed_Bird1 in ...image 1 is 002.")


def test_cub_with_a_picture_or_an_id_twice_is_refused_with_both_lines(tmp_path, replica):
    root = replica(tmp_path, "cub200")
    path = root / CUB / "images.txt"
    first = line_of(path, 1)
    edit_line(path, 2, lambda line: f"2{first[1:]}")
    refused("cub200", root, f"images.txt, line 2: {first[2:]} is there already, in line 1.")
    edit_line(path, 2, lambda line: first)
    refused("cub200", root, "images.txt, line 2: id 1 is there already, in line 1.")


@pytest.mark.parametrize("box", ["60.0 27.0 325.0", "60.0 27.0 32x.0 304.0", "60.0 27.0 0.0 304.0", "6 2 nan 3"])
def test_cub_with_a_box_that_is_none_is_refused(tmp_path, replica, box):
    root = replica(tmp_path, "cub200")
    edit_line(root / CUB / "bounding_boxes.txt", 5, lambda line: f"5 {box}")
    refused("cub200", root, f"bounding_boxes.txt, line 5: '{box}' is not x y width height.")


def test_cub_without_pictures_says_how_many_are_missing_and_where_the_first_is_listed(tmp_path, replica):
    root = replica(tmp_path, "cub200")
    shutil.rmtree(root / CUB / "images" / "002.Small_billed_Bird2")
    refused("cub200", root, "images.txt, line 7: ...is missing; so are 5 more of 48.")


def test_a_picture_of_cub_that_is_listed_nowhere_is_a_note(tmp_path, replica):
    root = replica(tmp_path, "cub200")
    (root / CUB / "images" / "002.Small_billed_Bird2" / "new.jpg").write_bytes(b"")
    assert "1 pictures are listed nowhere and left out, such as images/002.Small_billed_Bird2/new.jpg" in notes(
        made("cub200", root)
    )


# ---- Cars196


def cars(replica, tmp_path, layout):
    root = replica(tmp_path, "cars196", layout)
    return root, {"car_ims": root / "cars_annos.mat", "devkit": root / "devkit" / "cars_train_annos.mat"}.get(layout)


def test_files_of_matlab_have_the_types_of_the_real_ones(tmp_path, replica):
    _, path = cars(replica, tmp_path, "devkit")
    found = loadmat(path)
    assert found["annotations"].shape[0] == 1
    assert found["annotations"].dtype.names == ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    types = {field: {v.dtype for v in found["annotations"][field].ravel()} for field in ("bbox_x1", "bbox_x2", "class")}
    assert types == {
        "bbox_x1": {np.dtype("u1")},
        "bbox_x2": {np.dtype("u1"), np.dtype("u2")},
        "class": {np.dtype("u1")},
    }
    assert found["annotations"]["class"][0, 0].shape == (1, 1)
    assert found["annotations"]["fname"][0, 0].tolist() == ["00001.jpg"]
    names = loadmat(path.with_name("cars_meta.mat"))["class_names"]
    assert names.shape == (1, 196)
    assert names[0, 173].tolist() == ["Ram C/V Cargo Van Minivan 2012"]


def test_a_file_of_matlab_is_the_same_whenever_it_is_written(tmp_path, monkeypatch):
    written = []
    for year in ("1999", "2026"):
        monkeypatch.setattr("time.asctime", lambda year=year: f"Thu Jan  1 00:00:00 {year}")
        save_mat(tmp_path / "a.mat", {"a": np.ones((1, 3))})
        written.append((tmp_path / "a.mat").read_bytes())
    assert written[0] == written[1]
    assert loadmat(tmp_path / "a.mat")["a"].tolist() == [[1, 1, 1]]


def test_boxes_of_cars_are_the_pixels_from_the_first_to_the_last(tmp_path, replica):
    root, path = cars(replica, tmp_path, "devkit")

    def first_is(records):
        records[0]["bbox_x1"], records[0]["bbox_y1"], records[0]["bbox_y2"] = number(39), number(116), number(255)
        records[0]["bbox_x2"] = number(569)

    annotations(path, first_is)
    row = made("cars196", root).table.set_index("path").loc["cars_train/00001.jpg"]
    assert row[["x1", "y1", "x2", "y2"]].tolist() == [38, 115, 569, 255]


def test_both_halves_of_cars_have_pictures_of_the_same_name(tmp_path, replica):
    table = made("cars196", cars(replica, tmp_path, "nested")[0]).table
    assert table["path"].str.endswith("/00001.jpg").sum() == 2
    assert {"cars_train/cars_train/00001.jpg", "cars_test/cars_test/00001.jpg"} <= set(table["path"])


def test_class_98_of_cars_trains_and_99_tests(tmp_path, replica):
    root, path = cars(replica, tmp_path, "car_ims")

    def first_is_98(records):
        records[0]["class"] = number(98)

    annotations(path, first_is_98)
    table = made("cars196", root, allow_counts=True).table.set_index("path")
    assert table.loc["car_ims/000001.jpg"]["split"] == "train"
    assert set(table["split"][table["label"] == 99]) == {"test"}


@pytest.mark.parametrize("kind", ["f8", "i4"])
def test_numbers_of_cars_may_be_of_any_type(tmp_path, replica, kind):
    root, path = cars(replica, tmp_path, "car_ims")
    plain = prepare("cars196", root, tmp_path / "plain.csv", Options()).table

    def recast(records):
        for record in records:
            for field in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"):
                record[field] = record[field].astype(kind)

    annotations(path, recast)
    assert made("cars196", root).table.equals(plain)


@pytest.mark.parametrize("layout", ["car_ims", "devkit"])
def test_cars_with_a_name_twice_is_refused_with_both_places(tmp_path, replica, layout):
    root, path = cars(replica, tmp_path, layout)
    if layout == "devkit":
        (root / "devkit" / "train_perfect_preds.txt").unlink()
    field = "fname" if layout == "devkit" else "relative_im_path"

    def twice(records):
        records[4][field] = records[1][field]

    annotations(path, twice)
    refused("cars196", root, f"{path}, annotation 5: ...is there already, in {path}, annotation 2.")


@pytest.mark.parametrize(("value", "message"), [(197, "class 197 is not one of 1 to 196"), (0, "class 0 is not one")])
def test_cars_with_a_class_outside_is_refused(tmp_path, replica, value, message):
    root, path = cars(replica, tmp_path, "car_ims")

    def third(records):
        records[2]["class"] = number(value)

    annotations(path, third)
    refused("cars196", root, f"{path}, annotation 3: {message}")


def test_cars_with_an_empty_field_is_refused_and_a_turned_box_is_left_out(tmp_path, replica):
    root, path = cars(replica, tmp_path, "car_ims")

    def turned(records):
        records[2]["bbox_x2"] = number(1)

    annotations(path, turned)
    manifest = made("cars196", root)
    assert re.search(rf"{path}, annotation 3: the box .* has no area and is left out", notes(manifest))
    assert manifest.table["x1"].isna().sum() == 1

    def empty(records):
        records[2]["class"] = np.zeros((0, 0), dtype="u1")

    annotations(path, empty)
    refused("cars196", root, f"{path}, annotation 3: class is array([]...expected one int.")


def test_the_devkit_with_a_flipped_class_or_a_lost_row_disagrees_with_itself(tmp_path, replica):
    root, path = cars(replica, tmp_path, "devkit")

    def flipped(records):
        records[2]["class"] = records[2]["class"] ^ 1

    annotations(path, flipped)
    found = notes(made("cars196", root, allow_counts=True))
    assert re.search(rf"train_perfect_preds.txt, line 3: class \d+, but {path}, annotation 3, which is", found)
    annotations(path, lambda records: np.delete(records, 2))
    refused("cars196", root, "test has 27 images, 28 expected")


def test_the_devkit_with_swapped_names_or_a_lost_row_of_test_pictures_disagrees_with_itself(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "devkit")
    path = root / "cars_test_annos_withlabels.mat"

    def swapped(records):
        records[2]["fname"], records[3]["fname"] = records[3]["fname"], records[2]["fname"]

    annotations(path, swapped)
    assert f"{path}, annotation 3: cars_test/00004.jpg has the box" in notes(made("cars196", root))


def test_the_devkit_without_labels_of_test_pictures_says_which_file_to_get(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "devkit")
    labelled = root / "cars_test_annos_withlabels.mat"
    labelled.unlink()
    refused("cars196", root, "has cars_test_annos_withlabels.mat, which comes by itself, not in car_devkit.tgz")
    shutil.copy(root / "devkit" / "cars_test_annos.mat", labelled)
    refused("cars196", root, f"{labelled} has no 'annotations' with the fields fname, class")


def test_cars_annos_beside_cars_train_is_said_to_be_of_other_pictures(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "nested")
    shutil.rmtree(root / "devkit")
    (root / "cars_annos.mat").write_bytes(b"")
    refused("cars196", root, "cars_annos.mat does not do: it is of car_ims, which is numbered otherwise.")


def test_a_form_of_cars_that_lacks_a_part_is_refused_with_the_part(tmp_path, replica):
    root, path = cars(replica, tmp_path, "car_ims")
    path.unlink()
    refused("cars196", root, f"{root} has car_ims, but not cars_annos.mat, which belongs to it.")


def test_a_damaged_file_of_matlab_is_refused_by_name(tmp_path, replica):
    root, path = cars(replica, tmp_path, "car_ims")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    refused("cars196", root, f"{path} ")
    path.write_bytes(content[:200])
    refused("cars196", root, f"{path} ")


def test_two_forms_of_cars_in_one_folder_are_read_as_one_and_the_other_is_named(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "car_ims")
    cars196_replica.write(root, "devkit", 1)
    manifest = made("cars196", root)
    assert len(manifest) == 56
    assert manifest.about.layout == "car_ims with cars_annos.mat"
    assert f"{root / 'cars_train'} is there too; taken was car_ims with cars_annos.mat" in notes(manifest)


def test_cars_in_a_folder_below_is_found(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "devkit")
    (tmp_path / "above").mkdir()
    root.rename(tmp_path / "above" / "stanford_cars")
    manifest = made("cars196", tmp_path / "above", allow_counts=True)
    assert manifest.root == tmp_path / "above" / "stanford_cars"


def test_another_order_of_car_ims_is_a_note(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "car_ims")
    (root / "replica.json").unlink()
    found = notes(made("cars196", root, allow_counts=True))
    for file in ("000001.jpg", "000002.jpg"):
        assert re.search(rf"car_ims/{file} has the checksum \w+; that of the original is ", found)


@pytest.mark.parametrize("layout", ["class_folders", "class_folders_header"])
def test_cars_with_a_slash_in_the_name_lie_in_a_folder_with_a_dash(tmp_path, replica, layout):
    table = made("cars196", cars(replica, tmp_path, layout)[0]).table
    ram = table[table["label"] == 174]
    assert set(ram["label_name"]) == {"Ram C/V Cargo Van Minivan 2012"}
    assert {path.split("/")[-2] for path in ram["path"]} == {"Ram C-V Cargo Van Minivan 2012"}


@pytest.mark.parametrize("layout", ["class_folders", "class_folders_header"])
def test_class_folders_with_a_flipped_class_are_refused(tmp_path, replica, layout):
    root, _ = cars(replica, tmp_path, layout)
    path = root / "anno_train.csv"
    fields = line_of(path, 5).strip().split(",")
    edit_line(path, 5, lambda line: ",".join([*fields[:5], str(int(fields[5]) % 98 + 1)]))
    refused(
        "cars196", root, f"anno_train.csv, line 5: {fields[0]} has class {int(fields[5]) % 98 + 1}, '...but lies in"
    )


def test_class_folders_with_a_lost_line_have_too_few_pictures_and_a_picture_that_is_listed_nowhere(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "class_folders")
    edit_line(root / "anno_train.csv", 5, lambda line: None)
    refused("cars196", root, " images, ")
    assert "1 pictures are listed nowhere" in notes(made("cars196", root, allow_counts=True))


def test_class_folders_with_a_swapped_pair_or_a_line_twice_are_refused(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "class_folders")
    path = root / "anno_test.csv"
    first, second = line_of(path, 1).split(","), line_of(path, 2).split(",")
    assert first[5] != second[5]
    swap(path, 1, 2, field=0, separator=",")
    refused("cars196", root, f"anno_test.csv, line 1: {second[0]} has class {first[5]}")
    swap(path, 1, 2, field=0, separator=",")
    edit_line(path, 2, lambda line: [line, line])
    refused("cars196", root, f"anno_test.csv, line 3: ...is there already, in {path}, line 2.")


def test_class_folders_with_a_missing_picture_or_a_broken_line_are_refused(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "class_folders")
    path = root / "anno_test.csv"
    picture = line_of(path, 2).split(",")[0]
    next((root / "car_data" / "car_data" / "test").rglob(picture)).unlink()
    refused("cars196", root, f"anno_test.csv, line 2: ...{picture} is missing.")
    edit_line(path, 4, lambda line: line.rpartition(",")[0])
    refused("cars196", root, "anno_test.csv, line 4: 5 fields; expected 6")
    edit_line(path, 4, lambda line: f"{line},1x")
    refused("cars196", root, "anno_test.csv, line 4: field '1x' is not a whole number.")


def test_class_folders_with_a_lost_name_are_refused(tmp_path, replica):
    root, _ = cars(replica, tmp_path, "class_folders_header")
    edit_line(root / "names.csv", 3, lambda line: None)
    refused("cars196", root, "names.csv, line 3: '3,...is not the name of class 2")


def test_a_replica_of_cars_is_not_larger_than_cars(tmp_path):
    with pytest.raises(InputError, match=r"--size 19 is too large .* 18 at most"):
        write_replica("cars196", tmp_path / "raw", size=19)


# ---- Stanford Online Products


def test_super_classes_of_products_are_numbered_and_named_as_the_folders(tmp_path, replica):
    manifest = made("sop", replica(tmp_path, "sop"))
    assert manifest.about.super_names["1"] == "bicycle"
    assert manifest.about.super_names["12"] == "toaster"
    assert len(manifest.about.super_names) == 12


def test_products_have_a_gif_that_is_called_jpg(tmp_path, replica):
    root = replica(tmp_path, "sop")
    forms = {Image.open(path).format for path in root.rglob("*.JPG")}
    assert forms == {"GIF", "JPEG"}


def test_products_with_lines_of_windows_are_the_same(tmp_path, replica):
    root = replica(tmp_path, "sop")
    plain = prepare("sop", root, tmp_path / "plain.csv", Options()).table
    for path in (root / SOP).glob("*.txt"):
        with_crlf(path)
    assert made("sop", root).table.equals(plain)


def products(replica, tmp_path):
    root = replica(tmp_path, "sop")
    return root, root / SOP / "Ebay_train.txt", root / SOP / "Ebay_test.txt"


def test_products_without_a_line_are_refused_where_the_ids_have_a_gap(tmp_path, replica):
    root, train, _ = products(replica, tmp_path)
    edit_line(train, 10, lambda line: None)
    refused("sop", root, f"{train}, line 10: image 10, expected 9")


def test_products_without_the_last_line_of_training_are_refused_in_the_other_file(tmp_path, replica):
    root, train, test = products(replica, tmp_path)
    count = train.read_text().count("\n")
    edit_line(train, count, lambda line: None)
    refused("sop", root, f"{test}, line 2: image {count}, expected {count - 1}")


def test_products_without_the_last_line_of_all_are_refused_by_their_number(tmp_path, replica):
    root, _, test = products(replica, tmp_path)
    count = test.read_text().count("\n")
    edit_line(test, count, lambda line: None)
    refused("sop", root, f"test has {count - 2} images, {count - 1} expected")


def test_products_with_swapped_files_are_refused(tmp_path, replica):
    root, train, test = products(replica, tmp_path)
    contents = train.read_bytes(), test.read_bytes()
    test.write_bytes(contents[0])
    train.write_bytes(contents[1])
    trained = len(contents[0].splitlines()) - 1
    refused("sop", root, f"{train}, line 2: image {trained + 1}, expected 1")


def test_products_with_a_flipped_class_are_refused(tmp_path, replica):
    root, train, _ = products(replica, tmp_path)
    image, label, kind, path = line_of(train, 3).split()
    assert label == "1"
    item = path.split("/")[1].split("_")[0]
    edit_line(train, 3, lambda line: f"{image} 9999 {kind} {path}")
    refused("sop", root, f"{train}, line 3: item {item} has class 9999 here, but class 1 in {train}, line 2.")
    edit_line(train, 3, lambda line: f"{image} x {kind} {path}")
    refused("sop", root, f"{train}, line 3: id 'x' is not a whole number.")


def test_products_with_the_class_of_another_item_are_refused(tmp_path, replica):
    root, train, _ = products(replica, tmp_path)
    swap(train, 2, train.read_text().count("\n"), field=3)
    refused("sop", root, "has item ")


def test_products_with_a_flipped_super_class_are_refused(tmp_path, replica):
    root, train, test = products(replica, tmp_path)
    image, label, _, path = line_of(test, 3).split()
    edit_line(test, 3, lambda line: f"{image} {label} 2 {path}")
    refused("sop", root, f"{test}, line 3: super class 2 has folder bicycle_final here, but folder cabinet_final in")
    edit_line(test, 3, lambda line: f"{image} {label} 13 {path}")
    refused("sop", root, f"{test}, line 3: folder bicycle_final has super class 13 here, but super class 1 in {train}")


def test_products_with_a_flipped_letter_in_a_path_are_refused(tmp_path, replica):
    root, train, _ = products(replica, tmp_path)
    line = line_of(train, 3)
    edit_line(train, 3, lambda line: line.replace("bicycle", "bicyclf"))
    refused("sop", root, f"{train}, line 3: super class 1 has folder bicyclf_final here")
    edit_line(train, 3, lambda _: line.replace(".JPG", ".jpg"))
    refused("sop", root, f"{train}, line 3: ...is missing (there is ...JPG, which differs in case)")
    edit_line(train, 3, lambda _: line.replace("_1.JPG", "_8.JPG"))
    refused("sop", root, f"{train}, line 3: ...is missing.")


def test_products_with_a_path_twice_are_refused_with_both_lines(tmp_path, replica):
    root, train, _ = products(replica, tmp_path)
    path = line_of(train, 2).split()[3]
    edit_line(train, 3, lambda line: line.rpartition(" ")[0] + f" {path}")
    refused("sop", root, f"{train}, line 3: {path} is there already, in {train}, line 2.")


def test_products_with_another_header_or_a_cut_line_are_refused(tmp_path, replica):
    root, _, test = products(replica, tmp_path)
    edit_line(test, 9, lambda line: line[:6])
    refused("sop", root, f"{test}, line 9: '...is not image_id class_id super_class_id path.")
    edit_line(test, 1, lambda line: None)
    refused("sop", root, f"{test}, line 1: '...expected 'image_id class_id super_class_id path'.")


def test_products_with_a_missing_and_an_unlisted_picture(tmp_path, replica):
    root, train, _ = products(replica, tmp_path)
    (root / SOP / "mug_final" / "new.JPG").write_bytes(b"")
    (root / SOP / "mug_final" / "._new.JPG").write_bytes(b"")
    assert "1 pictures are listed nowhere and left out, such as mug_final/new.JPG." in notes(made("sop", root))
    (root / SOP / line_of(train, 4).split()[3]).unlink()
    refused("sop", root, f"{train}, line 4: ...is missing.")


# ---- In-Shop


def clothes(replica, tmp_path):
    root = replica(tmp_path, "inshop")
    return root, root / INSHOP / "Eval" / "list_eval_partition.txt", root / INSHOP / "Anno" / "list_bbox_inshop.txt"


def test_in_shop_searches_with_queries_among_the_gallery(tmp_path, replica):
    manifest = made("inshop", clothes(replica, tmp_path)[0])
    table = manifest.table
    assert manifest.about.protocol == "inshop"
    assert set(manifest.about.counts) == {"train", "test", "query", "gallery"}
    tested = table["split"] == "test"
    assert (table["is_query"] ^ table["is_gallery"])[tested].all()
    assert not (table["is_query"] | table["is_gallery"])[~tested].any()
    assert set(table["label"][table["is_query"]]) == set(table["label"][table["is_gallery"]])
    assert table["label"][~tested].value_counts().min() == 1


def test_kinds_of_in_shop_are_numbered_in_the_order_of_their_names(tmp_path, replica):
    manifest = made("inshop", clothes(replica, tmp_path)[0])
    assert manifest.about.super_names["0"] == "MEN/Denim"
    assert manifest.about.super_names["5"] == "WOMEN/Skirts"
    dresses = manifest.table[manifest.table["path"].str.contains("/WOMEN/Dresses/")]
    assert set(dresses["super_label"]) == {4}


def test_an_item_of_in_shop_may_lie_in_two_categories(tmp_path, replica):
    table = made("inshop", clothes(replica, tmp_path)[0]).table
    assert table.groupby("label")["super_label"].nunique().max() == 2


def test_in_shop_with_lines_of_windows_is_the_same(tmp_path, replica):
    root, partition, boxes = clothes(replica, tmp_path)
    plain = prepare("inshop", root, tmp_path / "plain.csv", Options()).table
    with_crlf(partition)
    with_crlf(boxes)
    assert made("inshop", root).table.equals(plain)


def test_in_shop_without_boxes_is_read_without_boxes(tmp_path, replica):
    root, _, boxes = clothes(replica, tmp_path)
    boxes.unlink()
    assert made("inshop", root).table["x1"].isna().all()


def test_boxes_of_in_shop_are_not_for_pictures_of_full_size(tmp_path, replica):
    manifest = made("inshop", replica(tmp_path, "inshop", "highres"))
    assert manifest.table["x1"].isna().all()
    assert "are not for pictures of full size and are left out" in notes(manifest)
    assert "list_eval_partition.txt with Img/img_highres" in manifest.about.layout


def test_of_both_sizes_of_in_shop_the_small_one_is_taken_and_the_other_named(tmp_path, replica):
    root, *_ = clothes(replica, tmp_path)
    (root / INSHOP / "img_highres").mkdir()
    assert f"{root / INSHOP / 'img_highres'} is there too; taken was Img/img." in notes(made("inshop", root))


def test_in_shop_without_unpacked_pictures_is_told_to_unpack_them(tmp_path, replica):
    root, *_ = clothes(replica, tmp_path)
    shutil.rmtree(root / INSHOP / "Img")
    refused("inshop", root, "has no pictures: none of Img/img, img, Img/img_highres, img_highres is there")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("000001.jpg 0\n000002.jpg 2\n", "000002.jpg 2"),
        ("289222\nimage_name evaluation_status\nimg/a/b.jpg train\n", "image_name evaluation_status"),
        ("3\n", ""),
    ],
)
def test_a_list_of_the_same_name_of_another_data_set_is_refused_in_words(tmp_path, replica, content, line):
    root, partition, _ = clothes(replica, tmp_path)
    partition.write_text(content)
    refused(
        "inshop", root, f"{partition}, line 2: '{line}'; expected 'image_name item_id evaluation_status'. ...CelebA"
    )


@pytest.mark.parametrize("which", [1, 2])
def test_in_shop_without_a_line_is_refused_with_both_numbers(tmp_path, replica, which):
    root, *lists = clothes(replica, tmp_path)
    path = lists[which - 1]
    count = int(line_of(path, 1))
    edit_line(path, 7, lambda line: None)
    refused("inshop", root, f"{path}, line 1: {count} pictures are announced, but {count - 1} lines follow")


@pytest.mark.parametrize("which", [1, 2])
def test_in_shop_with_a_path_twice_is_refused_with_both_lines(tmp_path, replica, which):
    root, *lists = clothes(replica, tmp_path)
    path = lists[which - 1]
    sixth = line_of(path, 6)
    edit_line(path, 7, lambda line: sixth)
    refused("inshop", root, f"{path}, line 7: {sixth.split()[0]} is there already, in line 6.")


def test_in_shop_with_a_flipped_item_is_refused(tmp_path, replica):
    root, partition, _ = clothes(replica, tmp_path)
    item = line_of(partition, 5).split()[1]
    edit_line(partition, 5, lambda line: line.replace(f" {item}", " id_00009999"))
    refused("inshop", root, f"{partition}, line 5: item_id is id_00009999, but the path is img/")
    edit_line(partition, 5, lambda line: line.replace("id_00009999", item).replace(f"/{item}", "/id_00009999"))
    refused("inshop", root, f"{partition}, line 5: item_id is {item}, but the path is img/")


def test_in_shop_with_a_flipped_status_is_refused(tmp_path, replica):
    root, partition, _ = clothes(replica, tmp_path)
    number = next(n for n in range(4, 99) if line_of(partition, n).split()[1] == line_of(partition, n - 1).split()[1])
    item, status = line_of(partition, number).split()[1:]
    edit_line(partition, number, lambda line: line.replace(status, "tra1n"))
    refused("inshop", root, f"{partition}, line {number}: evaluation_status 'tra1n' is not one of")
    edit_line(partition, number, lambda line: line.replace("tra1n", "query" if status == "train" else "train"))
    refused("inshop", root, f"{partition}, line {number}: {item} is in ")


def test_in_shop_with_a_query_made_gallery_has_other_counts(tmp_path, replica):
    root, partition, _ = clothes(replica, tmp_path)
    number = next(n for n in range(3, 99) if line_of(partition, n).split()[-1] == "query")
    edit_line(partition, number, lambda line: line.replace("query", "gallery"))
    refused("inshop", root, "query has ")


def test_in_shop_with_a_flipped_letter_in_a_path_disagrees_with_the_boxes(tmp_path, replica):
    root, partition, _ = clothes(replica, tmp_path)
    edit_line(partition, 5, lambda line: line.replace(".jpg", ".jpf"))
    refused("inshop", root, f"{partition}, line 5: ...is missing.")


def test_in_shop_with_a_flipped_letter_in_the_boxes_lacks_a_box(tmp_path, replica):
    root, partition, boxes = clothes(replica, tmp_path)
    path = line_of(boxes, 5).split()[0]
    edit_line(boxes, 5, lambda line: line.replace(".jpg", ".jpf"))
    manifest = made("inshop", root)
    assert f"{boxes}, line 5: {path.replace('.jpg', '.jpf')} is not in {partition}." in notes(manifest)
    assert f": {path} is not in {boxes}." in notes(manifest)
    boxless = manifest.table[manifest.table["x1"].isna()]
    assert boxless["path"].tolist() == ["Img/" + path]


def test_in_shop_with_swapped_paths_of_two_items_is_refused(tmp_path, replica):
    root, partition, _ = clothes(replica, tmp_path)
    swap(partition, 3, 40, field=0)
    refused("inshop", root, f"{partition}, line 3: item_id is ")


def test_in_shop_with_a_broken_box_is_refused_and_with_a_flat_one_is_noted(tmp_path, replica):
    root, _, boxes = clothes(replica, tmp_path)
    path = line_of(boxes, 5).split()[0]
    edit_line(boxes, 5, lambda line: f"{path} 1 1 009 010 0x9 020")
    refused("inshop", root, f"{boxes}, line 5: column '0x9' is not a whole number.")
    edit_line(boxes, 5, lambda line: f"{path} 1 1 009 010 009 020")
    manifest = made("inshop", root, allow_counts=True)
    assert f"{boxes} has 1 boxes without an area, the first in line 5; left out." in notes(manifest)
    assert manifest.table["x1"].isna().sum() == 1
    edit_line(boxes, 5, lambda line: f"{path} 1 009 010 019 020")
    refused("inshop", root, f"{boxes}, line 5: ")


def test_in_shop_with_a_missing_and_an_unlisted_picture(tmp_path, replica):
    root, partition, _ = clothes(replica, tmp_path)
    path = root / INSHOP / "Img" / line_of(partition, 4).split()[0]
    shutil.copy(path, path.with_name("new.jpg"))
    assert "1 pictures are listed nowhere and left out, such as Img/img/" in notes(made("inshop", root))
    path.unlink()
    refused("inshop", root, f"{partition}, line 4: {path} is missing.")
