"""Binomial deviance against loops that are written from its formula."""

import math

import pytest
import torch
from pairs_by_hand import CASES, assert_finite, assert_is, assert_weights

from metricweight.pair_weights.binomial_deviance import BinomialDevianceLoss

SETTINGS = [{}, {"cost": 1.0}, {"alpha": 0.7, "beta": 0.1, "cost": 3.3}]


def formula(alpha=2.0, beta=0.5, cost=25.0):
    def of(m, rows):
        pull = [(1 + (-alpha * (m[i, p] - beta)).exp()).log() for i, (ps, _) in enumerate(rows) for p in ps]
        push = [(1 + (alpha * cost * (m[i, n] - beta)).exp()).log() for i, (_, ns) in enumerate(rows) for n in ns]
        return sum(pull) / len(pull) + sum(push) / len(push)

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradient_and_value_are_those_of_the_formula(settings, case):
    assert_is(BinomialDevianceLoss(**settings), formula(**settings), case)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_are_the_derivative_of_each_pair(settings):
    assert_weights(BinomialDevianceLoss(**settings), formula(**settings))


def test_a_pair_at_beta_has_half_the_largest_weight():
    similarity = torch.tensor([[0.5, -1.0, 0.5, 0.1]], dtype=torch.float64)
    positive = torch.tensor([[True, True, False, False]])
    weights = BinomialDevianceLoss().weights(similarity, positive, ~positive)
    assert weights.positive[0].tolist() == pytest.approx([2 / 2, 2 / (1 + math.exp(2 * -1.5)), 0, 0])
    assert weights.negative[0].tolist() == pytest.approx([0, 0, 50 / 2, 50 / (1 + math.exp(50 * 0.4))])


def test_every_pair_counts_the_same():
    similarity = torch.tensor([[0.9, -0.3, 0.2]])
    positive, negative = torch.tensor([[True, False, False]]), torch.tensor([[False, True, False]])
    scores = BinomialDevianceLoss().scores(similarity, positive, negative)
    assert scores.positive.tolist() == [[1, 0, 0]]
    assert scores.negative.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("alpha", [1e-30, 1e6, 1e30])
def test_no_alpha_overflows(alpha):
    assert_finite(BinomialDevianceLoss(alpha=alpha))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"more than 0, got 0 and 25\.0"):
        BinomialDevianceLoss(alpha=0)
