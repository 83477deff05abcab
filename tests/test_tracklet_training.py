"""Tracklets from the manifest to the report: trained, stopped, shared by processes, embedded and judged."""

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
import torch
from metricweight._data_tools import prepare
from metricweight._data_tools.source import Options
from PIL import Image

from metricweight.checks import InputError
from metricweight.data import manifest
from metricweight.data.images import Images, Roles, from_manifest
from metricweight.data.tracklets import ClipSampler
from metricweight.data.transforms import View
from metricweight.models.heads import embedder
from metricweight.retrieval import evaluate
from metricweight.settings import read
from metricweight.training import checkpoint, embedding, judging, pictures
from metricweight.training.distributed import Processes
from metricweight.training.embedding import embed
from metricweight.training.engine import gradients, prepared
from metricweight.training.loop import coming, train

SMALL = [
    "data.size=16", "data.workers=0", "model.backbone=small_cnn", "model.embedding_size=8", "batch.classes=3",
    "batch.images=2", "steps=2", "validations=1", "ks=[1]", "optimizer.learning_rate=0.01",
]  # fmt: skip
OSM = "{name: online_soft_mining, form: released}"
MARS = ("mars-official", "mars-ap3d", "mars-torchreid")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As processes that share a machine have it, so that sums are the same here and there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def written(folder, table, pixels, protocol="mars-official", name="manifest.csv"):
    """A manifest of pictures in one .npy, row i of the table for picture i, rows in the order of the table's index."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "frames.npy", pixels)
    table = table.assign(path="frames.npy", member=table.index)
    made = manifest.of(table, folder)
    manifest.write(made.changed(made.table, "made up", protocol=protocol), folder / name)
    return folder / name


def rows(lengths, labels, split, cameras, first=0, queries=()):
    """A row for each frame of some tracklets; frames are numbered 10, 20, 30 ..."""
    of = np.repeat(np.arange(len(lengths)), lengths)
    number = np.concatenate([np.arange(1, n + 1) for n in lengths])
    return pd.DataFrame(
        {
            "label": np.asarray(labels)[of],
            "split": split,
            "camera": np.asarray(cameras)[of],
            "tracklet": first + of,
            "frame": 10 * number,
            "is_query": np.isin(of, queries),
        }
    )


def people(folder, lengths=(5, 3, 4, 2), test=(3, 2, 4, 1), size=20, shuffled=True, seed=0):
    """Six people to learn from and four to test on, each with tracklets of these lengths, in two cameras. The table
    lists frames in no order."""
    draw = np.random.default_rng(seed)

    def half(people, lengths, split, first):
        n = len(lengths)
        labels, cameras = np.repeat(people, n), np.tile([1 + i % 2 for i in range(n)], len(people))
        queries = range(0, len(labels), n) if split == "test" else ()
        return rows(list(lengths) * len(people), labels, split, cameras, first, queries)

    table = pd.concat([half(range(1, 7), lengths, "train", 100), half(range(11, 15), test, "test", 500)])
    table = table.reset_index(drop=True)
    means = draw.integers(115, 140, (20, 1, 1, 3))[table["label"]]
    pixels = (means + draw.integers(-90, 90, (len(table), size, size, 3))).clip(0, 255).astype(np.uint8)
    if shuffled:
        table = table.loc[draw.permutation(len(table))]
    return written(folder, table, pixels)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return people(tmp_path_factory.mktemp("data") / "people")


def replica(folder, name, size):
    prepare.write_replica(name, folder, None, size)
    prepare.prepare(name, folder, folder / "manifest.csv", Options(None, None, None, None, None, pictures=folder))
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def mars(tmp_path_factory):
    return replica(tmp_path_factory.mktemp("mars"), "mars", 2)


def trained(data, run, *words):
    return train(read("folder", [f"data.root={data}", *SMALL, *words]), "folder", run)


def learned(run):
    """All that was learned, by its name in an objective on pictures; and what is tested."""
    state = checkpoint.latest(run)
    parts = [state["model"], state["objective"], checkpoint.load(run)[2]["model"]]
    if state["average"]:
        parts.append(state["average"])
    named = {f"{i} {name.removeprefix('sets.')}": x for i, part in enumerate(parts) for name, x in part.items()}
    steps = {f"{i} {key}": x for i, own in state["optimizer"]["state"].items() for key, x in own.items()}
    return {**named, **steps}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(x, b[name]) for name, x in a.items())


def models(run):
    return json.loads((run / "report.json").read_text())["models"]


def arrays(path):
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


# ---- training


def test_pictures_are_tracklets_of_length_one_to_the_last_bit(tmp_path):
    market = replica(tmp_path / "market", "market1501", 2)
    words = ["steps=4", "plus=[{name: cce, weight: 0.5}]", "memory.size=16", "ema=0.9", "data.validation=0.25"]
    runs = [
        trained(market, tmp_path / frames, *words, f"tracklets.frames={frames}", "data.transform=person")
        for frames in ("null", "1")
    ]
    assert {name.split(".")[0] for name in checkpoint.latest(runs[1])["objective"]} == {
        "sets"
    }  # clips were learned from
    a, b = map(learned, runs)
    b = {name.replace("module.1.sets.", "module.1."): x for name, x in b.items()}  # of the average
    assert same(a, b)
    initial = checkpoint.initial(runs[0])["model"]
    assert all((x - checkpoint.latest(runs[0])["model"][name]).abs().max() > 1e-4 for name, x in initial.items())
    assert models(runs[0]) == models(runs[1])
    assert models(runs[0])["trained"]["test"]["stamp"]["protocol"]["name"] == "market1501"
    files = [arrays(run / "embeddings.npz") for run in runs]
    assert all(np.array_equal(files[0][name], files[1][name]) for name in files[0].keys() | files[1].keys())


EVERYTHING = [
    "tracklets.frames=3", "tracklets.fusion=class_aware", "tracklets.test_fusion=quality",
    "loss.name=online_soft_mining", "loss.form=released", "attention.form=released", f"frame_losses=[{OSM}]",
    "memory.size=24", "memory.start=2", "ema=0.9", "batch.accumulate=2", "steps=12", "checkpoints.every=1",
    "data.transform=crop",
]  # fmt: skip


@pytest.fixture(scope="module")
def everything(data, tmp_path_factory):
    return trained(data, tmp_path_factory.mktemp("runs") / "whole", *EVERYTHING)


def test_a_training_on_tracklets_that_is_killed_goes_on_to_the_same_weights(data, everything, tmp_path):
    run, words = tmp_path / "killed", [f"data.root={data}", *SMALL, *EVERYTHING]
    command = [sys.executable, "-m", "metricweight", "train", "folder", *words, "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "00000004.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 4 <= checkpoint.latest(run)["step"] < 12
    train(read("folder", words), "folder", run, resume=True)
    assert same(learned(run), learned(everything))
    assert models(run) == models(everything)
    assert models(run)["trained"]["test"]["stamp"]["made"]["seen"] == "all frames, largest class probability as quality"


TWO = [
    "tracklets.frames=3", "tracklets.fusion=quality", "tracklets.test_fusion=quality",
    "frame_losses=[{name: cce, weight: 0.5}]", "batch.classes=4", "model.frozen_batch_norm=true", "steps=4",
    "optimizer.name=sgd", "optimizer.learning_rate=0.05", "data.transform=crop",
]  # fmt: skip


def test_two_processes_that_share_clips_come_to_the_weights_of_one(data, tmp_path):
    one, two = trained(data, tmp_path / "one", *TWO), tmp_path / "two"
    how = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "metricweight"]
    words = ["train", "folder", f"data.root={data}", *SMALL, *TWO, "--out", str(two)]
    done = subprocess.run(
        [*how, *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    a, b = learned(one), learned(two)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.allclose(b[name].double(), value.double(), rtol=0, atol=1e-6), name
    moved = [float((x - a[f"0 {name}"]).abs().max()) for name, x in checkpoint.initial(one)["model"].items()]
    assert max(moved) > 1e-3
    found, expected = (models(run)["trained"]["test"] for run in (two, one))
    assert found["stamp"]["made"]["seen"] == expected["stamp"]["made"]["seen"]
    assert found["map"] == pytest.approx(expected["map"], abs=1e-3)


def test_processes_take_whole_clips_or_say_that_they_cannot(data):
    t = prepared(read("folder", [f"data.root={data}", *SMALL, "tracklets.frames=3"]), Processes())
    assert isinstance(t.sampler, ClipSampler)
    whole, tracklets = t.sampler.batch(5), t.images.tracklets[t.splits["train"]]
    shares = [t.sampler.share(5, rank, 2) for rank in range(2)]
    assert np.concatenate(shares).tolist() == whole.tolist()
    for share in shares:
        assert len(share) == 9
        clips = tracklets[share].reshape(3, 3)
        assert (clips == clips[:, :1]).all()
    with pytest.raises(InputError, match="share"):
        t.sampler.share(5, 0, 4)  # six clips among four


@pytest.mark.parametrize(
    "more",
    [
        ["tracklets.fusion=self_attention"],
        ["tracklets.fusion=class_aware", "attention.form=poster", f"frame_losses=[{OSM}]"],
    ],
    ids=["self-attention", "class-aware"],
)
def test_chunks_that_cut_clips_have_the_gradient_of_the_whole(data, more):
    found = []
    for chunk in ("null", "2"):
        words = ["tracklets.frames=3", "model.frozen_batch_norm=true", f"batch.chunk={chunk}", *more]
        t = prepared(read("folder", [f"data.root={data}", *SMALL, *words]), Processes())
        torch.manual_seed(1)
        for parameter in t.objective.parameters():  # an attention starts as a mean
            torch.nn.init.normal_(parameter, std=0.3)
        batches = coming(t)
        gradients(t, [next(batches)])
        batches.close()
        learns = [*t.model.named_parameters(), *t.objective.named_parameters()]
        found.append({name: x.grad for name, x in learns if x.grad is not None})
    whole, chunked = found
    assert whole.keys() == chunked.keys()
    assert any(name.startswith(("attentions", "frames.attentions")) for name in whole)
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0, name
        assert torch.allclose(gradient, chunked[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    "words",
    [
        ["loss.name=ranked_list"],
        ["loss.name=instance_cross_entropy"],
        ["loss.name=triplet", "loss.mining=batch_hard", "loss.margin=0.3"],
        ["loss.name=dm"],
        ["loss.name=triplet", "frame_losses=[{name: imae}]"],
    ],
    ids=["RLL", "ICE", "batch-hard triplet", "DM", "IMAE of frames"],
)
def test_any_loss_trains_tracklets_and_is_judged_by_the_protocols_of_mars(mars, words, tmp_path, metricweight):
    size = ["data.size=[32,16]", "data.transform=person", "tracklets.frames=2", "data.validation=0.25"]
    run = trained(mars, tmp_path / "run", *size, *words)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert any(0 < line.get("loss", 0) < 1e3 for line in steps)
    initial, now = checkpoint.initial(run)["model"], checkpoint.latest(run)["model"]
    assert max(float((x - now[name]).abs().max()) for name, x in initial.items()) > 1e-4
    report = models(run)["trained"]["test"]
    assert report["stamp"]["protocol"]["name"] == "mars-official"
    assert report["stamp"]["made"]["seen"] == "all frames, mean"
    assert report["stamp"]["data"]["queries"] == manifest.read(mars).about.counts["query"]["tracklets"]
    code, out, err = metricweight("evaluate", run, "--all-protocols")
    assert code == 0, err
    assert all(f"| embeddings, {protocol} " in out for protocol in MARS)


# ---- embedding


@pytest.fixture
def held(monkeypatch):
    """How many frames were held at once, each time."""
    sizes, own = [], embedding._part

    def counted(networks, images, cut, *more):
        sizes.append(len(cut))
        return own(networks, images, cut, *more)

    monkeypatch.setattr(embedding, "_part", counted)
    return sizes


def one_by_one(network, path, size=16):
    """The embedding of each row of a manifest, as if there were no tracklets."""
    view = View("none", (size, size))
    images = from_manifest(path, view.needed)
    network.eval()
    with torch.inference_mode():
        found = [network(view([images.picture(i)], [(0, i)], training=False)) for i in range(len(images))]
    return torch.cat(found).double().numpy()


def by_hand(path, x, how=np.mean, frames=slice(None)):
    """What the test half of a manifest should give, tracklet after tracklet as the table names them first: fused
    embeddings, and those of the first frame of each query."""
    table = manifest.read(path).table
    items, queries = [], []
    for own in table[table["split"] == "test"].groupby("tracklet", sort=False).groups.values():
        own = table.loc[own].sort_values("frame")
        chosen = own.index[frames(len(own)) if callable(frames) else frames]
        items.append(how(x[chosen], axis=0))
        if own["is_query"].iloc[0]:
            queries.append(x[chosen[0]])
    return np.array(items), np.array(queries)


LENGTHS = (2, 920, 5, 1, 3, 8)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Tracklets of 1 to 920 frames, whose table lists frames in no order."""
    draw = np.random.default_rng(3)
    table = pd.concat(
        [
            rows([1, 1], [1, 2], "train", [1, 1]),
            rows(LENGTHS, [3, 3, 4, 4, 5, 5], "test", [1, 2, 1, 2, 1, 2], first=50, queries=(0, 1, 5)),
        ]
    ).reset_index(drop=True)
    pixels = draw.integers(0, 256, (len(table), 8, 8, 3)).astype(np.uint8)
    return written(tmp_path_factory.mktemp("long"), table.loc[draw.permutation(len(table))], pixels)


def test_a_tracklet_of_any_length_is_the_mean_of_its_frames_in_bounded_memory(
    long, tmp_path, small_parts, embedded, held
):
    words = ["data.size=16", "data.transform=none", "data.workers=0", "data.validation=0"]
    found = arrays(embed("small_cnn", words, str(long), out=tmp_path / "x.npz"))
    assert sum(embedded) == sum(LENGTHS)
    assert max(embedded) == 4
    assert len(held) > 2
    assert sum(held) == sum(LENGTHS)
    assert max(held) <= 8 - 1 + 920
    assert sorted(held)[-2] <= 8 - 1 + 8  # a long one makes no other part long
    torch.manual_seed(0)
    network = embedder(3, backbone="small_cnn", embedding_size=None)
    x = one_by_one(network, long)
    items, queries = by_hand(long, x)
    np.testing.assert_allclose(found["embeddings"], items, atol=1e-5)
    assert queries.shape == (3, items.shape[1])
    np.testing.assert_allclose(found["query_images"], queries, atol=1e-5)
    assert np.abs(queries - items[found["queries"]]).max() > 1e-2
    assert str(found["seen"]) == "all frames, mean"


def evenly(frames):
    return lambda n: [i * n // frames for i in range(frames)] if n >= frames else list(range(n))


@pytest.mark.parametrize(
    ("words", "how", "frames", "seen"),
    [
        ([], np.mean, slice(None), "all frames, mean"),
        (["tracklets.test_fusion=max"], np.max, slice(None), "all frames, max"),
        (
            ["tracklets.test_clip=evenly", "tracklets.test_frames=2"],
            np.mean,
            evenly(2),
            "2 frames evenly, mean",
        ),
        (
            ["tracklets.test_clip=first", "tracklets.test_frames=3", "tracklets.test_fusion=max"],
            np.max,
            slice(3),
            "first 3 frames, max",
        ),
    ],
    ids=["all", "max", "evenly", "first"],
)
@pytest.mark.parametrize("what", ["run", "backbone"])
def test_what_a_tracklet_is_judged_by_may_be_said_anew(plain, data, tmp_path, what, words, how, frames, seen):
    if what == "run":
        out = embed(str(plain), words, out=tmp_path / "x.npz")
        network = checkpoint.load(plain)[0]
    else:
        own = ["data.size=16", "data.transform=none", "data.workers=0", *words]
        out = embed("small_cnn", own, str(data), out=tmp_path / "x.npz")
        torch.manual_seed(0)
        network = embedder(3, backbone="small_cnn", embedding_size=None)
    found = arrays(out)
    items, queries = by_hand(data, one_by_one(network, data), how, frames)
    np.testing.assert_allclose(found["embeddings"], items, atol=1e-5)
    np.testing.assert_allclose(found["query_images"], queries, atol=1e-5)
    assert str(found["seen"]) == seen


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """A network that was trained frame by frame, without a classifier."""
    return trained(data, tmp_path_factory.mktemp("runs") / "plain", "data.transform=none")


def test_other_settings_of_a_run_and_a_fusion_that_nobody_learned_are_refused(plain, data, tmp_path):
    for word in ("tracklets.fusion=max", "tracklets.frames=2", "data.size=8"):
        with pytest.raises(InputError, match=r"only tracklets.test_clip, test_frames and test_fusion can be"):
            embed(str(plain), [word], out=tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"test_fusion=quality weighs frames by a classifier, and none is trained"):
        embed(str(plain), ["tracklets.test_fusion=quality"], out=tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"test_fusion=quality weighs frames by what was learned .* use mean or max"):
        embed("small_cnn", ["tracklets.test_fusion=quality"], str(data), out=tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


def test_a_run_of_which_only_frames_have_a_classifier_is_embedded_with_it(data, tmp_path):
    words = ["tracklets.frames=2", "frame_losses=[{name: cce}]", "memory.size=2", "tracklets.test_fusion=quality"]
    run = trained(data, tmp_path / "run", *words)
    found, own = arrays(embed(str(run), out=tmp_path / "x.npz")), arrays(run / "embeddings.npz")
    np.testing.assert_allclose(found["embeddings"], own["embeddings"], atol=1e-6)
    for state in ("ema=0.5", "ema=null"):
        folder = trained(data, tmp_path / state, *words, state)
        embed(str(folder / "checkpoints" / "00000002.pt"), out=tmp_path / f"{state}.npz")


def test_tracklets_of_which_nothing_can_be_read_leave_the_others(data, tmp_path, small_parts):
    folder = files(tmp_path / "files", lengths=(8, 2, 3, 3))
    words = ["tracklets.frames=2", "tracklets.fusion=self_attention", "tracklets.test_fusion=self_attention"]
    run = trained(folder / "list.csv", tmp_path / "run", *words, "data.damaged=skip")
    table = manifest.read(folder / "list.csv").table
    gone = table[(table["split"] == "test") & (table["tracklet"] == table["tracklet"][table["split"] == "test"].min())]
    assert len(gone) == 8  # a part of its own
    for path in gone["path"]:
        spoil(folder / path)
    found = arrays(embed(str(run), out=tmp_path / "x.npz"))
    assert len(found["labels"]) == len(arrays(run / "embeddings.npz")["labels"]) - 1


QUICKLY = """
from metricweight.training import embedding
embedding.embedded = lambda network, images, *_: images.mean((2, 3))
from metricweight.cli import main
main()
"""


def test_embedding_that_is_killed_goes_on_after_the_parts_that_are_there(tmp_path, monkeypatch):
    """12,180 tracklets, as MARS has; 40,000 pictures, fewer than it has."""
    draw = np.random.default_rng(0)
    lengths = np.minimum(2 + draw.geometric(0.44, 12_180) - 1, 12)
    labels, cameras = draw.integers(1, 600, 12_180), draw.integers(1, 7, 12_180)
    test = rows(lengths, labels, "test", cameras, queries=np.arange(1_980))
    table = pd.concat([test, rows([1] * 4, range(901, 905), "train", [1] * 4, first=20_000)], ignore_index=True)
    assert 35_000 < len(test) < 45_000
    pixels = draw.integers(0, 256, (len(table), 8, 8, 3)).astype(np.uint8)
    path = written(tmp_path / "many", table, pixels)
    made = []  # how many pictures were embedded, each time

    def quickly(_, images, *__):
        made.append(len(images))
        return images.mean((2, 3))

    monkeypatch.setattr(embedding, "embedded", quickly)
    words = ["data.size=8", "data.transform=none", "data.workers=0"]
    whole = embed("small_cnn", words, str(path), out=tmp_path / "whole.npz")
    assert sum(made) == len(test)
    made.clear()

    out, folder = tmp_path / "killed.npz", tmp_path / "killed.npz.parts"
    command = [sys.executable, "-c", QUICKLY, "embed", "small_cnn", *words, "--data", path, "--out", out]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while len(list(folder.glob("part-*.npz"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = sorted(folder.glob("part-*.npz"))
    assert 3 <= len(there) <= 6
    done = sum(np.isin(test["tracklet"], range(*span)).sum() for span in spans(there))
    embed("small_cnn", words, str(path), out=out)
    assert sum(made) == len(test) - done
    assert out.read_bytes() == whole.read_bytes()
    found = arrays(out)
    assert len(found["embeddings"]) == len(found["labels"]) == 12_180
    assert found["query_images"].shape == (1_980, 3)
    assert found["labels"].tolist() == labels.tolist()
    assert not folder.exists()


def spans(parts):
    """The tracklets of each part, first and end: they stand one after another."""
    begin = 0
    for path in parts:
        count = len(arrays(path)["labels"])
        yield begin, begin + count
        begin += count


# ---- what can be wrong with frames


def files(folder, lengths=(3, 2, 3)):
    """As `people`, each frame in a file of its own, listed tracklet after tracklet."""
    path = people(folder, lengths, lengths, shuffled=False)
    found = manifest.read(path)
    pixels = np.load(folder / "frames.npy")
    names = [f"{row.tracklet}-{row.frame}.png" for row in found.table.itertuples()]
    for name, picture in zip(names, pixels, strict=True):
        Image.fromarray(picture).save(folder / name)
    manifest.write(found.changed(found.table.assign(path=names, member=-1), "in files"), folder / "list.csv")
    return folder


def spoil(path):
    path.write_bytes(path.read_bytes()[:60])


def test_a_damaged_frame_is_replaced_by_one_of_its_own_tracklet(tmp_path):
    folder = files(tmp_path / "files")
    words = [*SMALL, "tracklets.frames=3", "tracklets.clip=evenly", "batch.classes=6", "batch.images=3"]
    spoil(folder / "100-20.png")
    spoil(folder / "102-30.png")
    for frame in (10, 20):
        spoil(folder / f"104-{frame}.png")  # all of it
    settings = read("folder", [f"data.root={folder / 'list.csv'}", *words, "data.validation=0", "data.damaged=skip"])
    t = prepared(settings, Processes())
    batches = coming(t)
    batch = next(batches)
    batches.close()
    wanted = t.splits["train"][t.sampler.batch(0)]
    tracklets, labels, frames = t.images.tracklets, t.images.labels, t.images.frames
    lost = tracklets[wanted] == 104
    assert lost.sum() == 3  # a clip of three, of two frames
    assert (tracklets[batch.indices][~lost] == tracklets[wanted][~lost]).all()
    assert (labels[batch.indices] == labels[wanted]).all()
    assert set(tracklets[batch.indices][lost]) <= {103, 105}
    instead = {
        (tracklets[i], frames[i]): frames[j]
        for i, j in zip(wanted.tolist(), batch.indices.tolist(), strict=True)
        if i != j and tracklets[i] != 104
    }
    assert instead == {(100, 20): 30, (102, 30): 10}  # the next of it, from the last on to the first
    assert len(batch.damaged) == 4


def test_a_frame_that_is_missing_is_named_before_the_first_step(tmp_path):
    folder = files(tmp_path / "files")
    (folder / "107-20.png").unlink()
    with pytest.raises(InputError, match=r"list.csv, row 22: .*107-20.png is not there"):
        trained(folder / "list.csv", tmp_path / "run", "tracklets.frames=2", "data.damaged=skip")
    assert not (tmp_path / "run").exists()


def test_a_damaged_frame_is_named_before_the_first_step(tmp_path):
    folder = files(tmp_path / "files")
    spoil(folder / "107-20.png")
    with pytest.raises(InputError, match=r"107-20.png cannot be read as a picture"):
        trained(folder / "list.csv", tmp_path / "run", "tracklets.frames=2")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("column", "other"), [("label", 6), ("camera", 7)])
def test_a_tracklet_that_is_of_two_people_or_cameras_is_named(tmp_path, column, other):
    people(tmp_path / "people", shuffled=False)
    table = pd.read_csv(tmp_path / "people" / "manifest.csv")
    was = table.loc[0, column]
    table.loc[2, column] = other
    table.to_csv(tmp_path / "people" / "mixed.csv", index=False)
    with pytest.raises(InputError, match=rf"mixed.csv, row 4: tracklet 100 has {column} {other} here and {was} above"):
        trained(tmp_path / "people" / "mixed.csv", tmp_path / "run", "tracklets.frames=2")


def test_people_with_too_few_tracklets_are_counted_and_batches_are_full_all_the_same(tmp_path, capfd):
    data = people(tmp_path / "people", lengths=(4, 6))
    words = ["tracklets.frames=2", "batch.images=3", "data.validation=0"]
    trained(data, tmp_path / "run", *words)
    out = " ".join(capfd.readouterr().out.split())
    assert "3 classes x 3 tracklets x 2 frames" in out
    assert "Training classes with fewer than 3 tracklets: 6; in a batch" in out
    t = prepared(read("folder", [f"data.root={data}", *SMALL, *words]), Processes())
    batch = t.splits["train"][t.sampler.batch(0)].reshape(3, 3, 2)
    assert t.sampler.size == batch.size == 18
    labels, tracklets = t.images.labels[batch], t.images.tracklets[batch]
    assert (labels == labels[:, :1, :1]).all()
    assert len(np.unique(labels)) == 3
    assert (tracklets == tracklets[:, :, :1]).all()
    for own in tracklets[:, :, 0]:
        assert len(set(own)) == 2  # each at least once
    trained(data, tmp_path / "enough", "tracklets.frames=2", "data.validation=0")
    assert "with fewer than" not in capfd.readouterr().out


def test_clips_of_still_pictures_are_refused(data, tmp_path):
    whole = manifest.read(data)
    manifest.write(whole.changed(whole.table.assign(tracklet=-1, frame=-1), "stills"), data.parent / "stills.csv")
    with pytest.raises(
        InputError, match=r"tracklets.frames=4 was asked for, but what is trained on are still pictures"
    ):
        trained(data.parent / "stills.csv", tmp_path / "run", "tracklets.frames=4")
    assert not (tmp_path / "run").exists()


# ---- validation


class MeanColour(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


RED, ORANGE, GREEN, LIME = (255, 0, 0), (255, 40, 0), (0, 255, 0), (40, 255, 0)


def validated(folder, tracklets, *more, second=None):
    """What the validation finds by mean colours, of tracklets (label, camera, colour) of two frames; second: the
    colours of their second frames, if these are others."""
    labels, cameras, colours = zip(*tracklets, strict=True)
    parts = [
        rows([1] * 4, [1, 1, 2, 2], "train", [1, 2, 1, 2]),
        rows([2] * len(labels), labels, "validation", cameras, first=10),
        rows([1] * 4, [5, 5, 6, 6], "test", [1, 2, 1, 2], first=90, queries=(0, 2)),
    ]
    table = pd.concat(parts, ignore_index=True)
    pixels = np.zeros((len(table), 8, 8, 3), np.uint8)
    frames = np.stack([colours, colours if second is None else second], axis=1).reshape(-1, 3)
    pixels[4:-4] = frames.astype(np.uint8)[:, None, None]
    path = written(folder, table, pixels)
    words = ["data.size=8", "data.pixels=half", "data.transform=none", "batch.classes=2", "tracklets.frames=1"]
    t = prepared(read("folder", [f"data.root={path}", *SMALL, *words, *more]), Processes())
    t.model = MeanColour()
    return judging.validate(t)


def test_a_network_is_not_chosen_by_what_the_querys_own_camera_saw(tmp_path):
    """In its own camera each finds its like; in the other, the other person looks like it."""
    seen = [(3, 1, RED), (3, 2, GREEN), (4, 1, LIME), (4, 2, ORANGE)] * 2
    assert validated(tmp_path / "two", seen)["recall@1"] == 0
    turned = [(3, 1, RED), (3, 2, ORANGE), (4, 1, LIME), (4, 2, GREEN)] * 2
    assert validated(tmp_path / "turned", turned)["recall@1"] == 1
    x = np.array([colour for *_, colour in seen], dtype=np.float32) / 127.5 - 1
    assert evaluate(x, np.array([label for label, *_ in seen]), ks=[1]).metrics["recall@1"] == 1  # among all


def test_where_each_person_is_in_one_camera_all_others_are_searched(tmp_path):
    alone = [(3, 1, RED), (3, 1, ORANGE), (4, 2, GREEN), (4, 2, LIME)]
    assert validated(tmp_path / "one", alone)["recall@1"] == 1
    mixed = [*alone, (7, 1, RED), (7, 3, LIME)]  # judged by the one whom two saw
    assert validated(tmp_path / "mixed", mixed)["recall@1"] == 0


def test_where_cameras_are_not_known_all_others_are_searched(tmp_path):
    unknown = [(3, -1, RED), (3, -1, ORANGE), (4, -1, GREEN), (4, -1, LIME)]
    assert validated(tmp_path / "none", unknown)["recall@1"] == 1
    some = [(3, -1, RED), (3, 1, GREEN), (4, -1, LIME), (4, 1, ORANGE)] * 2
    assert validated(tmp_path / "some", some)["recall@1"] == 1


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_a_network_is_chosen_by_tracklets_as_they_are_tested(tmp_path, rule):
    draw = np.random.default_rng(4)
    first, second = draw.integers(0, 256, (2, 24, 3))
    labels = np.arange(24) // 4 + 3
    tracklets = [(label, -1, tuple(colour)) for label, colour in zip(labels.tolist(), first.tolist(), strict=True)]
    found = validated(tmp_path, tracklets, f"tracklets.test_fusion={rule}", second=second)
    fused = {name: how([first, second], axis=0) / 127.5 - 1 for name, how in (("mean", np.mean), ("max", np.max))}
    expected = {name: evaluate(x, labels, ks=[1]).metrics["map@r"] for name, x in fused.items()}
    assert expected["mean"] != pytest.approx(expected["max"], abs=1e-3)
    assert found["map@r"] == pytest.approx(expected[rule], abs=1e-9)


def test_other_tracklets_are_other_data(tmp_path):
    """A training cannot go on with frames that were dealt to other tracklets, or put in another order."""
    stamps = set()
    for number, change in enumerate(({}, {"tracklet": 700}, {"frame": 70})):
        table = rows([2, 2, 2, 2], [1, 1, 2, 2], "train", [1, 1, 2, 2]).assign(split=["train"] * 4 + ["test"] * 4)
        table.loc[0, list(change)] = list(change.values())
        path = written(tmp_path / "data", table, np.zeros((8, 8, 8, 3), np.uint8), "self", f"{number}.csv")
        stamps.add(from_manifest(path).stamp)
    assert len(stamps) == 3


# ---- a table of one's own


def own(folder, protocol="gallery", **change):
    """Six people in two cameras with queries, the fourth row of the test half changed."""
    parts = [
        rows([2] * 4, [1, 1, 2, 2], "train", [1, 2, 1, 2]),
        rows([1] * 8, [5, 5, 6, 6, 7, 7, 8, 8], "test", [1, 2] * 4, 9),
    ]
    table = pd.concat(parts, ignore_index=True)
    table["is_query"] = table.index.isin([8, 10])
    table["is_gallery"] = ~table["is_query"]
    for name, value in change.items():
        table[name] = False if isinstance(value, bool) and name not in table else table[name]
        table.loc[11, name] = value
    return written(folder, table, np.zeros((len(table), 8, 8, 3), np.uint8), protocol)


def checked(path):
    t = prepared(
        read("folder", [f"data.root={path}", *SMALL, "data.size=8", "batch.classes=2", "data.validation=0"]),
        Processes(),
    )
    judging.check_judging(t)
    return t


def test_a_protocol_that_does_not_go_by_cameras_says_so(tmp_path, capfd):
    checked(own(tmp_path / "gallery"))
    assert "Cameras are known, but protocol gallery does not go by them" in capfd.readouterr().out
    checked(own(tmp_path / "mars", "mars-official"))
    assert "Cameras are known" not in capfd.readouterr().out


def test_a_camera_that_the_protocol_needs_and_nobody_knows_is_named(tmp_path):
    with pytest.raises(InputError, match=r"the camera of 1 of 8 test pictures is not known, such as .*frames.npy:11;"):
        checked(own(tmp_path / "one", "mars-torchreid", camera=-1))


def test_junk_that_the_protocol_would_rank_is_refused(tmp_path, metricweight):
    path, new = own(tmp_path / "own", is_junk=True, label=-1), tmp_path / "own" / "new.csv"
    with pytest.raises(
        InputError, match=r"1 rows of junk, such as frames.npy of label -1, which protocol gallery would"
    ):
        checked(path)
    code, out, err = metricweight("data", path, "--protocol", "mars-official:junk=-1+-2", "--out", new)
    assert code == 0, err
    assert "protocol mars-official:junk=-1+-2" in out
    checked(new)
    checked(own(tmp_path / "outside", is_junk=True, label=-1, is_gallery=False))  # which nobody ranks
    code, _, err = metricweight("data", path, "--protocol", "mars-oficial", "--out", tmp_path / "own" / "other.csv")
    assert code == 2
    assert "did you mean mars-official?" in err
    assert metricweight("data", path, "--protocol", "mars-official")[0] == 2  # nowhere to write it


def test_somebody_whose_number_the_protocol_gives_to_distractors_is_not_lost(tmp_path):
    path = own(tmp_path / "zero", "mars-official", label=0)
    with pytest.raises(
        InputError, match=r"1 rows such as frames.npy of label 0, which is somebody here .*distractors=none"
    ):
        checked(path)
    checked(own(tmp_path / "told", "mars-official:junk=none,distractors=none", label=0))
    checked(own(tmp_path / "said", "mars-official", label=0, is_distractor=True))


def test_junk_and_distractors_are_no_classes():
    labels, numbers = np.array([0, 0, 1, 2, 2, 3]), np.array([-1, -1, 0, 4, 4, 7])
    known = Roles("mars-official", numbers, np.zeros(6, bool), np.ones(6, np.int16))
    some = Images(None, labels, [], [], 3, "", roles=known)
    assert pictures.classes_of(some, np.arange(6), "test") == {2: 2, 3: 1}
    everybody = {0: 2, 1: 1, 2: 2, 3: 1}
    assert pictures.classes_of(some, np.arange(6), "train") == everybody  # somebody may have such a number there
    assert pictures.classes_of(replace(some, roles=None), np.arange(6), "test") == everybody
