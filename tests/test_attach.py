"""Soft weights in the losses of pytorch-metric-learning: every loss for reach, six against their derivatives by hand.

`python tests/test_attach.py` prints the table of reach that the README carries.
"""

import copy
import itertools
import pickle
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn

import metricweight
from metricweight.checks import InputError
from metricweight.gradient import scale_gradient
from metricweight.pairs import PairWeights, from_labels
from metricweight.pml import attach

# every loss of PML, with the least it needs; 4 classes, embeddings [12, 5]
LOSSES = {
    "AngularLoss": {},
    "ArcFaceLoss": {"num_classes": 4, "embedding_size": 5},
    "CircleLoss": {},
    "ContrastiveLoss": {},
    "CosFaceLoss": {"num_classes": 4, "embedding_size": 5},
    "DynamicSoftMarginLoss": {},
    "FastAPLoss": {},
    "GeneralizedLiftedStructureLoss": {},
    "HistogramLoss": {},
    "InstanceLoss": {},
    "IntraPairVarianceLoss": {},
    "LargeMarginSoftmaxLoss": {"num_classes": 4, "embedding_size": 5},
    "LiftedStructureLoss": {},
    "ManifoldLoss": {"l": 5, "K": 4},
    "MarginLoss": {},
    "MultiSimilarityLoss": {},
    "NCALoss": {},
    "NPairsLoss": {},
    "NTXentLoss": {},
    "NormalizedSoftmaxLoss": {"num_classes": 4, "embedding_size": 5},
    "P2SGradLoss": {"num_classes": 4, "descriptors_dim": 5},
    "PNPLoss": {},
    "ProxyAnchorLoss": {"num_classes": 4, "embedding_size": 5},
    "ProxyNCALoss": {"num_classes": 4, "embedding_size": 5},
    "RankedListLoss": {"margin": 0.4, "Tn": 5},
    "SignalToNoiseRatioContrastiveLoss": {},
    "SmoothAPLoss": {},
    "SoftTripleLoss": {"num_classes": 4, "embedding_size": 5},
    "SphereFaceLoss": {"num_classes": 4, "embedding_size": 5},
    "SubCenterArcFaceLoss": {"num_classes": 4, "embedding_size": 5},
    "SupConLoss": {},
    "ThresholdConsistentMarginLoss": {},
    "TripletMarginLoss": {},
    "TupletMarginLoss": {},
    "VICRegLoss": {},
}
HERE = [name for name in LOSSES if hasattr(losses, name)]  # PML 2.8 has no SmoothAPLoss
WITHOUT_TERMS = ("ProxyAnchorLoss", "VICRegLoss")  # whose terms belong to no example


def build(name):
    torch.manual_seed(0)
    return getattr(losses, name)(**LOSSES[name])


def points(count, seed=0, size=5):
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(*shape, seed=7):
    return 2 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(12) // 3


def call(loss_fn, x):
    """(value, gradients of the embeddings and of what is learnt) of any loss of PML."""
    torch.manual_seed(1)  # ManifoldLoss draws
    x = x.clone().requires_grad_()
    if isinstance(loss_fn, losses.VICRegLoss):
        value = loss_fn(x, ref_emb=points(12, seed=3))
    elif isinstance(loss_fn, losses.ManifoldLoss):
        value = loss_fn(x.float())
    else:
        value = loss_fn(x, LABELS)
    value.backward()
    return [value.detach(), x.grad, *(p.grad for p in loss_fn.parameters())]


def reach(name, **zeros):
    """'yes' where weights of zero leave the embeddings no gradient, 'part' where some is left, 'no' where all is."""
    if "element" in zeros and name in WITHOUT_TERMS:
        return "no"
    plain = call(build(name), points(12))[1]
    loss_fn = build(name)
    attach(loss_fn, **zeros, strict=False)
    left = call(loss_fn, points(12))[1]
    assert plain.any()
    return "yes" if not left.any() else "no" if torch.equal(left, plain) else "part"


def table():
    rows = ["| loss | `pair` | `element` | `example` |", "|---|---|---|---|"]
    for name in LOSSES:
        found = (reach(name, pair=torch.zeros(12, 12)), reach(name, element=torch.zeros(12)),
                 reach(name, example=torch.zeros(12)))  # fmt: skip
        rows.append(f"| {name} | {' | '.join(found)} |")
    return rows


@pytest.mark.skipif(len(HERE) < len(LOSSES), reason="the table is that of PML 2.9")
def test_the_readme_says_which_weights_reach_which_loss():
    readme = (Path(metricweight.__file__).parents[1] / "README.md").read_text()
    assert "\n".join(table()) in readme


def test_every_loss_of_pml_is_in_the_table():
    kinds = [kind for kind in vars(losses).values() if isinstance(kind, type)]
    known = {k.__name__ for k in kinds if issubclass(k, losses.BaseMetricLossFunction)}
    assert known - {"BaseMetricLossFunction", "GenericPairLoss"} == set(HERE)


@pytest.mark.parametrize("name", HERE)
def test_unit_weights_leave_value_and_gradient_bit_for_bit(name):
    plain = call(build(name), points(12))
    loss_fn = build(name)
    ones = {"pair": torch.ones(12, 12), "element": torch.ones(12), "example": torch.ones(12)}
    if name in WITHOUT_TERMS:
        del ones["element"]
    attach(loss_fn, **ones, strict=False)
    for a, b in zip(plain, call(loss_fn, points(12)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("what", ["pair", "element", "example"])
def test_a_loss_that_is_not_reached_wholly_says_what_reaches_it(name, what):
    zeros = {"pair": torch.zeros(12, 12), "element": torch.zeros(12), "example": torch.zeros(12)}
    found = {key: reach(name, **{key: value}) for key, value in zeros.items()}
    loss_fn = build(name)
    if found[what] == "yes":
        attach(loss_fn, **{what: zeros[what]})
        call(loss_fn, points(12))
        return
    with pytest.raises(InputError, match=rf"attach\({what}=...\)") as error, attach(loss_fn, **{what: zeros[what]}):
        call(loss_fn, points(12))
    assert hooks(loss_fn) == 0
    if what == "element" and name in WITHOUT_TERMS:
        assert "makes no sense" in str(error.value)
        return
    assert ("only a part" in str(error.value)) == (found[what] == "part")
    promised = str(error.value).split("; ")[1]
    for key, answer in found.items():
        assert (f"{key}=" in promised) == (answer == "yes")


# Derivatives of six losses with respect to the distance matrix, by hand. `up` is 1 for distances, -1 for similarities:
# the sign with which an entry grows as two points move apart. Pairs are boolean masks [B, G].


def contrastive(d, pos, neg, up):
    near, far = (0, 1) if up == 1 else (1, 0)
    pulled, pushed = (pos & (up * (d - near) > 0)).double(), (neg & (up * (far - d) > 0)).double()
    return up * (pulled / pulled.sum().clamp(min=1) - pushed / pushed.sum().clamp(min=1))


def triplet_margin(d, pos, neg, up):
    g, active = torch.zeros_like(d), 0
    for i in range(len(d)):
        for p, n in itertools.product(pos[i].nonzero().flatten(), neg[i].nonzero().flatten()):
            if up * (d[i, p] - d[i, n]) + 0.05 > 0:
                g[i, p] += up
                g[i, n] -= up
                active += 1
    return g / active


def multi_similarity(d, pos, neg, up, alpha=2, beta=50, base=0.5):
    p, n = pos * (alpha * up * (d - base)).exp(), neg * (beta * up * (base - d)).exp()
    return up * (p / (1 + p.sum(1, keepdim=True)) - n / (1 + n.sum(1, keepdim=True))) / len(d)


def nt_xent(d, pos, neg, up, temperature=0.07):
    z, g, pairs = -up * d / temperature, torch.zeros_like(d), 0
    for i in range(len(d)):
        for p in pos[i].nonzero().flatten():
            among = neg[i].clone()
            among[p] = True
            softmax = z[i].masked_fill(~among, -torch.inf).softmax(0)
            softmax[p] -= 1
            g[i] += -up / temperature * softmax
            pairs += 1
    return g / pairs


def sup_con(d, pos, neg, up, temperature=0.1):
    softmax = (-up * d / temperature).masked_fill(~(pos | neg), -torch.inf).softmax(1).nan_to_num(0)
    share = pos.double() / pos.sum(1, keepdim=True).clamp(min=1)
    rows = pos.any(1)
    return -up / temperature * (softmax - share) * rows[:, None] / rows.sum()


def ranked_list(d, pos, neg, up, margin=0.4, tn=5.0, alpha=1.2):
    """PML's: its weights are functions of the distances, and its denominators carry 1e-5 for each column."""
    pull, push = (pos & (d > alpha - margin)).double(), (neg & (d < alpha)).double()
    w = push * (tn * (alpha - d)).exp()
    total = (w + 1e-5).sum(1, keepdim=True)
    value = (w * (alpha - d)).sum(1, keepdim=True) / total
    g = pull / (pull + 1e-5).sum(1, keepdim=True) - w / total * (1 + tn * (alpha - d - value))
    return 0.5 * g / len(d)


def chain(g, w, x, y, distance):
    """sum_ij w_ij g_ij dD_ij: (gradient of x, gradient of y), through D, its power and the norms, by hand."""
    g = w * g
    normal = distance.normalize_embeddings
    a, b = (v.norm(dim=1, keepdim=True) if normal else torch.ones(len(v), 1, dtype=v.dtype) for v in (x, y))
    q, r = x / a, y / b
    if isinstance(distance, distances.DotProductSimilarity):
        dq, dr = g @ r, g.T @ q
    else:
        difference = q[:, None] - r[None]
        length = difference.norm(dim=-1, keepdim=True)
        step = 2 * difference if distance.power == 2 else torch.where(length > 0, difference / length, 0.0)
        dq, dr = (g[..., None] * step).sum(1), -(g[..., None] * step).sum(0)
    if normal:
        dq, dr = dq - q * (q * dq).sum(1, keepdim=True), dr - r * (r * dr).sum(1, keepdim=True)
    return dq / a, dr / b


SIX = {
    "ContrastiveLoss": contrastive,
    "TripletMarginLoss": triplet_margin,
    "MultiSimilarityLoss": multi_similarity,
    "NTXentLoss": nt_xent,
    "SupConLoss": sup_con,
    "RankedListLoss": ranked_list,
}
DISTANCES = {
    "Lp": distances.LpDistance(),
    "squared Lp": distances.LpDistance(power=2),
    "Lp, any length": distances.LpDistance(normalize_embeddings=False),
    "cosine": distances.CosineSimilarity(),
}
CASES = [(name, d) for name in SIX for d in DISTANCES if name != "RankedListLoss" or d in ("Lp", "squared Lp")]
WITH_REF = [case for case in CASES if case[0] != "RankedListLoss"]  # PML's refuses ref_emb


def make(name, distance):
    margins = {}
    if name == "ContrastiveLoss" and distance == "cosine":
        margins = {"pos_margin": 1, "neg_margin": 0}
    return getattr(losses, name)(**LOSSES[name], **margins, distance=copy.deepcopy(DISTANCES[distance]))


def by_hand(name, distance, w, x, y, pos, neg):
    distance = DISTANCES[distance]
    with torch.no_grad():
        d = distance(x, y)
        return chain(SIX[name](d, pos, neg, -1 if distance.is_inverted else 1), w, x, y, distance)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize(("name", "distance"), CASES)
def test_each_pairs_own_derivative_is_multiplied_by_its_weight(name, distance):
    x, w = points(12).requires_grad_(), weights(12, 12)
    loss_fn = make(name, distance)
    with attach(loss_fn, pair=w):
        loss_fn(x, LABELS).backward()
    g, h = by_hand(name, distance, w, x.detach(), x.detach(), *from_labels(LABELS))
    assert close(x.grad, g + h)
    plain, _ = by_hand(name, distance, torch.ones(12, 12), x.detach(), x.detach(), *from_labels(LABELS))
    assert not torch.allclose(g, plain, rtol=0.1)  # the weights matter here


@pytest.mark.parametrize(("name", "distance"), WITH_REF)
def test_with_a_gallery_both_sides_move_by_the_weighted_derivative(name, distance):
    x, y, w = points(12).requires_grad_(), points(9, seed=1).requires_grad_(), weights(12, 9)
    gallery_labels = torch.arange(9) % 4
    loss_fn = make(name, distance)
    with attach(loss_fn, pair=w):
        loss_fn(x, LABELS, ref_emb=y, ref_labels=gallery_labels).backward()
    g, h = by_hand(name, distance, w, x.detach(), y.detach(), *from_labels(LABELS, gallery_labels))
    assert close(x.grad, g)
    assert close(y.grad, h)


class Slanted:
    """A weight of each pair that is not symmetric and follows the points, wherever they stand in a batch."""

    def __call__(self, embeddings, labels, ref_emb, ref_labels):
        assert not torch.is_grad_enabled()
        a, b = embeddings.cos().sum(1), ref_emb.sin().sum(1)
        return 1 + (a[:, None] * 2 + b[None]).sin() * 0.9 + 0.1 * (labels[:, None] == ref_labels[None])


@pytest.mark.parametrize(("name", "distance"), WITH_REF)
def test_inside_pmls_cross_batch_memory_also_when_it_wraps_around(name, distance):
    loss_fn, w = make(name, distance), Slanted()
    attach(loss_fn, pair=w)
    memory = losses.CrossBatchMemory(loss_fn, embedding_size=5, memory_size=20)
    queue = torch.zeros(20, 5, dtype=torch.float64), torch.zeros(20, dtype=torch.long)
    for step in range(4):  # 12, 20, 20 and 20 in the memory, the second batch across its end
        x = points(12, seed=step).requires_grad_()
        labels = LABELS.roll(step)
        memory(x, labels).backward()
        own = torch.arange(12 * step, 12 * step + 12) % 20
        queue[0][own], queue[1][own] = x.detach(), labels
        y, gallery_labels = (part[: min(12 * step + 12, 20)] for part in queue)
        pos, neg = from_labels(labels, gallery_labels)
        pos[torch.arange(12), own] = False
        with torch.no_grad():
            factor = w(x, labels, y, gallery_labels)
        assert close(x.grad, by_hand(name, distance, factor, x.detach(), y, pos, neg)[0])


def of_two(rank, file, answers):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    half = slice(rank, None, 2)
    for name, distance in CASES:
        x = points(12)[half].requires_grad_()
        loss_fn = make(name, distance)
        attach(loss_fn, pair=Slanted())
        DistributedLossWrapper(loss_fn)(x, LABELS[half]).backward()
        torch.save(x.grad, f"{answers}/{name} {distance} {rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_in_two_processes_the_weighted_gradient_is_that_of_one(tmp_path):
    torch.multiprocessing.spawn(of_two, (tmp_path / "meet", tmp_path), nprocs=2)
    x = points(12)
    with torch.no_grad():
        w = Slanted()(x, LABELS, x, LABELS)
    for name, distance in CASES:
        whole = sum(by_hand(name, distance, w, x, x, *from_labels(LABELS)))
        for rank in (0, 1):  # PML multiplies by the world's size, for DDP to average
            assert close(torch.load(tmp_path / f"{name} {distance} {rank}") / 2, whole[rank::2])


# Terms and examples


def test_terms_on_examples_pairs_and_triplets_are_weighed_before_they_are_reduced():
    x, w, pairs = points(12).requires_grad_(), weights(12), weights(12, 12)
    terms = {}

    class Keep(reducers.SumReducer):
        def forward(self, loss_dict, embeddings, labels):
            terms.update(next(iter(loss_dict.values())))
            return super().forward(loss_dict, embeddings, labels)

    for kind, by, factor in [
        (losses.MultiSimilarityLoss, w, lambda i: w[i]),
        (losses.NTXentLoss, w, lambda i: w[i[0]]),
        (losses.NTXentLoss, pairs, lambda i: pairs[i[0], i[1]]),
        (losses.TripletMarginLoss, w, lambda i: w[i[0]]),
        (losses.TripletMarginLoss, pairs, lambda i: pairs[i[0], i[1]] * pairs[i[0], i[2]]),
    ]:
        loss_fn = kind(reducer=Keep())
        loss_fn(x, LABELS)
        expected = (terms["losses"].flatten() * factor(terms["indices"])).sum()
        with attach(loss_fn, element=by):
            value = loss_fn(x, LABELS)
        assert torch.allclose(value, expected, rtol=1e-13)
        for a, b in zip(*(torch.autograd.grad(v, x) for v in (value, expected)), strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("example", [weights(12), lambda x, y: weights(12)], ids=["tensor", "callable"])
def test_an_examples_gradient_is_multiplied_whole_also_where_the_batch_is_named_twice(example):
    x, w = points(12).requires_grad_(), weights(12)
    for name in ("AngularLoss", "MultiSimilarityLoss", "ArcFaceLoss"):
        loss_fn = build(name)
        plain = torch.autograd.grad(loss_fn(x, LABELS), x)[0]
        with attach(loss_fn, example=example):
            for more in ({}, {"ref_emb": x, "ref_labels": LABELS}) if name == "MultiSimilarityLoss" else ({},):
                weighed = torch.autograd.grad(loss_fn(x, LABELS, **more), x)[0]
                assert torch.allclose(weighed, w[:, None] * plain, rtol=1e-12, atol=1e-15)


def test_all_three_compose_and_several_attachments_multiply():
    x, w, e = points(12).requires_grad_(), weights(12, 12), weights(12)
    loss_fn = losses.NTXentLoss()
    with attach(loss_fn, pair=w):
        once = torch.autograd.grad(loss_fn(x, LABELS), x)[0]
    with attach(loss_fn, pair=w.sqrt()), attach(loss_fn, example=e), attach(loss_fn, pair=w.sqrt()):
        twice = torch.autograd.grad(loss_fn(x, LABELS), x)[0]
    assert torch.allclose(twice, e[:, None] * once, rtol=1e-12, atol=1e-14)
    with attach(loss_fn, pair=w, example=e, element=torch.full((12,), 3.0)):
        all_three = torch.autograd.grad(loss_fn(x, LABELS), x)[0]
    assert torch.allclose(all_three, 3 * e[:, None] * once, rtol=1e-12, atol=1e-14)


# What is taken and what is refused


class SoftMiner(nn.Module):
    """The least that a miner of metricweight is."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def scores(self, embeddings, labels, ref_emb=None, ref_labels=None):
        self.calls += 1
        assert ref_emb is not embeddings  # a batch on its own has no gallery
        pairs = from_labels(labels, ref_labels)
        gallery = embeddings if ref_emb is None else ref_emb
        near = (-torch.cdist(nn.functional.normalize(embeddings), nn.functional.normalize(gallery))).exp()
        return PairWeights(near * pairs.positive, 0.5 * near * pairs.negative)


class Weigher(nn.Module):
    """The least that a GradientWeighting is."""

    def weights(self, embeddings, labels):
        return weights(len(embeddings))

    def forward(self, embeddings, labels):
        return scale_gradient(embeddings, self.weights(embeddings, labels)[:, None])


def test_a_soft_miner_weighs_pairs_by_its_scores_once_a_pass_and_only_to_train():
    x, miner = points(12).requires_grad_(), SoftMiner()
    loss_fn = losses.ContrastiveLoss()
    w = sum(SoftMiner().scores(x.detach(), LABELS))
    with attach(loss_fn, pair=w):
        expected = torch.autograd.grad(loss_fn(x, LABELS), x)[0]
    attach(loss_fn, pair=miner)
    assert torch.equal(torch.autograd.grad(loss_fn(x, LABELS), x)[0], expected)
    assert miner.calls == 1
    with torch.no_grad():
        loss_fn(x, LABELS)
    loss_fn(x.detach(), LABELS)
    assert miner.calls == 1


def test_a_loss_that_looks_at_its_distances_twice_has_its_weights_computed_once():
    class Twice(losses.ContrastiveLoss):
        def compute_loss(self, *args):
            return {key: {**term, "losses": term["losses"] + other["losses"]}
                    for (key, term), other in zip(super().compute_loss(*args).items(),
                                                  super().compute_loss(*args).values(), strict=True)}  # fmt: skip

    x, miner = points(12).requires_grad_(), SoftMiner()
    once, twice = losses.ContrastiveLoss(), Twice()
    with attach(once, pair=miner), attach(twice, pair=miner):
        a, b = (torch.autograd.grad(loss_fn(x, LABELS), x)[0] for loss_fn in (once, twice))
    assert torch.allclose(b, 2 * a, rtol=1e-12, atol=1e-14)
    assert miner.calls == 2


def test_a_gradient_weighting_is_what_example_installs():
    x, gw = points(12).requires_grad_(), Weigher()
    loss_fn = losses.SupConLoss()
    by_module = torch.autograd.grad(loss_fn(gw(x, LABELS), LABELS), x)[0]
    attach(loss_fn, example=gw)
    assert torch.equal(torch.autograd.grad(loss_fn(x, LABELS), x)[0], by_module)


def test_a_batch_without_pairs_and_a_pass_without_gradient_are_no_errors():
    x = points(12).requires_grad_()
    for name in ("ContrastiveLoss", "TripletMarginLoss", "SupConLoss", "HistogramLoss"):
        loss_fn = build(name)
        attach(loss_fn, pair=torch.ones(12, 12))
        assert loss_fn(x, torch.zeros(12, dtype=torch.long)).isfinite()
        loss_fn(x, torch.arange(12)).backward()
    angular = losses.AngularLoss()
    attach(angular, pair=torch.ones(12, 12))
    angular(x.detach(), LABELS)
    with torch.no_grad():
        angular(x, LABELS)
    with torch.inference_mode():
        angular(points(12), LABELS)
    for query, gallery in ((x, None), (x, points(12)), (x.detach(), points(12).requires_grad_())):
        with pytest.raises(InputError, match="does not reach AngularLoss"):
            angular(query, LABELS, ref_emb=gallery, ref_labels=None if gallery is None else LABELS)


def test_a_regulariser_is_not_part_of_what_has_to_be_reached():
    loss_fn = losses.ContrastiveLoss(embedding_regularizer=regularizers.LpRegularizer())
    attach(loss_fn, pair=torch.zeros(12, 12), element=torch.ones(12))
    gradient = call(loss_fn, points(12))[1]
    x = points(12).requires_grad_()
    assert torch.allclose(gradient, torch.autograd.grad(regularizers.LpRegularizer()(x), x)[0])


def test_weights_that_do_not_fit_are_refused_with_the_shape_that_does():
    x = points(12).requires_grad_()
    for name, what, given, words in [
        ("ContrastiveLoss", "pair", torch.ones(12, 11), r"pair= must give weights \[12, 12\].*got \[12, 11\]"),
        ("ContrastiveLoss", "pair", lambda *_: 1.0, "pair= must give a tensor of weights, got float"),
        ("ContrastiveLoss", "element", torch.ones(11), r"\[12\] for anchors or \[12, 12\] for pairs, got \[11\]"),
        ("SupConLoss", "element", torch.ones(12, 12), r"SupConLoss, whose terms belong to examples.*to pair="),
        ("SupConLoss", "example", torch.ones(12, 1), r"example= must give weights \[12\], got \[12, 1\]"),
    ]:
        loss_fn = build(name)
        attach(loss_fn, **{what: given})
        with pytest.raises(InputError, match=words):
            loss_fn(x, LABELS)
    loss_fn = losses.ContrastiveLoss()
    attach(loss_fn, pair=SoftMiner())
    with pytest.raises(InputError, match="needs labels, and the loss was called without"):
        loss_fn(x, indices_tuple=(torch.arange(6), torch.arange(6) + 1, torch.arange(6), torch.arange(6) + 2))


def test_only_a_loss_of_pml_is_attached_to():
    inner = losses.ContrastiveLoss()
    for wrapper, words in [
        (losses.CrossBatchMemory(inner, 5), "the .loss inside this CrossBatchMemory"),
        (losses.SelfSupervisedLoss(inner), "the .loss inside this SelfSupervisedLoss"),
        (DistributedLossWrapper(inner), "the .loss inside this DistributedLossWrapper"),
        (losses.MultipleLosses([inner]), "one of the .losses"),
        (metricweight.losses.RankedListLoss(), "metricweight.pml.loss makes one of ours"),
    ]:
        with pytest.raises(InputError, match=words):
            attach(wrapper, pair=torch.ones(2, 2))
    with pytest.raises(InputError, match="at least one of pair=, element= and example="):
        attach(inner)
    with pytest.raises(InputError, match="pair= takes a tensor, a module or a callable, got float"):
        attach(inner, pair=1.0)
    with pytest.raises(InputError, match="example= weighs examples, and SoftMiner weighs pairs; give it to pair="):
        attach(inner, example=SoftMiner())
    assert hooks(inner) == 0


def test_inside_self_supervised_and_multiple_losses_only_the_attached_loss_is_weighed():
    x, y, w = points(6).requires_grad_(), points(6, seed=1), Slanted()
    ntxent = losses.NTXentLoss()
    attach(ntxent, pair=w)
    gradient = torch.autograd.grad(losses.SelfSupervisedLoss(ntxent)(x, y), x)[0]
    both, labels = torch.cat([x.detach(), y]), torch.arange(6).repeat(2)
    with torch.no_grad():
        factor = w(both, labels, both, labels)
    assert close(gradient, sum(by_hand("NTXentLoss", "cosine", factor, both, both, *from_labels(labels)))[:6])

    x, w, other = points(12).requires_grad_(), weights(12, 12), losses.MultiSimilarityLoss()
    ntxent = losses.NTXentLoss()
    plain = torch.autograd.grad(other(x, LABELS), x)[0]
    attach(ntxent, pair=w)
    weighed = torch.autograd.grad(ntxent(x, LABELS), x)[0]
    together = torch.autograd.grad(losses.MultipleLosses([ntxent, other])(x, LABELS), x)[0]
    assert torch.allclose(together, plain + weighed, rtol=1e-12, atol=1e-14)


def test_float16_gradients_meet_float32_weights_in_float32():
    x, w = points(12).half().requires_grad_(), torch.full((12, 12), 1e-6)  # float16 knows 1e-6 to a few per cent
    at_matrix = []

    class Seen(distances.CosineSimilarity):
        def forward(self, *args):
            matrix = super().forward(*args)
            matrix.register_hook(at_matrix.append)  # beneath what the loss sees, so after the weights
            return matrix.clone()

    loss_fn = losses.MultiSimilarityLoss(distance=Seen())
    (plain,) = torch.autograd.grad(1024 * loss_fn(x, LABELS), x)
    with attach(loss_fn, pair=w):
        (weighed,) = torch.autograd.grad(1024 * loss_fn(x, LABELS), x)
    assert plain.dtype == weighed.dtype == torch.float16
    unweighted, weighted = at_matrix[0], at_matrix[-1]
    assert torch.equal(weighted, (unweighted.float() * w).half())
    assert not torch.equal(weighted, unweighted * w.half())


# Nothing is left behind


def hooks(*modules):
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)
        for module in modules
        for part in module.modules()
    )


class Failing(distances.LpDistance):
    def compute_mat(self, query_emb, ref_emb):
        raise RuntimeError("no distance today")


@pytest.mark.parametrize("name", HERE)
def test_no_hook_is_left_after_removal(name):
    plain, loss_fn = call(build(name), points(12)), build(name)
    with attach(loss_fn, pair=Slanted(), example=weights(12), strict=False):
        call(loss_fn, points(12))
    assert hooks(loss_fn) == 0
    if name != "DynamicSoftMarginLoss":  # it remembers its batches
        loss_fn.zero_grad()
        for a, b in zip(plain, call(loss_fn, points(12)), strict=True):
            assert torch.allclose(a, b, rtol=1e-12)


def test_no_hook_is_left_after_an_exception_in_the_loss_or_in_the_block():
    shared = Failing()
    loss_fn = losses.ContrastiveLoss(distance=shared)
    handle = attach(loss_fn, pair=weights(12, 12), element=weights(12), example=weights(12))
    with pytest.raises(RuntimeError, match="no distance today"):
        loss_fn(points(12).requires_grad_(), LABELS)
    assert hooks(shared, loss_fn.reducer) == 0  # these carry hooks only while the loss runs
    handle.remove()
    handle.remove()
    assert hooks(loss_fn) == 0
    with pytest.raises(KeyError), attach(loss_fn, pair=weights(12, 12), element=weights(12), example=weights(12)):
        raise KeyError
    assert hooks(loss_fn) == 0
    angular = losses.AngularLoss()
    with pytest.raises(InputError), attach(angular, pair=weights(12, 12)):
        angular(points(12).requires_grad_(), LABELS)
    assert hooks(angular) == 0


def test_an_interrupted_pass_leaves_no_trace_in_the_next():
    class Interrupted(distances.LpDistance):
        def compute_mat(self, query_emb, ref_emb):
            raise KeyboardInterrupt

    shared = Interrupted()
    loss_fn = losses.ContrastiveLoss(distance=shared)
    handle = attach(loss_fn, pair=weights(12, 12))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loss_fn(points(12).requires_grad_(), LABELS)
    handle.remove()
    assert hooks(loss_fn) == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_is_attached_on_its_own(copied):
    x, w = points(12).requires_grad_(), weights(12, 12)
    loss_fn = losses.TripletMarginLoss(distance=distances.CosineSimilarity())
    plain = torch.autograd.grad(loss_fn(x, LABELS), x)[0]
    handle = attach(loss_fn, pair=w, example=Weigher())
    weighed = torch.autograd.grad(loss_fn(x, LABELS), x)[0]
    alone, (both, its_handle) = copied(loss_fn), copied((loss_fn, handle))
    for one in (alone, both):
        assert torch.equal(torch.autograd.grad(one(x, LABELS), x)[0], weighed)
    handle.remove()
    assert torch.equal(torch.autograd.grad(loss_fn(x, LABELS), x)[0], plain)
    for one in (alone, both):
        assert torch.equal(torch.autograd.grad(one(x, LABELS), x)[0], weighed)
    its_handle.remove()
    assert hooks(both) == 0
    assert torch.equal(torch.autograd.grad(both(x, LABELS), x)[0], plain)
    assert torch.equal(torch.autograd.grad(alone(x, LABELS), x)[0], weighed)


def test_a_distance_shared_with_a_miner_and_another_loss_is_not_disturbed():
    x, w, shared = points(12).requires_grad_(), weights(12, 12), distances.CosineSimilarity()
    miner, other = miners.MultiSimilarityMiner(distance=shared), losses.NTXentLoss(distance=shared)
    loss_fn = losses.MultiSimilarityLoss(distance=shared)
    mined, plain = miner(x, LABELS), torch.autograd.grad(other(x, LABELS), x)[0]
    attach(loss_fn, pair=w)
    assert hooks(shared) == 0
    own = torch.autograd.grad(loss_fn(x, LABELS), x)[0]
    for a, b in zip(mined, miner(x, LABELS), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.autograd.grad(other(x, LABELS), x)[0], plain)
    attach(other, pair=w.T.clone())
    assert torch.equal(torch.autograd.grad(loss_fn(x, LABELS), x)[0], own)
    assert hooks(shared) == 0


if __name__ == "__main__":
    print("\n".join(table()))
