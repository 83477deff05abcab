"""Who is a pair with whom, and distances between them."""

import pytest
import torch

from metricweight.pairs import from_labels, listed
from metricweight.similarity import unit


def test_a_batch_pairs_with_itself_but_nobody_with_himself():
    positive, negative = from_labels(torch.tensor([7, 7, 5]))
    assert positive.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert negative.tolist() == [[False, False, True], [False, False, True], [True, True, False]]


def test_a_gallery_of_its_own_has_no_diagonal_to_leave_out():
    positive, negative = from_labels(torch.tensor([1, 2]), torch.tensor([1, 1, 2]))
    assert positive.tolist() == [[True, True, False], [False, False, True]]
    assert torch.equal(negative, ~positive)


def test_labels_that_float32_cannot_tell_apart_are_different():
    labels = torch.tensor([2**24, 2**24 + 1])
    assert not from_labels(labels).positive.any()


def test_a_pair_is_listed_once_however_often_a_miner_lists_it():
    labels = torch.tensor([0, 0, 1])
    a, p, n = torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([2, 2])
    for indices in ((a, p, a, n), (a, p, n)):
        assert listed(indices, labels, labels).nonzero().tolist() == [[0, 1], [0, 2]]


def test_a_miner_cannot_make_a_positive_of_a_negative():
    labels = torch.tensor([0, 0, 1])
    zero, one, two = (torch.tensor([i]) for i in range(3))
    assert not listed((zero, two, zero, one), labels, labels).any()
    assert listed((zero, one, zero, one), labels, labels).nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_anything_is_computed(dtype):
    x = torch.randn(5, 16).to(dtype)
    assert unit(x).dtype == torch.float32
    assert torch.equal(unit(x), unit(x.float()))
    assert unit(x.double()).dtype == torch.float64


def test_a_zero_row_stays_zero():
    assert torch.equal(unit(torch.zeros(2, 3)), torch.zeros(2, 3))
