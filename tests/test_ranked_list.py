"""Ranked List Loss against loops that are written from the paper's formulas."""

import math

import pytest
import torch

from metricweight.losses import RankedListLoss

SETTINGS = [
    {},
    {"margin": 0.6, "alpha": 1.4},
    {"positive_temperature": 3.0, "negative_temperature": 5.0, "balance": 0.3},
    {"negative_temperature": 0.0},
    {"negative_temperature": 40.0, "positive_temperature": -2.0},
]


def by_hand(x, labels, *, gallery, margin=0.4, alpha=None, positive_temperature=0.0, negative_temperature=10.0,
            balance=0.5):  # fmt: skip
    """Value and gradient of the loss in float64, one pair at a time.

    L(i) = (1 - balance) L_P(i) + balance L_N(i),  L_P(i) = sum_j w_ij [d_ij - (alpha - m)] / sum_j w_ij, and
    dL/df_i is made of w_ij times the unit vector from f_j to f_i, with w_ij a number; then through f = x / |x|.
    """
    alpha = 1 + margin / 2 if alpha is None else alpha
    x = [[float(v) for v in row] for row in x]
    norms = [math.sqrt(sum(v * v for v in row)) for row in x]
    f = [[v / n for v in row] for row, n in zip(x, norms, strict=True)]
    count, size = len(x), len(x[0])
    gradient = [[0.0] * size for _ in range(count)]
    total = 0.0
    for i in range(count):
        for sign, share, temperature in ((1, 1 - balance, positive_temperature), (-1, balance, negative_temperature)):
            listed = []
            for j in range(count):
                if j == i or (labels[i] == labels[j]) != (sign == 1):
                    continue
                d = math.dist(f[i], f[j])
                violation = d - (alpha - margin) if sign == 1 else alpha - d
                if violation > 0:
                    listed.append((j, d, violation, math.exp(temperature * violation)))
            everything = sum(w for *_, w in listed)
            for j, d, violation, w in listed:
                weight = share * w / everything / count
                total += weight * violation
                for k in range(size):
                    step = sign * weight * (f[i][k] - f[j][k]) / d
                    gradient[i][k] += step
                    if gallery == "free":
                        gradient[j][k] -= step
    through_norm = []
    for fi, gi, n in zip(f, gradient, norms, strict=True):
        along = sum(a * b for a, b in zip(fi, gi, strict=True))
        through_norm.append([(g - along * v) / n for v, g in zip(fi, gi, strict=True)])
    return total, torch.tensor(through_norm, dtype=torch.float64)


def batch(seed=0, classes=5, each=4, size=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(classes * each, size, dtype=torch.float64, generator=generator)
    return (x * torch.rand(len(x), 1, dtype=torch.float64, generator=generator)), torch.arange(len(x)) % classes


@pytest.mark.parametrize("gallery", ["fixed", "free"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradient_and_value_are_those_of_the_paper(gallery, settings):
    x, labels = batch()
    value, gradient = by_hand(x, labels.tolist(), gallery=gallery, **settings)
    x.requires_grad_()
    loss = RankedListLoss(gallery=gallery, **settings)(x, labels)
    loss.backward()
    assert torch.allclose(x.grad, gradient, rtol=1e-9, atol=1e-14)
    assert loss.item() == pytest.approx(value, rel=1e-12)


def test_an_easy_negative_is_never_pulled_in():
    """Query at 0 degrees, positive at 75, negatives at 20, 35, 50: the numbers of the study of PML's version, whose
    gradient through the weights pulls the two easier ones in (-1.120, +.096, +.024)."""
    degrees = torch.tensor([0.0, 20.0, 35.0, 50.0], dtype=torch.float64)
    points = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1)
    query, negatives = points[:1], points[1:].clone().requires_grad_()
    distance = torch.cdist(query, negatives.detach())
    negative = torch.ones(1, 3, dtype=torch.bool)
    weights = RankedListLoss().weights(distance, ~negative, negative).negative[0]
    assert (weights / weights.sum()).tolist() == pytest.approx([0.921, 0.073, 0.006], abs=5e-4)
    loss = RankedListLoss(gallery="free", balance=1.0)
    loss(query, torch.tensor([0]), ref_emb=negatives, ref_labels=torch.tensor([1, 1, 1])).backward()
    away = -(negatives.grad * (negatives.detach() - query)).sum(1)  # a step against the gradient, seen from the query
    assert (away > 0).all()


def test_only_pairs_that_break_the_ranking_count():
    distance = torch.tensor([[0.3, 0.8, 0.9, 1.3, 1.1]])
    positive = torch.tensor([[True, True, True, False, False]])
    weights = RankedListLoss().weights(distance, positive, ~positive)
    assert weights.positive.tolist() == [[0, 0, 1, 0, 0]]  # 0.8 is on the boundary alpha - margin, so not beyond it
    assert weights.negative.tolist() == [[0, 0, 0, 0, 1]]


@pytest.mark.parametrize("temperature", [1e-30, 1e6, 1e30])
def test_no_temperature_overflows(temperature):
    x, labels = batch()
    x = x.float().requires_grad_()
    loss = RankedListLoss(negative_temperature=temperature, positive_temperature=temperature)(x, labels)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_an_infinite_temperature_in_the_limit_is_the_hardest_negative():
    distance = torch.tensor([[0.5, 0.7, 1.0]])
    negative = torch.ones(1, 3, dtype=torch.bool)
    loss = RankedListLoss(negative_temperature=1e6)
    weights = loss.weights(distance, ~negative, negative).negative
    assert weights[0].tolist() == pytest.approx([1, 0, 0], abs=1e-30)


def test_a_collapsed_batch_has_the_value_of_its_violations():
    x = torch.ones(6, 4, requires_grad=True)
    loss = RankedListLoss()(x, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert loss.item() == pytest.approx(0.5 * 1.2)  # not zero: every negative violates by all of alpha


@pytest.mark.parametrize("temperature", [0.0, 10.0, 300.0])
@pytest.mark.parametrize("gallery", ["fixed", "free"])
def test_released_anchors_count_by_the_sum_of_their_weights(gallery, temperature):
    """g_a = sum_b s_ab v_ab 0.5 w_ab / S+-_a (S+_a + S-_a) / S_tot, v_ab = (f_a - f_b) / d_ab: the code of 2020."""
    x, labels = batch()
    f = torch.nn.functional.normalize(x)
    d = [[math.dist(a, b) for b in f.tolist()] for a in f.tolist()]
    count, shift = len(x), 1.2 * temperature  # a common factor exp(-shift) leaves the weights' ratios alone
    w = [[0.0] * count for _ in range(count)]
    for a in range(count):
        for b in range(count):
            if a != b and labels[a] == labels[b] and d[a][b] > 0.8:
                w[a][b] = math.exp(-shift)
            elif labels[a] != labels[b] and d[a][b] < 1.2:
                w[a][b] = math.exp(temperature * (1.2 - d[a][b]) - shift)
    pulls = [sum(w[a][b] for b in range(count) if labels[a] == labels[b]) for a in range(count)]
    pushes = [sum(w[a][b] for b in range(count) if labels[a] != labels[b]) for a in range(count)]
    total = sum(pulls) + sum(pushes)
    g = torch.zeros_like(f)
    for a in range(count):
        for b in range(count):
            sign, side = (1, pulls[a]) if labels[a] == labels[b] else (-1, pushes[a])
            if w[a][b] > 0:
                step = 0.5 * sign * w[a][b] / side * (pulls[a] + pushes[a]) / total * (f[a] - f[b]) / d[a][b]
                g[a] += step
                g[b] -= step if gallery == "free" else 0
    expected = (g - (g * f).sum(1, keepdim=True) * f) / x.norm(dim=1, keepdim=True)
    x.requires_grad_()
    loss = RankedListLoss(anchors="released", gallery=gallery, negative_temperature=temperature, block_rows=3)
    loss(x, labels).backward()
    assert torch.allclose(x.grad, expected, rtol=1e-7, atol=1e-12)


def test_with_a_gallery_of_its_own_only_queries_move_unless_it_is_free():
    x, labels = batch()
    g, gallery_labels = batch(seed=1)
    for gallery in ("fixed", "free"):
        query, reference = x.clone().requires_grad_(), g.clone().requires_grad_()
        RankedListLoss(gallery=gallery)(query, labels, ref_emb=reference, ref_labels=gallery_labels).backward()
        assert query.grad.abs().sum() > 0
        assert (reference.grad is None) == (gallery == "fixed")


def test_the_batch_given_as_its_own_reference_is_the_batch():
    x, labels = batch()
    loss = RankedListLoss()
    assert torch.equal(loss(x, labels, ref_emb=x, ref_labels=labels), loss(x, labels))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'fixed' or 'free', got 'open'"):
        RankedListLoss(gallery="open")
    x, labels = batch()
    with pytest.raises(ValueError, match="'mean' or 'released', got 'median'"):
        RankedListLoss(anchors="median")
    with pytest.raises(ValueError, match="margin of RankedListLoss must be finite and at most 1e30, got nan"):
        RankedListLoss(margin=math.nan)
    with pytest.raises(ValueError, match="share, from 0 to 1, got 3"):
        RankedListLoss(balance=3)
    for half in ({"ref_emb": x.clone()}, {"ref_labels": labels}):
        with pytest.raises(ValueError, match="ref_emb and ref_labels belong together"):
            RankedListLoss()(x, labels, **half)
    with pytest.raises(ValueError, match=r"ref_emb must be \[G, 3\] to be compared, got \[20, 2\]"):
        RankedListLoss()(x, labels, ref_emb=x[:, :2], ref_labels=labels)
    with pytest.raises(ValueError, match=r"4 tensors \(pairs\) or 3 \(triplets\), got 2"):
        RankedListLoss()(x, labels, (labels, labels))
