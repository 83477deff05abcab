"""Beside pytorch-metric-learning: the same calls, and where the numbers agree and where they differ on purpose."""

import copy
import pickle

import pytest
import torch
from pytorch_metric_learning import distances, losses, reducers, regularizers
from pytorch_metric_learning.losses import RankedListLoss as PmlRankedListLoss
from pytorch_metric_learning.miners import BaseMiner, PairMarginMiner, TripletMarginMiner
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch import nn

from metricweight import pml
from metricweight.checks import InputError
from metricweight.emphasis import Emphasis
from metricweight.losses import LOSSES, InstanceCrossEntropyLoss, RankedListLoss
from metricweight.miners import InstanceMiner, OnlineSoftMiner, RankedListMiner
from metricweight.pairs import PairWeights, from_labels


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


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_without_pmls_1e_5_per_column_it_is_exactly_that(balance):
    """At temperature 0 all weights are 1, so PML divides an anchor's sum over S pairs by S + 1e-5 N."""
    x, labels = batch()
    f = nn.functional.normalize(x.detach())
    d, same = torch.cdist(f, f), labels[:, None] == labels
    listed = (~same & (d < 1.2)) if balance else (same & (d > 0.8))
    counts = listed.sum(1).double()
    theirs = PmlRankedListLoss(margin=0.4, Tn=0, imbalance=balance)
    pml.attach(theirs, element=torch.where(counts > 0, (counts + 1e-5 * len(x)) / counts.clamp(min=1), 1.0))
    ours = RankedListLoss(negative_temperature=0, gallery="free", balance=balance)
    for a, b in zip(value_and_gradient(ours, x, labels), value_and_gradient(theirs, x, labels), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_at_temperature_10_the_values_agree_and_the_gradients_do_not():
    x, labels = batch()
    ours, our_gradient = value_and_gradient(RankedListLoss(gallery="free"), x, labels)
    theirs, their_gradient = value_and_gradient(PmlRankedListLoss(margin=0.4, Tn=10), x, labels)
    assert torch.allclose(ours, theirs, rtol=2e-3)
    assert torch.cosine_similarity(our_gradient.flatten(), their_gradient.flatten(), dim=0) < 0.98


def test_pml_pulls_easy_negatives_in_and_ours_does_not():
    """dL_N/dd of a query with negatives at 20, 35 and 50 degrees: PML differentiates its weights too."""
    d = 2 * torch.deg2rad(torch.tensor([20.0, 35.0, 50.0], dtype=torch.float64) / 2).sin()
    theirs = d.clone().requires_grad_()
    weights = torch.exp(10 * (1.2 - theirs))
    (weights / weights.sum() * (1.2 - theirs)).sum().backward()
    assert [g > 0 for g in theirs.grad] == [False, True, True]  # larger distance, larger loss
    ours = RankedListLoss().weights(d[None], torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool))
    assert (ours.negative >= 0).all()
    x = torch.tensor([0.0, 75.0, 20.0, 35.0, 50.0], dtype=torch.float64).deg2rad()
    points = torch.stack([x.cos(), x.sin()], 1)
    labels = torch.tensor([0, 0, 1, 2, 3])
    matrices = []
    loss_fn = PmlRankedListLoss(margin=0.4, Tn=10, imbalance=1.0)
    loss_fn.distance.register_forward_hook(lambda *args: matrices.append(args[-1]) or args[-1].retain_grad())
    loss_fn(points.clone().requires_grad_(), labels).backward()
    assert [g > 0 for g in matrices[0].grad[0, 2:]] == [False, True, True]


def test_instance_cross_entropy_is_nt_xent_summed_over_positives():
    x, labels = batch()  # 3 positives to each anchor
    ours = value_and_gradient(InstanceCrossEntropyLoss(scale=7.0), x, labels)
    theirs = value_and_gradient(losses.NTXentLoss(temperature=1 / 7), x, labels)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, 3 * b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("row", [row for row in LOSSES.values() if row.kind == "pair"], ids=lambda row: row.name)
@pytest.mark.parametrize(
    "miner", [PairMarginMiner(pos_margin=0.5, neg_margin=1.0), TripletMarginMiner(type_of_triplets="hard")]
)
def test_takes_what_pmls_miners_return(row, miner):
    x, labels = batch()
    mined = miner(x, labels)
    anchors, positives, *others = mined
    listed = {*zip(anchors.tolist(), positives.tolist(), strict=True)}
    listed |= {*zip((others[0] if others[1:] else anchors).tolist(), others[-1].tolist(), strict=True)}
    chosen = torch.tensor([[(i, j) in listed for j in range(32)] for i in range(32)])
    loss = row.build()
    assert torch.equal(loss(x, labels, mined), loss.against(x, labels, None, None, chosen, own=True))
    assert not chosen.all()


class OnSimilarities(nn.Module):
    """The least that a loss of metricweight on similarities is: its value, in float64."""

    coordinate = "similarity"

    def forward(self, embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None):
        f = nn.functional.normalize(embeddings)
        g = f if ref_emb is None else nn.functional.normalize(ref_emb)
        pairs = from_labels(labels, ref_labels)
        return (f @ g.T * (pairs.negative.to(f.dtype) - pairs.positive.to(f.dtype))).sum() / max(len(f), 1)


class OnDistances(OnSimilarities):
    coordinate = "distance"


class SoftMiner:
    """The least that a miner of metricweight is."""

    def __call__(self, embeddings, labels, ref_emb=None, ref_labels=None):
        assert not torch.is_grad_enabled()
        positive, negative = self.scores(embeddings, labels, ref_emb, ref_labels)
        return (*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True))

    def scores(self, embeddings, labels, ref_emb=None, ref_labels=None):
        pairs = from_labels(labels, ref_labels)
        near = torch.cdist(embeddings, embeddings if ref_emb is None else ref_emb).neg().exp()
        return PairWeights(near * pairs.positive, near * (near > 0.05) * pairs.negative)


def test_our_loss_as_one_of_pmls_has_the_same_value_and_gradient():
    x, labels = batch()
    y, gallery_labels = torch.randn(10, 6, dtype=torch.float64), torch.arange(10) % 8
    mined = PairMarginMiner(pos_margin=0.5, neg_margin=1.0)(x, labels)
    for ours in (OnSimilarities(), *(row.build() for row in LOSSES.values() if row.kind == "pair")):
        theirs = pml.loss(ours)
        assert isinstance(theirs, losses.BaseMetricLossFunction)
        for more in ({}, {"indices_tuple": mined}, {"ref_emb": y, "ref_labels": gallery_labels}):
            a, b = (value_and_gradient(lambda x, y, f=f: f(x, y, **more), x, labels) for f in (ours, theirs))  # noqa: B023
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
        itself = theirs(x, labels, ref_emb=x, ref_labels=labels)
        assert torch.equal(itself, ours(x, labels))


def test_our_loss_goes_into_what_pml_puts_round_a_loss():
    x, labels = batch()
    ours, nca = RankedListLoss(), losses.NTXentLoss()
    theirs = pml.loss(ours)
    both = losses.MultipleLosses([theirs, nca], weights=[2, 1])
    assert torch.allclose(both(x, labels), 2 * ours(x, labels) + nca(x, labels))
    with pytest.warns(UserWarning, match="non-distributed"):
        assert torch.equal(DistributedLossWrapper(theirs)(x, labels), ours(x, labels))
    doubled, twice = torch.cat([x, -x]), torch.arange(32).repeat(2)
    assert torch.equal(pml.SelfSupervisedLoss(theirs)(x, -x), ours(doubled, twice))
    assert pml.SelfSupervisedLoss(losses.NTXentLoss())(x, -x).isfinite()
    with pytest.raises(Exception, match="not supported for MetricWeightLoss"):  # its list holds its own names
        losses.CrossBatchMemory(theirs, 6)
    for copied in (copy.deepcopy(theirs), pickle.loads(pickle.dumps(theirs))):
        assert torch.equal(copied(x, labels), theirs(x, labels))


def test_a_regulariser_of_pml_is_added_with_its_weight():
    x, labels = batch()
    regulariser = regularizers.LpRegularizer()
    theirs = pml.loss(RankedListLoss(), embedding_regularizer=regulariser, embedding_reg_weight=0.3)
    assert torch.allclose(theirs(x, labels), RankedListLoss()(x, labels) + 0.3 * regulariser(x))


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_without_pairs_is_zero_with_zero_gradient(count):
    x = torch.randn(count, 4, requires_grad=True)
    loss = pml.loss(RankedListLoss())(x, torch.arange(count))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()


def test_a_distance_is_taken_only_where_it_is_the_losss_own():
    for ours, right, wrong in [
        (OnDistances(), [distances.LpDistance(p=2, power=1)],
         [distances.LpDistance(power=2), distances.LpDistance(p=1), distances.LpDistance(normalize_embeddings=False),
          distances.CosineSimilarity(), distances.SNRDistance()]),
        (OnSimilarities(), [distances.CosineSimilarity(), distances.DotProductSimilarity()],
         [distances.LpDistance(), distances.DotProductSimilarity(normalize_embeddings=False),
          distances.CosineSimilarity(power=2)]),
    ]:  # fmt: skip
        assert isinstance(pml.loss(ours).distance, type(right[0]))
        for distance in right:
            assert pml.loss(ours, distance=distance).distance is distance
        for distance in wrong:
            with pytest.raises(InputError, match=f"{type(ours).__name__} computes its own {ours.coordinate}"):
                pml.loss(ours, distance=distance)


def test_a_reducer_is_taken_only_where_it_has_something_to_do():
    x, labels = batch()
    unreduced = pml.loss(RankedListLoss(), reducer=reducers.DoNothingReducer())(x, labels)
    assert torch.equal(unreduced["loss"]["losses"], RankedListLoss()(x, labels))

    class Halved(reducers.MeanReducer):
        def already_reduced_reduction(self, losses, *_):
            return losses / 2

    assert torch.equal(pml.loss(RankedListLoss(), reducer=Halved())(x, labels), RankedListLoss()(x, labels) / 2)
    for reducer in (reducers.MeanReducer(), reducers.AvgNonZeroReducer(), reducers.MultipleReducers({}), "mean"):
        with pytest.raises(InputError, match=r"which \w+ would pass on as it is"):
            pml.loss(RankedListLoss(), reducer=reducer)


def test_classes_and_mixed_up_kinds_are_refused_at_once():
    for wrong in (RankedListLoss, RankedListMiner):
        with pytest.raises(InputError, match="needs an instance of metricweight"):
            pml.loss(wrong)
    for wrong in (RankedListMiner, RankedListLoss()):
        with pytest.raises(InputError, match="give an instance"):
            pml.miner(wrong)
    for wrong in (RankedListLoss(), PairMarginMiner()):
        with pytest.raises(InputError, match="takes a miner of metricweight"):
            pml.attach(losses.ContrastiveLoss(), pair=wrong)
    with pytest.raises(InputError, match="give GradientWeighting\\(Emphasis"):
        pml.attach(losses.ContrastiveLoss(), example=Emphasis())


def test_a_trainer_of_pml_trains_by_our_loss_and_miner():
    trunk = nn.Linear(6, 4)
    before = trunk.weight.detach().clone()
    x, labels = batch()
    data = torch.utils.data.TensorDataset(x.detach().float(), labels)
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=16,
        loss_funcs={"metric_loss": pml.loss(RankedListLoss())},
        mining_funcs={"tuple_miner": pml.miner(RankedListMiner())},
        dataset=data,
        data_device="cpu",
        dataloader_num_workers=0,
    )
    trainer.train(num_epochs=1)
    assert not torch.equal(trunk.weight, before)


def test_what_is_no_loss_or_miner_of_ours_is_refused():
    with pytest.raises(InputError, match="NTXentLoss is a loss of pytorch-metric-learning already"):
        pml.loss(losses.NTXentLoss())
    with pytest.raises(InputError, match="metricweight's losses on pairs of embeddings, got MSELoss"):
        pml.loss(nn.MSELoss())
    for other in (PairMarginMiner(), nn.MSELoss()):
        with pytest.raises(InputError, match=f"one of metricweight's miners, got {type(other).__name__}"):
            pml.miner(other)
    with pytest.raises(InputError, match="OnDistances needs labels"):
        pml.loss(OnDistances())(batch()[0])


def test_example_weights_reach_our_loss_and_pair_weights_say_that_they_do_not():
    x, labels = batch()
    w = torch.rand(32, dtype=torch.float64)
    ours = pml.loss(RankedListLoss())
    plain = value_and_gradient(ours, x, labels)[1]
    with pml.attach(ours, example=w):
        assert torch.allclose(value_and_gradient(ours, x, labels)[1], w[:, None] * plain, rtol=1e-13)
    for what in ("pair", "element"):
        with pml.attach(ours, **{what: w}), pytest.raises(InputError, match=r"MetricWeightLoss.*; example= reaches it"):
            ours(x, labels)


def test_our_miner_as_one_of_pmls_returns_its_hard_support():
    x, labels = batch()
    miner, y, gallery_labels = pml.miner(SoftMiner()), torch.randn(10, 6, dtype=torch.float64), torch.arange(10) % 8
    assert isinstance(miner, BaseMiner)
    mined = miner(x, labels)
    assert type(mined) is tuple
    assert all(part.dtype == torch.long for part in mined)
    a1, p, a2, n = mined
    assert (labels[a1] == labels[p]).all()
    assert (labels[a2] != labels[n]).all()
    assert (a1 != p).all()
    assert 0 < len(a2) < 32 * 28
    assert all(torch.equal(a, b) for a, b in zip(miner(x, labels, x, labels), mined, strict=True))
    assert (
        labels[miner(x, labels, y, gallery_labels)[0]] == gallery_labels[miner(x, labels, y, gallery_labels)[1]]
    ).all()
    assert all(part.shape == (0,) for part in miner(x[:0], labels[:0]))
    DistributedMinerWrapper(miner)
    loss = losses.MultipleLosses([losses.ContrastiveLoss()], miners=[miner])
    assert torch.equal(loss(x, labels), losses.ContrastiveLoss()(x, labels, mined))


@pytest.mark.parametrize("kind", [SoftMiner, InstanceMiner, OnlineSoftMiner, RankedListMiner])
def test_the_soft_side_of_our_miner_reaches_pmls_loss_through_attach(kind):
    x, labels = batch()
    miner, loss = kind(), losses.ContrastiveLoss()
    with pml.attach(loss, pair=sum(miner.scores(x.detach(), labels))):
        expected = value_and_gradient(loss, x, labels)[1]
    for one in (miner, pml.miner(miner)):
        with pml.attach(loss, pair=one):
            assert torch.equal(value_and_gradient(loss, x, labels)[1], expected)
