"""What the tests of losses on pairs compare them with: a formula over loops, differentiated by autograd in float64.

A formula takes a matrix m [B, G] of distances or similarities and, for each row, the lists of its positives and its
negatives; it returns the loss. What its method holds constant, it takes from `m.detach()`.
"""

import pytest
import torch

CASES = ["batch", "blocks of 3 rows", "gallery", "miner"]


def batch(seed=0, classes=5, each=4, size=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(classes * each, size, dtype=torch.float64, generator=generator)
    return x, torch.arange(len(x)) % classes


def lists(positive, negative):
    return [tuple([j for j, is_one in enumerate(row.tolist()) if is_one] for row in pair)
            for pair in zip(positive, negative, strict=True)]  # fmt: skip


def masks(labels, gallery_labels, own, chosen=None):
    positive = torch.tensor([[bool(a == b) and not (own and i == j) for j, b in enumerate(gallery_labels)]
                             for i, a in enumerate(labels)])  # fmt: skip
    negative = torch.tensor([[bool(a != b) for b in gallery_labels] for a in labels])
    return (positive, negative) if chosen is None else (positive & chosen, negative & chosen)


def matrix(query, gallery, loss, own):
    """m_ij, each from its own pair of rows; an item's distance to itself, which has no derivative, is a plain 0."""
    if loss.unit_length:
        query, gallery = (rows / rows.square().sum(1, keepdim=True).sqrt() for rows in (query, gallery))

    def entry(i, j):
        if loss.coordinate == "similarity":
            return (query[i] * gallery[j]).sum()
        return query.new_zeros(()) if own and i == j else (query[i] - gallery[j]).square().sum().sqrt()

    return torch.stack([torch.stack([entry(i, j) for j in range(len(gallery))]) for i in range(len(query))])


def some(labels, gallery_labels, own):
    """Two thirds of the pairs, not the same both ways; as booleans and as a miner lists them."""
    kept = torch.rand(len(labels), len(gallery_labels), generator=torch.Generator().manual_seed(7)) < 2 / 3
    positive, negative = masks(labels, gallery_labels, own, kept)
    return kept, (*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True))


def assert_is(loss, formula, case):
    """Gradients for both members of a pair, through the unit norm, and then the value."""
    (x, labels), (g, gallery_labels) = batch(), batch(seed=1, each=3)
    own = case != "gallery"
    found, wanted = ([t.clone().requires_grad_() for t in ((x,) if own else (x, g))] for _ in range(2))
    chosen, indices_tuple = some(labels, labels, own) if case == "miner" else (None, None)
    loss.block_rows = 3 if case == "blocks of 3 rows" else None
    value = loss(found[0], labels, indices_tuple, *(() if own else (found[1], gallery_labels)))
    value.backward()
    m = matrix(wanted[0], wanted[-1], loss, own)
    by_hand = formula(m, lists(*masks(labels, labels if own else gallery_labels, own, chosen)))
    by_hand.backward()
    for one, other in zip(found, wanted, strict=True):
        assert other.grad.abs().sum() > 0
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-13)
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-12)


def assert_weights(loss, formula):
    """They are the sizes of the formula's derivative with respect to each entry, and zero where there is no pair."""
    x, labels = batch()
    m = matrix(x, x, loss, True).requires_grad_()
    chosen, _ = some(labels, labels, True)
    positive, negative = masks(labels, labels, True, chosen)
    (derivative,) = torch.autograd.grad(formula(m, lists(positive, negative)), m)
    weights, scores = loss.weights(m, positive, negative), loss.scores(m, positive, negative)
    further = 1 if loss.coordinate == "distance" else -1
    for w, s, mask, sign in zip(weights, scores, (positive, negative), (further, -further), strict=True):
        assert not w.requires_grad
        assert (w >= 0).all()
        assert (s >= 0).all()
        assert not w[~mask].any()
        assert not s[~mask].any()
        mass = s.sum() if loss.normalised == "batch" else len(m)
        assert torch.allclose(sign * w / mass, derivative * mask, rtol=1e-9, atol=1e-15)


def assert_finite(loss, scale=1.0):
    x, labels = batch()
    x = (x * scale).float().requires_grad_()
    value = loss(x, labels)
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all()


def assert_same_as(loss, other, *, rtol=1e-10):
    """Value and gradient of another implementation, called as `other(x, labels)`, to ten digits in float64."""
    x, labels = batch(seed=3, classes=6, size=5)
    found, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    values = loss(found, labels), other(wanted, labels)
    for value in values:
        value.backward()
    assert torch.allclose(*values, rtol=rtol, atol=0)
    assert torch.allclose(found.grad, wanted.grad, rtol=rtol, atol=rtol * wanted.grad.abs().max().item())
