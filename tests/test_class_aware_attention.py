"""Class-aware attention, and the loss by which it learns its contexts."""

import math

import pytest
import torch
import torch.nn.functional as F

from metricweight.losses import OnlineSoftMiningLoss
from metricweight.pair_weights.class_aware_attention import ClassAwareAttention


def example(form):
    torch.manual_seed(0)
    caa = ClassAwareAttention(3, 4, form).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 2, 0])
    f = F.normalize(x.detach()) if form == "poster" else x.detach()
    p = [math.exp(f[i] @ caa.contexts[y]) / sum(math.exp(f[i] @ c) for c in caa.contexts)
         for i, y in enumerate(labels.tolist())]  # fmt: skip
    return caa, x, labels, p


def test_attention_is_the_share_of_the_own_class_in_the_poster():
    caa, x, labels, p = example("poster")
    assert caa.attention(x, labels).tolist() == pytest.approx(p)


def test_attention_is_a_gaussian_of_it_in_the_released_code():
    caa, x, labels, p = example("released")
    assert caa.attention(x, labels).tolist() == pytest.approx([math.exp(-((1 - q) ** 2) / (2 * 0.68**2)) for q in p])


@pytest.mark.parametrize("form", ["poster", "released"])
def test_the_loss_moves_contexts_and_embeddings_by_weighted_cross_entropy(form):
    caa, x, labels, p = example(form)
    v = [math.exp(-((q - 0.5) ** 2) / (2 * 0.18**2)) if form == "released" else 1.0 for q in p]
    loss = caa(x, labels)
    to_x, to_contexts = torch.autograd.grad(loss, (x, caa.contexts))
    y = x.detach().clone().requires_grad_()
    c = caa.contexts.detach().clone().requires_grad_()
    logits = (F.normalize(y) if form == "poster" else y) @ c.T
    expected = sum(w / sum(v) * F.cross_entropy(z, k) for w, z, k in zip(v, logits, labels, strict=True))
    for a, b in zip((to_x, to_contexts), torch.autograd.grad(expected, (y, c)), strict=True):
        assert torch.allclose(a, b, rtol=1e-10)
    assert loss.item() == pytest.approx(expected.item())


def test_attention_is_a_constant_and_the_soft_mining_loss_does_not_train_the_contexts():
    caa, x, labels, _ = example("poster")
    assert not caa.attention(x, labels).requires_grad
    loss = OnlineSoftMiningLoss(attention=caa)
    loss(x, labels).backward()
    assert caa.contexts.grad is None
    assert list(loss.parameters()) == [caa.contexts]


def test_alone_and_together_it_learns_which_items_are_typical():
    torch.manual_seed(0)
    labels = torch.arange(30) % 3
    x = torch.randn(3, 8)[labels] + 0.2 * torch.randn(30, 8)
    x[0] = x[1].clone()  # a label of another class
    caa = ClassAwareAttention(3, 8)
    optimizer = torch.optim.SGD(caa.parameters(), lr=5.0)
    for _ in range(100):
        optimizer.zero_grad()
        caa(x, labels).backward()
        optimizer.step()
    attention = caa.attention(x, labels)
    assert attention[0] == attention.min() < 0.5 * attention[1:].min()


@pytest.mark.parametrize("form", ["poster", "released"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_edges(form, dtype):
    caa = ClassAwareAttention(3, 4, form)
    for count, size in ((0, 1.0), (1, 1.0), (4, 0.0), (4, 1e4)):
        x = (size * torch.randn(count, 4)).to(dtype).requires_grad_()
        loss = caa(x, torch.arange(count) % 3)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("form", ["poster", "released"])
def test_autocast_changes_nothing(form):
    caa, x, labels = ClassAwareAttention(3, 4, form), torch.randn(5, 4), torch.arange(5) % 3
    with torch.autocast("cpu", torch.bfloat16):
        inside = caa(x, labels), caa.attention(x, labels)
    assert torch.equal(inside[0], caa(x, labels))
    assert torch.equal(inside[1], caa.attention(x, labels))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'poster' or 'released', got 'x'"):
        ClassAwareAttention(3, 4, "x")
    with pytest.raises(ValueError, match="counts, at least 1, got 0 and 4"):
        ClassAwareAttention(0, 4)
    with pytest.raises(ValueError, match=r"\[B, 4\] to match dim, got \[2, 5\]"):
        ClassAwareAttention(3, 4)(torch.randn(2, 5), torch.arange(2))
    assert repr(ClassAwareAttention(3, 4)) == "ClassAwareAttention(classes=3, dim=4, form='poster')"
