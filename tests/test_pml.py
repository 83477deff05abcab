"""Beside pytorch-metric-learning: the same calls, and where the numbers agree and where they differ on purpose."""

import pytest
import torch
from pytorch_metric_learning.losses import RankedListLoss as PmlRankedListLoss
from pytorch_metric_learning.miners import PairMarginMiner, TripletMarginMiner

from metricweight.losses import LOSSES, RankedListLoss


def batch():
    x = torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.requires_grad_(), torch.arange(32) % 8


def value_and_gradient(loss_fn, x, labels):
    loss = loss_fn(x, labels)
    return loss, torch.autograd.grad(loss, x)[0]


def test_without_temperature_a_free_gallery_is_pmls_ranked_list_loss():
    x, labels = batch()
    ours = value_and_gradient(RankedListLoss(negative_temperature=0, gallery="free"), x, labels)
    theirs = value_and_gradient(PmlRankedListLoss(margin=0.4, Tn=0), x, labels)
    for a, b in zip(ours, theirs, strict=True):  # their denominators carry 1e-5 per column
        assert torch.allclose(a, b, rtol=2e-3, atol=1e-6)


def test_at_temperature_10_the_values_agree_and_the_gradients_do_not():
    x, labels = batch()
    ours, our_gradient = value_and_gradient(RankedListLoss(gallery="free"), x, labels)
    theirs, their_gradient = value_and_gradient(PmlRankedListLoss(margin=0.4, Tn=10), x, labels)
    assert torch.allclose(ours, theirs, rtol=2e-3)
    assert torch.cosine_similarity(our_gradient.flatten(), their_gradient.flatten(), dim=0) < 0.98


@pytest.mark.parametrize("row", [row for row in LOSSES.values() if row.kind == "pair"], ids=lambda row: row.name)
@pytest.mark.parametrize(
    "miner", [PairMarginMiner(pos_margin=0.5, neg_margin=1.0), TripletMarginMiner(type_of_triplets="hard")]
)
def test_takes_what_pmls_miners_return(row, miner):
    x, labels = batch()
    mined = miner(x, labels)
    loss = row.build()
    assert loss(x, labels, mined).isfinite()
    assert loss(x, labels, mined) != loss(x, labels)
