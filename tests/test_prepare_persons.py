"""MARS, Market-1501, DukeMTMC-VideoReID, iLIDS-VID, PRID2011: what is read, and that each damage is named."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from metricweight._data_tools import duke_video, ilids_vid, market1501, mars, prid2011
from metricweight._data_tools.prepare import write_replica
from metricweight._data_tools.replicas.matlab import save_mat
from metricweight._data_tools.replicas.persons import Seen, person, tracklet
from metricweight._data_tools.source import Converted, Options

from metricweight.checks import InputError
from metricweight.data import manifest


def touch(root: Path, *paths: str) -> None:
    """Empty files: converters look at names alone."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def completed(found: Converted) -> pd.DataFrame:
    return manifest.complete(found.rows, str, "rows")


def chosen(found: Converted, *columns: str) -> list[tuple[object, ...]]:
    return list(completed(found)[list(columns)].itertuples(index=False, name=None))


# ---- MARS: a data set of twelve frames

TRAIN = [
    "0001C1T0001F001.jpg",
    "0001C1T0001F002.jpg",
    "0001C2T0002F001.jpg",
    "0003C1T0001F001.jpg",
    "0003C1T0001F002.jpg",
]
TRAIN_CUT = [[1, 2, 1, 1], [3, 3, 1, 2], [4, 5, 3, 1]]  # start, end, person, camera
TEST = [
    "00-1C1T0001F001.jpg",
    "00-1C1T0001F002.jpg",
    "0000C3T0001F001.jpg",
    "0002C1T0001F001.jpg",
    "0002C1T0001F002.jpg",
    "0002C2T0002F001.jpg",
    "0002C2T0003F001.jpg",
]
TEST_CUT = [[1, 2, -1, 1], [3, 3, 0, 3], [4, 5, 2, 1], [6, 6, 2, 2], [7, 7, 2, 2]]
QUERIES = [3, 4]


def write_mars(
    root: Path,
    train: Sequence[str] = TRAIN,
    train_cut: Sequence[Sequence[float]] = TRAIN_CUT,
    test: Sequence[str] = TEST,
    test_cut: Sequence[Sequence[float]] = TEST_CUT,
    queries: Sequence[int] = QUERIES,
    end: str = "\r\n",
    dtype: type = np.int32,
) -> Path:
    touch(
        root, *(f"bbox_train/{name[:4]}/{name}" for name in TRAIN), *(f"bbox_test/{name[:4]}/{name}" for name in TEST)
    )
    info = root / "info"
    info.mkdir(exist_ok=True)
    for half, names, cut in (("train", train, train_cut), ("test", test, test_cut)):
        (info / f"{half}_name.txt").write_bytes("".join(name + end for name in names).encode())
        kept = np.array(cut) if np.array(cut).dtype.kind == "f" else np.array(cut, dtype=dtype)
        save_mat(info / f"tracks_{half}_info.mat", {f"track_{half}_info": kept})
    save_mat(
        info / "query_IDX.mat", {"query_IDX": np.array([queries], dtype=np.float64 if dtype is float else np.uint16)}
    )
    return root


@pytest.mark.parametrize(("end", "dtype"), [("\r\n", np.int32), ("\n", np.int16), ("\r\n", float)])
def test_mars_gives_what_its_lists_and_tables_say_in_their_order(tmp_path, end, dtype):
    found = mars.convert(write_mars(tmp_path, end=end, dtype=dtype), Options())
    assert found.protocol == "mars-official"
    assert not found.notes
    paths = [f"bbox_train/{name[:4]}/{name}" for name in TRAIN] + [f"bbox_test/{name[:4]}/{name}" for name in TEST]
    assert completed(found)["path"].tolist() == paths
    assert chosen(found, "label", "split", "camera", "tracklet", "frame", "is_query", "is_gallery") == [
        (1, "train", 1, 0, 1, False, False),
        (1, "train", 1, 0, 2, False, False),
        (1, "train", 2, 1, 1, False, False),
        (3, "train", 1, 2, 1, False, False),
        (3, "train", 1, 2, 2, False, False),
        (-1, "test", 1, 3, 1, False, True),
        (-1, "test", 1, 3, 2, False, True),
        (0, "test", 3, 4, 1, False, True),
        (2, "test", 1, 5, 1, True, True),
        (2, "test", 1, 5, 2, True, True),
        (2, "test", 2, 6, 1, True, True),
        (2, "test", 2, 7, 1, False, True),
    ]
    assert np.flatnonzero(completed(found)["is_junk"]).tolist() == [5, 6]
    assert np.flatnonzero(completed(found)["is_distractor"]).tolist() == [7]


@pytest.mark.parametrize("folder", ["mars", "MARS"])
def test_mars_may_lie_in_a_folder_of_its_name(tmp_path, folder):
    found = mars.convert(write_mars(tmp_path / folder).parent, Options())
    assert found.root == tmp_path / folder
    assert len(found.rows) == 12


def test_the_tables_of_mars_may_lie_in_the_clone_that_they_come_from(tmp_path):
    write_mars(tmp_path / "MARS")
    (tmp_path / "MARS-evaluation").mkdir()
    (tmp_path / "MARS" / "info").rename(tmp_path / "MARS-evaluation" / "info")
    found = mars.convert(tmp_path, Options())
    assert found.root == tmp_path / "MARS"
    assert len(found.rows) == 12


def changed(names: Sequence[str], line: int, name: str) -> list[str]:
    return [name if i == line else old for i, old in enumerate(names, start=1)]


def swapped(names: Sequence[str], line: int, other: int) -> list[str]:
    return changed(changed(names, line, names[other - 1]), other, names[line - 1])


def cut(table: Sequence[Sequence[float]], row: int, *values: float) -> list[list[float]]:
    return [list(values) if i == row else list(old) for i, old in enumerate(table, start=1)]


WRONG_MARS = {
    "a line is dropped from a list": (
        {"train": TRAIN[:2] + TRAIN[3:]},
        r"tracks_train_info.mat, row 3: .* ends at line 5, but .*train_name.txt has 4 lines",
    ),
    "a line is in no tracklet": (
        {"test": [*TEST, "0004C1T0001F001.jpg"]},
        r"test_name.txt, line 8: 0004C1T0001F001.jpg .* no row of .*tracks_test_info.mat",
    ),
    "a digit of the person is flipped": (
        {"train": changed(TRAIN, 3, "0007C2T0002F001.jpg")},
        r"train_name.txt, line 3: 0007C2T0002F001.jpg is of person 7, but lines 3 to 3 \(row 2 of .*\) are of 1",
    ),
    "a camera is flipped": (
        {"test": changed(TEST, 5, "0002C2T0001F002.jpg")},
        r"test_name.txt, line 5: 0002C2T0001F002.jpg is of camera 2, but lines 4 to 5 \(row 3 of .*\) are of 1",
    ),
    "a camera that is not": (
        {"test": changed(TEST, 5, "0002C8T0001F002.jpg")},
        r"test_name.txt, line 5: '0002C8T0001F002.jpg' is not a name",
    ),
    "a digit becomes a letter": (
        {"train": changed(TRAIN, 2, "0001C1T0001F0O2.jpg")},
        r"train_name.txt, line 2: '0001C1T0001F0O2.jpg' is not a name",
    ),
    "a name is there twice": (
        {"train": changed(TRAIN, 2, TRAIN[0])},
        r"train_name.txt, line 2: 0001C1T0001F001.jpg is there already, in line 1",
    ),
    "two lines of two people are swapped": (
        {"train": swapped(TRAIN, 2, 4)},
        r"train_name.txt, line 2: 0003C1T0001F001.jpg is of person 3",
    ),
    "the lists are swapped": (
        {"train": TEST, "test": TRAIN},
        r"train_name.txt, line 6: 0002C2T0002F001.jpg and what follows is in no row of .*tracks_train_info.mat",
    ),
    "a tracklet skips a line": (
        {"train_cut": cut(TRAIN_CUT, 2, 4, 3, 1, 2)},
        r"tracks_train_info.mat, row 2: the tracklet ends at line 3, before it begins at line 4",
    ),
    "two tracklets have a line in between": (
        {"train_cut": cut(TRAIN_CUT, 1, 1, 1, 1, 1)},
        r"tracks_train_info.mat, row 2: the tracklet begins at line 3, the one before ends at 1",
    ),
    "two tracklets share a line": (
        {"train_cut": cut(TRAIN_CUT, 1, 1, 3, 1, 1)},
        r"tracks_train_info.mat, row 2: the tracklet begins at line 3, the one before ends at 3",
    ),
    "the first tracklet begins late": (
        {"train_cut": cut(TRAIN_CUT, 1, 2, 2, 1, 1)},
        r"train_info.mat, row 1: .* line 2",
    ),
    "a tracklet points past the list": (
        {"test_cut": cut(TEST_CUT, 5, 7, 70000, 2, 2)},
        r"tracks_test_info.mat, row 5: .* ends at line 70000, but .*test_name.txt has 7 lines",
    ),
    "a camera of the table that is not": (
        {"test_cut": cut(TEST_CUT, 3, 4, 5, 2, 7)},
        "tracks_test_info.mat, row 3: camera 7 cannot be; there are 1 to 6",
    ),
    "camera 0 of the table": (
        {"train_cut": cut(TRAIN_CUT, 2, 3, 3, 1, 0)},
        "tracks_train_info.mat, row 2: camera 0 cannot be; there are 1 to 6",
    ),
    "a person of the table that is not": ({"test_cut": cut(TEST_CUT, 1, 1, 2, -2, 1)}, "row 1: person -2 cannot be"),
    "half a line": (
        {"train_cut": cut(TRAIN_CUT, 3, 4, 5.5, 3, 1)},
        "tracks_train_info.mat, row 3: 5.5 is not a whole number",
    ),
    "a line without end": (
        {"train_cut": cut(TRAIN_CUT, 3, 4, np.inf, 3, 1)},
        "tracks_train_info.mat, row 3: inf is not a whole number",
    ),
    "a line that is not a number": (
        {"train_cut": cut(TRAIN_CUT, 3, 4, np.nan, 3, 1)},
        "row 3: nan is not a whole number",
    ),
    "a column is missing": (
        {"train_cut": [row[:3] for row in TRAIN_CUT]},
        r"track_train_info is \[3, 3\]; \[tracklets, 4\]",
    ),
    "a query past the table": ({"queries": [3, 6]}, r"query_IDX.mat, entry 2: row 6 cannot be; .* rows 1 to 5"),
    "a query of row 0": ({"queries": [0, 3]}, "query_IDX.mat, entry 1: row 0 cannot be"),
    "queries out of order": (
        {"queries": [4, 3]},
        "query_IDX.mat, entry 2: row 3 comes after row 4; they must increase",
    ),
    "a query twice": ({"queries": [3, 3]}, "query_IDX.mat, entry 2: row 3 comes after row 3"),
    "junk as a query": ({"queries": [1, 3]}, r"query_IDX.mat, entry 1: row 1 of .*tracks_test_info.mat is junk"),
    "a distractor as a query": ({"queries": [2, 3]}, "query_IDX.mat, entry 1: row 2 of .* is a distractor"),
    "two queries of one person and camera": (
        {"queries": [3, 4, 5]},
        "query_IDX.mat, entry 3: row 5 searches for person 2 from camera 2, as does row 4",
    ),
}


@pytest.mark.parametrize("what", WRONG_MARS)
def test_in_mars_what_is_wrong_is_named_with_its_file_and_line(tmp_path, what):
    mutation, message = WRONG_MARS[what]
    write_mars(tmp_path, **mutation)
    with pytest.raises(InputError, match=message):
        mars.convert(tmp_path, Options())


@pytest.mark.parametrize("name", ["tracks_train_info.mat", "tracks_test_info.mat", "query_IDX.mat"])
def test_in_mars_a_table_that_is_cut_short_missing_or_another_is_named(tmp_path, name):
    file = write_mars(tmp_path) / "info" / name
    whole = file.read_bytes()
    for length in (0, 60, 140, len(whole) - 9):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"{name} (is damaged|cannot be read)"):
            mars.convert(tmp_path, Options())
    save_mat(file, {"something": np.arange(3)})
    with pytest.raises(InputError, match=f"{name} has no .*; it has something"):
        mars.convert(tmp_path, Options())
    file.unlink()
    with pytest.raises(InputError, match=f"does not look like the folder info of MARS: none of {name} is in it"):
        mars.convert(tmp_path, Options())


def test_in_mars_missing_frames_are_named_where_they_are_listed_and_an_unlisted_one_is_noted(tmp_path):
    write_mars(tmp_path)
    picture = tmp_path / "bbox_test" / "0002" / TEST[4]
    picture.unlink()
    with pytest.raises(InputError, match=r"test_name.txt, line 5: .*bbox_test/0002/0002C1T0001F002.jpg is missing"):
        mars.convert(tmp_path, Options())
    shutil.rmtree(tmp_path / "bbox_train" / "0003")
    with pytest.raises(
        InputError, match=r"train_name.txt, line 4: .*0003C1T0001F001.jpg is missing; so are 2 more of 12"
    ):
        mars.convert(tmp_path, Options())
    touch(tmp_path, f"bbox_test/0002/{TEST[4]}", *(f"bbox_train/0003/0003C1T0001F{frame:03d}.jpg" for frame in (1, 2)))
    touch(tmp_path, "bbox_train/0003/0003C1T0001F003.jpg", "bbox_train/0003/Thumbs.db")
    (note,) = mars.convert(tmp_path, Options()).notes
    assert "1 pictures are listed nowhere" in note
    assert "bbox_train/0003/0003C1T0001F003.jpg" in note


def test_in_mars_frames_are_ordered_by_their_numbers_and_lines_that_are_not_are_noted(tmp_path):
    found = mars.convert(write_mars(tmp_path, train=swapped(TRAIN, 4, 5)), Options())
    (note,) = found.notes
    assert "train_name.txt, line 5: 0003C1T0001F001.jpg is listed after 0003C1T0001F002.jpg" in note
    assert chosen(found, "path", "frame")[3:5] == [
        (f"bbox_train/0003/{TRAIN[4]}", 2),
        (f"bbox_train/0003/{TRAIN[3]}", 1),
    ]


def test_in_mars_two_tracklets_that_exchange_lines_are_noted_and_frames_are_in_the_order_of_the_list(tmp_path):
    test = [*TEST[:6], "0002C2T0003F001.jpg", "0002C2T0002F002.jpg"]
    write_mars(tmp_path, test=test, test_cut=[*TEST_CUT[:3], [6, 7, 2, 2], [8, 8, 2, 2]])
    for name in test[6:]:
        (tmp_path / "bbox_test" / "0002" / name).touch()
    found = mars.convert(tmp_path, Options())
    (note,) = found.notes
    said = "test_name.txt, line 7: 0002C2T0003F001.jpg is not of the tracklet of 0002C2T0002F001.jpg by its name, but"
    assert said in note
    assert [frame for _, frame in chosen(found, "path", "frame")[-3:]] == [0, 1, 0]


# ---- the replica of MARS


@pytest.fixture(scope="module")
def replica(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    root = tmp_path_factory.mktemp("mars")
    return root, manifest.complete(write_replica("mars", root, size=2), str, "truth")


def test_the_replica_of_mars_has_the_people_that_make_protocols_differ(replica):
    table = replica[1]
    test = table[(table["split"] == "test") & (table["label"] > 0)].drop_duplicates("tracklet")
    queries = test[test["is_query"]]
    assert not queries.duplicated(["label", "camera"]).any()
    rest = test[~test["is_query"]]
    assert set(queries["label"]) - set(rest["label"])  # among the queries alone
    one_camera = test.groupby("label")["camera"].nunique() == 1
    assert one_camera.any()
    assert not queries["label"].isin(one_camera[one_camera].index).any()

    def answered(gallery: pd.DataFrame) -> list[bool]:
        return [((gallery["label"] == q.label) & (gallery["camera"] != q.camera)).any() for q in queries.itertuples()]

    assert all(answered(test))  # mars-official and mars-ap3d
    assert 0 < sum(answered(rest)) < len(queries)  # mars-torchreid leaves some out
    lost = [q.label for q, found in zip(queries.itertuples(), answered(rest), strict=True) if not found]
    assert set(lost) & set(rest["label"])  # some of them although their person is in the gallery
    assert (table["label"] == -1).any()
    assert (table["label"] == 0).any()


def test_the_replica_of_mars_has_what_training_and_noise_need(replica):
    tracklets = (
        replica[1]
        .groupby("tracklet")
        .agg(label=("label", "first"), split=("split", "first"), camera=("camera", "first"), frames=("frame", "size"))
    )
    trained = tracklets[(tracklets["split"] == "train")]
    of_each = trained.groupby("label")["camera"].agg(["size", "nunique"])
    assert len(of_each) == 12
    assert sorted(of_each["size"])[0] == 1  # one person has a single tracklet, as in the real thing
    assert (of_each["nunique"] > 1).sum() == 11
    assert (of_each["size"] > of_each["nunique"]).any()  # twice by a camera
    assert of_each["size"].mean() > 3
    people = tracklets[tracklets["label"] > 0].groupby("split", observed=True)["frames"]
    assert people.min().tolist() == [2, 2]
    assert people.max().tolist() == [24, 24]
    tested = tracklets[tracklets["split"] == "test"]
    assert 0.05 < (tested["label"] == -1).mean() < 0.09  # 870 of 12,180 are 7 %
    assert 0.24 < (tested["label"] == 0).mean() < 0.3  # 3,248 are 27 %


def test_the_replica_of_mars_tells_which_frames_are_hidden_or_show_another(replica):
    root, table = replica
    frames = pd.read_csv(root / "frames.csv")
    assert frames.columns.tolist() == ["path", "occluded", "foreign", "shown"]
    assert frames["path"].tolist() == table["path"].tolist()
    assert frames["foreign"].equals(frames["shown"] != table["label"])
    occluded, foreign = frames["occluded"].to_numpy(), frames["foreign"].to_numpy()
    assert not (occluded & foreign).any()
    for split in ("train", "test"):
        people = ((table["split"] == split) & (table["label"] > 0)).to_numpy()
        assert 0.04 < foreign[people].mean() < 0.11
        assert 0.09 < occluded[people].mean() < 0.16
        assert set(frames["shown"][people & foreign]) <= set(table["label"][people])
    disturbed = pd.Series(foreign | occluded)
    assert disturbed.groupby(table["tracklet"]).mean().max() < 0.5  # most of each tracklet shows its person
    assert not disturbed[(table["label"] <= 0).to_numpy()].any()
    begun = disturbed & ~disturbed.groupby(table["tracklet"]).shift(fill_value=False)
    assert disturbed.sum() > 1.5 * begun.sum()  # frames are disturbed in runs


def test_its_files_are_what_matlab_and_windows_write(replica):
    info = replica[0] / "info"
    names = (info / "test_name.txt").read_bytes()
    assert names.count(b"\r\n") == names.count(b"\n") == (replica[1]["split"] == "test").sum()
    from scipy.io import loadmat

    train, queries = (
        loadmat(info / "tracks_train_info.mat")["track_train_info"],
        loadmat(info / "query_IDX.mat")["query_IDX"],
    )
    assert (train.dtype, queries.dtype, queries.shape[0]) == (np.int32, np.uint16, 1)
    assert train[0, :].tolist()[:1] + train[0, 2:3].tolist() == [1, 1]


def test_prepare_runs_from_the_command_line_to_a_manifest_that_reads_back(metricweight, tmp_path):
    code, out, err = metricweight("prepare", "mars", "--replica", "small", "--layout", "nested")
    assert (code, err) == (0, "")
    assert "protocol mars-official" in out
    made = manifest.read(tmp_path / "small" / "manifest.csv")
    assert (made.root / made.table["path"].iloc[0]).is_file()
    assert made.table["path"].str.startswith(("bbox_train/bbox_train/", "bbox_test/bbox_test/")).all()
    code, out, err = metricweight("prepare", "ilids_vid", "--replica", "videos", "--fold", "2")
    assert (code, err) == (0, "")
    assert "split 2 of 10" in out


# ---- the pictures


def test_a_picture_of_a_person_is_the_same_each_time_and_another_in_each_frame_tracklet_camera_and_when_hidden():
    first = np.asarray(person(5, 2, 1, 3))
    assert first.shape == (128, 64, 3)
    np.testing.assert_array_equal(first, np.asarray(person(5, 2, 1, 3)))
    others = [
        person(7, 2, 1, 3),
        person(5, 3, 1, 3),
        person(5, 2, 2, 3),
        person(5, 2, 1, 4),
        person(5, 2, 1, 3, occluded=True),
    ]
    for other in others:
        assert np.abs(first.astype(int) - np.asarray(other).astype(int)).mean() > 3
    assert person(-1, 1, 1, 1, size=(32, 64)).size == (32, 64)


def walked(owner: int, camera: int, number: int, seen: Sequence[Seen]) -> np.ndarray:
    return np.stack([np.asarray(picture).astype(float) for picture in tracklet(owner, camera, number, seen)])


@pytest.mark.parametrize("camera", [1, 2, 3])
def test_in_a_tracklet_legs_walk_and_what_is_behind_them_passes_by(camera):
    frames = walked(5, camera, 1, [Seen(5)] * 24)
    assert frames.shape == (24, 128, 64, 3)
    np.testing.assert_array_equal(frames, walked(5, camera, 1, [Seen(5)] * 24))
    other = walked(5, camera, 2, [Seen(5)] * 24)
    assert np.abs(frames.mean(axis=0) - other.mean(axis=0)).mean() > 6  # light, place, way
    legs = frames[:, 88:124, 12:52].reshape(24, 9, 4, 10, 4, 3).mean(axis=(2, 4))  # 4 x 4 pixels: little noise is left
    assert np.abs(np.diff(legs, axis=0)).mean(axis=(1, 2, 3)).min() > 2
    wall = frames[:, :12].mean(axis=1)  # above the person: its lines, by column; noise of 24 frames is 6
    assert np.ptp(wall, axis=0).max() > 10


def test_in_a_tracklet_light_and_place_stay_whoever_is_seen_and_what_hides_them_comes_and_goes():
    seen = [Seen(5)] * 6 + [Seen(5, occluded=True)] * 6 + [Seen(7)] * 3 + [Seen(5)] * 9
    frames, plain = walked(5, 2, 1, seen), walked(5, 2, 1, [Seen(5)] * 24)
    changed = np.abs(frames - plain).mean(axis=(1, 2, 3)) > 3
    assert changed.tolist() == [frame.occluded or frame.identity != 5 for frame in seen]
    np.testing.assert_array_equal(frames[12:15, :6, :6], plain[12:15, :6, :6])
    passing = []
    for number in range(1, 13):  # pillars, walls and other people
        several = walked(5, 2, number, seen)[6:12]
        assert (np.abs(several - walked(5, 2, number, [Seen(5)] * 24)[6:12]).mean(axis=3) > 20).mean() > 0.2
        at_once = walked(5, 2, number, [*seen[:7], *[Seen(5)] * 17])[6]  # where it hides most
        passing.append(np.abs(several[0] - at_once).mean() > 1)
    assert 4 < sum(passing) < 12  # a wall does not


def test_people_are_told_apart_across_cameras_by_what_they_wear_and_not_by_mean_colour():
    people, cameras = range(1, 41, 2), (1, 2, 3)
    seen = {camera: np.stack([np.asarray(person(i, camera, 1, 3), dtype=float) for i in people]) for camera in cameras}

    def found(feature: Callable[[np.ndarray], np.ndarray]) -> float:
        """How often the nearest in another camera is the same person, where each camera's own mean is taken away."""
        features = {camera: feature(pictures) for camera, pictures in seen.items()}
        features = {camera: values - values.mean(axis=0) for camera, values in features.items()}
        rates = []
        for one in cameras:
            for other in set(cameras) - {one}:
                distances = ((features[one][:, None] - features[other][None]) ** 2).sum(axis=2)
                rates.append((distances.argmin(axis=1) == np.arange(len(people))).mean())
        return float(np.mean(rates))

    def clothes(pictures: np.ndarray) -> np.ndarray:
        middle = pictures[:, 4:, 12:52]
        plain = (middle - middle.mean(axis=(1, 2), keepdims=True)) / middle.std(axis=(1, 2), keepdims=True)
        return plain[:, ::4, ::4].reshape(len(pictures), -1)

    assert found(lambda pictures: pictures.mean(axis=(1, 2))) < 0.2  # by chance 0.05
    assert found(clothes) > 0.35
    chests = [pictures[:, 40:60, 28:36].mean(axis=(0, 1, 2)) for pictures in seen.values()]  # of the same people
    tints = [red / green for red, green, _ in chests]
    assert max(tints) > 1.3 * min(tints)


# ---- Market-1501

MARKET = {
    "bounding_box_train/0002_c1s1_000451_03.jpg": (2, "train", 1, 1, 451, False, False),
    "bounding_box_train/0002_c2s3_000551_01.jpg": (2, "train", 2, 3, 551, False, False),
    "bounding_box_test/-1_c1s1_000401_03.jpg": (-1, "test", 1, 1, 401, False, True),
    "bounding_box_test/0000_c1s1_000151_01.jpg": (0, "test", 1, 1, 151, False, True),
    "bounding_box_test/0001_c1s1_001051_03.jpg.jpg": (1, "test", 1, 1, 1051, False, True),
    "bounding_box_test/0001_c2s1_000301_01.jpg": (1, "test", 2, 1, 301, False, True),
    "query/0001_c1s1_001051_00.jpg": (1, "test", 1, 1, 1051, True, False),
    "query/0001_c2s1_000301_00.jpg": (1, "test", 2, 1, 301, True, False),
}
HARMLESS = (
    "bounding_box_test/Thumbs.db",
    "query/._0001_c1s1_001051_00.jpg",
    "gt_bbox/0001_c1s1_001051_00.jpg",
    "readme.txt",
)


@pytest.mark.parametrize("folder", ["", "Market-1501-v15.09.15"])
def test_market_is_read_from_the_names_in_its_three_folders(tmp_path, folder):
    touch(tmp_path / folder, *MARKET, *HARMLESS)
    found = market1501.convert(tmp_path, Options())
    assert found.protocol == "market1501"
    assert not found.notes
    columns = ("path", "label", "split", "camera", "sequence", "frame", "is_query", "is_gallery")
    assert {row[0]: row[1:] for row in chosen(found, *columns)} == MARKET
    table = completed(found)
    assert (table["tracklet"] == -1).all()
    assert table["path"][table["is_junk"]].tolist() == ["bounding_box_test/-1_c1s1_000401_03.jpg"]
    assert table["path"][table["is_distractor"]].tolist() == ["bounding_box_test/0000_c1s1_000151_01.jpg"]


WRONG_MARKET = {
    "bounding_box_test/0001_c9s1_000301_01.jpg": "not a name such as",
    "bounding_box_test/0001_c1s1_00301_01.jpg": "not a name such as",
    "bounding_box_train/0O02_c1s1_000451_03.jpg": "not a name such as",
    "query/0001_c1s1_001051_00.jpg.bak": "not a name such as",
    "query/holiday.jpg": "not a name such as",
    "query/0000_c1s1_001051_00.jpg": "person 0 cannot be in query",
    "bounding_box_train/-1_c1s1_001051_00.jpg": "person -1 cannot be in bounding_box_train",
    "bounding_box_test/0002_c3s1_001051_01.jpg": "person 2 is in training too, as bounding_box_train/0002",
    "query/0001_c1s2_001061_00.jpg": "person 1 from camera 1 is searched already, by query/0001_c1s1_001051_00.jpg",
}


@pytest.mark.parametrize("name", WRONG_MARKET)
def test_in_market_a_wrong_name_is_named_with_its_file(tmp_path, name):
    touch(tmp_path, *MARKET, name)
    with pytest.raises(InputError, match=f"{name}: .*{WRONG_MARKET[name]}"):
        market1501.convert(tmp_path, Options())


def test_in_market_a_query_that_nothing_answers_is_noted_and_a_folder_that_lacks_is_named(tmp_path):
    touch(tmp_path, *MARKET)
    (tmp_path / "bounding_box_test" / "0001_c2s1_000301_01.jpg").unlink()
    (note,) = market1501.convert(tmp_path, Options()).notes
    assert "1 query has no picture from another camera" in note
    assert "query/0001_c1s1_001051_00.jpg" in note
    shutil.rmtree(tmp_path / "query")
    with pytest.raises(InputError, match="none of query is in it"):
        market1501.convert(tmp_path, Options())


# ---- DukeMTMC-VideoReID

DUKE = {
    "train/0001/0001/0001_C6_F0001_X30823.jpg": (1, "train", 6, 0, 1, False, False, False),
    "train/0001/0001/0001_C6_F0002_X30835.jpg": (1, "train", 6, 0, 2, False, False, False),
    "train/0001/0002/0001_C5_F0002_X40000.jpg": (1, "train", 5, 1, 2, False, False, False),
    "query/0005/0001/0005_C1_F0001_X00012.jpg": (5, "test", 1, 2, 1, True, False, False),
    "gallery/0005/0001/0005_C1_F0001_X00012.jpg": (5, "test", 1, 3, 1, False, True, False),
    "gallery/0005/0002/0005_C2_F0001_X00999.jpg": (5, "test", 2, 4, 1, False, True, False),
    "gallery/0009/0001/0009_C2_F0001_X00999.jpg": (9, "test", 2, 5, 1, False, True, True),
}


@pytest.mark.parametrize("first", [False, True])
def test_duke_is_read_from_its_folders_with_the_names_of_either_release(tmp_path, first):
    expected = {path.replace("_", "") if first else path: values for path, values in DUKE.items()}
    touch(tmp_path, *expected)
    found = duke_video.convert(tmp_path, Options())
    columns = ("path", "label", "split", "camera", "tracklet", "frame", "is_query", "is_gallery", "is_distractor")
    assert {row[0]: row[1:] for row in chosen(found, *columns)} == expected
    assert ("0001C6F0099X30823.jpg" in found.layout) == first
    assert found.protocol == "mars-torchreid"
    assert not found.notes


WRONG_DUKE = {
    "train/0001/0001/0002_C6_F0003_X30835.jpg": "person 0002, but its folder says 0001",
    "train/0001/0001/0001_C7_F0003_X30835.jpg": "camera 7, but other pictures of its tracklet say 6",
    "train/0001/0001/0001_C6_F0002_X30847.jpg": "frame 2 is there already, as 0001_C6_F0002_X30835.jpg",
    "train/0001/0001/0001C6F0003X30835.jpg": "not a name such as 0001_C6_F0099_X30823.jpg",
    "train/0001/0001/copy.jpg": "not a name such as",
    "train/notes/x.txt": "not a folder such as 0001",
    "train/0001/x.txt": "not a folder such as 0001",
}


@pytest.mark.parametrize("name", WRONG_DUKE)
def test_in_duke_a_wrong_name_is_named_with_its_file(tmp_path, name):
    touch(tmp_path, *DUKE, name)
    with pytest.raises(InputError, match=WRONG_DUKE[name]) as caught:
        duke_video.convert(tmp_path, Options())
    assert str(tmp_path / name.split("/x.txt")[0]) in str(caught.value)


def test_in_duke_missing_frames_empty_folders_and_people_of_both_halves_are_named(tmp_path):
    touch(tmp_path, *DUKE, "train/0001/0001/0001_C6_F0004_X30859.jpg")
    (note,) = duke_video.convert(tmp_path, Options()).notes
    assert "1 tracklet leaves out frames" in note
    assert "train/0001/0001: none between 2 and 4" in note
    (tmp_path / "query" / "0005" / "0002").mkdir()
    with pytest.raises(InputError, match="query/0005/0002 holds nothing"):
        duke_video.convert(tmp_path, Options())
    (tmp_path / "query" / "0005" / "0002").rmdir()
    touch(tmp_path, "gallery/0001/0001/0001_C6_F0001_X30823.jpg")
    with pytest.raises(InputError, match=r"gallery/0001/0001: person 1 is in .*train too"):
        duke_video.convert(tmp_path, Options())


# ---- iLIDS-VID

PEOPLE = (1, 2, 5, 9)  # of which positions 1 to 4 are
SPLIT_FILE = "train-test people splits/train_test_splits_ilidsvid.mat"


def write_ilids(root: Path, splits: Sequence[Sequence[float]] = ((4, 1, 2, 3), (2, 3, 1, 4))) -> Path:
    for camera in (1, 2):
        for label in PEOPLE:
            folder = f"i-LIDS-VID/sequences/cam{camera}/person{label:03d}"
            touch(root, *(f"{folder}/cam{camera}_person{label:03d}_{frame:05d}.png" for frame in (317, 318)))
    save_mat(root / SPLIT_FILE, {"ls_set": np.array(splits, dtype=np.uint8)})
    return root


@pytest.mark.parametrize(("fold", "tested"), [(None, {9, 1}), (1, {9, 1}), (2, {2, 5})])
def test_ilids_tests_the_people_at_the_positions_of_the_first_half_of_a_row(tmp_path, fold, tested):
    found = ilids_vid.convert(write_ilids(tmp_path), Options(fold=fold))
    table = completed(found)
    assert set(table["label"][table["split"] == "test"]) == tested
    assert set(table["label"][table["split"] == "train"]) == set(PEOPLE) - tested
    assert set(table["camera"][table["is_query"]]) == {1}
    assert set(table["camera"][table["is_gallery"]]) == {2}
    assert (table["is_query"] | table["is_gallery"]).equals(table["split"] == "test")
    assert chosen(found, "path", "label", "camera", "tracklet", "frame")[5] == (
        "sequences/cam1/person002/cam1_person002_00318.png", 2, 1, 2, 318,
    )  # fmt: skip
    assert table["tracklet"].nunique() == 8


def test_ilids_says_which_file_of_splits_it_needs_and_which_splits_there_are(tmp_path):
    write_ilids(tmp_path)
    with pytest.raises(InputError, match=r"--fold 3 cannot be; .*has splits 1 to 2"):
        ilids_vid.convert(tmp_path, Options(fold=3))
    file = tmp_path / SPLIT_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2 + 60])
    with pytest.raises(InputError, match=r"train_test_splits_ilidsvid\.mat (is damaged|cannot be read)"):
        ilids_vid.convert(tmp_path, Options())
    file.unlink()
    with pytest.raises(InputError, match=r"people splits/train_test_splits_ilidsvid.mat is missing: .*put it there"):
        ilids_vid.convert(tmp_path, Options())
    file.parent.rmdir()
    (tmp_path / "train_test_splits_ilidsvid.mat").write_bytes(whole)
    assert len(ilids_vid.convert(tmp_path, Options()).rows) == 16


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([[4, 1, 2, 3], [2, 2, 1, 4]], "row 2: position 2 is there twice"),
        ([[4, 1, 2, 0], [2, 3, 1, 4]], "row 1: position 0 is there twice or not one of 1 to 4"),
        ([[4, 1, 2, 5], [2, 3, 1, 4]], "row 1: position 5"),
        ([[3, 1, 2]], "ls_set is of 3 people, but 4 have a folder"),
    ],
)
def test_in_ilids_positions_that_cannot_be_are_named_with_their_row(tmp_path, splits, message):
    with pytest.raises(InputError, match=rf"train_test_splits_ilidsvid.mat.*{message}"):
        ilids_vid.convert(write_ilids(tmp_path, splits), Options())


def test_in_ilids_missing_people_wrong_names_and_gaps_are_named(tmp_path):
    sequences = write_ilids(tmp_path) / "i-LIDS-VID" / "sequences"
    first = sequences / "cam1" / "person002"
    (first / "cam1_person002_00318.png").rename(first / "cam1_person003_00318.png")
    with pytest.raises(InputError, match=r"cam1_person003_00318.png: person 003, but its folder says 002"):
        ilids_vid.convert(tmp_path, Options())
    (first / "cam1_person003_00318.png").rename(first / "cam2_person002_00318.png")
    with pytest.raises(InputError, match=r"cam2_person002_00318.png: camera 2, but its folder says 1"):
        ilids_vid.convert(tmp_path, Options())
    (first / "cam2_person002_00318.png").rename(first / "cam1_person002_00319.png")
    (note,) = ilids_vid.convert(tmp_path, Options()).notes
    assert "cam1/person002: none between 317 and 319" in note
    touch(sequences, "cam2/people/x.png")
    with pytest.raises(InputError, match="people is not a folder such as person001"):
        ilids_vid.convert(tmp_path, Options())
    shutil.rmtree(sequences / "cam2" / "people")
    shutil.rmtree(sequences / "cam2" / "person005")
    with pytest.raises(InputError, match=r"cam2/person005 is missing; cam1 has person005"):
        ilids_vid.convert(tmp_path, Options())
    shutil.rmtree(sequences / "cam1" / "person005")
    with pytest.raises(InputError, match="ls_set is of 4 people, but 3 have a folder"):
        ilids_vid.convert(tmp_path, Options())


# ---- PRID2011

FOLDS: list[Mapping[str, Sequence[str]]] = [
    {"train": ["person_0001", "person_0003"], "test": ["person_0002", "person_0005"]},
    {"train": ["person_0001", "person_0002"], "test": ["person_0003", "person_0005"]},
]


def write_prid(root: Path, folds: object = FOLDS) -> Path:
    for camera in "ab":
        for label in (1, 2, 3, 4, 5):  # nobody names 4
            touch(root, *(f"prid_2011/multi_shot/cam_{camera}/person_{label:04d}/{i:04d}.png" for i in (1, 2)))
    (root / "splits_prid2011.json").write_text(json.dumps(folds))
    return root


@pytest.mark.parametrize(("fold", "tested"), [(None, {2, 5}), (2, {3, 5})])
def test_prid_takes_whom_a_split_names_and_no_one_else(tmp_path, fold, tested):
    found = prid2011.convert(write_prid(tmp_path), Options(fold=fold))
    table = completed(found)
    assert set(table["label"]) == {1, 2, 3, 5}
    assert set(table["label"][table["split"] == "test"]) == tested
    assert set(table["camera"][table["is_query"]]) == {1}
    assert set(table["camera"][table["is_gallery"]]) == {2}
    assert chosen(found, "path", "label", "camera", "tracklet", "frame")[-1] == (
        "multi_shot/cam_b/person_0005/0002.png", 5, 2, 7, 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (
            [{"train": ["person_0001", "person_0002"], "test": ["person_0002"]}],
            "split 1: person_0002 is named twice, in train and in test",
        ),
        ([{"train": ["person_0001", "person_0001"], "test": ["person_0002"]}], "person_0001 is named twice, in train"),
        (
            [{"train": ["person_0001", "person_0007"], "test": ["person_0002"]}],
            "person_0007 is named, but .*cam_a/person_0007 is missing",
        ),
        ([{"train": ["person_01"], "test": ["person_0002"]}], "split 1, train: 'person_01' is not a person"),
        ([{"train": [1], "test": ["person_0002"]}], "split 1, train: '1' is not a person"),
        ([{"train": ["person_0001"]}], "split 1: it has no list 'test'"),
        ([], "is not a list of splits"),
        ({"train": []}, "is not a list of splits"),
    ],
)
def test_in_prid_a_wrong_split_is_named_with_its_file(tmp_path, folds, message):
    with pytest.raises(InputError, match=rf"splits_prid2011.json.*{message}"):
        prid2011.convert(write_prid(tmp_path, folds), Options())


def test_prid_says_which_file_of_splits_it_needs_and_what_is_damaged(tmp_path):
    file = write_prid(tmp_path) / "splits_prid2011.json"
    with pytest.raises(InputError, match=r"--fold 0 cannot be; .*has splits 1 to 2"):
        prid2011.convert(tmp_path, Options(fold=0))
    person_5 = tmp_path / "prid_2011" / "multi_shot" / "cam_b" / "person_0005"
    (person_5 / "0002.png").rename(person_5 / "2.png")
    with pytest.raises(InputError, match=r"person_0005/2.png: not a name such as 0001.png"):
        prid2011.convert(tmp_path, Options())
    (person_5 / "2.png").rename(person_5 / "0003.png")
    (note,) = prid2011.convert(tmp_path, Options()).notes
    assert "cam_b/person_0005: none between 1 and 3" in note
    file.write_text('[{"train": ["person_0001"],\n "test": [')
    with pytest.raises(InputError, match=r"splits_prid2011.json, line 2: not JSON"):
        prid2011.convert(tmp_path, Options())
    file.unlink()
    with pytest.raises(InputError, match=r"splits_prid2011.json is missing: .*put it there"):
        prid2011.convert(tmp_path, Options())
