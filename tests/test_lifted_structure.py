"""Lifted structure against loops that are written from its formula."""

import pytest
import torch
from pairs_by_hand import CASES, assert_finite, assert_is, assert_same_as, assert_weights
from pytorch_metric_learning import losses as pml

from metricweight.pair_weights.lifted_structure import LiftedStructureLoss

SETTINGS = [{}, {"margin": 0.1}, {"margin": -2.4}]


def formula(margin=1.0):
    def of(m, rows):
        total = 0
        for d, (positives, negatives) in zip(m, rows, strict=True):
            if positives and negatives:
                pull = sum(d[p].exp() for p in positives).log()
                push = sum((margin - d[n]).exp() for n in negatives).log()
                total = total + (pull + push).relu()
        return total / len(rows)

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradient_and_value_are_those_of_the_formula(settings, case):
    assert_is(LiftedStructureLoss(**settings), formula(**settings), case)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_are_the_derivative_of_each_pair(settings):
    assert_weights(LiftedStructureLoss(**settings), formula(**settings))


@pytest.mark.parametrize("margin", [1.0, -1.9])
def test_it_is_the_generalised_form_of_pytorch_metric_learning(margin):
    assert_same_as(LiftedStructureLoss(margin), pml.GeneralizedLiftedStructureLoss(neg_margin=margin))


def test_weights_of_an_anchor_sum_to_one_of_each_kind_or_are_zero():
    distance = torch.tensor([[0.5, 0.9, 0.8, 1.0], [0.1, 0.1, 2.0, 2.0]], dtype=torch.float64)
    positive = torch.tensor([[True, True, False, False]] * 2)
    weights = LiftedStructureLoss(margin=0.3).weights(distance, positive, ~positive)
    assert weights.positive.sum(1).tolist() == pytest.approx([1, 0])  # log(2 e^0.1) + log(2 e^-1.7) = -0.2
    assert weights.negative.sum(1).tolist() == pytest.approx([1, 0])


def test_an_anchor_without_positives_is_zero():
    distance = torch.tensor([[0.1, 0.2]])
    negative = torch.ones(1, 2, dtype=torch.bool)
    assert not torch.stack(LiftedStructureLoss().weights(distance, ~negative, negative)).any()


@pytest.mark.parametrize("margin", [1e6, 1e30])
def test_no_margin_overflows(margin):
    assert_finite(LiftedStructureLoss(margin))
