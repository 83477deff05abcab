"""Miners: what counts and how much, as the losses weigh."""

import pickle

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss as PmlContrastiveLoss

import metricweight as mw
from metricweight.losses import InstanceCrossEntropyLoss, OnlineSoftMiningLoss, RankedListLoss
from metricweight.miners import ClassAwareMiner, InstanceMiner, OnlineSoftMiner, PairMiner, RankedListMiner
from metricweight.pairs import from_labels

PAIRS = [
    (RankedListMiner(), RankedListLoss()),
    (OnlineSoftMiner(), OnlineSoftMiningLoss()),
    (InstanceMiner(), InstanceCrossEntropyLoss()),
    (PairMiner(RankedListLoss(margin=0.2)), RankedListLoss(margin=0.2)),
]
miners = pytest.mark.parametrize(("miner", "loss"), PAIRS, ids=[repr(miner)[:16] for miner, _ in PAIRS])


def batch(count=15, seed=0):
    x = torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_(), torch.arange(count) % 4


@miners
@pytest.mark.parametrize("gallery", [False, True])
def test_scores_and_weights_are_those_of_the_loss_on_the_same_distances(miner, loss, gallery):
    x, labels = batch()
    reference = dict(zip(("ref_emb", "ref_labels"), batch(6, seed=1), strict=True)) if gallery else {}
    f = torch.nn.functional.normalize(x.detach())
    g = torch.nn.functional.normalize(reference["ref_emb"].detach()) if gallery else f
    between = torch.cdist(f, g) if loss.coordinate == "distance" else f @ g.T
    pairs = from_labels(labels, reference.get("ref_labels"))
    for name in ("scores", "weights"):
        found, expected = getattr(miner, name)(x, labels, **reference), getattr(loss, name)(between, *pairs)
        for side in (0, 1):
            assert torch.allclose(found[side], expected[side], rtol=1e-6, atol=1e-12)
            assert not found[side].requires_grad


@miners
def test_mined_pairs_are_those_whose_score_is_not_zero(miner, loss):
    x, labels = batch()
    mined, scores = miner(x, labels), miner.scores(x, labels)
    for (anchors, others), score in zip((mined[:2], mined[2:]), scores, strict=True):
        assert torch.equal(torch.stack([anchors, others], 1), score.nonzero())


@miners
def test_mining_changes_nothing_for_the_loss_that_it_mines_for(miner, loss):
    x, labels = batch()
    assert torch.allclose(loss(x, labels, miner(x, labels)), loss(x, labels))


@miners
def test_an_empty_batch_has_no_pairs(miner, loss):
    mined = miner(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert [len(indices) for indices in mined] == [0, 0, 0, 0]


@miners
def test_its_repr_builds_it_and_it_pickles(miner, loss):
    assert repr(eval(repr(miner), {**vars(mw.miners), **vars(mw.losses)})) == repr(miner)
    assert repr(pickle.loads(pickle.dumps(miner))) == repr(miner)


def test_the_ranked_list_miner_finds_what_breaks_the_ranking():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])  # distances from item 0: sqrt 2, sqrt 0.4, 2
    a, p, b, n = RankedListMiner()(x, labels)
    assert p[a == 0].tolist() == [1]
    assert n[b == 0].tolist() == [2]


def test_the_class_aware_miner_scores_a_pair_by_its_less_typical_member():
    torch.manual_seed(0)
    caa = mw.losses.ClassAwareAttention(4, 4).double()
    x, labels = batch()
    ref, ref_labels = batch(6, seed=1)
    a, b = caa.attention(x, labels).tolist(), caa.attention(ref, ref_labels).tolist()
    alone, beside = ClassAwareMiner(caa).scores(x, labels), ClassAwareMiner(caa).scores(x, labels, ref, ref_labels)
    for i in range(15):
        for j in range(15):
            same = labels[i] == labels[j]
            assert alone.positive[i, j] == (min(a[i], a[j]) if same and i != j else 0)
            assert alone.negative[i, j] == (0 if same else min(a[i], a[j]))
        for j in range(6):
            assert beside[int(labels[i] != ref_labels[j])][i, j] == min(a[i], b[j])
    loss_fn = PmlContrastiveLoss()
    with mw.pml.attach(loss_fn, pair=ClassAwareMiner(caa)):
        weighed = torch.autograd.grad(loss_fn(x, labels), x)[0]
    assert not torch.allclose(weighed, torch.autograd.grad(loss_fn(x, labels), x)[0])
    assert len(ClassAwareMiner(caa)(x, labels)[0]) == (alone.positive > 0).sum()
    again = eval(repr(ClassAwareMiner(caa)), {**vars(mw.miners), **vars(mw.losses)})
    assert repr(again) == repr(ClassAwareMiner(caa))
