"""Online soft mining against loops that are written from the poster's formulas, and the released form."""

import math

import pytest
import torch

from metricweight.losses import OnlineSoftMiningLoss
from metricweight.pair_weights.class_aware_attention import ClassAwareAttention


def batch(seed=0, count=18, size=3, classes=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, dtype=torch.float64, generator=generator), torch.arange(count) % classes


def by_hand(x, labels, *, margin=1.2, sigma=0.8, balance=0.5, attention=None, form="poster"):
    """Value and gradient in float64, one pair i < j at a time. Each pair's force is its weight times the slope of the
    half square, along the line between the two; the weight is a number."""
    norms = [math.hypot(*row) for row in x.tolist()]
    f = [[v / n for v in row] for row, n in zip(x.tolist(), norms, strict=True)]
    count = len(f)
    wide = 2 * sigma**2 if form == "released" else sigma**2
    pulls, pushes = [], []
    for i in range(count):
        for j in range(i):
            d = math.dist(f[i], f[j])
            a = min(attention[i], attention[j]) if attention is not None else 1.0
            if labels[i] == labels[j]:
                pulls.append((i, j, math.exp(-d * d / wide) * a, d, d))
            elif d < margin:
                pushes.append((i, j, (margin - d) * a, margin - d, d))
    pairs = count * (count - 1) / 2 if form == "released" else 1
    total, g = 0.0, torch.zeros(count, x.shape[1], dtype=torch.float64)
    for sign, share, listed in ((1, 1 - balance, pulls), (-1, balance, pushes)):
        mass = sum(s for _, _, s, _, _ in listed)
        for i, j, s, slope, d in listed:
            total += share * s / mass * slope**2 / 2 / pairs
            for k in range(x.shape[1]):
                force = sign * share * s / mass * slope * (f[i][k] - f[j][k]) / d / pairs
                g[i, k] += force
                g[j, k] -= force
    f = torch.tensor(f, dtype=torch.float64)
    return total, (g - (g * f).sum(1, keepdim=True) * f) / torch.tensor(norms, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"margin": 0.9, "sigma": 0.3, "balance": 0.2}, {"form": "released", "sigma": 1.0}], ids=str
)
def test_gradient_and_value_are_those_of_the_formula(settings, attended):
    x, labels = batch()
    attention = torch.rand(len(x), dtype=torch.float64) if attended else None
    value, gradient = by_hand(x, labels, attention=attention.tolist() if attended else None, **settings)
    x.requires_grad_()
    loss = OnlineSoftMiningLoss(attention=attention, **settings)(x, labels)
    loss.backward()
    assert torch.allclose(x.grad, gradient, rtol=1e-9, atol=1e-14)
    if settings.get("form") != "released":  # both count each pair twice, in the sum and in the mass
        assert loss.item() == pytest.approx(value, rel=1e-12)


def test_scores_are_the_mining_factor_and_weights_have_the_slope_of_the_half_square_too():
    d = torch.tensor([[0.4, 1.0, 0.7, 1.5]], dtype=torch.float64)
    positive = torch.tensor([[True, True, False, False]])
    a, b = torch.tensor([0.5], dtype=torch.float64), torch.tensor([1.0, 0.2, 0.1, 1.0], dtype=torch.float64)
    loss = OnlineSoftMiningLoss()
    scores, weights = (f(d, positive, ~positive, query=a, gallery=b) for f in (loss.scores, loss.weights))
    near = [0.5 * math.exp(-((0.4 / 0.8) ** 2)), 0.2 * math.exp(-((1.0 / 0.8) ** 2)), 0, 0]
    soft = [0, 0, 0.1 * (1.2 - 0.7), 0]
    assert scores.positive[0].tolist() == pytest.approx(near)
    assert scores.negative[0].tolist() == pytest.approx(soft)
    assert weights.positive[0].tolist() == pytest.approx([near[0] * 0.4, near[1] * 1.0, 0, 0])
    assert weights.negative[0].tolist() == pytest.approx([0, 0, soft[2] * 0.5, 0])


def test_an_outlier_among_the_positives_is_not_pushed_away():
    """With weights that are differentiated, a positive with d^2 > sigma^2 + 2 L_P would be."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.05], [-1.0, 0.3]], dtype=torch.float64, requires_grad=True)
    OnlineSoftMiningLoss()(x, torch.zeros(3, dtype=torch.long)).backward()
    step = -x.grad[2]
    assert (step * (x[0] - x[2]).detach()).sum() > 0


def test_an_item_that_is_no_example_of_its_class_moves_nothing():
    x, labels = batch()
    attention = torch.ones(len(x))
    attention[3] = 0
    x.requires_grad_()
    OnlineSoftMiningLoss(attention=attention)(x, labels).backward()
    assert torch.equal(x.grad[3], torch.zeros(3, dtype=torch.float64))


def test_class_aware_attention_reaches_a_gallery_of_its_own():
    x, labels = batch()
    ref, ref_labels = batch(seed=1, count=7)
    attention = ClassAwareAttention(4, 3).double()
    loss = OnlineSoftMiningLoss(attention=attention)(x, labels, ref_emb=ref, ref_labels=ref_labels)
    a, b = attention.attention(x, labels), attention.attention(ref, ref_labels)
    d = torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(ref))
    same = labels[:, None] == ref_labels
    s = torch.minimum(a[:, None], b) * torch.where(same, torch.exp(-((d / 0.8) ** 2)), (1.2 - d).relu())
    half = torch.where(same, d, (1.2 - d).relu()) ** 2 / 2
    expected = 0.5 * sum((s * half)[mask].sum() / s[mask].sum() for mask in (same, ~same))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_arguments_that_do_not_fit_are_refused():
    x, labels = batch()
    with pytest.raises(ValueError, match="'poster' or 'released', got 'paper'"):
        OnlineSoftMiningLoss(form="paper")
    with pytest.raises(ValueError, match="sigma is a width, more than 0, got 0"):
        OnlineSoftMiningLoss(sigma=0)
    with pytest.raises(ValueError, match="share, from 0 to 1, got -1"):
        OnlineSoftMiningLoss(balance=-1)
    with pytest.raises(ValueError, match=r"a number per item, \[18\], got \[7\]"):
        OnlineSoftMiningLoss(attention=torch.ones(7))(x, labels)
    for count in (7, 18):
        with pytest.raises(ValueError, match="where there is a gallery, give a ClassAwareAttention"):
            OnlineSoftMiningLoss(attention=torch.ones(18))(x, labels, None, x[:count].clone(), labels[:count])
    with pytest.raises(ValueError, match="a ClassAwareAttention or a tensor"):
        OnlineSoftMiningLoss(attention="caa")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_of_another_dtype_is_taken(dtype):
    x, labels = batch()
    weights = torch.rand(18)
    expected = OnlineSoftMiningLoss(attention=weights)(x.to(dtype), labels)
    assert torch.allclose(OnlineSoftMiningLoss(attention=weights.double())(x.to(dtype), labels), expected)
