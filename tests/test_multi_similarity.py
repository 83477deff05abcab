"""Multi-similarity against loops that are written from its formula."""

import math

import pytest
import torch
from pairs_by_hand import CASES, assert_finite, assert_is, assert_same_as, assert_weights
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.miners import MultiSimilarityMiner

from metricweight.pair_weights.multi_similarity import MultiSimilarityLoss

SETTINGS = [
    {},
    {"alpha": 5.0, "beta": 7.0, "base": 0.1},
    {"epsilon": 0.1},
    {"alpha": 5.0, "beta": 7.0, "base": 0.9, "epsilon": -0.3},
]


def formula(alpha=2.0, beta=50.0, base=0.5, epsilon=None):
    def of(m, rows):
        total = 0
        for s, (positives, negatives) in zip(m, rows, strict=True):
            pull, push = positives, negatives
            if epsilon is not None:
                push = [n for n in negatives if positives and s[n] > min(s[p] for p in positives) - epsilon]
                pull = [p for p in positives if negatives and s[p] < max(s[n] for n in negatives) + epsilon]
            total = total + (1 + sum((-alpha * (s[p] - base)).exp() for p in pull) + 0 * s[0]).log() / alpha
            total = total + (1 + sum((beta * (s[n] - base)).exp() for n in push) + 0 * s[0]).log() / beta
        return total / len(rows)

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradient_and_value_are_those_of_the_formula(settings, case):
    assert_is(MultiSimilarityLoss(**settings), formula(**settings), case)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_are_the_derivative_of_each_pair(settings):
    assert_weights(MultiSimilarityLoss(**settings), formula(**settings))


@pytest.mark.parametrize("settings", [{}, {"alpha": 5.0, "beta": 7.0, "base": 0.1}], ids=str)
def test_it_is_that_of_pytorch_metric_learning(settings):
    assert_same_as(MultiSimilarityLoss(**settings), pml.MultiSimilarityLoss(**settings))


@pytest.mark.parametrize("epsilon", [0.1, -0.3])
def test_with_epsilon_it_is_that_of_pytorch_metric_learning_with_its_miner(epsilon):
    mined, other = MultiSimilarityMiner(epsilon), pml.MultiSimilarityLoss()
    assert_same_as(MultiSimilarityLoss(epsilon=epsilon), lambda x, labels: other(x, labels, mined(x, labels)))


def test_weights_are_those_of_the_paper():
    similarity = torch.tensor([[0.5, 0.0, 0.5, 0.4]], dtype=torch.float64)
    positive = torch.tensor([[True, True, False, False]])
    weights = MultiSimilarityLoss().weights(similarity, positive, ~positive)
    pulled, pushed = 1 + 1 + math.exp(2 * 0.5), 1 + 1 + math.exp(-50 * 0.1)
    assert weights.positive[0].tolist() == pytest.approx([1 / pulled, math.exp(2 * 0.5) / pulled, 0, 0])
    assert weights.negative[0].tolist() == pytest.approx([0, 0, 1 / pushed, math.exp(-50 * 0.1) / pushed])


def test_epsilon_leaves_the_pairs_that_are_out_of_order():
    similarity = torch.tensor([[0.9, 0.6, 0.75, 0.55, 0.4]])
    positive = torch.tensor([[True, True, False, False, False]])
    scores = MultiSimilarityLoss(epsilon=0.1).scores(similarity, positive, ~positive)
    assert (scores.positive > 0).tolist() == [[False, True, False, False, False]]  # 0.9 > 0.75 + 0.1
    assert (scores.negative > 0).tolist() == [[False, False, True, True, False]]  # 0.4 < 0.6 - 0.1


@pytest.mark.parametrize("sharpness", [1e-30, 1e6, 1e30])
def test_no_alpha_or_beta_overflows(sharpness):
    assert_finite(MultiSimilarityLoss(alpha=sharpness, beta=sharpness))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"more than 0, got 2\.0 and -1"):
        MultiSimilarityLoss(beta=-1)
