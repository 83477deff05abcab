"""`metricweight quality`: what each frame of a tracklet counts, drawn, and whether bad frames come out low."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from metricweight._data_tools import prepare
from metricweight._data_tools.source import Options
from PIL import Image

from metricweight.checks import InputError
from metricweight.data.images import decode
from metricweight.data.transforms import View
from metricweight.settings import read
from metricweight.training import checkpoint, embedding, pictures, sheets
from metricweight.training.loop import train
from metricweight.training.quality import _judge, _judged, auroc, quality, within
from metricweight.training.sheets import Frame, Strip, left_out, sheet, shown, uneven
from metricweight.training.tracklets import objective_for

SMALL = ["model.backbone=small_cnn", "model.embedding_size=16", "data.size=[32,16]", "data.transform=person",
         "data.workers=0", "data.validation=0", "device=cpu", "validations=0"]  # fmt: skip
CLIPS = ["tracklets.frames=4", "batch.images=2", "batch.classes=6", "loss.name=cce", "frame_losses=[{name: cce}]"]


@pytest.fixture(scope="module")
def mars(tmp_path_factory):
    """A replica of MARS, with its manifest and its truth."""
    root = tmp_path_factory.mktemp("data") / "mars"
    prepare.write_replica("mars", root, None, 1)
    prepare.prepare("mars", root, root / "manifest.csv", Options(pictures=root))
    return root


@pytest.fixture(scope="module")
def run(mars, tmp_path_factory):
    """A run that knows its training people by heart."""
    words = [f"data.root={mars / 'manifest.csv'}", *SMALL, *CLIPS, "tracklets.fusion=quality", "steps=40",
             "optimizer.learning_rate=0.005"]  # fmt: skip
    return train(read("folder", words), "folder", tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def found(mars, run, tmp_path_factory):
    return quality(run, tmp_path_factory.mktemp("out"), truth=mars / "frames.csv", tracklets=1)


def untrained(mars, folder, *words, root=None):
    """A run of one step."""
    asked = [f"data.root={root or mars / 'manifest.csv'}", *SMALL, "batch.classes=4", "batch.images=2", *words]
    return train(read("folder", [*asked, "steps=1"]), "folder", folder / "run")


def table(found):
    return pd.read_csv(found.out / "quality.csv")


# ---- how well faults come out


def test_auroc_is_the_share_of_pairs_in_the_right_order_and_ties_count_half():
    draw = np.random.default_rng(0)
    low, others = draw.integers(0, 6, 40) / 5, draw.integers(2, 9, 70) / 5
    right = 0.0
    for a in low:
        for b in others:
            right += 1.0 if a < b else 0.5 if a == b else 0.0
    assert auroc(low, others) == pytest.approx(right / (40 * 70), abs=1e-12)
    assert auroc(np.array([0.1]), np.array([0.2, 0.3])) == 1
    assert auroc(np.array([0.5]), np.array([0.2, 0.3])) == 0
    assert auroc(np.ones(3), np.ones(4)) == 0.5


def test_auroc_without_pairs_is_no_number():
    assert math.isnan(auroc(np.array([]), np.ones(3)))
    assert math.isnan(auroc(np.ones(3), np.array([])))


def test_within_is_the_mean_over_tracklets_that_have_both_kinds():
    of = np.array([5, 5, 5, 2, 2, 2, 9, 9])
    values = np.array([0.1, 0.9, 0.8, 0.7, 0.7, 0.2, 0.0, 0.0])
    low = np.array([1, 0, 0, 1, 0, 0, 1, 1], dtype=bool)
    found, tracklets = within(
        values, low, ~low, of
    )  # tracklet 5: 1; tracklet 2: (1/2 + 0) / 2; tracklet 9 has no other
    assert (found, tracklets) == (pytest.approx((1 + 0.25) / 2), 2)


def test_within_leaves_out_frames_of_neither_kind():
    of, values = np.zeros(3, dtype=np.int64), np.array([0.5, 0.9, 0.1])
    low, others = np.array([True, False, False]), np.array([False, True, False])
    assert within(values, low, others, of) == (1, 1)
    found, tracklets = within(values, low, np.zeros(3, dtype=bool), of)
    assert math.isnan(found)
    assert tracklets == 0


# ---- what frames weigh


FUSIONS = {
    "quality": ["frame_losses=[{name: cce}]"],
    "class_aware": ["frame_losses=[{name: online_soft_mining}, {name: cce}]", "attention.form=released"],
    "self_attention": ["frame_losses=[{name: cce}]"],
}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_drawn_is_what_the_training_fuses_by(fusion):
    words = [*SMALL, "data.root=.", "loss.name=cce", "tracklets.frames=7", f"tracklets.fusion={fusion}"]
    torch.manual_seed(0)
    objective = objective_for(read("folder", [*words, *FUSIONS[fusion]]), torch.arange(5), 1, 16)
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter)
    x, labels = torch.randn(14, 16), torch.tensor([2] * 7 + [4] * 7)
    judge = _judge(objective, objective.settings, Path("run"))
    with torch.no_grad():
        weight = torch.from_numpy(_judged(judge, x, labels, torch.tensor([7, 7]))["weight"])
        fused = objective.fused(x, labels)
    assert weight.reshape(2, 7).std(1).min() > 1e-3
    torch.testing.assert_close((weight[:, None] * x).reshape(2, 7, 16).sum(1).float(), fused, rtol=1e-4, atol=1e-5)


def test_p_and_quality_are_those_of_the_formula(mars, run, found):
    model, settings, state = checkpoint.load(run)
    weight, bias = (state["objective"][f"frames.classifiers.0.{name}"] for name in ("weight", "bias"))
    frames = table(found)
    manifest = pd.read_csv(mars / "manifest.csv")
    people = np.unique(manifest["label"][manifest["split"] == "train"])
    view = View("person", (32, 16), settings.data.pixels)
    for split in ("train", "test"):
        own = frames[frames["split"] == split]
        own = own[own["tracklet"] == own["tracklet"].iloc[-1]]
        images = view(
            [decode(mars / path, 3, at_least=view.needed) for path in own["path"]], [(0, 0)] * len(own), False
        )
        with torch.no_grad():
            softmax = (model(images) @ weight.T + bias).double().softmax(1).numpy()
        column = list(people).index(own["label"].iloc[0]) if split == "train" else softmax.argmax(1)
        p = softmax[np.arange(len(own)), column]
        assert own["p"].to_numpy() == pytest.approx(p, abs=1e-5)
        a = np.exp(-((1 - p) ** 2) / (2 * 0.68**2))
        assert own["quality"].to_numpy() == pytest.approx(a, abs=1e-5)
        assert own["weight"].to_numpy() == pytest.approx(a / a.sum(), abs=1e-5)


def test_the_table_has_each_frame_once_in_order_of_time_and_says_what_p_is(mars, found):
    frames, manifest = table(found), pd.read_csv(mars / "manifest.csv")
    judged = manifest[manifest["split"].isin(["train", "test"])]
    assert sorted(frames["path"]) == sorted(judged["path"])
    for name in ("split", "label", "camera", "tracklet", "frame"):
        assert (frames.set_index("path")[name] == judged.set_index("path")[name].reindex(frames["path"])).all()
    assert (frames.groupby(["tracklet"])["frame"].diff().dropna() > 0).all()
    assert (frames.groupby("tracklet")["weight"].sum() - 1).abs().max() < 1e-6
    assert dict(frames.groupby("split")["kind"].unique().str[0]) == {
        "train": "own identity", "test": "largest class probability",
    }  # fmt: skip
    assert list(frames.columns) == [
        "path",
        "split",
        "label",
        "camera",
        "tracklet",
        "frame",
        "p",
        "quality",
        "weight",
        "kind",
    ]


def test_occluded_and_foreign_frames_of_known_people_come_out_low(mars, found):
    rows = {(row.split, row.truth): row for row in found.rows}
    for truth in ("occluded", "foreign", "any of these"):
        assert rows["train", truth].auroc > 0.7
        assert rows["train", truth].within > 0.8
        assert rows["test", truth].kind == "largest class probability"


def test_the_aurocs_are_those_of_the_frames(mars, found):
    frames = found.frames.merge(pd.read_csv(mars / "frames.csv"), on="path")
    for row in found.rows:
        own = frames[frames["split"] == row.split]
        bad = own["occluded"] | own["foreign"]
        low = bad if row.truth == "any of these" else own[row.truth]
        assert (row.frames, row.others) == (low.sum(), (~bad).sum())
        pairs = own["p"][low].to_numpy()[:, None], own["p"][~bad].to_numpy()[None]
        share = (pairs[0] < pairs[1]).mean() + (pairs[0] == pairs[1]).mean() / 2
        assert row.auroc == pytest.approx(share, abs=1e-12)


def test_noise_of_the_manifest_is_the_truth_where_no_other_is_given(mars, metricweight, tmp_path):
    noisy = tmp_path / "noisy.csv"
    words = ("--kind", "foreign_frames", "--rate", "0.2", "--out", noisy)
    assert metricweight("noise", mars / "manifest.csv", *words)[0] == 0
    run = untrained(mars, tmp_path, "loss.name=cce", root=noisy)
    rows = quality(run, tmp_path / "out", tracklets=1).rows
    count = pd.read_csv(noisy)["is_noisy"].sum()
    assert [(row.split, row.truth, row.frames) for row in rows] == [("train", "is_noisy", count)]
    rows = quality(run, tmp_path / "more", truth=mars / "frames.csv", split="train", tracklets=1).rows
    assert [row.truth for row in rows] == ["occluded", "foreign", "is_noisy", "any of these"]


def test_frames_that_the_truth_does_not_list_are_not_compared(mars, run, tmp_path):
    said = pd.read_csv(mars / "frames.csv")
    some = said[said["path"].str.startswith("bbox_train")].iloc[::2]
    some.to_csv(tmp_path / "some.csv", index=False)
    found = quality(run, tmp_path / "out", truth=tmp_path / "some.csv", split="train", tracklets=1)
    rows, left = found.rows, len(found.frames) - len(some)
    assert f"{left:,} of {len(found.frames):,} frames are not in {tmp_path / 'some.csv'} and are not" in found.text()
    bad = some["occluded"] | some["foreign"]
    assert (rows[-1].frames, rows[-1].others) == (bad.sum(), (~bad).sum())


def test_memory_is_bounded_and_parts_change_nothing(found, run, tmp_path, monkeypatch):
    sizes = []
    own = embedding.embedded

    def counted(network, images, *more):
        sizes.append(len(images))
        return own(network, images, *more)

    monkeypatch.setattr("metricweight.training.quality.embedded", counted)
    monkeypatch.setattr(embedding, "PART", 8)
    monkeypatch.setattr(pictures, "BLOCK", 4)
    again = table(quality(run, tmp_path / "out", tracklets=1))
    assert max(sizes) == 4
    pd.testing.assert_frame_equal(again, table(found), rtol=1e-4, atol=1e-5)


def test_a_run_that_judges_whole_tracklets_alone_judges_frames_by_that_and_says_so(mars, tmp_path):
    run = untrained(mars, tmp_path, "tracklets.frames=2", "loss.name=cce")
    found = quality(run, split="train", tracklets=1)
    assert "the classifier of fused tracklets, used on single frames" in found.text()
    assert "trained with tracklets.fusion=mean, without them" in found.text()
    assert found.out == run / "quality"


def test_a_class_aware_attention_judges_where_there_is_no_classifier(mars, tmp_path):
    run = untrained(mars, tmp_path, "loss.name=online_soft_mining", "attention.form=poster")
    found = quality(run, tmp_path / "out", split="test", tracklets=1)
    assert "the contexts of the class-aware attention, over 6 training identities" in found.text()
    assert "trained frame by frame" in found.text()
    assert "--truth" in found.text()
    assert set(found.frames["split"]) == {"test"}


def test_what_a_memory_remembers_is_not_taken_for_the_identities(mars, tmp_path):
    words = ["tracklets.frames=2", "loss.name=ranked_list", "memory.size=4", "frame_losses=[{name: cce}]"]
    found = quality(untrained(mars, tmp_path, *words), split="train", tracklets=1)
    assert "over 6 training identities" in found.text()


def test_a_picture_that_cannot_be_read_is_left_out_and_named(mars, run, tmp_path):
    copy = shutil.copytree(mars, tmp_path / "mars")
    frames = pd.read_csv(copy / "manifest.csv")
    bad = frames[frames["tracklet"] == frames["tracklet"].iloc[-1]]["path"].iloc[0]
    (copy / bad).write_bytes(b"x" * (copy / bad).stat().st_size)  # no picture, of its size
    state = checkpoint.read(run / "checkpoint.pt")
    state["settings"]["data"] |= {"root": str(copy / "manifest.csv"), "damaged": "skip"}
    (tmp_path / "other").mkdir()
    torch.save(state, tmp_path / "other" / "checkpoint.pt")
    found = quality(tmp_path / "other", tracklets=1)
    assert bad not in set(found.frames["path"])
    assert (found.frames.groupby("tracklet")["weight"].sum() - 1).abs().max() < 1e-9
    assert f"{copy / bad} cannot be read" in found.text()


def test_a_checkpoint_is_judged_by_what_it_had_learned_by_then(mars, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    found = quality(copy / "checkpoints" / "00000000.pt", split="train", tracklets=1)
    assert (found.step, found.out) == (0, copy / "quality-00000000")
    assert found.frames["p"].median() < 0.5 < quality(copy, split="train", tracklets=1).frames["p"].median()


# ---- sheets


def test_sheets_have_twenty_strips_and_the_most_uneven_tracklets_first(run, tmp_path, monkeypatch):
    drawn = []
    own = sheets.sheet

    def kept(heading, strips, *more):
        drawn.extend(strips)
        return own(heading, strips[:1], *more)

    monkeypatch.setattr("metricweight.training.quality.sheet", kept)
    found = quality(run, tmp_path / "out", split="test", tracklets=25)
    assert found.sheets == ["test-1.png", "test-2.png"]
    assert len(drawn) == 25
    spread = [np.std([f.weight for f in s.frames]) / np.mean([f.weight for f in s.frames]) for s in drawn]
    assert spread == sorted(spread, reverse=True)
    all_of_them = found.frames.groupby("tracklet")["weight"].apply(lambda w: w.std(ddof=0) / w.mean())
    assert spread == pytest.approx(all_of_them.sort_values(ascending=False).to_numpy()[:25], abs=1e-9)
    first = found.frames[found.frames["tracklet"] == int(drawn[0].title.split()[-1])].iloc[0]
    assert drawn[0].title == f"label {first.label}, camera {first.camera}, tracklet {first.tracklet}"
    assert [frame.number for frame in drawn[0].frames] == sorted(frame.number for frame in drawn[0].frames)


def test_unevenness_is_the_spread_over_the_mean():
    assert uneven(np.array([0.25, 0.75])) == pytest.approx(0.5)  # mean 1/2, each 1/4 away
    assert uneven(np.full(7, 1 / 7)) == pytest.approx(0)


def test_a_long_tracklet_shows_its_lowest_frames_and_others_evenly():
    weights = np.full(100, 1.0)
    weights[[3, 50, 51, 98]] = 0.5
    assert shown(weights, most=8, low=4).tolist() == [0, 3, 33, 50, 51, 66, 98, 99]  # 33 and 66: thirds of the other 96
    assert shown(np.ones(14), most=14).tolist() == list(range(14))
    for length in range(15, 60):
        kept = shown(np.random.default_rng(length).random(length))
        assert len(np.unique(kept)) == 14


def test_frames_that_are_left_out_are_named():
    assert left_out([1, 2, 3, 4, 5, 6, 9, 12], np.array([0, 2, 6])) == "2, 4-6, 12"
    assert left_out([7, 8], np.array([1])) == "7"


def test_a_bar_is_as_high_as_its_weight_and_the_lowest_frame_has_a_red_border():
    frames = [Frame(0, 1, 0.9, 0.5), Frame(1, 2, 0.2, 0.125, "occluded"), Frame(2, 3, 0.8, 0.375)]
    page = sheet(
        ["a"], [Strip("b", frames)], lambda at: [torch.full((1, 8, 4), 200, dtype=torch.uint8)] * len(at), (8, 4)
    )
    pixels = np.asarray(page).astype(int)
    wide = round(sheets.TALL / 2)
    middles = [sheets.EDGE + place * (wide + sheets.GAP) + wide // 2 for place in range(3)]
    grey = (pixels == 200).all(2)
    assert [int(grey[:, x].sum()) for x in middles] == [sheets.TALL] * 3
    foot = np.flatnonzero(grey[:, middles[0]])[-1] + 1
    heights = []
    for place in range(3):
        column = pixels[foot + sheets.GAP : foot + sheets.GAP + sheets.BARS, middles[place] - wide // 2 + 1]
        heights.append(int((column != 255).any(1).sum()))
    line = 1  # the line of an equal share, above the low bar
    assert heights == pytest.approx([sheets.BARS, sheets.BARS / 4 + line, 3 * sheets.BARS / 4], abs=1)
    red = (pixels[:, [x - wide // 2 - 2 for x in middles]] == sheets.RED).all(2)
    assert red.any(0).tolist() == [False, True, False]


# ---- the command, and mistakes


def test_the_command_prints_a_table_and_writes_sheets(metricweight, mars, run, tmp_path):
    words = ("quality", run, "--out", tmp_path / "sheets", "--truth", mars / "frames.csv", "--tracklets", 2)
    code, out, _ = metricweight(*words)
    assert code == 0
    assert "| train | own identity              | occluded " in out
    assert "| test  | largest class probability | any of these " in out
    with Image.open(tmp_path / "sheets" / "train-1.png") as picture:
        assert picture.width > 900
    code, out, err = metricweight(*words)
    assert code == 2
    assert "quality.csv is already there; add --overwrite" in err
    code, out, _ = metricweight(*words, "--overwrite", "--split", "train", "--json")
    assert code == 0
    said = json.loads(out)
    assert [row["truth"] for row in said["auroc"]] == ["occluded", "foreign", "any of these"]
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["quality.csv", "train-1.png"]


def test_a_run_without_classes_is_told_how_to_get_some(mars, tmp_path):
    run = untrained(mars, tmp_path, "tracklets.frames=2", "loss.name=contrastive")
    with pytest.raises(InputError, match=r'probability of its identity; train with one, such as frame_losses="\[{name'):
        quality(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_on_pictures_without_tracklets_is_refused(mars, tmp_path):
    frames = pd.read_csv(mars / "manifest.csv").drop(columns=["tracklet", "frame"])
    frames["path"] = [str(mars / path) for path in frames["path"]]
    frames[~frames["is_junk"] & ~frames["is_distractor"]].to_csv(tmp_path / "stills.csv", index=False)
    run = untrained(mars, tmp_path, "loss.name=cce", root=tmp_path / "stills.csv")
    with pytest.raises(InputError, match="has no tracklets"):
        quality(run)
    state = checkpoint.read(run / "checkpoint.pt")
    state["settings"]["data"] |= {"source": "digits", "root": None}
    torch.save(state, run / "checkpoint.pt")
    with pytest.raises(InputError, match=r"digits, which .* has no tracklets"):
        quality(run)


def test_other_data_than_those_of_the_training_are_refused(mars, run, tmp_path):
    frames = pd.read_csv(mars / "manifest.csv")
    frames["path"] = [str(mars / path) for path in frames["path"]]
    gone = frames["label"][frames["split"] == "train"].iloc[0]
    frames[(frames["label"] != gone) & ~frames["is_junk"]].to_csv(tmp_path / "fewer.csv", index=False)
    state = checkpoint.read(run / "checkpoint.pt")
    state["settings"]["data"]["root"] = str(tmp_path / "fewer.csv")
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="other pictures, labels or splits"):
        quality(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,occluded\nnowhere.jpg,True\n", "lists no picture of the manifest: it has nowhere.jpg"),
        ("name,occluded\na.jpg,True\n", "has no column path"),
        ("path,shown\na.jpg,7\n", "has no column of true and false beside path and shown"),
        ("path\na.jpg\n", "has no column of true and false beside path;"),
        ("path,occluded\na.jpg,True\na.jpg,False\n", "lists a.jpg twice"),
        ("", "cannot be read as a CSV"),
        (None, "truth.csv is not there"),
    ],
)
def test_a_truth_that_says_nothing_is_refused(run, tmp_path, text, said):
    truth = tmp_path / "truth.csv"
    if text is not None:
        truth.write_text(text)
    with pytest.raises(InputError, match=said):
        quality(run, tmp_path / "out", truth=truth)


def test_wrong_words_are_refused(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--split is train or test"):
        quality(run, split="validation")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; give a folder"):
        quality(run, tmp_path / "file")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="work of one"):
        quality(run)
