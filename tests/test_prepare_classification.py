"""CIFAR-10, CIFAR-100 and Clothing1M: what their files say is what is found, and damage is told with its place."""

import hashlib
import os
import pickle
import pickletools
import shutil

import numpy as np
import pytest
from metricweight._data_tools import cifar, clothing1m
from metricweight._data_tools.prepare import prepare, write_replica
from metricweight._data_tools.replicas.cifar import FINE, HUNDRED, TEN, pickled
from metricweight._data_tools.source import Options
from PIL import Image

from metricweight.checks import InputError
from metricweight.data.images import open_picture

BATCHES = "cifar-10-batches-py"


def made(name, root, **options):
    root.parent.joinpath("out").mkdir(exist_ok=True)
    out = root.parent / "out" / "made.csv"
    return prepare(name, root, out, Options(pictures=out.parent), overwrite=True, **options)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """Written once; each test works on a copy."""
    folder = tmp_path_factory.mktemp("replicas")
    for name in ("cifar10", "cifar100", "clothing1m"):
        write_replica(name, folder / name)
    return folder


@pytest.fixture
def ten(replicas, tmp_path):
    return shutil.copytree(replicas / "cifar10", tmp_path / "raw")


@pytest.fixture
def hundred(replicas, tmp_path):
    return shutil.copytree(replicas / "cifar100", tmp_path / "raw")


def loaded(path):
    return pickle.loads(path.read_bytes(), encoding="latin1")


def changed(path, **values):
    path.write_bytes(pickled({**loaded(path), **values}))


# ---- CIFAR


def test_pickles_of_a_replica_are_those_of_python_2():
    """Known checksums of the real files of names, which hold nothing else."""
    names = pickled({"num_cases_per_batch": 10_000, "label_names": list(TEN), "num_vis": 3072})
    assert hashlib.md5(names).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888"
    names = pickled({"fine_label_names": FINE, "coarse_label_names": list(HUNDRED)})
    assert hashlib.md5(names).hexdigest() == "7973b15100ade9c7d40fb424638fde48"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy.core is of numpy 1
def test_a_replica_is_read_by_plain_pickle_too(ten):
    batch = loaded(ten / BATCHES / "data_batch_2")
    assert list(batch) == ["batch_label", "labels", "data", "filenames"]
    assert (batch["batch_label"], batch["data"].shape, batch["data"].dtype) == (
        "training batch 2 of 5", (10, 3072), np.uint8,
    )  # fmt: skip
    codes = {code.name for code, _, _ in pickletools.genops((ten / BATCHES / "data_batch_2").read_bytes())}
    assert {"SHORT_BINSTRING", "BINSTRING", "BINPUT"} <= codes
    assert not codes & {"BINUNICODE", "SHORT_BINUNICODE", "STACK_GLOBAL"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_red_green_and_blue_of_each_picture_are_where_they_belong(ten):
    data = np.zeros((10, 3072), dtype=np.uint8)
    data[7, 3 * 32 + 5] = 10  # red of row 3, column 5
    data[7, 1024 + 3 * 32 + 5] = 20
    data[7, 2048 + 3 * 32 + 5] = 30
    changed(ten / BATCHES / "data_batch_2", data=data)
    found = made("cifar10", ten)
    rows = found.table
    assert rows["member"].tolist() == list(range(60))
    picture = open_picture(found.root / rows["path"][17], int(rows["member"][17]))  # 10 are in the batch before
    assert picture.getpixel((5, 3)) == (10, 20, 30)
    assert np.asarray(picture).sum() == 60


def test_pictures_are_those_of_the_replica(hundred):
    found = made("cifar100", hundred)
    batch = loaded(hundred / "cifar-100-python" / "test")
    for row in (0, 99):
        expected = Image.merge("RGB", [Image.fromarray(plane) for plane in batch["data"][row].reshape(3, 32, 32)])
        assert open_picture(found.root / "cifar100.npy", 200 + row) == expected


def test_cifar_100_has_its_super_labels_with_names(hundred):
    found = made("cifar100", hundred)
    table = found.table.drop_duplicates("label").set_index("label_name")
    assert (table["label"]["apple"], table["label"]["worm"]) == (0, 99)
    assert (table["super_label"]["apple"], table["super_label"]["tractor"]) == (4, 19)
    assert len(found.about.super_names) == 20
    assert found.about.super_names["4"] == "fruit_and_vegetables"
    assert found.table.groupby("super_label")["label"].nunique().eq(5).all()


def test_the_folder_itself_may_be_given_and_a_packed_archive_is_told_how_to_unpack(ten, tmp_path):
    assert len(made("cifar10", ten)) == 60
    inner = tmp_path / "inner"
    shutil.copytree(ten / BATCHES, inner)
    shutil.copy(ten / "replica.json", inner)
    assert len(made("cifar10", inner)) == 60
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "cifar-10-python.tar.gz").write_bytes(b"x")
    for root in (packed, packed / "cifar-10-python.tar.gz"):
        with pytest.raises(
            InputError, match=r"still packed; unpack it with: tar -xzf \S*cifar-10-python.tar.gz -C \S+"
        ):
            made("cifar10", root)


def test_pictures_that_are_there_stay_unless_they_are_the_same(ten, tmp_path):
    made("cifar10", ten)
    made("cifar10", ten)
    pictures = tmp_path / "out" / "cifar10.npy"
    mine = pictures.read_bytes()[:-1] + b"\x07"
    pictures.write_bytes(mine)
    with pytest.raises(InputError, match=r"cifar10.npy is there already and holds other pictures; delete it"):
        made("cifar10", ten)
    assert pictures.read_bytes() == mine
    assert sorted(path.name for path in pictures.parent.iterdir()) == ["cifar10.npy", "made.csv", "made.csv.json"]


class Ran:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"label_names": Ran()}, 2), r"wants to run posix\.system, which .* do not need; it was not run"),
        (pickle.dumps({"label_names": Ran()}, 4), r"wants to run posix\.system"),
        (b"cposix\nsystem\n(S'touch ran'\ntR.", r"wants to run posix\.system"),  # the ways of protocols 0 and 1
        (b"(S'touch ran'\niposix\nsystem\n.", r"wants to run posix\.system"),
        (b"(cposix\nsystem\nS'touch ran'\no.", r"wants to run posix\.system"),
        (pickle.dumps({"label_names": np.load}), r"wants to run numpy\.load"),
        (pickle.dumps({"label_names": eval}, 2), r"wants to run \S+\.eval"),
        (b"cos\nsystem.__call__\n.", r"wants to run os\.system\.__call__"),
        (b"\x80\x02\x82\x01.", "is damaged, or not a pickle"),  # an extension code
        (b"Pmine\n.", "is damaged, or not a pickle"),  # a persistent id
        (b"\x80\x02]q\x01.", "must hold a dict, got list"),
        (b"", "is damaged, or not a pickle"),
    ],
)
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(ten, monkeypatch, content, words):
    monkeypatch.chdir(ten)
    for name in ("batches.meta", "data_batch_3"):
        before = (ten / BATCHES / name).read_bytes()
        (ten / BATCHES / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} {words}"):
            made("cifar10", ten)
        (ten / BATCHES / name).write_bytes(before)
    assert not (ten / "ran").exists()
    assert not list((ten.parent / "out").iterdir())


def test_the_pickle_that_would_run_something_does_so_elsewhere(tmp_path, monkeypatch):
    """So that the test above tests what it says."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps({"label_names": Ran()}, 2))
    assert (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("data_batch_4", lambda p: p.write_bytes(p.read_bytes()[:-5000]), "data_batch_4 is damaged"),
        ("data_batch_4", lambda p: p.write_bytes(p.read_bytes()[:-1]), "data_batch_4 is damaged"),
        ("data_batch_4", lambda p: p.unlink(), r"data_batch_4 cannot be read: No such file"),
        ("data_batch_4", lambda p: shutil.copy(p.with_name("data_batch_3"), p),
         "data_batch_4 calls itself 'training batch 3 of 5', not 'training batch 4 of 5'"),
        ("test_batch", lambda p: shutil.copy(p.with_name("data_batch_3"), p), "test_batch calls itself 'training"),
        ("data_batch_4", lambda p: changed(p, labels=[*loaded(p)["labels"][:6], 10, *loaded(p)["labels"][7:]]),
         r"data_batch_4, row 6 \(from 0 on\): labels has 10, which is not one of 0 to 9"),
        ("data_batch_4", lambda p: changed(p, labels=[-1, *loaded(p)["labels"][1:]]),
         r"data_batch_4, row 0 \(from 0 on\): labels has -1"),
        ("data_batch_4", lambda p: changed(p, labels=["3", *loaded(p)["labels"][1:]]), "labels has 3, which is not"),
        ("data_batch_4", lambda p: changed(p, labels=[(loaded(p)["labels"][0] + 1) % 10, *loaded(p)["labels"][1:]]),
         r"of the train pictures 4 are of label \d \(\w+\) and 6 of label \d"),
        ("data_batch_4", lambda p: changed(p, labels=loaded(p)["labels"][1:]),
         "data_batch_4: labels must be a list of 10, as data has rows, got a list of 9"),
        ("data_batch_4", lambda p: changed(p, filenames=loaded(p)["filenames"][1:]),
         "data_batch_4: filenames must be a list of 10, as data has rows, got a list of 9"),
        ("data_batch_4", lambda p: changed(p, **{key: loaded(p)[key][:8] for key in ("labels", "data", "filenames")}),
         "data_batch_4 has 8 pictures; batches.meta says 10 are in a batch"),
        ("data_batch_4", lambda p: changed(p, data=loaded(p)["data"][:, :1024]), r"data is not .*\[10, 1024\]"),
        ("data_batch_4", lambda p: changed(p, data=[1, 2]), "data is not an array of bytes"),
        ("batches.meta", lambda p: changed(p, label_names=list(TEN[:9])),
         "batches.meta: label_names must be 10 different names, got a list of 9"),
        ("batches.meta", lambda p: changed(p, label_names=[*TEN[:9], "cat"]), "label_names must be 10 different names"),
        ("batches.meta", lambda p: p.write_bytes(pickled({"x": 1})), "label_names must be 10 .* got nothing"),
    ],
)  # fmt: skip
def test_damage_in_cifar_10_is_told_with_file_and_row(ten, name, damage, words):
    damage(ten / BATCHES / name)
    with pytest.raises(InputError, match=words):
        made("cifar10", ten)
    assert not list((ten.parent / "out").iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_super_label_that_differs_from_others_of_its_label_is_told_with_its_row(hundred):
    path = hundred / "cifar-100-python" / "test"
    batch = loaded(path)
    row = batch["fine_labels"].index(0)
    batch["coarse_labels"][row] = 5
    changed(path, coarse_labels=batch["coarse_labels"])
    with pytest.raises(
        InputError, match=rf"test, row {row} \(from 0 on\): label 0 \(apple\) .* label 5 here and 4 else"
    ):
        made("cifar100", hundred)


def test_a_flipped_byte_beside_the_pixels_is_an_error_or_without_effect(ten, tmp_path):
    """But for the one that says in which order an array lies in memory. Of the real files checksums are known."""
    path = ten / BATCHES / "data_batch_1"
    whole = path.read_bytes()
    order = whole.index(b"\x89T")
    first, last = order + 6, order + 6 + 10 * 3072

    def found():
        rows = cifar.convert(cifar.TEN, ten, Options(pictures=tmp_path)).rows
        pixels = (tmp_path / "cifar10.npy").read_bytes()
        (tmp_path / "cifar10.npy").unlink()
        return rows, pixels

    rows, pixels = found()
    refused = 0
    for place in [*range(0, first, 2), *range(last, len(whole), 2)]:
        if place == order:
            continue
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            again, others = found()
        except InputError:
            refused += 1
        else:
            assert again.equals(rows)
            assert others == pixels
    assert refused > 50


# ---- Clothing1M


@pytest.fixture
def clothing(replicas, tmp_path):
    return shutil.copytree(replicas / "clothing1m", tmp_path / "raw")


def edit(path, change):
    found = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in change(found)))
    return found


def swap(path, other):
    first, second = path.read_bytes(), path.with_name(other).read_bytes()
    path.write_bytes(second)
    path.with_name(other).write_bytes(first)


def test_labels_of_the_web_are_trained_on_and_clean_ones_tell_the_noise(clothing):
    found = made("clothing1m", clothing)
    lists = clothing / "annotations"
    noisy, clean = (
        dict(line.split() for line in (lists / name).read_text().splitlines())
        for name in ("noisy_label_kv.txt", "clean_label_kv.txt")
    )
    train = found.table[found.table["split"] == "train"]
    assert train["path"].tolist() == (lists / "noisy_train_key_list.txt").read_text().splitlines()
    assert train["label"].tolist() == [int(noisy[path]) for path in train["path"]]
    assert train["clean_label"].tolist() == [int(clean.get(path, noisy[path])) for path in train["path"]]
    assert train["is_noisy"].tolist() == [path in clean and clean[path] != noisy[path] for path in train["path"]]
    assert train["is_noisy"].any()
    for split, name in (("validation", "clean_val"), ("test", "clean_test")):
        rows = found.table[found.table["split"] == split]
        assert rows["path"].tolist() == (lists / f"{name}_key_list.txt").read_text().splitlines()
        assert rows["label"].tolist() == [int(clean[path]) for path in rows["path"]]
    left_out = set((lists / "clean_train_key_list.txt").read_text().splitlines())
    assert not left_out & set(found.table["path"])
    assert any("the true label is known of 28 of 84 pictures to train on" in note for note in found.about.history)


def test_lists_with_crlf_are_read_the_same(clothing):
    before = made("clothing1m", clothing).table
    for path in (clothing / "annotations").glob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert made("clothing1m", clothing).table.equals(before)


def test_a_picture_to_train_on_and_to_test_on_is_not_trained_on_and_a_note_says_so(clothing):
    lists = clothing / "annotations"
    leaked = edit(lists / "noisy_train_key_list.txt", list)[20]
    edit(lists / "clean_test_key_list.txt", lambda found: [*found, leaked])
    edit(lists / "clean_label_kv.txt", lambda found: [*(line for line in found if leaked not in line), f"{leaked} 9"])
    with pytest.raises(InputError, match=r"train has 83 images, 84 expected; test has 15 images, 14 expected"):
        made("clothing1m", clothing)
    found = made("clothing1m", clothing, allow_counts=True)
    row = found.table[found.table["path"] == leaked]
    assert (row["split"].tolist(), row["label"].tolist()) == (["test"], [9])
    assert any(note.startswith("1 pictures are listed to train on and to ") and leaked in note
               for note in found.about.history)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("noisy_label_kv.txt", lambda p: drop_label_of(p, "noisy_train", 4),
         r"noisy_train_key_list.txt, line 5: images/\S+ has no label in noisy_label_kv.txt"),
        ("clean_label_kv.txt", lambda p: drop_label_of(p, "clean_test", 2),
         r"clean_test_key_list.txt, line 3: images/\S+ has no label in clean_label_kv.txt"),
        ("noisy_train_key_list.txt", lambda p: edit(p, lambda found: found[:7] + found[8:]),
         "train has 83 images, 84 expected"),
        ("noisy_train_key_list.txt", lambda p: edit(p, lambda found: [*found, found[3]]),
         r"noisy_train_key_list.txt, line 85: images/\S+ is there already, in line 4"),
        ("noisy_label_kv.txt", lambda p: edit(p, lambda found: [*found, listed(p, "noisy_train", 0) + " 3"]),
         r"noisy_label_kv.txt, line \d+: images/\S+ is there already, above"),
        ("noisy_train_key_list.txt", lambda p: edit(p, lambda found: ["images/0/00/mine.jpg", *found]),
         r"noisy_train_key_list.txt, line 1: images/0/00/mine.jpg has no label in noisy_label_kv.txt"),
        ("noisy_train_key_list.txt", lambda p: edit(p, lambda found: [*found[:2], "hello", *found[2:]]),
         "noisy_train_key_list.txt, line 3: 'hello' is not a picture in images/"),
        ("noisy_train_key_list.txt", lambda p: edit(p, lambda found: [found[0][:-5] + "x.jpg", *found[1:]]),
         r"noisy_train_key_list.txt, line 1: images/\S+ has no label"),
        ("clean_label_kv.txt", lambda p: edit(p, lambda found: [found[0], found[1].split()[0] + " 14", *found[2:]]),
         r"clean_label_kv.txt, line 2: 'images/\S+ 14' is not a picture in images/ and a label from 0 to 13"),
        ("clean_label_kv.txt", lambda p: edit(p, lambda found: [found[0] + " 1", *found[1:]]),
         r"clean_label_kv.txt, line 1: .* is not a picture in images/ and a label"),
        ("clean_label_kv.txt", lambda p: edit(p, lambda found: [found[0].split()[0], *found[1:]]),
         r"clean_label_kv.txt, line 1: .* is not a picture in images/ and a label"),
        ("clean_test_key_list.txt", lambda p: edit(p, lambda found: [*found, listed(p, "clean_val", 6)]),
         "clean_test_key_list.txt, line 15: this picture is in clean_val_key_list.txt too"),
        ("clean_test_key_list.txt", lambda p: swap(p, "clean_val_key_list.txt"),
         "validation has 14 images, 28 expected; test has 28 images, 14 expected"),
        ("noisy_label_kv.txt", lambda p: swap(p, "clean_label_kv.txt"), r"noisy_train_key_list.txt, line \d+: .* has"),
        ("noisy_label_kv.txt", lambda p: p.unlink(), "noisy_label_kv.txt cannot be read: No such file"),
        ("category_names_eng.txt", lambda p: edit(p, lambda found: found[:-1]), "must have 14 .* got 13"),
        ("noisy_train_key_list.txt", lambda p: (p.parent.parent / listed(p, "noisy_train", 11)).unlink(),
         r"noisy_train_key_list.txt, line 12: \S+ is missing"),
        ("clean_val_key_list.txt", lambda p: (p.parent.parent / listed(p, "clean_val", 3)).unlink(),
         r"clean_val_key_list.txt, line 4: \S+ is missing"),
    ],
)  # fmt: skip
def test_damage_in_clothing1m_is_told_with_file_and_line(clothing, name, damage, words):
    damage(clothing / "annotations" / name)
    with pytest.raises(InputError, match=words):
        made("clothing1m", clothing)


def listed(path, part, number):
    return path.with_name(f"{part}_key_list.txt").read_text().splitlines()[number]


def drop_label_of(path, part, number):
    key = listed(path, part, number)
    edit(path, lambda found: [line for line in found if not line.startswith(f"{key} ")])


def test_names_of_labels_are_not_needed(clothing):
    (clothing / "annotations" / "category_names_eng.txt").unlink()
    assert set(made("clothing1m", clothing).table["label_name"]) == {""}


def test_a_million_lines_are_read_without_looking_at_each_file(tmp_path, monkeypatch):
    """50,000 here; one look at each line of each list."""
    keys = [f"images/{i % 10}/{i % 97:02d}/{i:09d},{i * 7919}.jpg" for i in range(50_000)]
    for name, found in (
        ("noisy_train", keys[:48_000]),
        ("clean_val", keys[48_000:49_000]),
        ("clean_test", keys[49_000:]),
    ):
        (tmp_path / f"{name}_key_list.txt").write_text("\n".join(found))
    labels = "\n".join(f"{key} {i % 14}" for i, key in enumerate(keys))
    for name in ("noisy", "clean"):
        (tmp_path / f"{name}_label_kv.txt").write_text(labels)
    asked = []
    monkeypatch.setattr(clothing1m, "check_there", lambda root, paths, place: asked.append(place(48_500)) or [])
    rows = clothing1m.convert(tmp_path, Options()).rows
    assert rows["label"].tolist() == [i % 14 for i in range(50_000)]
    assert rows["split"].value_counts().to_dict() == {"train": 48_000, "validation": 1000, "test": 1000}
    assert not rows["is_noisy"].any()
    assert asked == [f"{tmp_path / 'clean_val_key_list.txt'}, line 501"]
