"""The contrastive loss against loops that are written from its formula."""

import pytest
import torch
from pairs_by_hand import CASES, assert_is, assert_same_as, assert_weights
from pytorch_metric_learning import losses as pml

from metricweight.pair_weights.contrastive import ContrastiveLoss

SETTINGS = [
    {},
    {"squared": False},
    {"positive_margin": 0.6, "negative_margin": 1.3},
    {"positive_margin": 0.6, "negative_margin": 1.3, "squared": False},
]


def formula(positive_margin=0.0, negative_margin=1.0, squared=True):
    def of(m, rows):
        pull = [m[i, p] - positive_margin for i, (positives, _) in enumerate(rows) for p in positives]
        push = [negative_margin - m[i, n] for i, (_, negatives) in enumerate(rows) for n in negatives]
        total = 0
        for residuals in (pull, push):
            violations = [h for h in residuals if h > 0]
            total = total + sum(h * h / 2 if squared else h for h in violations) / len(violations)
        return total

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradient_and_value_are_those_of_the_formula(settings, case):
    assert_is(ContrastiveLoss(**settings), formula(**settings), case)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_are_the_derivative_of_each_pair(settings):
    assert_weights(ContrastiveLoss(**settings), formula(**settings))


def test_squared_weights_grow_with_the_violation_and_others_do_not():
    distance = torch.tensor([[0.25, 0.75, 0.5, 0.875, 1.5]])
    positive = torch.tensor([[True, True, False, False, False]])
    squared = ContrastiveLoss().weights(distance, positive, ~positive)
    assert squared.positive.tolist() == [[0.25, 0.75, 0, 0, 0]]
    assert squared.negative.tolist() == [[0, 0, 1 - 0.5, 1 - 0.875, 0]]
    linear = ContrastiveLoss(squared=False).weights(distance, positive, ~positive)
    assert linear.positive.tolist() == [[1, 1, 0, 0, 0]]
    assert linear.negative.tolist() == [[0, 0, 1, 1, 0]]


def test_a_pair_on_the_margin_is_not_counted():
    distance = torch.tensor([[0.5, 1.0]])
    positive = torch.tensor([[True, False]])
    scores = ContrastiveLoss(positive_margin=0.5).scores(distance, positive, ~positive)
    assert scores.positive.tolist() == scores.negative.tolist() == [[0, 0]]


@pytest.mark.parametrize("margins", [(0.0, 1.0), (0.5, 1.3)])
def test_not_squared_it_is_that_of_pytorch_metric_learning(margins):
    ours = ContrastiveLoss(*margins, squared=False)
    assert_same_as(ours, pml.ContrastiveLoss(pos_margin=margins[0], neg_margin=margins[1]))
