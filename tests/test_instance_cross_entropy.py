"""Instance cross entropy against loops over its formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from metricweight.losses import InstanceCrossEntropyLoss


def batch():
    x = torch.randn(14, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(14) % 4


def by_hand(x, labels, scale, normalise):
    """Value and gradient, one matching distribution p(.|a; i) at a time."""
    f = F.normalize(x)
    s = (f @ f.T).tolist()
    g, total, count = torch.zeros_like(f), 0.0, len(f)
    factor = 1.0 if normalise else scale
    for a in range(count):
        for i in range(count):
            if i == a or labels[i] != labels[a]:
                continue
            members = [i] + [n for n in range(count) if labels[n] != labels[a]]
            mass = sum(math.exp(scale * s[a][m]) for m in members)
            for m in members:
                force = factor / count * (math.exp(scale * s[a][m]) / mass - (m == i))
                g[a] += force * f[m]
                g[m] += force * f[a]
            total -= math.log(math.exp(scale * s[a][i]) / mass) / count / (scale if normalise else 1)
    return total, (g - (g * f).sum(1, keepdim=True) * f) / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("scale", [1.0, 16.0, 64.0])
def test_gradient_and_value_are_those_of_the_formula(scale, normalise):
    x, labels = batch()
    value, gradient = by_hand(x, labels, scale, normalise)
    x.requires_grad_()
    loss = InstanceCrossEntropyLoss(scale, normalise)(x, labels)
    loss.backward()
    assert torch.allclose(x.grad, gradient, rtol=1e-9, atol=1e-14)
    assert loss.item() == pytest.approx(value, rel=1e-10)


def test_the_positives_of_an_anchor_weigh_as_much_as_its_negatives():
    x, labels = batch()
    similarity = F.normalize(x) @ F.normalize(x).T
    same = labels[:, None] == labels
    own = torch.eye(len(x), dtype=torch.bool)
    weights = InstanceCrossEntropyLoss().weights(similarity, same & ~own, ~same)
    assert torch.allclose(weights.positive.sum(1), weights.negative.sum(1))
    scores = InstanceCrossEntropyLoss().scores(similarity, same & ~own, ~same)
    assert torch.allclose(weights.positive, 16 * scores.positive)


@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_two_negatives_weigh_as_the_exponential_of_their_difference(scale):
    similarity = torch.tensor([[0.3, 0.9, 0.1]], dtype=torch.float64)
    positive = torch.tensor([[True, False, False]])
    weights = InstanceCrossEntropyLoss(scale).weights(similarity, positive, ~positive).negative[0]
    assert (weights[1] / weights[2]).item() == pytest.approx(math.exp(scale * 0.8))


@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e9])
def test_no_scale_overflows(scale):
    x, labels = batch()
    x = x.float().requires_grad_()
    loss = InstanceCrossEntropyLoss(scale)(x, labels)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="scale is more than 0, got 0"):
        InstanceCrossEntropyLoss(0)
