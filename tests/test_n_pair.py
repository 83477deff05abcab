"""The N-pair loss against loops that are written from its formula."""

import math

import pytest
import torch
from pairs_by_hand import CASES, assert_finite, assert_is, assert_weights, batch
from pytorch_metric_learning import losses as pml

from metricweight.pair_weights.n_pair import NPairLoss


def formula(m, rows):
    total = 0
    for s, (positives, negatives) in zip(m, rows, strict=True):
        for p in positives:
            total = total + (1 + sum((s[n] - s[p]).exp() for n in negatives)).log() / len(positives)
    return total / len(rows)


@pytest.mark.parametrize("case", CASES)
def test_gradient_and_value_are_those_of_the_formula(case):
    assert_is(NPairLoss(), formula, case)


def test_weights_are_the_derivative_of_each_pair():
    assert_weights(NPairLoss(), formula)


def test_positives_weigh_as_much_as_negatives():
    similarity = torch.tensor([[math.log(3), math.log(2), 0.0]], dtype=torch.float64)
    positive = torch.tensor([[True, False, False]])
    weights = NPairLoss().weights(similarity, positive, ~positive)
    assert weights.positive[0].tolist() == pytest.approx([1 - 3 / 6, 0, 0])
    assert weights.negative[0].tolist() == pytest.approx([0, 2 / 6, 1 / 6])


def test_a_pair_per_class_is_the_loss_of_pytorch_metric_learning():
    anchors, labels = batch(each=1, size=4)
    positives, _ = batch(seed=1, each=1, size=4)
    found, wanted = ([t.clone().requires_grad_() for t in (anchors, positives)] for _ in range(2))
    value = NPairLoss()(found[0], labels, ref_emb=found[1], ref_labels=labels)
    other = pml.NPairsLoss()
    other.distance.normalize_embeddings = False
    same = other(torch.cat(wanted), torch.cat([labels, labels]))
    value.backward()
    same.backward()
    assert value.item() == pytest.approx(same.item(), rel=1e-12)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)


def test_lengths_count():
    x, labels = batch()
    assert NPairLoss()(2 * x, labels) != NPairLoss()(x, labels)


@pytest.mark.parametrize("length", [1e-18, 1e3, 1e15])
def test_no_length_overflows(length):
    assert_finite(NPairLoss(), scale=length)


def test_an_anchor_without_negatives_is_zero():
    x, _ = batch()
    assert NPairLoss()(x, torch.zeros(len(x), dtype=torch.long)).item() == 0
