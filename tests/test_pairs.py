"""Who is a pair with whom, and distances between them."""

import pytest
import torch

from metricweight.pairs import among, from_labels
from metricweight.similarity import euclidean, unit


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


def test_a_pair_counts_once_however_often_a_miner_lists_it():
    pairs = from_labels(torch.tensor([0, 0, 1]))
    a, p, n = torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([2, 2])
    for indices in ((a, p, a, n), (a, p, n)):
        positive, negative = among(pairs, indices)
        assert positive.nonzero().tolist() == [[0, 1]]
        assert negative.nonzero().tolist() == [[0, 2]]


def test_a_miner_cannot_make_a_positive_of_a_negative():
    pairs = from_labels(torch.tensor([0, 0, 1]))
    wrong = torch.tensor([0]), torch.tensor([2]), torch.tensor([0]), torch.tensor([1])
    positive, negative = among(pairs, wrong)
    assert not positive.any()
    assert not negative.any()


@pytest.mark.parametrize("gap", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
def test_small_distances_keep_their_digits(gap):
    base = unit(torch.randn(1, 128, generator=torch.Generator().manual_seed(0)))
    step = torch.zeros_like(base)
    step[0, 0] = gap
    near = base + step
    expected = (base.double() - near.double()).norm()
    assert euclidean(base, near).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_anything_is_computed(dtype):
    x = torch.randn(5, 16).to(dtype)
    assert unit(x).dtype == torch.float32
    assert torch.equal(unit(x), unit(x.float()))
    assert unit(x.double()).dtype == torch.float64


def test_a_zero_row_stays_zero():
    assert torch.equal(unit(torch.zeros(2, 3)), torch.zeros(2, 3))
