"""What a network is trained by: sums of losses over levels, in float64 against autograd of the sums as written."""

import io

import pytest
import torch
import torch.nn.functional as F

from metricweight.checks import InputError
from metricweight.emphasis import Emphasis, imae
from metricweight.losses import DerivativeLoss, OnlineSoftMiningLoss
from metricweight.settings import explain, read, resolve, weighting_spec
from metricweight.training.objective import Objective

CLASSES = torch.tensor([900, 3, 70])  # numbers of the training classes, not from 0 on
LABELS = CLASSES.repeat_interleave(3)
OWN = torch.tensor([2, 0, 1]).repeat_interleave(3)  # which output of a classifier stands for each
B, D = 9, 4
CONTRASTIVE = {"name": "contrastive"}
SOFT = {"name": "online_soft_mining"}


def objective(levels=1, labels=LABELS, seed=0, dim=D, **groups):
    torch.manual_seed(seed)
    settings = resolve({"data": {"source": "glyphs"}, "model": {"embedding_size": dim}, **groups})
    return Objective(settings, labels, levels, dim).double()


def embeddings(levels=1, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(B, levels * D, generator=random, dtype=torch.float64).requires_grad_()


def gradient(loss, x):
    return torch.autograd.grad(loss, x, retain_graph=True)[0]


def contrastive(x, gallery=None, labels=None, chosen=None, negatives=True):
    """1/2 d^2 of positives and 1/2 (1 - d)^2 of negatives, each averaged over those that break their margin."""
    f = F.normalize(x)
    g = f if gallery is None else torch.cat([f, F.normalize(gallery)])
    others = LABELS if labels is None else torch.cat([LABELS, labels])
    itself = torch.eye(B, len(g), dtype=torch.bool)
    d = (f[:, None] - g).square().sum(-1).masked_fill(itself, 1).sqrt()  # of an item to itself: not used
    same = LABELS[:, None] == others
    candidates = ~itself if chosen is None else ~itself & chosen
    pull, push = d[same & candidates], (1 - d[~same & candidates]).relu()
    return pull.square().mean() / 2 + negatives * push.square().sum() / 2 / (push > 0).sum().clamp(min=1)


def matching(x):
    """p: how much of a softmax over the others, of cosines / 0.1, is of the own class."""
    f = F.normalize(x.detach())
    weights = ((f @ f.T) / 0.1).masked_fill(torch.eye(B, dtype=torch.bool), -torch.inf).softmax(1)
    return (weights * (LABELS[:, None] == LABELS)).sum(1)


def test_one_loss_on_pairs_is_that_loss():
    x = embeddings()
    loss, judged = objective(loss=CONTRASTIVE)(x, LABELS, 0)
    torch.testing.assert_close(loss, contrastive(x))
    torch.testing.assert_close(gradient(loss, x), gradient(contrastive(x), x))
    assert torch.equal(judged, x)
    assert not judged.requires_grad


def test_losses_of_a_level_are_added_with_their_weights_and_levels_are_added():
    plus = [{"name": "cce", "weight": 0.5}, {"name": "label_smoothing", "epsilon": 0.2, "weight": 3}]
    plus.append({"name": "contrastive", "negative_margin": 0, "weight": 7})
    made = objective(levels=3, loss=CONTRASTIVE, plus=plus)
    x = embeddings(levels=3)
    loss, judged = made(x, LABELS, 0)
    expected = 0
    for level in range(3):
        part = x[:, level * D : level * D + D]
        classifier = made.parts()["classifier"][level]
        logits = part @ classifier.weight.T + classifier.bias
        expected = expected + contrastive(part) + 0.5 * F.cross_entropy(logits, OWN)
        expected = expected + 3 * F.cross_entropy(logits, OWN, label_smoothing=0.2)
        expected = expected + 7 * contrastive(part, negatives=False)
    torch.testing.assert_close(loss, expected)
    for of in [x, *made.parameters()]:
        torch.testing.assert_close(gradient(loss, of), gradient(expected, of))
    assert torch.equal(judged, logits.detach())  # of the last level
    expected = logits.softmax(1)[torch.arange(B), OWN]
    torch.testing.assert_close(made.confidence(judged, LABELS), expected.detach())


def test_levels_share_nothing():
    made = objective(levels=2, loss={"name": "cce"})
    first, second = made.parts()["classifier"]
    assert not torch.equal(first.weight, second.weight)
    assert {id(p) for p in made.parameters()} == {id(p) for part in (first, second) for p in part.parameters()}


@pytest.mark.parametrize("form", ["poster", "released"])
def test_class_aware_attention_weighs_pairs_and_learns_by_a_loss_of_its_own(form):
    made = objective(levels=2, loss=SOFT, attention={"form": form, "weight": 0.25})
    x = embeddings(levels=2)
    loss, _ = made(x, LABELS, 0)
    expected = 0
    for level in range(2):
        part, contexts = x[:, level * D : level * D + D], made.parts()["attention"][level].contexts
        log_p = ((F.normalize(part) if form == "poster" else part) @ contexts.T).log_softmax(1)[torch.arange(B), OWN]
        p = log_p.detach().exp()
        a = p if form == "poster" else (-((1 - p) ** 2) / (2 * 0.68**2)).exp()
        v = torch.ones(B) if form == "poster" else (-((p - 0.5) ** 2) / (2 * 0.18**2)).exp()
        expected = expected + OnlineSoftMiningLoss(attention=a)(part, LABELS) - 0.25 * (v * log_p).sum() / v.sum()
    torch.testing.assert_close(loss, expected)
    for of in [x, *made.parameters()]:
        torch.testing.assert_close(gradient(loss, of), gradient(expected, of))
    assert len(list(made.parameters())) == 2  # contexts of two levels, each once though the loss knows them too


@pytest.mark.parametrize("levels", [1, 2])
def test_weighting_multiplies_each_examples_gradient_by_its_weight_over_neighbours(levels):
    x = embeddings(levels)
    plain, _ = objective(levels, loss=CONTRASTIVE)(x, LABELS, 0)
    weighed, _ = objective(levels, loss=CONTRASTIVE, weighting={"name": "imae", "temperature": 6})(x, LABELS, 0)
    assert torch.equal(plain, weighed)
    p = torch.stack([matching(part) for part in x.split(D, 1)], 1).repeat_interleave(D, 1)
    w = (6 * p * (1 - p)).exp()
    torch.testing.assert_close(gradient(weighed, x), w * gradient(plain, x))
    assert w.max() > 2 * w.min()


def test_weighting_goes_by_the_classifier_where_there_is_one_and_does_not_weigh_what_it_learns():
    groups = {"loss": CONTRASTIVE, "plus": [{"name": "cce"}]}
    plain, weighed = objective(**groups), objective(**groups, weighting={"name": "dm", "mode": 0.5, "beta": 4})
    x = embeddings()
    (loss, judged), (loss_weighed, _) = plain(x, LABELS, 0), weighed(x, LABELS, 0)
    assert torch.equal(loss, loss_weighed)
    p = judged.softmax(1)[torch.arange(B), OWN][:, None]
    torch.testing.assert_close(gradient(loss_weighed, x), (4 * p * (1 - p)).exp() * gradient(loss, x))
    for a, b in zip(plain.parameters(), weighed.parameters(), strict=True):
        torch.testing.assert_close(gradient(loss, a), gradient(loss_weighed, b))


def test_the_memory_fills_from_the_first_step_and_is_compared_with_from_its_start_on():
    made = objective(loss=CONTRASTIVE, memory={"size": 12, "start": 2})
    batches = [embeddings(seed=seed) for seed in range(4)]
    for step in (0, 1):
        loss, _ = made(batches[step], LABELS, step)
        torch.testing.assert_close(gradient(loss, batches[step]), gradient(contrastive(batches[step]), batches[step]))
    made.eval()(batches[3], LABELS, 1)  # which remembers nothing
    made.train()
    x = batches[2]
    loss, _ = made(x, LABELS, 2)
    seen = torch.cat(batches[:2]).detach()[-12:]  # the last 12 of 18
    expected = contrastive(x, seen, LABELS.repeat(2)[-12:])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, x), gradient(expected, x))


def test_a_memory_of_soft_mining_knows_the_attention_of_what_it_remembers():
    made = objective(loss=SOFT, attention={"form": "poster"}, memory={"size": 9})
    plain = objective(loss=SOFT, attention={"form": "poster"})
    first, second = embeddings(seed=5), embeddings(seed=6)
    torch.testing.assert_close(made(first, LABELS, 0).loss, plain(first, LABELS, 0).loss)  # nothing is remembered yet
    value = made(second, LABELS, 1).loss
    contexts = plain.parts()["attention"][0]
    a = contexts.attention(torch.cat([second, first]), OWN.repeat(2)).detach()
    f = F.normalize(torch.cat([second, first]))
    d = (f[:B, None] - f).square().sum(-1).sqrt()
    both, labels = torch.minimum(a[:B, None], a), LABELS.repeat(2)
    same = (LABELS[:, None] == labels) & ~torch.eye(B, 2 * B, dtype=torch.bool)
    pull = both * (-((d / 0.8) ** 2)).exp() * same
    push = both * (1.2 - d).relu() * (LABELS[:, None] != labels)
    expected = 0.25 * (pull * d**2).sum() / pull.sum() + 0.25 * (push * (1.2 - d) ** 2).sum() / push.sum()
    torch.testing.assert_close(value, expected + contexts(second, OWN))


@pytest.mark.parametrize("size", [0, 12])
def test_a_miner_restricts_the_pairs_of_the_batch_and_those_with_the_memory_all_count(size):
    miner = {"name": "ranked_list", "margin": 0.3, "alpha": 1.3}
    made = objective(loss={**CONTRASTIVE, "negative_margin": 1.0}, miner=miner, memory={"size": size})
    earlier, x = embeddings(seed=2), embeddings(seed=3)
    made(earlier, LABELS, 0)
    loss, _ = made(x, LABELS, 1)
    f = F.normalize(x.detach())
    d = torch.cdist(f, f)
    same = LABELS[:, None] == LABELS
    chosen = torch.where(same, d > 1.0, d < 1.3)  # positives beyond alpha - margin, negatives nearer than alpha
    assert 0 < (same & chosen).sum() < (same & ~torch.eye(B, dtype=torch.bool)).sum()
    if size:
        chosen = torch.cat([chosen, torch.ones(B, B, dtype=torch.bool)], 1)
        expected = contrastive(x, earlier.detach(), LABELS, chosen)
    else:
        expected = contrastive(x, chosen=chosen)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, x), gradient(expected, x))


@pytest.mark.parametrize(("step", "mode", "beta"), [(0, 0.0, 8.0), (5, 0.25, 6.0), (10, 0.5, 4.0), (99, 0.5, 4.0)])
def test_a_number_of_a_weighting_moves_from_the_first_step_to_the_last(step, mode, beta):
    made = objective(steps=11, loss={"name": "dm", "mode": [0, 0.5], "beta": [8, 4]})
    x = embeddings()
    logits = made.parts()["classifier"][0](x)
    expected = DerivativeLoss(Emphasis(mode=mode, beta=beta))(logits, OWN)
    torch.testing.assert_close(gradient(made(x, LABELS, step).loss, x), gradient(expected, x))
    assert made.weighting(step) == Emphasis(mode=mode, beta=beta)


@pytest.mark.parametrize(("step", "temperature"), [(0, 1.0), (1, 4.5), (2, 8.0)])
def test_weighting_and_added_losses_move_too(step, temperature):
    moving = {"name": "imae", "temperature": [1, 8]}
    still = {"name": "imae", "temperature": temperature}
    x = embeddings()
    for groups in (
        {"loss": CONTRASTIVE, "weighting": moving},
        {"loss": CONTRASTIVE, "plus": [{**moving, "weight": 2}]},
    ):
        fixed = {key: still if key == "weighting" else [{**still, "weight": 2}] for key in groups if key != "loss"}
        a, b = objective(steps=3, **groups), objective(steps=3, loss=CONTRASTIVE, **fixed)
        torch.testing.assert_close(gradient(a(x, LABELS, step).loss, x), gradient(b(x, LABELS, step).loss, x))
        assert a.weighting(step) == imae(temperature)


def test_a_training_of_one_step_is_at_the_start_of_what_moves():
    assert objective(steps=1, loss={"name": "dm", "mode": [0.1, 0.5]}).weighting(0) == Emphasis(mode=0.1)


def test_moving_numbers_are_settings_that_read_back_as_themselves(tmp_path):
    words = ["loss.name=dm", "loss.mode=[0,0.5]", "weighting={name: gce, q: [0.2, 1]}"]
    settings = read("glyphs", words)
    assert settings.loss == {"name": "dm", "mode": [0.0, 0.5], "beta": 8.0, "normalise": False}
    assert settings.weighting == {"name": "gce", "q": [0.2, 1.0], "k": None, "normalise": False}
    assert "loss.mode=[0.0,0.5]" in explain(settings)
    assert weighting_spec(settings.loss) == "dm:mode=0.5"  # what it comes to
    (tmp_path / "own.yaml").write_text(settings.yaml())
    assert read(str(tmp_path / "own.yaml")) == settings


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.mode=[0,1.5]", r"Emphasis mode is a probability in \[0, 1\), got 1.5"),
        ("loss.mode=[1.5,0]", r"Emphasis mode is a probability in \[0, 1\), got 1.5"),
        ("loss.mode=[0,wide]", r"^setting loss.mode: should be a valid number.*got 'wide'.$"),
        ("loss.mode=[0,0.1,0.2]", r"^setting loss.mode: should be a valid number; got \[0, 0.1, 0.2\].$"),
        ("loss.mood=[0,1]", r"^unknown setting loss.mood; did you mean loss.mode\?$"),
        ("weighting={name: gce, k: [null, 0.4]}", r"setting weighting.k: goes from one number to another; got \[None"),
        ("plus=[{name: gce, weight: [0, 1]}]", r"setting plus.0.weight: should be a valid number; got \[0, 1\]"),
        (
            "plus=[{name: contrastive, negative_margin: [0, 1]}]",
            r"setting plus.0.negative_margin: should be a valid nu",
        ),
    ],
)
def test_both_ends_of_what_moves_are_checked(word, message):
    with pytest.raises(InputError, match=message):
        read("glyphs", ["loss.name=dm", word])


EVERYTHING = {
    "loss": SOFT,
    "plus": [{"name": "proselflc", "weight": 0.5}, {"name": "dm", "mode": [0, 0.5]}, {"name": "ranked_list"}],
    "attention": {"form": "released"},
    "memory": {"size": 15, "start": 1},
    "miner": {"name": "multi_similarity"},
    "weighting": {"name": "imae"},
}


def test_all_state_is_saved_and_goes_on_bit_for_bit():
    made = objective(levels=2, **EVERYTHING).float()
    for step in range(3):
        made(embeddings(2, step).float(), LABELS, step)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    again = objective(levels=2, seed=9, **EVERYTHING).float()
    again.load_state_dict(torch.load(file, weights_only=True))  # strict: all of it, and no more
    for step in range(3, 6):
        x, y = (embeddings(2, step).float().detach().requires_grad_() for _ in range(2))
        a, b = made(x, LABELS, step), again(y, LABELS, step)
        assert torch.equal(a.loss, b.loss)
        assert torch.equal(a.judged, b.judged)
        assert torch.equal(gradient(a.loss, x), gradient(b.loss, y))
    for (name, a), (same, b) in zip(made.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == same
        assert torch.equal(a, b)
    names = {name.split(".")[0] for name in made.state_dict()}
    assert names == {"labels", "classifiers", "attentions", "losses"}
    assert [int(value) for name, value in made.state_dict().items() if name.endswith(".step")] == [6, 6]
    assert made.state_dict()["labels"].tolist() == [3, 70, 900]


def test_what_learns_is_named_by_part_with_a_module_per_level():
    made = objective(levels=2, **EVERYTHING)
    assert {name: len(modules) for name, modules in made.parts().items()} == {"classifier": 2, "attention": 2}
    of_parts = [id(p) for modules in made.parts().values() for p in modules.parameters()]
    assert sorted(of_parts) == sorted(id(p) for p in made.parameters())
    assert objective(loss=CONTRASTIVE).parts() == {}


def test_a_loss_on_pairs_draws_no_random_numbers_and_has_no_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    made = objective(levels=3, loss={"name": "ranked_list"}, miner={"name": "triplet"}, weighting={"name": "imae"})
    assert torch.equal(torch.rand(3), expected)
    assert not made.state_dict()


def test_a_classifier_is_the_linear_layer_that_is_drawn_next():
    torch.manual_seed(0)
    expected = torch.nn.Linear(D, 3)
    after = torch.rand(3)
    made = objective(loss={"name": "cce"})
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(made.parts()["classifier"][0].weight.float(), expected.weight)
    assert torch.equal(made.parts()["classifier"][0].bias.float(), expected.bias)


def test_confidence_is_of_neighbours_where_there_is_no_classifier():
    x = embeddings(levels=2)
    made = objective(levels=2, loss=CONTRASTIVE)
    torch.testing.assert_close(made.confidence(made(x, LABELS, 0).judged, LABELS), matching(x[:, D:]))


def test_labels_of_any_size_have_their_own_output():
    large = 2**24 + torch.tensor([0, 1, 2**40])  # float32 does not tell the first two apart
    labels = large.repeat_interleave(3)
    made = objective(labels=labels, loss={"name": "cce"}, plus=[SOFT], attention={"form": "poster"})
    loss, logits = made(x := embeddings(), labels, 0)
    own = torch.arange(3).repeat_interleave(3)
    attention = made.parts()["attention"][0]
    soft = OnlineSoftMiningLoss(attention=attention.attention(x, own))(x, own)
    torch.testing.assert_close(loss, F.cross_entropy(logits, own) + soft + attention(x, own))


@pytest.mark.parametrize("name", ["contrastive", "dm", "proselflc", "online_soft_mining"])
def test_losses_are_formed_in_float32_of_embeddings_in_half_precision_and_under_autocast(name):
    groups = {"loss": {"name": name}, "weighting": {"name": "imae"}}
    if name == "online_soft_mining":
        groups["attention"] = {"form": "released"}
    x = embeddings().detach().bfloat16().requires_grad_()
    y = x.detach().float().requires_grad_()
    plain = objective(**groups).float()(y, LABELS, 0)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(**groups).float()(x, LABELS, 0)
    assert half.loss.dtype == half.judged.dtype == torch.float32
    assert torch.equal(half.loss, plain.loss)
    assert torch.equal(gradient(half.loss, x), gradient(plain.loss, y).bfloat16())


def test_a_loss_that_asks_for_the_dimension_gets_that_of_a_level():
    loss = {"name": "triplet", "mining": "distance_weighted"}
    for groups in ({"loss": loss}, {"loss": CONTRASTIVE, "miner": loss}):
        settings = resolve({"data": {"source": "glyphs"}, "model": {"embedding_size": None}, **groups})
        assert torch.isfinite(Objective(settings, LABELS, 2, D)(embeddings(2).float(), LABELS, 0).loss)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"loss": {"name": "cce"}, "memory": {"size": 4}},
            "memory.size is for losses on pairs, .* none among cce; set",
        ),
        (
            {"loss": {"name": "cce"}, "miner": CONTRASTIVE},
            "miner is for losses on pairs, .* none among cce; set miner=nu",
        ),
        (
            {"loss": CONTRASTIVE, "plus": [{"name": "cce"}], "attention": {"form": "poster"}},
            "attention.form=poster is for the loss online_soft_mining, which is not among contrastive, cce; set",
        ),
    ],
)
def test_what_no_loss_could_use_is_refused(groups, message):
    with pytest.raises(InputError, match=message):
        objective(**groups)


def test_a_loss_that_counts_batches_counts_all_of_a_step():
    settings = read("glyphs", ["loss.name=proselflc", "steps=10", "batch.accumulate=3"])
    assert settings.loss["total"] == 30


def test_labels_may_be_integers_of_another_size():
    made, x = objective(loss={"name": "cce"}), embeddings()
    assert torch.equal(made(x, LABELS.int(), 0).loss, made(x, LABELS, 0).loss)


def test_telling_classes_apart_needs_two():
    with pytest.raises(InputError, match="tells classes apart, and there is 1 to train on; give it two or more"):
        objective(loss=CONTRASTIVE, plus=[{"name": "cce"}], labels=torch.zeros(3, dtype=torch.long))


def test_embeddings_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"embeddings must be \[B, 8\], 2 of 4 side by side, got \[9, 4\]"):
        objective(levels=2, loss=CONTRASTIVE)(embeddings(), LABELS, 0)
