"""Barron's general robust function of hinges against loops that are written from its formula."""

import math

import pytest
import torch
from pairs_by_hand import CASES, assert_finite, assert_is, assert_weights

from metricweight.pair_weights.general_robust import GeneralRobustLoss

SETTINGS = [
    {},
    {"alpha": 2.0, "scale": 0.5},
    {"alpha": 0.0},
    {"alpha": -2.0, "scale": 0.3, "margin": 0.6, "boundary": 1.4},
    {"alpha": 0.3},
    {"alpha": -1e15},
]


def rho(h, alpha, scale):
    z = (h / scale) ** 2
    if alpha == 2:
        return z / 2
    if alpha == 0:
        return (z / 2 + 1).log()
    if alpha <= -1e9:
        return 1 - (-z / 2).exp()
    return abs(alpha - 2) / alpha * ((z / abs(alpha - 2) + 1) ** (alpha / 2) - 1)


def formula(alpha=1.0, scale=0.2, margin=0.4, boundary=1.2):
    def of(m, rows):
        pull = [m[i, p] - (boundary - margin) for i, (positives, _) in enumerate(rows) for p in positives]
        push = [boundary - m[i, n] for i, (_, negatives) in enumerate(rows) for n in negatives]
        total = 0
        for residuals in (pull, push):
            violations = [rho(h, alpha, scale) for h in residuals if h > 0]
            total = total + sum(violations) / len(violations)
        return total

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradient_and_value_are_those_of_the_formula(settings, case):
    assert_is(GeneralRobustLoss(**settings), formula(**settings), case)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_are_the_derivative_of_each_pair(settings):
    assert_weights(GeneralRobustLoss(**settings), formula(**settings))


def test_alpha_says_what_an_outlier_weighs():
    distance = torch.tensor([[1.2, 0.8, 1.6]], dtype=torch.float64)  # h of 0.2, the scale, for the first
    positive = torch.tensor([[True, False, False]])
    for alpha, weight in [
        (2, 0.4 / 0.04), (1, 0.4 / 0.04 / math.sqrt(4 + 1)), (0, 0.4 / 0.04 / (4 / 2 + 1)),
        (-2, 0.4 / 0.04 / (4 / 4 + 1) ** 2), (-1e30, 0.4 / 0.04 * math.exp(-4 / 2)),
    ]:  # fmt: skip
        weights = GeneralRobustLoss(alpha=alpha).weights(distance, positive, ~positive)
        assert weights.positive[0].tolist() == pytest.approx([weight, 0, 0], rel=1e-9)
        assert weights.negative[0].tolist() == pytest.approx([0, weight, 0], rel=1e-9)


@pytest.mark.parametrize("special", [2.0, 0.0])
def test_alpha_beside_a_special_one_is_next_to_it(special):
    distance = torch.rand(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    positive = torch.arange(9).expand(5, 9) < 4
    exact = GeneralRobustLoss(alpha=special).terms(distance, positive, ~positive, None, None)
    for beside in (1e-300, 1e-17, 1e-12):
        near = GeneralRobustLoss(alpha=special - beside).terms(distance, positive, ~positive, None, None)
        for kind in (0, 1):
            assert torch.allclose(near.value[kind], exact.value[kind], rtol=1e-9)
            assert torch.allclose(near.weights[kind], exact.weights[kind], rtol=1e-9)


@pytest.mark.parametrize("alpha", [2.0, 1.0, 1e-30, 0.0, -1e6, -1e30])
@pytest.mark.parametrize("scale", [1e-3, 0.2, 1e6])
def test_no_alpha_overflows(alpha, scale):
    assert_finite(GeneralRobustLoss(alpha=alpha, scale=scale))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"at most 2, where the loss is the square, got 3\.0"):
        GeneralRobustLoss(alpha=3.0)
    with pytest.raises(ValueError, match=r"a distance, more than 0, got 0\.0"):
        GeneralRobustLoss(scale=0.0)
