"""Cross-batch memory against a list of what has been seen."""

import copy

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss as PmlContrastiveLoss
from pytorch_metric_learning.losses import NTXentLoss
from pytorch_metric_learning.miners import PairMarginMiner

from metricweight.emphasis import Emphasis
from metricweight.losses import DerivativeLoss, InstanceCrossEntropyLoss, OnlineSoftMiningLoss, RankedListLoss
from metricweight.memory import CrossBatchMemory

OURS = [
    RankedListLoss(),
    RankedListLoss(gallery="free"),
    OnlineSoftMiningLoss(),
    OnlineSoftMiningLoss(form="released"),
    InstanceCrossEntropyLoss(),
]
ALL = [*OURS, PmlContrastiveLoss(), NTXentLoss()]


def batch(step, count=6):
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 4, (count,), generator=generator)
    labels[:2] = 0  # a positive pair in each batch
    return torch.randn(count, 3, dtype=torch.float64, generator=generator).requires_grad_(), labels


def gradient(value, x):
    return torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_the_first_batch_sees_itself_alone(loss):
    x, labels = batch(0)
    memory = CrossBatchMemory(loss, 3, 16).double()
    value, plain = memory(x, labels), loss(x, labels)
    assert torch.allclose(value, plain, rtol=1e-12)
    assert torch.allclose(gradient(value, x), gradient(plain, x), rtol=1e-9)


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_each_batch_is_compared_with_itself_and_the_last_ones_while_the_memory_wraps(loss):
    memory = CrossBatchMemory(loss, 3, 16).double()  # 16 is no multiple of 6
    seen, seen_labels = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    for step in range(7):
        x, labels = batch(step)
        value = memory(x, labels)
        gallery, gallery_labels = torch.cat([x, seen[-16:]]), torch.cat([labels, seen_labels[-16:]])
        own = torch.zeros(len(x), len(gallery), dtype=torch.bool)
        own[range(len(x)), range(len(x))] = True
        same = labels[:, None] == gallery_labels
        indices = (*(same & ~own).nonzero(as_tuple=True), *(~same).nonzero(as_tuple=True))
        expected = loss(x, labels, indices, gallery, gallery_labels)
        if getattr(loss, "form", "") == "released":  # a pair of the batch is compared twice and counts once
            within = len(x) * (len(x) - 1)
            pairs = len(x) * len(gallery) - len(x)
            expected = expected * pairs / (pairs - within / 2)
        assert value.item() == pytest.approx(expected.item(), rel=1e-10)
        assert torch.allclose(gradient(value, x), gradient(expected, x), rtol=1e-7, atol=1e-12)
        seen, seen_labels = torch.cat([seen, x.detach()]), torch.cat([seen_labels, labels])


@pytest.mark.parametrize("loss", [RankedListLoss(), PmlContrastiveLoss()], ids=repr)
def test_a_miners_indices_choose_in_the_batch_and_leave_the_memory_whole(loss):
    memory = CrossBatchMemory(loss, 3, 16).double()
    mine = PairMarginMiner(pos_margin=0.1, neg_margin=0.9)
    seen = []
    for step in range(4):
        x, labels = batch(step)
        mined = mine(x, labels)
        value = memory(x, labels, mined)
        gallery, gallery_labels = (torch.cat(parts) for parts in zip((x, labels), *reversed(seen[-2:]), strict=True))
        far = torch.cartesian_prod(torch.arange(len(x)), torch.arange(len(x), len(gallery))).long()
        same = labels[far[:, 0]] == gallery_labels[far[:, 1]]
        indices = tuple(torch.cat([a, b]) for a, b in zip(mined, (*far[same].T, *far[~same].T), strict=True))
        if step < 3:  # later, the memory also holds a part of the batch before those
            expected = loss(x, labels, indices, gallery, gallery_labels)
            assert value.item() == pytest.approx(expected.item(), rel=1e-10)
        seen.append((x.detach(), labels))


@pytest.mark.parametrize("when", [0, 2, 5])
def test_its_whole_state_is_saved_and_restored(when):
    memory = CrossBatchMemory(OnlineSoftMiningLoss(), 3, 16).double()
    for step in range(when):
        memory(*batch(step))
    other = CrossBatchMemory(OnlineSoftMiningLoss(), 3, 16).double()
    other.load_state_dict(memory.state_dict())
    twin = copy.deepcopy(memory)
    for step in range(when, when + 5):
        values = [m(*batch(step)) for m in (memory, other, twin)]
        assert torch.equal(values[0], values[1])
        assert torch.equal(values[0], values[2])


def test_a_batch_larger_than_the_memory_leaves_its_end():
    memory = CrossBatchMemory(RankedListLoss(), 3, 4).double()
    x, labels = batch(0, count=11)
    memory(x, labels)
    order = (torch.arange(4) + memory.next) % 4
    assert torch.equal(memory.embeddings[order], x.detach()[-4:])
    assert torch.equal(memory.labels[order], labels[-4:])


def test_nothing_is_remembered_in_eval_mode():
    memory = CrossBatchMemory(RankedListLoss(), 3, 4).double().eval()
    memory(*batch(0))
    assert not memory.filled.any()


@pytest.mark.parametrize("loss", OURS, ids=repr)
def test_it_compiles_without_a_graph_break_and_without_a_new_graph_per_step(loss):
    torch.compiler.reset()
    eager, memory = (CrossBatchMemory(loss, 3, 16).double() for _ in range(2))
    compiled = torch.compile(memory, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(5):
            x, labels = batch(step)
            value, expected = compiled(x, labels), eager(x, labels)
            assert torch.allclose(value, expected)
            assert torch.allclose(gradient(value, x), gradient(expected, x))


@pytest.mark.parametrize("loss", [RankedListLoss(), PmlContrastiveLoss(), NTXentLoss()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_remembered_in_float32(dtype, loss):
    memory = CrossBatchMemory(loss, 3, 16)
    for step in range(3):
        x, labels = batch(step)
        x = x.detach().to(dtype).requires_grad_()
        value = memory(x, labels)
        assert value.dtype == torch.float32
        assert gradient(value, x).dtype == dtype
    assert memory.embeddings.dtype == torch.float32


def test_labels_of_any_size_are_remembered():
    memory, other = (CrossBatchMemory(RankedListLoss(), 3, 16).double() for _ in range(2))
    for step in range(3):
        x, labels = batch(step)
        assert torch.equal(memory(x, labels), other(x, (labels << 32) + 2**40))


def test_what_does_not_fit_gets_one_plain_sentence():
    with pytest.raises(ValueError, match="a loss on pairs, which takes ref_emb, got DerivativeLoss"):
        CrossBatchMemory(DerivativeLoss(Emphasis()), 3, 8)
    with pytest.raises(ValueError, match="counts, at least 1, got 3 and 0"):
        CrossBatchMemory(RankedListLoss(), 3, 0)
    with pytest.raises(ValueError, match=r"\[B, 3\] to match dim, got \[2, 4\]"):
        CrossBatchMemory(RankedListLoss(), 3, 8)(torch.randn(2, 4), torch.arange(2))


@pytest.mark.cuda
@pytest.mark.parametrize("loss", OURS, ids=repr)
def test_nothing_waits_for_the_gpu(loss):
    memory = CrossBatchMemory(loss, 3, 16).double().cuda()
    x, labels = (part.cuda() for part in batch(0))
    memory(x, labels)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        memory(x, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
