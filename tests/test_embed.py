"""`metricweight embed`: by any checkpoint or backbone, in parts that outlive a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metricweight.checks import InputError, Interrupted
from metricweight.data import manifest
from metricweight.data.images import from_manifest
from metricweight.data.transforms import View
from metricweight.models.heads import embedder
from metricweight.retrieval import evaluate
from metricweight.settings import read
from metricweight.training import checkpoint, embedding
from metricweight.training.embedding import embed
from metricweight.training.loop import train

SMALL = ["model.backbone=small_cnn", "model.embedding_size=8", "data.size=16", "data.workers=0", "batch.images=2"]
RUN = [*SMALL, "steps=4", "validations=0", "checkpoints.every=1", "ema=0.5", "ks=[1]", "optimizer.learning_rate=0.01"]


def photos_in(folder, classes=12, each=5, seed=0):
    draw = np.random.default_rng(seed)
    for label in range(classes):
        for number in range(each):
            path = folder / f"class {label:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photos_in(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return train(read("folder", [f"data.root={photos}", *RUN]), "folder", tmp_path_factory.mktemp("runs") / "run")


def arrays(path):
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def by_hand(network, view, folder, flip=False):
    """Embeddings of all pictures of a folder, one after another."""
    images = from_manifest(folder, view.needed)
    network.eval()
    rows = []
    with torch.inference_mode():
        for i in range(len(images)):
            x = view([images.picture(i)], [(0, i)], training=False)
            rows.append((network(x) + network(x.flip(-1))) / 2 if flip else network(x))
    return torch.cat(rows).numpy()


# ---- what is killed goes on

SLOWLY = """
import sys, time
from metricweight.training import embedding, pictures
embedding.PART, pictures.BLOCK = 8, 4
own = embedding.write_arrays
def slowly(path, **arrays):
    time.sleep(0.1)
    own(path, **arrays)
embedding.write_arrays = slowly
from metricweight.cli import main
main()
"""


@pytest.mark.parametrize("shards", [False, True], ids=["file", "shards"])
def test_what_is_killed_goes_on_after_the_parts_that_are_there_to_the_same_bytes(
    photos, run, tmp_path, small_parts, embedded, shards
):
    more = {"data": str(photos), "split": "all", "shards": shards}
    whole, out = (tmp_path / f"{name}{'' if shards else '.npz'}" for name in ("whole", "killed"))
    embed(str(run), out=whole, **more)
    assert sum(embedded) == 60
    embedded.clear()

    words = ["embed", run, "--data", photos, "--split", "all", "--out", out, *(["--shards"] if shards else [])]
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *map(str, words)], stdout=subprocess.PIPE, text=True)
    folder = out if shards else tmp_path / "killed.npz.parts"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("part-*.npz"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    time.sleep(0.09)  # perhaps within the writing of the next
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    there = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.npz")}
    assert 3 <= len(there) < 8
    assert not (tmp_path / "killed.npz").exists()
    (folder / ".part-00006.npz.0123").write_bytes(b"half of it")  # as a kill leaves it

    embed(str(run), out=out, **more)
    assert sum(embedded) == 60 - 8 * len(there)  # the last part has four pictures, and is not among them
    if shards:
        assert sorted(path.name for path in out.iterdir()) == [f"part-{i:05d}.npz" for i in range(8)]
        assert {path: path.stat().st_mtime_ns for path in there} == there
        for path in out.iterdir():
            assert path.read_bytes() == (whole / path.name).read_bytes()
    else:
        assert out.read_bytes() == whole.read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.npz", "whole.npz"]


def test_one_part_and_many_are_the_same_file_and_that_of_the_training(photos, run, tmp_path, small_parts, monkeypatch):
    embed(str(run), out=tmp_path / "many.npz")
    monkeypatch.setattr(embedding, "PART", 1000)
    embed(str(run), out=tmp_path / "one.npz")
    assert (tmp_path / "many.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    found, own = arrays(tmp_path / "one.npz"), arrays(run / "embeddings.npz")
    assert found.keys() == own.keys()
    np.testing.assert_allclose(found["embeddings"], own["embeddings"], atol=1e-6)
    for name in found.keys() - {"embeddings"}:
        assert found[name].tolist() == own[name].tolist()


class Killed(BaseException):
    pass


def interrupted(monkeypatch, out, before, error=Killed, **more):
    """Embeds, and stops before a file is written."""
    own = embedding.write_arrays

    def until(path, **given):
        if path.name == before:
            raise error
        own(path, **given)

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_arrays", until)
        with pytest.raises((error, Interrupted)) as stopped:
            embed(out=out, **more)
    return str(stopped.value)


def test_what_is_killed_while_parts_are_put_together_embeds_nothing_again(
    run, tmp_path, small_parts, embedded, monkeypatch
):
    interrupted(monkeypatch, tmp_path / "x.npz", "x.npz", what=str(run), split="all")
    embedded.clear()
    embed(str(run), split="all", out=tmp_path / "x.npz")
    assert not embedded
    assert len(arrays(tmp_path / "x.npz")["labels"]) == 60
    assert not (tmp_path / "x.npz.parts").exists()


def test_ctrl_c_says_what_is_there(run, tmp_path, small_parts, monkeypatch):
    out = tmp_path / "x.npz"
    said = interrupted(monkeypatch, out, "part-00002.npz", KeyboardInterrupt, what=str(run), split="all")
    assert said == f"stopped; 2 of 8 parts are in {out}.parts. The same command goes on with the others."


def test_a_damaged_part_is_made_again(run, tmp_path, small_parts, embedded, monkeypatch):
    interrupted(monkeypatch, tmp_path / "x.npz", "part-00003.npz", what=str(run), split="all")
    part = tmp_path / "x.npz.parts" / "part-00001.npz"
    data = bytearray(part.read_bytes())
    data[data.index(arrays(part)["embeddings"].tobytes())] ^= 1  # one bit of the first number
    part.write_bytes(data)
    embedded.clear()
    embed(str(run), split="all", out=tmp_path / "x.npz")
    assert sum(embedded) == 60 - 2 * 8
    embed(str(run), split="all", out=tmp_path / "y.npz")
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (lambda run, photos: {"what": str(run / "checkpoints" / "00000000.pt")}, "network"),
        (lambda run, photos: {"data": str(photos_in(photos.parent / "b", seed=1))}, "pictures"),
        (lambda run, photos: {"split": "test"}, "pictures and settings"),
        (lambda run, photos: {"flip": True}, "settings"),
    ],
)
@pytest.mark.parametrize("shards", [False, True], ids=["file", "shards"])
def test_parts_of_something_else_are_refused_or_made_anew(
    run, photos, tmp_path, small_parts, embedded, monkeypatch, change, other, shards
):
    name = "x" if shards else "x.npz"
    asked = {"what": str(run), "split": "all", "shards": shards}
    interrupted(monkeypatch, tmp_path / name, "part-00004.npz", **asked)
    changed = {**asked, **change(run, photos)}
    with pytest.raises(InputError, match=rf"part-00000.npz is no part of .*, but of other {other}; add --overwrite"):
        embed(out=tmp_path / name, **changed)
    embed(out=tmp_path / name, overwrite=True, **changed)
    embed(**{**changed, "shards": False}, out=tmp_path / "new.npz")
    found = embedding.parts(tmp_path / name) if shards else arrays(tmp_path / name)
    expected = arrays(tmp_path / "new.npz")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def test_a_picture_that_changed_in_between_is_not_mixed_with_the_others(run, tmp_path, small_parts, monkeypatch):
    folder = photos_in(tmp_path / "mine")
    interrupted(monkeypatch, tmp_path / "x.npz", "part-00004.npz", what=str(run), data=str(folder))
    path = folder / "class 00" / "0.png"
    data = path.read_bytes()
    path.write_bytes(data)  # as large as before; only the time tells
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="but of other pictures"):
        embed(str(run), data=str(folder), out=tmp_path / "x.npz")


def test_a_folder_with_all_parts_is_kept_unless_it_may_be_replaced(run, tmp_path, small_parts, embedded):
    out = embed(str(run), split="all", out=tmp_path / "x", shards=True)
    with pytest.raises(InputError, match="x is already there, with all parts; add --overwrite"):
        embed(str(run), split="all", out=out, shards=True)
    embedded.clear()
    embed(str(run), out=out, shards=True, overwrite=True)  # the test half
    assert 0 < sum(embedded) < 60
    assert len(list(out.iterdir())) == -(-sum(embedded) // 8)


# ---- which network


def test_a_checkpoint_in_a_run_is_embedded_by_and_the_average_where_there_is_one(run, photos, metricweight):
    view = View("crop", (16, 16))
    state = checkpoint.read(run / "checkpoints" / "00000003.pt")
    model = embedder(3, backbone="small_cnn", embedding_size=8)
    model.load_state_dict({name[9:]: x for name, x in state["average"].items() if name.startswith("module.0.")})
    code, out, err = metricweight("embed", run / "checkpoints" / "00000003.pt", "--split", "all")
    assert code == 0, err
    assert "\x1b" not in out
    found = arrays(run / "embeddings-00000003-all.npz")["embeddings"]
    np.testing.assert_allclose(found, by_hand(model, view, photos), atol=1e-5)
    model.load_state_dict(state["model"])
    assert np.abs(found - by_hand(model, view, photos)).max() > 1e-2
    for word in (run, run / "checkpoint.pt"):
        assert metricweight("embed", word, "--out", f"{Path(word).name}.npz")[0] == 0
    assert Path("run.npz").read_bytes() == Path("checkpoint.pt.npz").read_bytes()


@pytest.mark.parametrize("flip", [False, True])
def test_flip_is_the_mean_of_a_picture_and_its_mirror_image(run, photos, tmp_path, flip):
    found = arrays(embed(str(run), split="all", out=tmp_path / "x.npz", flip=flip))
    network = checkpoint.load(run)[0]
    np.testing.assert_allclose(found["embeddings"], by_hand(network, View("crop", (16, 16)), photos, flip), atol=1e-5)
    assert bool(found["flip"]) is flip
    assert np.abs(by_hand(network, View("crop", (16, 16)), photos, not flip) - found["embeddings"]).max() > 1e-3


def test_a_backbone_gives_its_features_of_pictures_of_its_own_size(metricweight, tmp_path):
    folder = photos_in(tmp_path / "few", classes=2, each=2)
    torch.manual_seed(5)
    torch.save(embedder(3, backbone="resnet18").backbone.state_dict(), tmp_path / "net.pt")
    model = embedder(3, backbone="resnet18", weights=tmp_path / "net.pt")  # with a head, which plays no part
    model.forward = model.features
    code, out, err = metricweight("embed", "resnet18", "model.weights=net.pt", "--data", "few")
    assert code == 0, err
    assert f"resnet18 as it is: {tmp_path}/net.pt." in out
    assert "4 embeddings of 512 numbers (all classes) are in resnet18-few.npz" in out
    found = arrays("resnet18-few.npz")
    np.testing.assert_allclose(found["embeddings"], by_hand(model, View("crop", (224, 224)), folder), atol=1e-4)
    assert found["labels"].tolist() == [0, 0, 1, 1]

    words = ["model.weights=net.pt", "data.size=64", "data.transform=multi_similarity", "model.pooling=max"]
    assert metricweight("embed", "resnet18", *words, "--data", "few", "--out", "other.npz")[0] == 0
    model = embedder(3, backbone="resnet18", weights=tmp_path / "net.pt", pooling="max")
    model.forward = model.features
    expected = by_hand(model, View("multi_similarity", (64, 64)), folder)
    np.testing.assert_allclose(arrays("other.npz")["embeddings"], expected, atol=1e-4)


def test_a_backbone_without_weights_is_said_to_be_random_and_is_the_same_each_time(metricweight, tmp_path):
    photos_in(tmp_path / "few", classes=2, each=2)
    code, out, err = metricweight("embed", "small_cnn", "--data", "few", "--flip")
    assert code == 0, err
    assert "small_cnn as it is: random weights; model.pretrained=true or model.weights=FILE" in out
    assert metricweight("embed", "small_cnn", "--data", "few", "--flip", "--out", "again.npz")[0] == 0
    assert Path("again.npz").read_bytes() == Path("small_cnn-few.npz").read_bytes()
    assert arrays("again.npz")["embeddings"].shape == (4, 256 * 16)
    assert metricweight("evaluate", "small_cnn-few.npz", "--ks", 1)[0] == 0


def test_a_network_of_timm_has_a_file_name_without_its_colon(metricweight, tmp_path):
    pytest.importorskip("timm")
    photos_in(tmp_path / "few", classes=2, each=2)
    code, _, err = metricweight("embed", "timm:test_vit", "--data", "few", "data.size=32")
    assert code == 0, err
    assert len(arrays("timm-test_vit-few.npz")["labels"]) == 4


def test_a_backbone_has_the_embeddings_of_the_frozen_row_of_a_training(metricweight, photos, tmp_path):
    torch.save(embedder(3, backbone="small_cnn").backbone.state_dict(), tmp_path / "net.pt")
    same = ["model.weights=net.pt", "data.size=16"]
    words = [*SMALL, "steps=1", "validations=0", "ks=[1]", *same]
    assert metricweight("train", "folder", f"data.root={photos}", *words, "--out", "run")[0] == 0
    frozen = json.loads((tmp_path / "run" / "report.json").read_text())["models"]["frozen"]["test"]
    assert metricweight("embed", "small_cnn", *same, "--data", photos, "--split", "test", "--out", "x.npz")[0] == 0
    found = arrays("x.npz")
    report = evaluate(found["embeddings"], found["labels"], ks=[1])
    assert report.stamp["made"]["embeddings_sha256"] == frozen["stamp"]["made"]["embeddings_sha256"]
    assert report.metrics["recall@1"] == frozen["recall@1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resnet81", "--data", "x"], "is neither a checkpoint nor a backbone; did you mean resnet18? Give the folder"),
        (["resnet18"], "resnet18 is a backbone, which has no data of its own; say what it shall embed with --data"),
        (["resnet18", "data.root=x", "--data", "x"], "data.root=x cannot be set here: --data says what is embedded"),
        (["resnet18", "model.embedding_size=4", "--data", "x"], "the embeddings are its features as they are"),
        (["resnet18", "data.sise=4", "--data", "x"], "unknown setting data.sise; did you mean data.size?"),
        (["resnet18", "--data", "nowhere"], "nowhere is not there; give a folder of class folders"),
        (["RUN", "data.size=4"], "data.size=4: a run has its own settings; only tracklets.test_clip,"),
        (["RUN", "--shards", "--out", "x.npz"], "--shards makes a folder; give another --out than x.npz"),
        (["RUN", "--out", "x"], "--out must be an .npz file, got x"),
        (["a file"], "a file is damaged or not a checkpoint of ours"),
        (["RUN", "--shards", "--out", "a file"], "a file is a file; --shards makes a folder"),
        (["RUN", "--shards", "--out", "."], ". is a folder of other things than embeddings; choose another --out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(metricweight, run, words, said):
    Path("a file").touch()
    code, _, err = metricweight("embed", *(run if word == "RUN" else word for word in words))
    assert code == 2
    assert said in err
    assert [path.name for path in Path.cwd().iterdir()] == ["a file"]


# ---- what is embedded


def test_damaged_pictures_are_left_out_named_and_counted(metricweight, tmp_path, small_parts):
    folder = photos_in(tmp_path / "mine", classes=4)
    bad = [folder / "class 00" / f"{number}.png" for number in range(5)] + [
        folder / "class 01" / f"{i}.png" for i in range(4)
    ]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])  # the first part has none that can be read
    code, out, err = metricweight("embed", "small_cnn", "--data", folder)
    assert code == 2
    assert "0.png cannot be read as a picture" in err
    assert not Path("small_cnn-mine.npz.parts").exists()
    code, out, err = metricweight("embed", "small_cnn", "--data", folder, "data.damaged=skip", "data.size=16")
    assert code == 0, err
    assert all(f"{path} cannot be read as a picture" in out for path in bad)
    assert "9 of 20 could not be read and were left out." in out
    found = arrays("small_cnn-mine.npz")
    assert found["labels"].tolist() == [1] + [2] * 5 + [3] * 5
    assert found["names"][0] == str(folder / "class 01" / "4.png")
    assert len(found["embeddings"]) == 11
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"nothing")
    code, _, err = metricweight("embed", "small_cnn", "--data", folder, "data.damaged=skip", "--out", "x.npz")
    assert code == 2
    assert "none of the pictures can be read" in err


def test_a_folder_of_parts_is_evaluated_as_the_file_would_be_and_each_part_by_itself(
    metricweight, run, photos, small_parts
):
    assert metricweight("embed", run, "--split", "all", "--out", "x.npz")[0] == 0
    code, out, err = metricweight("embed", run, "--split", "all", "--out", "x", "--shards")
    assert code == 0, err
    assert "metricweight evaluate x\n" in out
    reports = []
    for what in ("x.npz", "x"):
        code, out, err = metricweight("evaluate", what, "--ks", 1, 2, "--json")
        assert code == 0, err
        reports.append(next(iter(json.loads(out)["models"].values()))["all"])
    assert reports[0] == reports[1]
    code, out, err = metricweight("evaluate", "x/part-00002.npz", "--ks", 1, "--json")
    assert code == 0, err
    part = arrays("x/part-00002.npz")
    assert part["names"].tolist() == arrays("x.npz")["names"][16:24].tolist()


@pytest.fixture(scope="module")
def persons(tmp_path_factory):
    from metricweight._data_tools import prepare
    from metricweight._data_tools.source import Options

    folder = tmp_path_factory.mktemp("mars")
    prepare.write_replica("mars", folder, None, 2)
    prepare.prepare("mars", folder, folder / "manifest.csv", Options(None, None, None, None, None, pictures=folder))
    return folder / "manifest.csv"


def test_tracklets_are_never_cut_and_never_more_than_a_block_is_embedded_at_once(
    persons, tmp_path, small_parts, embedded, monkeypatch
):
    words = ["data.size=16", "data.workers=0"]
    out = embed("small_cnn", words, str(persons), out=tmp_path / "x", shards=True)
    monkeypatch.setattr(embedding, "PART", 1000)
    whole = arrays(embed("small_cnn", words, str(persons), out=tmp_path / "x.npz"))
    table = manifest.read(persons).table
    test = table[table["split"] == "test"]
    frames = test.groupby("tracklet", sort=False)["path"].agg(list)
    assert (frames.map(len) > 4).any()  # longer than a block
    assert max(embedded) == 4
    parts = [arrays(path) for path in sorted(out.iterdir())]
    assert len(parts) > 2
    assert sum(len(part["labels"]) for part in parts) == len(frames)
    for name in ("embeddings", "names", "labels", "queries", "cameras"):
        joined = np.concatenate([part[name] for part in parts])
        assert (
            np.array_equal(joined, whole[name]) if name != "embeddings" else np.allclose(joined, whole[name], atol=1e-5)
        )
    assert str(whole["protocol"]) == "mars-official"

    torch.manual_seed(0)
    model, view = embedder(3, backbone="small_cnn").eval(), View("crop", (16, 16))
    images = from_manifest(persons, view.needed)
    number = {Path(name).name: i for i, name in enumerate(images.names)}
    with torch.inference_mode():
        for i, paths in enumerate(frames):
            x = view([images.picture(number[Path(p).name]) for p in paths], [(0, 0)] * len(paths), training=False)
            np.testing.assert_allclose(whole["embeddings"][i], model.features(x).mean(0).numpy(), atol=1e-5)


COUNTED = """
import os, sys
from pathlib import Path
from metricweight.training import embedding, pictures
embedding.PART, pictures.BLOCK = 8, 4
own, count = embedding.embedded, 0
def counted(network, images, *more):
    global count
    count += len(images)
    return own(network, images, *more)
embedding.embedded = counted
from metricweight.cli import main
try:
    main()
finally:
    Path(sys.argv[-1] + "." + os.environ["RANK"]).write_text(str(count))
"""


def test_two_processes_share_the_work_and_write_the_file_of_one(persons, tmp_path, small_parts, embedded):
    settings = ["data.size=16", "data.workers=0"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun has it
    try:
        one = embed("small_cnn", settings, str(persons), flip=True, out=tmp_path / "one.npz")
    finally:
        torch.set_num_threads(threads)
    script, two = tmp_path / "counted.py", tmp_path / "two.npz"
    script.write_text(COUNTED)
    how = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    words = ["embed", "small_cnn", *settings, "--data", str(persons), "--flip", "--out", str(two)]
    done = subprocess.run(
        [*how, *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("embeddings of") == 1
    assert two.read_bytes() == one.read_bytes()
    shares = [int((tmp_path / f"two.npz.{rank}").read_text()) for rank in range(2)]
    assert sum(shares) == sum(embedded)
    assert min(shares) >= sum(embedded) / 4
