"""Triplet losses against loops that are written from their formulas."""

import math

import pytest
import torch
from pairs_by_hand import CASES, assert_finite, assert_is, assert_same_as, assert_weights, batch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer

from metricweight.pair_weights.triplet import TripletLoss

SETTINGS = [
    {},
    {"margin": 1.0},
    {"mining": "semi_hard"},
    {"mining": "semi_hard", "margin": 0.7},
    {"mining": "distance_weighted", "dim": 3},
    {"mining": "distance_weighted", "dim": 3, "margin": 0.9, "cutoff": 0.3, "farthest": 1.7},
]


def inverse_density(d, dim):
    return 1 / (d ** (dim - 2) * (1 - d * d / 4) ** ((dim - 3) / 2))


def formula(margin=0.2, mining="batch_hard", dim=3, cutoff=0.5, farthest=1.4):
    def of_anchor(d, positives, negatives):
        if mining == "batch_hard":
            p, n = max(positives, key=lambda j: d[j]), min(negatives, key=lambda j: d[j])
            return (d[p] - d[n] + margin).relu()
        total = 0
        q = {n: min(inverse_density(d[n].item(), dim), inverse_density(cutoff, dim)) * (d[n].item() <= farthest)
             for n in negatives}  # fmt: skip
        for p in positives:
            if mining == "semi_hard":
                farther = [n for n in negatives if d[n] > d[p]]
                if farther:
                    total = total + (d[p] - d[min(farther, key=lambda j: d[j])] + margin).relu()
            else:
                for n in negatives:
                    total = total + q[n] / (sum(q.values()) or 1) * (d[p] - d[n] + margin).relu()
        return total / len(positives)

    return lambda m, rows: sum(of_anchor(m[i], *row) for i, row in enumerate(rows) if all(row)) / len(rows)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradient_and_value_are_those_of_the_formula(settings, case):
    assert_is(TripletLoss(**settings), formula(**settings), case)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_are_the_derivative_of_each_pair(settings):
    assert_weights(TripletLoss(**settings), formula(**settings))


@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_batch_hard_is_that_of_pytorch_metric_learning(margin):
    mined, other = BatchHardMiner(), pml.TripletMarginLoss(margin=margin, reducer=MeanReducer())
    assert_same_as(TripletLoss(margin), lambda x, labels: other(x, labels, mined(x, labels)))


def test_equally_hard_pairs_share_the_weight():
    distance = torch.tensor([[0.5, 0.9, 0.9, 0.8, 0.8, 0.8, 1.0]])
    positive = torch.tensor([[True, True, True, False, False, False, False]])
    weights = TripletLoss().weights(distance, positive, ~positive)
    assert weights.positive.tolist() == [[0, 1 / 2, 1 / 2, 0, 0, 0, 0]]
    third = torch.tensor(1 / 3).item()
    assert weights.negative.tolist() == [[0, 0, 0, third, third, third, 0]]


def test_semi_hard_takes_the_nearest_negative_that_is_farther_than_the_positive():
    distance = torch.tensor([[0.5, 0.75, 1.0, 0.25, 0.5, 0.625, 0.875, 1.5]])
    positive = torch.tensor([[True, True, True, False, False, False, False, False]])
    weights = TripletLoss(margin=0.25, mining="semi_hard").weights(distance, positive, ~positive)
    third = torch.tensor(1 / 3).item()
    assert weights.positive.tolist() == [[third, third, 0, 0, 0, 0, 0, 0]]  # to 1.0 the nearest farther one is 1.5
    assert weights.negative.tolist() == [[0, 0, 0, 0, 0, third, third, 0]]  # 0.5 is not farther than 0.5


def test_distance_weighted_is_the_mean_of_the_authors_draws():
    x, labels = batch(classes=3, each=4, size=4)
    d = torch.nn.functional.normalize(x)
    d = torch.cdist(d, d)
    inverse = inverse_density(d.clamp(min=0.5), 4) * (labels[:, None] != labels) * (d < 1.4)
    drawn = torch.multinomial(inverse[:1], 20_000, replacement=True, generator=torch.Generator().manual_seed(0))[0]
    hinges = torch.stack([(d[0, p] - d[0, drawn] + 0.2).relu() for p in (3, 6, 9)])
    value = TripletLoss(mining="distance_weighted", dim=4)(x[:1], labels[:1], ref_emb=x[1:], ref_labels=labels[1:])
    assert value.item() == pytest.approx(hinges.mean().item(), rel=0.02)


@pytest.mark.parametrize("dim", [2, 3, 2048])
def test_no_dimension_overflows(dim):
    distance = torch.tensor([[0.4, 0.0, 1e-20, 0.3, 0.7, 1.2, 2.0]])
    positive = torch.tensor([[True, False, False, False, False, False, False]])
    weights = TripletLoss(margin=0.9, mining="distance_weighted", dim=dim).weights(distance, positive, ~positive)
    assert weights.negative.isfinite().all()
    assert weights.negative.sum() == pytest.approx(weights.positive.sum())
    if dim > 3:
        assert weights.negative[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0])


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard", "distance_weighted"])
def test_no_margin_overflows(mining):
    assert_finite(TripletLoss(1e30, mining, dim=3))


def test_an_anchor_of_which_no_negative_can_be_drawn_is_zero():
    x = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [-1, 0, 0], [-0.9, 0, 0.1]], dtype=torch.float64)
    loss = TripletLoss(margin=2.0, mining="distance_weighted", dim=3)
    assert loss(x, torch.tensor([0, 0, 1, 1])).item() == 0
    assert math.dist(x[0], x[2]) > 1.4


def test_arguments_that_do_not_fit_are_refused():
    x, labels = batch()
    with pytest.raises(ValueError, match="one of batch_hard, semi_hard, distance_weighted, got 'easy'"):
        TripletLoss(mining="easy")
    with pytest.raises(ValueError, match="needs dim"):
        TripletLoss(mining="distance_weighted")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        TripletLoss(mining="distance_weighted", dim=1)
    with pytest.raises(ValueError, match=r"0 < cutoff < farthest < 2, got 0.5 and 2.5"):
        TripletLoss(farthest=2.5)
    with pytest.raises(ValueError, match=r"embeddings must be \[B, 8\] to match dim, got \[20, 3\]"):
        TripletLoss(mining="distance_weighted", dim=8)(x, labels)
