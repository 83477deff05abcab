"""The one operator that all losses on pairs are computed by: small distances, coincident pairs, blocks, edges."""

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metricweight as mw
from metricweight import streaming
from metricweight.losses import (
    BinomialDevianceLoss,
    ContrastiveLoss,
    InstanceCrossEntropyLoss,
    OnlineSoftMiningLoss,
    PairLoss,
    RankedListLoss,
)
from metricweight.pairs import PairWeights
from metricweight.similarity import unit


@pytest.fixture(params=["counted", "nearest"])
def close_pairs(request, monkeypatch):
    """Both ways to find close pairs: as on a CPU, and as on a GPU, which must not be made to wait for their number."""
    if request.param == "nearest":
        monkeypatch.setattr(streaming, "_may_count", lambda x: False)


def near_pairs(gap, size=32):
    """Unit vectors in float32, of which each second one is `gap` away from the one before."""
    generator = torch.Generator().manual_seed(0)
    base = F.normalize(torch.randn(12, size, generator=generator))
    step = F.normalize(torch.randn(12, size, generator=generator))
    x = torch.stack([base, F.normalize(base + gap * step)], 1).flatten(0, 1)
    return x, torch.arange(24) % 2 + 2 * (torch.arange(24) // 8)  # the near ones are negatives of each other


def exactly(x, labels):
    """RLL with free gallery by autograd of the written formula in float64, weights constant."""
    f = unit(x).double().requires_grad_()  # rounded as the loss rounds it
    d = (f[:, None] - f[None]).square().sum(2).add(torch.eye(len(f))).sqrt()  # the diagonal is not used
    own = torch.eye(len(f), dtype=torch.bool)
    same = (labels[:, None] == labels) & ~own
    pull, push = (d - 0.8).relu() * same, (1.2 - d).relu() * ~(same | own)
    equal = (pull > 0).double()
    w = (10 * push).exp() * (push > 0)
    loss = (
        0.5
        * sum(
            ((weight / weight.sum(1, keepdim=True).clamp(min=1e-30)).detach() * h).sum()
            for weight, h in ((equal, pull), (w, push))
        )
        / len(f)
    )
    (g,) = torch.autograd.grad(loss, f)
    return loss.item(), (g - (g * f).sum(1, keepdim=True) * f).detach()


@pytest.mark.parametrize("gap", [1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1])
def test_small_distances_keep_their_digits_and_their_directions(gap, close_pairs):
    x, labels = near_pairs(gap)
    value, gradient = exactly(x, labels)
    x.requires_grad_()
    loss = RankedListLoss(gallery="free")(x, labels)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert torch.allclose(x.grad.double(), gradient, rtol=0, atol=1e-6 * gradient.abs().max().item())


def test_a_nearly_collapsed_batch_keeps_its_digits(close_pairs):
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.ones(1, 16) + 1e-3 * torch.randn(20, 16, generator=generator))
    labels = torch.arange(20) % 5
    value, gradient = exactly(x, labels)
    x.requires_grad_()
    loss = RankedListLoss(gallery="free")(x, labels)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert torch.allclose(x.grad.double(), gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "loss", [RankedListLoss(), RankedListLoss(gallery="free"), OnlineSoftMiningLoss(), ContrastiveLoss()], ids=repr
)
def test_a_collapsed_batch_comes_apart_by_class(loss, dtype, close_pairs):
    x, labels = torch.ones(12, 8, dtype=dtype), torch.arange(12) % 4
    for _ in range(5):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, labels), x)
        x = x.detach() - 0.5 * gradient
    f = F.normalize(x)
    distance = torch.cdist(f, f)
    same = labels[:, None] == labels
    assert distance[same].max() < 1e-3 < 0.01 < distance[~same].min()


@pytest.mark.parametrize("size", [2, 3, 16, 100])
def test_more_coincident_pairs_than_are_looked_at_one_by_one_do_no_harm(size, close_pairs):
    points = F.normalize(torch.randn(6, size, generator=torch.Generator().manual_seed(0)))
    x, labels = points.repeat_interleave(40, 0).requires_grad_(), torch.arange(240) % 4
    f = unit(x.detach()).double()
    d, same = torch.cdist(f, f), labels[:, None] == labels
    pull, push = (d - 0.8).relu() * same, (1.2 - d).relu() * ~same
    expected = sum(0.5 * (h.sum(1) / (h > 0).sum(1).clamp(min=1)).mean() for h in (pull, push))
    loss = RankedListLoss(negative_temperature=0.0)(x, labels)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert gradient.norm(dim=1).max() < 2 / 240  # no query is moved by more than its weights


@pytest.mark.parametrize("count", [20, 64])
@pytest.mark.parametrize("point", [0.0, 1.0])
@pytest.mark.parametrize("loss", [RankedListLoss(), OnlineSoftMiningLoss(), ContrastiveLoss()], ids=repr)
def test_a_large_collapsed_batch_comes_apart_too(loss, point, count, close_pairs):
    x, labels = torch.full((count, 16), point, requires_grad=True), torch.arange(count) % 4
    (gradient,) = torch.autograd.grad(loss(x, labels), x)
    assert gradient.isfinite().all()
    f = F.normalize(x.detach() - 20 * gradient)
    between, same = torch.cdist(f, f), labels[:, None] == labels
    assert between[~same].mean() > 3 * between[same].mean()


def test_coincident_pairs_are_at_distance_zero_however_many(close_pairs):
    """So that a positive at distance zero is no violation, and is not counted as one."""
    points = F.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    x, labels = points.repeat_interleave(32, 0), torch.arange(64) // 32
    far = (points[0] - points[1]).norm().item()
    loss = ContrastiveLoss(squared=False, negative_margin=2.0)(x, labels)
    assert loss.item() == pytest.approx(2.0 - far, rel=1e-5)


def test_which_way_a_class_goes_depends_on_its_label_alone():
    x, labels = torch.ones(6, 5), torch.tensor([3, 3, 2**40, 2**40, -1, -1])
    order = torch.tensor([4, 0, 2, 1, 5, 3])

    def gradient(labels):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(RankedListLoss()(leaf, labels), leaf)[0]

    assert torch.allclose(gradient(labels[order]), gradient(labels)[order])


@pytest.mark.parametrize(
    "loss", [RankedListLoss(gallery="free"), RankedListLoss(gallery="free", anchors="released"),
             OnlineSoftMiningLoss(), InstanceCrossEntropyLoss()], ids=repr
)  # fmt: skip
@pytest.mark.parametrize("gallery", [None, 9])
def test_the_number_of_rows_in_a_block_does_not_matter(loss, gallery):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    reference = {}
    if gallery:
        ref = torch.randn(gallery, 4, dtype=torch.float64, generator=generator, requires_grad=True)
        reference = {"ref_emb": ref, "ref_labels": torch.arange(gallery) % 4}
    found = []
    for rows in (None, 1, 3, 100):
        loss.block_rows = rows
        value = loss(x, torch.arange(20) % 4, **reference)
        leaves = (x, reference["ref_emb"]) if gallery else (x,)
        found.append((value, *torch.autograd.grad(value, leaves)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("loss", [ContrastiveLoss(), OnlineSoftMiningLoss(), BinomialDevianceLoss()], ids=repr)
@pytest.mark.parametrize("gallery", [False, True])
def test_few_positives_are_added_one_by_one_to_the_same_numbers(loss, gallery, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, ref = (torch.randn(240, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    labels = torch.arange(240) // 3
    reference = {"ref_emb": ref, "ref_labels": labels} if gallery else {}
    added = []
    for few in (64, 10**9):
        monkeypatch.setattr(streaming, "_FEW", few)
        value = loss(x, labels, **reference)
        added.append((value, *torch.autograd.grad(value, (x, ref) if gallery else x)))
    for a, b in zip(*added, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-16)


def test_no_matrix_of_all_pairs_is_kept():
    x = torch.randn(3000, 8, requires_grad=True)
    loss = RankedListLoss()(x, torch.arange(3000) // 4)
    kept = 0
    node, nodes = loss.grad_fn, []
    while node is not None:
        nodes.append(node)
        node = next((n for n, _ in node.next_functions if n is not None), None)
    for node in nodes:
        kept += sum(t.numel() for t in getattr(node, "saved_tensors", ()))
    assert kept <= 10 * x.numel()


def test_a_second_derivative_is_refused_and_that_of_scale_gradient_is_not():
    x = torch.randn(8, 4, requires_grad=True)
    loss = RankedListLoss()(mw.scale_gradient(x, torch.rand(8, 1)), torch.arange(8) % 2)
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="losses on pairs have no second derivative"):
        first.square().sum().backward()
    y = torch.randn(8, 4, requires_grad=True)
    (first,) = torch.autograd.grad(mw.scale_gradient(y, torch.full((8, 1), 2.0)).pow(3).sum(), y, create_graph=True)
    first.sum().backward()
    assert torch.allclose(y.grad, 2 * 2 * 6 * y)


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_products_are_formed_in_full_precision_whatever_the_program_allows(allowed):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            PrecisionSeen()(torch.randn(6, 4), torch.arange(6) % 2)
        assert PrecisionSeen.seen.pop() == (False, False)
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch sets precisions by one name only")
def test_precisions_may_be_set_by_their_newer_names():
    code = """if True:
        import torch
        from metricweight.losses import RankedListLoss
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert RankedListLoss()(torch.randn(6, 4), torch.arange(6) % 2).isfinite()
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    """
    subprocess.run([sys.executable, "-c", code], check=True)


class PrecisionSeen(RankedListLoss):
    """At module level, as `streaming.pairs` finds it by name."""

    seen: ClassVar[list] = []

    def terms(self, *args):
        product = torch.backends.cuda.matmul
        newer = hasattr(torch.backends, "fp32_precision")
        reduced = product.fp32_precision if newer else product.allow_tf32
        self.seen.append((reduced in ("tf32", "bf16", True), torch.is_autocast_enabled("cpu")))
        return super().terms(*args)


def test_the_compiled_loss_follows_a_changed_setting():
    x, labels = torch.randn(12, 4), torch.arange(12) % 3
    loss = RankedListLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for margin in (0.4, 0.3, 0.2):
        loss.margin = margin
        assert torch.equal(compiled(x, labels), RankedListLoss(margin=margin)(x, labels))
    with pytest.raises(ValueError, match="finite"):
        loss.margin = float("inf")


def test_a_loss_of_ones_own_needs_its_terms_only():
    loss = Pull(strength=2.0)
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(9) % 3
    value = loss(x, labels)
    f = F.normalize(x)
    expected = -2 * sum((f[i] * f[j]).sum() for i in range(9) for j in range(9) if i != j and i % 3 == j % 3) / 9
    assert value.item() == pytest.approx(expected.item())
    assert torch.allclose(*(torch.autograd.grad(v, x)[0] for v in (value, expected)))
    assert repr(loss) == "Pull(strength=2.0, block_rows=None)"


@dataclass(eq=False, repr=False)
class Pull(PairLoss):
    coordinate = "similarity"
    normalised = "no"

    strength: float = 1.0

    def terms(self, x, positive, negative, query, gallery):
        weights = PairWeights(self.strength * positive.to(x.dtype), torch.zeros_like(x))
        return streaming.Terms(weights, weights, PairWeights(-(weights.positive * x).sum(1), torch.zeros_like(x[:, 0])))


class Blind(Pull):
    """As a notebook defines a class, and then once more."""


def test_a_class_that_is_defined_anew_is_the_new_one(monkeypatch):
    x, labels = torch.randn(9, 4), torch.arange(9) % 3
    first = Blind()(x, labels)
    again = dataclass(eq=False, repr=False)(type("Blind", (Pull,), {"__module__": __name__, "__qualname__": "Blind"}))
    again.terms = lambda self, *args: Pull.terms(Pull(strength=5.0), *args)
    monkeypatch.setattr(sys.modules[__name__], "Blind", again)
    assert again()(x, labels).item() == pytest.approx(5 * first.item(), rel=1e-4)


def test_a_class_that_cannot_be_found_again_is_refused():
    class Inside(Pull):
        pass

    with pytest.raises(ValueError, match="defined in a function; define it in a module or notebook"):
        Inside()


@pytest.mark.parametrize("margin", [np.float32(0.1), np.float64(0.1), np.int64(1), torch.tensor(0.1)], ids=repr)
def test_a_number_of_another_library_is_a_number(margin):
    x, labels = torch.randn(12, 4), torch.arange(12) % 3
    loss = RankedListLoss(margin=margin)
    assert torch.equal(loss(x, labels), RankedListLoss(margin=margin.item())(x, labels))
    assert repr(loss) == repr(RankedListLoss(margin=margin.item()))


def test_what_is_refused_does_not_stick():
    loss = RankedListLoss()
    for value in (float("nan"), 1e39, (0.4,)):
        with pytest.raises(ValueError, match="margin of RankedListLoss must be"):
            loss.margin = value
        assert loss.margin == 0.4


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("gallery", [False, True])
def test_torch_finds_the_operator_well_formed(gallery, moves):
    query = F.normalize(torch.randn(6, 4)).requires_grad_()
    ref = (F.normalize(torch.randn(5, 4)).requires_grad_(), torch.arange(6) % 2, torch.arange(5) % 2)
    given, labels, gallery_labels = ref if gallery else (None, ref[1], None)
    words = (query, given, labels, gallery_labels, None, None, not gallery, None, moves, RankedListLoss()._key)
    torch.library.opcheck(streaming.pairs, words)
