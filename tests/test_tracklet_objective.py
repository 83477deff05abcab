"""Losses on clips and on their frames, and what a tracklet is judged by, in float64 against loops over clips."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU_AND_CUDA

from metricweight.checks import InputError
from metricweight.data.images import Held, Images
from metricweight.losses import OnlineSoftMiningLoss
from metricweight.settings import changed, read, resolve
from metricweight.training.objective import Objective
from metricweight.training.statistics import weight_statistics
from metricweight.training.tracklets import TrackletObjective, frames_judged, fuser, objective_for, rebuilt

CLASSES = torch.tensor([900, 3, 70])  # numbers of the training classes, not from 0 on
FRAMES, CLIPS, D = 3, 6, 4
LABELS = CLASSES.repeat_interleave(2 * FRAMES)  # two clips of each
OWN = torch.tensor([2, 0, 1]).repeat_interleave(2 * FRAMES)  # which output of a classifier stands for each
CCE, OSM = {"name": "cce"}, {"name": "online_soft_mining"}


def objective(frames=FRAMES, fusion="mean", levels=1, labels=LABELS, test="mean", **groups):
    torch.manual_seed(0)
    tracklets = {"frames": frames, "fusion": fusion, "test_fusion": test}
    own = {"data": {"source": "glyphs"}, "model": {"embedding_size": D}, "tracklets": tracklets, "loss": CCE}
    settings = resolve({**own, **groups})
    made = objective_for(settings, labels, levels, D).double()
    for parameter in made.parameters():  # what starts at zero too
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def embeddings(levels=1, seed=1, rows=FRAMES * CLIPS):
    random = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, levels * D, generator=random, dtype=torch.float64)).requires_grad_()


def clips_of(x):
    return [x[i : i + FRAMES] for i in range(0, len(x), FRAMES)]


def gaussian(p, mean, sigma):
    return math.exp(-((p - mean) ** 2) / (2 * sigma**2))


def weights(made, fusion, clip, own):
    """w of the frames of a clip, by the formulas."""
    if fusion == "mean":
        return [1.0] * len(clip)
    if fusion == "quality":
        return [gaussian(float(F.softmax(made.frames.classifiers[0](x), 0)[own]), 1, 0.68) for x in clip]
    if fusion == "class_aware":
        contexts, form = made.frames.attentions[0].contexts, made.frames.attentions[0].form
        p = [float(F.softmax(contexts @ (F.normalize(x, dim=0) if form == "poster" else x), 0)[own]) for x in clip]
        return p if form == "poster" else [gaussian(each, 1, 0.68) for each in p]
    attention = made.attentions[0]
    scores = [
        [(attention.query(a) @ attention.key(b)) / math.sqrt(attention.query.out_features) for b in clip] for a in clip
    ]
    attended = [torch.stack(row).softmax(0) for row in scores]
    return [sum(row[t] for row in attended) / len(clip) for t in range(len(clip))]


def fused(made, fusion, x):
    rows = []
    for clip, own in zip(clips_of(x), OWN[::FRAMES].tolist(), strict=True):
        if fusion == "max":
            rows.append(clip.max(0).values)
        else:
            w = weights(made, fusion, clip, own)
            rows.append(sum(a * b for a, b in zip(w, clip, strict=True)) / sum(w))
    return torch.stack(rows)


def check_derivatives(made, x, loss, expected):
    """With respect to the embeddings and all that is learned."""
    learned = [x, *made.parameters()]
    for a, b in zip(torch.autograd.grad(loss, learned), torch.autograd.grad(expected, learned), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fusion", ["mean", "max", "quality", "self_attention"])
def test_the_gradient_is_that_of_cross_entropy_of_clips_and_of_frames(fusion):
    made, x = objective(fusion=fusion, frame_losses=[{**CCE, "weight": 0.7}]), embeddings()
    found = made(x, LABELS, 0)
    of_clips = F.cross_entropy(made.sets.classifiers[0](fused(made, fusion, x)), OWN[::FRAMES])
    expected = of_clips + 0.7 * F.cross_entropy(made.frames.classifiers[0](x), OWN)
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-12)
    check_derivatives(made, x, found.loss, expected)


@pytest.mark.parametrize("form", ["poster", "released"])
def test_soft_mining_of_clips_and_of_frames_fused_by_class_aware_attention(form):
    groups = {"loss": {**OSM, "form": form}, "frame_losses": [{**OSM, "form": form}], "attention": {"form": form}}
    made, x = objective(fusion="class_aware", **groups), embeddings()
    expected = x.new_zeros(())
    for judge, rows, labels in ((made.sets, fused(made, "class_aware", x), OWN[::FRAMES]), (made.frames, x, OWN)):
        attention = judge.attentions[0]
        expected = expected + OnlineSoftMiningLoss(form=form, attention=attention)(rows, labels)
        expected = expected + attention(rows, labels)
    found = made(x, LABELS, 0)
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-12)
    check_derivatives(made, x, found.loss, expected)


@pytest.mark.parametrize("fusion", ["quality", "class_aware"])
def test_weights_of_frames_are_constants(fusion):
    """A frame that is surer of its identity gets more of the gradient, and none for being so: what a clip's frames get
    is the clip's gradient, shared by weight."""
    groups = {"frame_losses": [{**CCE, "weight": 1e-12}]}
    if fusion == "class_aware":
        groups = {"frame_losses": [{**OSM, "weight": 1e-12}], "attention": {"form": "poster", "weight": 1e-12}}
    made, x = objective(fusion=fusion, **groups), embeddings()
    shares = torch.autograd.grad(made(x, LABELS, 0).loss, x)[0]
    for clip, rows, own in zip(clips_of(x), clips_of(shares), OWN[::FRAMES].tolist(), strict=True):
        w = torch.tensor(weights(made, fusion, clip, own), dtype=torch.float64)
        assert w.std() > 0
        assert torch.allclose(rows, (w / w.sum())[:, None] * rows.sum(0), atol=1e-9)


def test_levels_are_fused_each_by_its_own_classifier():
    made, x = objective(fusion="quality", levels=2, frame_losses=[CCE]), embeddings(levels=2)
    low, high = (objective(fusion="quality", frame_losses=[CCE]) for _ in range(2))
    for level, single in enumerate((low, high)):
        single.frames.classifiers[0].load_state_dict(made.frames.classifiers[level].state_dict())
    expected = torch.cat(
        [fused(single, "quality", half) for single, half in zip((low, high), x.split(D, 1), strict=True)], 1
    )
    assert torch.allclose(made.fused(x, LABELS), expected, atol=1e-12)


def test_clips_of_one_frame_are_pictures():
    plain = objective(frames=None, loss=OSM, plus=[{**CCE, "weight": 0.5}], attention={"form": "released"})
    made = objective(frames=1, loss=OSM, plus=[{**CCE, "weight": 0.5}], attention={"form": "released"})
    assert isinstance(plain, Objective)
    assert isinstance(made, TrackletObjective)
    made.sets.load_state_dict(plain.state_dict())
    x, y = embeddings(), embeddings()
    losses = plain(x, LABELS, 0).loss, made(y, LABELS, 0).loss
    assert losses[0] == losses[1]
    assert torch.equal(torch.autograd.grad(losses[0], x)[0], torch.autograd.grad(losses[1], y)[0])


@pytest.mark.parametrize("name", ["ranked_list", "instance_cross_entropy", "triplet", "online_soft_mining", "dm"])
def test_any_loss_trains_clips(name):
    made, x = objective(loss={"name": name}, frame_losses=[{"name": "imae"}], weighting={"name": "imae"}), embeddings()
    made(x, LABELS, 0).loss.backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


def test_what_is_wrong_with_a_fusion_is_said():
    for fusion, said in (
        ("quality", r"tracklets.fusion=quality .* set frame_losses=\[\{name: cce\}\]"),
        ("class_aware", r"set frame_losses=\[\{name: online_soft_mining\}\] and attention.form=poster"),
    ):
        with pytest.raises(InputError, match=said):
            objective(fusion=fusion, loss=OSM)
    with pytest.raises(InputError, match=r"attention\.form=poster is for the loss online_soft_mining"):
        objective(attention={"form": "poster"}, frame_losses=[CCE])
    with pytest.raises(InputError, match=r"memory\.size is for losses on pairs"):
        objective(memory={"size": 9}, frame_losses=[CCE])


def test_what_only_one_of_both_can_use_is_left_to_it():
    made = objective(attention={"form": "poster"}, memory={"size": 9}, frame_losses=[OSM])
    assert not made.sets.attentions
    assert made.frames.attentions
    made(embeddings(), LABELS, 0).loss.backward()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tracklets.clip=evenly"], "tracklets.clip is of clips, and tracklets.frames is null"),
        (["tracklets.fusion=max"], "tracklets.fusion is of clips"),
        (["frame_losses=[{name: cce}]"], "frame_losses is of clips, and tracklets.frames is null"),
        (["tracklets.frames=4", "tracklets.stride=2"], "tracklets.stride is of tracklets.clip=consecutive, and it is"),
        (["tracklets.test_frames=4"], "tracklets.test_frames is of test_clip=first or evenly"),
        (["tracklets.test_clip=first"], "tracklets.test_clip=first needs a number of frames"),
        (["tracklets.test_fusion=self_attention"], "needs an attention that is trained, by tracklets.fusion="),
        (["tracklets.frames=4", "tracklets.fusion=mena"], "did you mean mean?"),
        (["tracklets.test_fusion=class_aware"], "tracklets.test_fusion: should be"),
        (["tracklets.frames=0"], "tracklets.frames"),
        (
            ["tracklets.frames=1", "tracklets.fusion=max"],
            "tracklets.fusion is of several frames, and tracklets.frames is",
        ),
        (["tracklets.frames=1", "tracklets.clip=consecutive", "tracklets.stride=2"], "tracklets.stride is of several"),
        (["tracklets.frames=2", "frame_losses=[{name: ranked_list, margn: 1}]"], "did you mean frame_losses.0.margin?"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(words, said):
    with pytest.raises(InputError) as error:
        read("folder", ["data.root=x", *words])
    assert said in str(error.value)


class TestJudging:
    OF = torch.tensor([0, 0, 0, 0, 1, 2, 2])  # frames of three tracklets

    def made(self, rule, **groups):
        fusion = rule if rule == "self_attention" else "mean"
        return objective(fusion=fusion, test=rule, **groups)

    def frames(self, levels=1):
        return embeddings(levels, rows=len(self.OF)).detach()

    def each(self, x):
        return [x[item == self.OF] for item in range(3)]

    def fuse(self, made, x):
        return fuser(made.settings, made)(x, self.OF, 3)

    @pytest.mark.parametrize("rule", ["mean", "max"])
    def test_a_tracklet_is_the_mean_or_the_maximum_of_its_frames(self, rule):
        x = self.frames()
        expected = [own.mean(0) if rule == "mean" else own.max(0).values for own in self.each(x)]
        assert torch.allclose(self.fuse(self.made(rule), x), torch.stack(expected).float())

    @pytest.mark.parametrize("frame_losses", [[CCE], [], [OSM]], ids=["of frames", "of clips", "of clips alone"])
    def test_by_quality_frames_count_by_the_largest_class_probability(self, frame_losses):
        made, x = self.made("quality", frame_losses=frame_losses), self.frames()
        classifier = (made.frames if frame_losses == [CCE] else made.sets).classifiers[0]
        expected = []
        for own in self.each(x):
            w = [gaussian(float(F.softmax(classifier(frame), 0).max()), 1, 0.68) for frame in own]
            expected.append(sum(a * b for a, b in zip(w, own, strict=True)) / sum(w))
        assert torch.allclose(self.fuse(made, x), torch.stack(expected).float(), atol=1e-5)

    def test_by_quality_a_network_that_was_trained_picture_by_picture_has_its_classifier_too(self):
        settings = resolve({"data": {"source": "glyphs"}, "loss": CCE, "tracklets": {"test_fusion": "quality"}})
        made, x = Objective(settings, LABELS, 1, D).double(), self.frames()
        w = [gaussian(float(F.softmax(made.classifiers[0](frame), 0).max()), 1, 0.68) for frame in x[:4]]
        expected = sum(a * b for a, b in zip(w, x[:4], strict=True)) / sum(w)
        assert torch.allclose(self.fuse(made, x)[0], expected.float(), atol=1e-5)

    def test_self_attention_weighs_as_it_does_in_training(self):
        made, x = self.made("self_attention"), self.frames()
        expected = []
        for own in self.each(x):
            w = weights(made, "self_attention", own, None)
            expected.append(sum(a * b for a, b in zip(w, own, strict=True)))
        assert torch.allclose(self.fuse(made, x), torch.stack(expected).float(), atol=1e-5)

    def test_quality_needs_a_classifier(self):
        with pytest.raises(InputError, match=r"tracklets\.test_fusion=quality weighs frames by a classifier"):
            self.fuse(self.made("quality", loss=OSM), self.frames())

    def test_the_objective_of_a_checkpoint_fuses_as_it_did(self):
        class Model:
            levels, dim = 1, D

        made, x = self.made("quality", frame_losses=[CCE]), self.frames()
        again = rebuilt(made.settings, {"objective": made.state_dict()}, Model())
        assert torch.allclose(fuser(made.settings, again.double())(x, self.OF, 3), self.fuse(made, x), atol=1e-6)


def images(tracklets, frames):
    n = len(tracklets)
    pixels = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    return Images(
        Held(pixels), np.zeros(n, np.int64), ["a"], [f"{i}" for i in range(n)], 1, "", tracklets=np.array(tracklets),
        frames=np.array(frames),
    )  # fmt: skip


def test_a_tracklet_is_judged_by_frames_in_order_of_time():
    some = images([7, 7, -1, 7, 2, 7, 2], [40, 10, -1, 30, 1, 20, 0])
    asked = read("folder", ["data.root=x"]).tracklets
    assert frames_judged(some, np.arange(7), asked).tolist() == [1, 5, 3, 0, 2, 6, 4]
    first = asked.model_copy(update={"test_clip": "first", "test_frames": 1})
    assert frames_judged(some, np.arange(7), first).tolist() == [1, 2, 6]
    evenly = asked.model_copy(update={"test_clip": "evenly", "test_frames": 2})
    assert frames_judged(some, np.arange(7), evenly).tolist() == [1, 3, 2, 6, 4]


def test_pictures_that_are_of_no_tracklets_cannot_be_judged_as_such():
    stills = Images(Held(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), np.zeros(2, np.int64), ["a"], ["0", "1"], 1, "")
    asked = read("folder", ["data.root=x"]).tracklets
    assert frames_judged(stills, np.arange(2), asked).tolist() == [0, 1]
    with pytest.raises(InputError, match="judged by all frames, max, but the pictures are of no tracklets"):
        frames_judged(stills, np.arange(2), asked.model_copy(update={"test_fusion": "max"}))


def test_all_frames_may_be_taken_where_some_were():
    some = read("folder", ["data.root=x", "tracklets.test_clip=first", "tracklets.test_frames=3"])
    assert changed(some, ["tracklets.test_clip=all"]).tracklets.seen == "all frames, mean"
    assert changed(some, ["tracklets.test_frames=5"]).tracklets.seen == "first 5 frames, mean"
    assert changed(some, []) is some


def test_other_clips_than_the_recipes_leave_behind_what_it_says_of_its_own(tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "data: {source: folder, root: x}\nloss: {name: cce}\n"
        "tracklets: {frames: 4, clip: consecutive, stride: 8, fusion: max, test_clip: first, test_frames: 3}\n"
    )
    alone = read(str(recipe), ["tracklets.frames=1"]).tracklets
    assert (alone.frames, alone.stride, alone.fusion) == (1, 1, "mean")
    assert read(str(recipe), ["tracklets.frames=null"]).tracklets.learned == "single frames"
    assert read(str(recipe), ["tracklets.clip=random"]).tracklets.learned == "clips of 4 frames, random, fused by max"
    assert read(str(recipe), ["tracklets.test_clip=all"]).tracklets.seen == "all frames, mean"
    with pytest.raises(InputError, match="stride is of several frames"):
        read(str(recipe), ["tracklets.frames=1", "tracklets.stride=2"])


def test_what_a_tracklet_is_judged_by_has_a_name():
    words = [
        ([], "all frames, mean"),
        (["tracklets.test_clip=first", "tracklets.test_frames=4"], "first 4 frames, mean"),
        (
            ["tracklets.test_clip=evenly", "tracklets.test_frames=15", "tracklets.test_fusion=max"],
            "15 frames evenly, max",
        ),
        (["tracklets.test_fusion=quality"], "all frames, largest class probability as quality"),
    ]
    for some, name in words:
        assert read("folder", ["data.root=x", *some]).tracklets.seen == name


@pytest.mark.parametrize("frame_losses", [[CCE], []], ids=["frames", "clips"])
def test_statistics_are_of_what_was_judged(frame_losses):
    made, x = objective(frame_losses=frame_losses), embeddings()
    found = made(x, LABELS, 0)
    found.loss.backward()
    facts = weight_statistics(made, found.judged, x.detach(), x.grad, LABELS, 0)
    judge, rows, own = (made.frames, x, OWN) if frame_losses else (made.sets, fused(made, "mean", x), OWN[::FRAMES])
    p = F.softmax(judge.classifiers[0](rows), 1)[torch.arange(len(own)), own]
    assert facts["p"]["mean"] == pytest.approx(float(p.mean()), abs=1e-5)
    assert sum(facts["p"]["histogram"]) == len(own)
    gradient = torch.autograd.grad(F.cross_entropy(judge.classifiers[0](rows), own), rows)[0].norm(dim=1)
    if not frame_losses:  # the clips' own gradients, found again as sums over their frames
        assert facts["hard_share"] == pytest.approx(float(gradient[p < 0.5].sum() / gradient.sum()), rel=1e-6)
        own_gradient = made.counted(x.detach(), x.grad, LABELS)[2]
        assert torch.allclose(own_gradient.norm(dim=1), gradient, atol=1e-12)


def test_without_a_classifier_quality_goes_by_the_class_contexts_of_the_attention():
    """In the released form, both are then the same weights."""
    groups = {"loss": OSM, "frame_losses": [OSM], "attention": {"form": "released"}}
    by_quality, by_attention = (objective(fusion=fusion, **groups) for fusion in ("quality", "class_aware"))
    by_attention.load_state_dict(by_quality.state_dict())
    x = embeddings()
    expected = by_attention.fused(x, LABELS)
    assert torch.allclose(by_quality.fused(x, LABELS), expected, atol=1e-12)
    assert torch.allclose(fused(by_attention, "class_aware", x), expected, atol=1e-12)


def test_what_is_learned_from_has_a_name():
    words = ["tracklets.frames=4", "tracklets.clip=consecutive", "tracklets.stride=8", "tracklets.fusion=max"]
    assert read("folder", ["data.root=x", *words]).tracklets.learned == (
        "clips of 4 frames, consecutive with stride 8, fused by max"
    )
    assert read("folder", ["data.root=x"]).tracklets.learned == "single frames"


@pytest.mark.parametrize("device", CPU_AND_CUDA)
@pytest.mark.parametrize("fusion", ["class_aware", "quality", "self_attention"])
def test_every_device_comes_to_the_same_gradient(device, fusion):
    groups = {"loss": OSM, "frame_losses": [OSM, CCE], "attention": {"form": "released"}}
    made, x = objective(fusion=fusion, **groups), embeddings()
    expected = torch.autograd.grad(made(x, LABELS, 0).loss, x)[0]
    y = x.detach().float().to(device).requires_grad_()
    found = torch.autograd.grad(made.float().to(device)(y, LABELS.to(device), 0).loss, y)[0]
    assert found.device == y.device
    assert torch.allclose(found.cpu().double(), expected, rtol=1e-3, atol=1e-5)
