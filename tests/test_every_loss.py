"""What holds for each row of LOSSES. A new row must pass unchanged."""

import pickle

import pytest
import torch
from conftest import CPU_AND_CUDA

import metricweight as mw
from metricweight.losses import LOSSES

rows = pytest.mark.parametrize("row", LOSSES.values(), ids=LOSSES)


def batch(count=24, size=8, classes=6, dtype=torch.float64, device="cpu"):
    x = torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.to(device, dtype).requires_grad_(), torch.arange(count, device=device) % classes


def gradient(loss_fn, x, labels):
    (found,) = torch.autograd.grad(loss_fn(x, labels), x)
    return found


@rows
def test_the_order_of_the_batch_does_not_matter(row):
    x, labels = batch()
    order = torch.randperm(len(x))
    y = x.detach()[order].requires_grad_()
    loss = row.build()
    assert torch.allclose(loss(y, labels[order]), loss(x, labels))
    assert torch.allclose(gradient(loss, y, labels[order]), gradient(loss, x, labels)[order])


@rows
@pytest.mark.parametrize("device", CPU_AND_CUDA)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_float32_at_least_and_gives_the_gradient_in_the_dtype_of_the_embeddings(row, dtype, device):
    x, labels = batch(dtype=dtype, device=device)
    loss = row.build()(x, labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    found = gradient(row.build(), x, labels)
    assert (found.dtype, found.device) == (dtype, x.device)
    exact = gradient(row.build(), x.detach().double().requires_grad_(), labels)
    assert torch.allclose(found.double(), exact, rtol=1e-2, atol=1e-4)


@rows
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(row, dtype):
    x, labels = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        inside = row.build()(x, labels)
    assert torch.equal(inside, row.build()(x, labels))


EDGES = {
    "duplicates": (torch.ones(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])),
    "half duplicates": (torch.eye(4)[[0, 0, 1, 1, 2, 3]], torch.tensor([0, 1, 0, 1, 0, 1])),
    "one class": (torch.randn(5, 4), torch.zeros(5, dtype=torch.long)),
    "no positives": (torch.randn(5, 4), torch.arange(5)),
    "batch of 1": (torch.randn(1, 4), torch.zeros(1, dtype=torch.long)),
    "empty batch": (torch.randn(0, 4), torch.zeros(0, dtype=torch.long)),
    "zero rows": (torch.zeros(4, 4), torch.tensor([0, 0, 1, 1])),
    "huge": (torch.randn(6, 4) * 1e18, torch.tensor([0, 0, 0, 1, 1, 1])),
    "labels above 2^24": (torch.randn(6, 4), 2**24 + torch.arange(6) // 2),
}


@rows
@pytest.mark.parametrize("edge", EDGES)
def test_value_and_gradient_are_finite_at_every_edge(row, edge):
    x, labels = EDGES[edge]
    x = x.clone().requires_grad_()
    loss = row.build()(x, labels)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


@rows
def test_labels_above_2_to_the_24_are_told_apart(row):
    x, labels = batch()
    assert torch.equal(row.build()(x, labels), row.build()(x, labels + 2**40))


@rows
def test_compiles_without_a_graph_break_to_the_same_numbers(row):
    x, labels = batch()
    loss = row.build()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, labels), loss(x, labels))
    assert torch.allclose(gradient(compiled, x, labels), gradient(loss, x, labels))


@rows
def test_no_gradient_survives_a_miner_that_chose_nothing(row):
    x, labels = batch()
    nothing = (torch.zeros(0, dtype=torch.long),) * 4
    row.build()(x, labels, nothing).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@rows
def test_its_repr_builds_it_and_it_pickles(row):
    loss = row.build()
    assert repr(eval(repr(loss), vars(mw.losses))) == repr(loss)
    assert repr(pickle.loads(pickle.dumps(loss))) == repr(loss)


@rows
@pytest.mark.parametrize(
    ("x", "labels", "words"),
    [
        (torch.randn(4, 3, 2), torch.arange(4), r"\[B, D\] of a floating dtype, got \[4, 3, 2\]"),
        (torch.arange(12).view(4, 3), torch.arange(4), "floating dtype, got .* of torch.int64"),
        (torch.randn(4, 3), torch.arange(3), r"labels must be \[4\] to match embeddings \[4, 3\], got \[3\]"),
        (torch.randn(4, 3), torch.rand(4), r"labels must be integers, got torch.float32; convert"),
    ],
)
def test_wrong_shapes_and_dtypes_get_one_plain_sentence(row, x, labels, words):
    with pytest.raises(ValueError, match=words):
        row.build()(x, labels)


@pytest.mark.cuda
@rows
def test_nothing_waits_for_the_gpu(row):
    x, labels = batch(device="cuda")
    row.build()(x, labels).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        row.build()(x, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
