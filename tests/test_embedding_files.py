"""Embeddings and labels in files, whoever wrote them."""

import numpy as np
import pandas as pd
import pytest

from metricweight.checks import InputError
from metricweight.data.embeddings import parts, read

X = np.random.default_rng(0).standard_normal((6, 3))
Y = np.array([0, 0, 1, 1, 2, 2])
NAMES = np.array(["a", "a", "b", "b", "c", "c"])
ODD = np.array(["1", "01", "NA", "null", "1.0", "-0"])
HUGE = np.array([str(2**70 + i) for i in range(6)])


def table(**more):
    return pd.DataFrame(X, columns=["e0", "e1", "e2"]).assign(**more)


def write(path, content):
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".NPZ":
        with open(path, "wb") as file:
            np.savez(file, **content)
    elif path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".csv":
        content.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        content.to_parquet(path)
    else:
        path.write_text(content, encoding="utf-8")
    return path


FILES = [
    ("x.npz", {"embeddings": X, "labels": Y}, None, None, Y),
    ("x.NPZ", {"embeddings": X, "labels": Y}, None, None, Y),
    ("x.npz", {"embeddings": X, "labels": Y}, "y.npy", NAMES, NAMES),
    ("x.npz", {"embeddings": X}, "y.npy", Y, Y),
    ("x.npy", X, "y.npy", Y, Y),
    ("x.npy", X, "y.txt", "a\na\nb\nb\nc\nc", NAMES),
    ("x.npy", X, "y.txt", "a\r\na\r\nb\r\nb\r\nc\r\nc\r\n", NAMES),
    ("x.npy", X, "y.txt", "\ufeff0\n0\n1\n1\n2\n2\n", Y),
    ("x.npy", X, "y.csv", pd.DataFrame({"label": NAMES}), NAMES),
    ("x.csv", table(label=Y), None, None, Y),
    ("x.csv", table(label=NAMES, path="some.png"), None, None, NAMES),
    ("x.csv", table(label=Y, camera=3, image_id=range(6)), None, None, Y),
    ("x.csv", table(label=ODD), None, None, ODD),
    ("x.csv", table(label=[2**60 + i for i in range(6)]), None, None, 2**60 + np.arange(6)),
    ("x.csv", table(label=HUGE), None, None, HUGE),
    ("x.csv", table(label=Y).rename(columns={"e0": "a", "e1": "b", "e2": "c"}), None, None, Y),
    ("x.csv", table(), "y.npy", Y, Y),
    ("x.parquet", table(label=NAMES), None, None, NAMES),
    ("x.parquet", pd.DataFrame({"label": Y, "embedding": list(X)}), None, None, Y),
]


@pytest.mark.parametrize(("name", "content", "labels_name", "labels_content", "expected"), FILES)
def test_every_kind_of_file_gives_the_same(tmp_path, name, content, labels_name, labels_content, expected):
    path = write(tmp_path / name, content)
    labels = None if labels_name is None else write(tmp_path / labels_name, labels_content)
    found = read(path, labels)
    assert np.allclose(found.embeddings, X)
    assert found.labels.tolist() == expected.tolist()
    assert found.cameras is None or "camera" in content
    assert found.queries is None
    assert found.split == "all"
    assert found.what.startswith("6 x 3 ")
    assert found.what.endswith(f"of {path}.")


CAMERAS, QUERIES = np.array([1, 2, 1, 2, 3, 3]), np.array([True, False, False, True, False, False])
MARKED = pd.DataFrame({"label": Y, "camera": CAMERAS, "query": QUERIES})


@pytest.mark.parametrize(
    ("name", "content", "labels_name", "labels_content"),
    [
        ("x.npz", {"embeddings": X, "labels": Y, "cameras": CAMERAS, "queries": QUERIES}, None, None),
        ("x.npz", {"embeddings": X, "labels": Y, "cameras": CAMERAS, "queries": QUERIES.astype(int)}, None, None),
        ("x.csv", table(label=Y, camera=CAMERAS, query=QUERIES), None, None),
        ("x.csv", table(label=Y, camera=CAMERAS, query=QUERIES.astype(int)), None, None),
        ("x.csv", table(label=Y, camera=CAMERAS, query=QUERIES).set_axis([*"abc", *MARKED], axis=1), None, None),
        ("x.parquet", table(label=Y, camera=CAMERAS, query=QUERIES), None, None),
        ("x.npy", X, "y.csv", MARKED),
        ("x.npz", {"embeddings": X, "labels": NAMES, "cameras": 1 + CAMERAS}, "y.parquet", MARKED),
    ],
)
def test_cameras_and_queries_are_read_from_arrays_or_columns(tmp_path, name, content, labels_name, labels_content):
    labels = None if labels_name is None else write(tmp_path / labels_name, labels_content)
    found = read(write(tmp_path / name, content), labels)
    assert np.allclose(found.embeddings, X)
    assert found.labels.tolist() == Y.tolist()
    assert found.cameras.tolist() == CAMERAS.tolist()
    assert found.queries.dtype == bool
    assert found.queries.tolist() == QUERIES.tolist()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", table(label=Y, camera=["a"] * 6), "column 'camera': cameras must be whole numbers"),
        ("x.csv", table(label=Y, camera=CAMERAS / 2), "column 'camera': cameras must be whole numbers"),
        ("x.csv", table(label=Y, query=CAMERAS), "which items are queries must be true or false, or 1 or 0"),
        ("x.csv", table(label=Y, query=NAMES), "which items are queries must be true or false, or 1 or 0"),
        ("x.npz", {"embeddings": X, "labels": Y, "queries": X}, "which items are queries must be true or false"),
    ],
)
def test_cameras_and_queries_that_cannot_be_are_refused(tmp_path, name, content, words):
    with pytest.raises(InputError, match=rf"{name}.*{words}"):
        read(write(tmp_path / name, content))


def test_an_npy_file_is_a_memory_map_and_an_npz_file_says_its_split(tmp_path):
    found = read(write(tmp_path / "x.npy", X), write(tmp_path / "y.npy", Y))
    assert isinstance(found.embeddings, np.memmap)
    assert not found.embeddings.flags.writeable
    assert read(write(tmp_path / "x.npz", {"embeddings": X, "labels": Y, "split": "train"})).split == "train"


def test_a_run_folder_is_read_as_its_embeddings(tmp_path):
    write(tmp_path / "embeddings.npz", {"embeddings": X, "labels": Y, "split": "test"})
    found = read(tmp_path)
    assert found.labels.tolist() == Y.tolist()
    assert found.split == "test"
    assert found.what == f"6 x 3 of {tmp_path / 'embeddings.npz'}."


def in_parts(folder, **changes):
    """Three parts of two items each, the second of damaged pictures alone; `changes`: arrays of one, by its number."""
    folder.mkdir()
    for number, rows in enumerate((slice(0, 2), slice(0, 0), slice(2, 6))):
        part = {"embeddings": X[rows] if number != 1 else np.empty((0, 0)), "labels": Y[rows], "names": NAMES[rows]}
        part |= {"queries": QUERIES[rows], "split": "test", "protocol": "gallery", "stamp": "s", "part": [number, 3]}
        write(folder / f"part-{number:05d}.npz", part | changes.get(f"part{number}", {}))
    return folder


def test_a_folder_of_parts_is_read_as_one_file(tmp_path):
    found = read(in_parts(tmp_path / "parts"))
    assert np.array_equal(found.embeddings, X)
    assert found.labels.tolist() == Y.tolist()
    assert found.queries.tolist() == QUERIES.tolist()
    assert (found.split, found.protocol, found.cameras) == ("test", "gallery", None)
    assert found.what == f"6 x 3 of {tmp_path / 'parts'}."
    other = write(tmp_path / "y.npy", NAMES)
    assert read(tmp_path / "parts", other).labels.tolist() == NAMES.tolist()
    whole = parts(tmp_path / "parts", tmp_path / "scratch.npy")
    assert isinstance(whole["embeddings"], np.memmap)
    assert np.array_equal(whole["embeddings"], X)
    assert whole["names"].tolist() == NAMES.tolist()
    assert not {"stamp", "part"} & set(whole)


FIRST = X[QUERIES] + 0.5
OF_TRACKLETS = {"labels": Y, "queries": QUERIES, "seen": "all frames, mean", "query_images": FIRST}


def test_first_frames_of_queries_and_what_was_seen_are_read_where_they_are_there(tmp_path):
    found = read(write(tmp_path / "x.npz", {"embeddings": X, **OF_TRACKLETS}))
    assert np.array_equal(found.query_images, FIRST)
    assert found.seen == "all frames, mean"
    found = read(write(tmp_path / "y.npz", {"embeddings": X, "labels": Y, "query_images": X + 1}))  # all are queries
    assert np.array_equal(found.query_images, X + 1)
    plain = read(write(tmp_path / "z.npz", {"embeddings": X, "labels": Y}))
    assert plain.query_images is plain.seen is None
    assert read(write(tmp_path / "x.csv", table(label=Y))).query_images is None


@pytest.mark.parametrize("without", [np.empty((0, 3)), np.empty((0, 0))])
def test_first_frames_in_parts_are_put_together_in_order(tmp_path, without):
    """Queries are rows 0 and 3; the first part has one of them, the second none, the third one."""
    of_parts = (FIRST[:1], without, FIRST[1:])
    more = {f"part{i}": {"query_images": some, "seen": "first"} for i, some in enumerate(of_parts)}
    found = read(in_parts(tmp_path / "parts", **more))
    assert np.array_equal(found.query_images, FIRST)
    assert found.seen == "first"
    whole = parts(tmp_path / "parts")
    assert np.array_equal(whole["query_images"], FIRST)
    assert str(whole["seen"]) == "first"
    more["part2"]["query_images"] = without
    with pytest.raises(
        InputError, match=r"parts2: query_images must have a row for each of the 2 queries, got \[1, 3\]"
    ):
        read(in_parts(tmp_path / "parts2", **more))


def test_parts_without_any_query_have_no_first_frames(tmp_path):
    nobody = {"query_images": np.empty((0, 3)), "seen": "first"}
    more = {f"part{i}": {"queries": np.zeros(n, dtype=bool), **nobody} for i, n in enumerate((2, 0, 4))}
    assert read(in_parts(tmp_path / "parts", **more)).query_images.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query_images": X[:1]}, r"query_images must have a row for each of the 2 queries, got \[1, 3\]; embed"),
        ({"query_images": X[:0]}, r"a row for each of the 2 queries, got \[0, 3\]"),
        ({"query_images": X, "queries": QUERIES}, r"a row for each of the 2 queries, got \[6, 3\]"),
        ({"query_images": X[0, :2]}, r"a row for each of the 2 queries, got \[2\]"),
        (
            {"query_images": X[:2, :2]},
            "query_images have 2 numbers each and embeddings 3; both must come from one model",
        ),
    ],
)
def test_first_frames_that_do_not_fit_the_queries_are_refused_with_both_numbers(tmp_path, change, words):
    with pytest.raises(InputError, match=rf"x.npz: .*{words}"):
        read(write(tmp_path / "x.npz", {"embeddings": X, **OF_TRACKLETS, **change}))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_part_that_is_missing_is_refused_with_its_number(tmp_path, number):
    folder = in_parts(tmp_path / "parts")
    (folder / f"part-{number:05d}.npz").unlink()
    with pytest.raises(InputError, match=rf"parts: part {number} is missing, of 3 that begin with part 0; give metric"):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"part2": {"stamp": "t"}}, "part 2 is of other embeddings than part 0; take it away, or make all anew"),
        ({"part1": {"part": [1, 4]}}, "part 1 is of other embeddings"),
        ({"part2": {"part": [1, 3]}}, "part 2 is of other embeddings"),
        ({"part0": {"part": [0, 2]}}, "part 1 is of other embeddings"),
    ],
)
def test_a_part_of_other_embeddings_is_refused_with_its_number(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        read(in_parts(tmp_path / "parts", **changes))


def test_a_part_that_nobody_wrote_as_one_is_refused(tmp_path):
    (tmp_path / "parts").mkdir()
    path = write(tmp_path / "parts" / "part-00000.npz", {"embeddings": X, "labels": Y})
    with pytest.raises(InputError, match=r"part-00000.npz is not a part that `metricweight embed --shards` wrote"):
        read(tmp_path / "parts")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"part-00000.npz is damaged"):
        read(tmp_path / "parts")


def test_what_was_taken_for_the_embedding_is_said(tmp_path):
    found = read(write(tmp_path / "x.csv", table(label=Y, camera=CAMERAS, path="some.png")))
    assert "columns 'e0' to 'e2' (not path)" in found.what


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", table(species=Y), "has no column 'label'; it has 'e0', 'e1', 'e2', 'species'.*--label-column"),
        ("x.csv", pd.DataFrame({"label": Y, "path": NAMES}), "no columns of numbers besides the label; it has 'path'"),
        ("x.npz", {"features": X, "labels": Y}, "holds features, labels; needed: embeddings and labels"),
        ("x.npz", {"embeddings": X}, "holds embeddings; needed: embeddings and labels"),
        ("x.npy", X, "holds embeddings alone; give their labels with --labels"),
        ("x.bin", "", "is not .npz, .npy, .csv or .parquet"),
        ("x.csv", table(label=Y, e3=["1", "2", "3", "4", "5", "oops"]), "column 'e3': not all of it are numbers"),
        (
            "x.csv",
            table(label=Y, k=range(6)).drop(columns=["e1", "e2"]),
            r"whole numbers \('k'\), which may be no part",
        ),
        ("x.csv", table(label=["a", "", "b", "b", "c", "c"]), "the label of item 2 is empty"),
        ("x.csv", table(label=Y)[:0], "has no rows"),
    ],
)
def test_a_file_without_what_is_needed_is_refused_with_what_it_has(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words):
        read(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.parquet"])
def test_a_damaged_file_is_refused(tmp_path, name):
    path = write(tmp_path / name, {"x.npz": {"embeddings": X}, "x.npy": X, "x.parquet": table()}[name])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        read(path, write(tmp_path / "y.txt", "a\n"))


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "y.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"holds Python objects, which are not loaded; save .astype"):
        read(write(tmp_path / "x.npy", X), tmp_path / "y.npy")


def test_a_label_column_where_there_are_no_columns_is_refused(tmp_path):
    path = write(tmp_path / "x.npz", {"embeddings": X, "labels": Y})
    with pytest.raises(InputError, match=r"x.npz has no columns, so --label-column species cannot be"):
        read(path, None, "species")


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "y.txt").write_bytes("é\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"y.txt is not UTF-8"):
        read(write(tmp_path / "x.npy", X), tmp_path / "y.txt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; give a file in it"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"none.npz is not there"):
        read(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"none.txt is not there"):
        read(write(tmp_path / "x.npy", X), tmp_path / "none.txt")
