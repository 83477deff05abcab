"""What holds for each row of LOSSES. A new row must pass unchanged, but for its formula where it weighs examples or
revises targets (`WEIGHTS`, `TARGETS`): those are written here from the papers."""

import copy
import math
import pickle
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU_AND_CUDA

import metricweight as mw
from metricweight.checks import InputError
from metricweight.losses import LOSSES
from metricweight.pairs import from_labels

CLASSES = 6

rows = pytest.mark.parametrize("row", LOSSES.values(), ids=LOSSES)


def of_kind(kind):
    found = [row for row in LOSSES.values() if row.kind == kind]
    return pytest.mark.parametrize("row", found, ids=[row.name for row in found])


def batch(row, count=24, size=8, dtype=torch.float64, device="cpu"):
    """Embeddings [B, 8] for losses on pairs, logits [B, 6] for the others, and labels."""
    size = size if row.kind == "pair" else CLASSES
    x = torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.to(device, dtype).requires_grad_(), torch.arange(count, device=device) % CLASSES


def gradient(loss_fn, x, labels):
    (found,) = torch.autograd.grad(loss_fn(x, labels), x)
    return found


@of_kind("pair")
@pytest.mark.parametrize("mined", [False, True])
def test_the_derivative_on_pairs_is_their_direction_times_their_weight(row, mined):
    """Dense: autograd of sum_ij W_ij d_ij (or s_ij), W the weights as numbers, normalised as the loss declares. A
    miner that lists (i, j) need not list (j, i)."""
    x, labels = batch(row)
    loss = row.build()
    f = F.normalize(x) if loss.unit_length else x
    g = f.detach() if loss.gallery == "fixed" else f
    own = torch.eye(len(x), dtype=torch.bool)
    between = (
        (f[:, None] - g[None]).square().sum(2).masked_fill(own, 1.0).sqrt()
        if loss.coordinate == "distance"
        else f @ g.T
    )
    pairs, indices = from_labels(labels), None
    if mined:
        chosen = torch.rand(len(x), len(x), generator=torch.Generator().manual_seed(1)) < 0.6
        pairs = [mask & chosen for mask in pairs]
        indices = (*pairs[0].nonzero(as_tuple=True), *pairs[1].nonzero(as_tuple=True))
    weights, scores = (part(between, *pairs) for part in (loss.weights, loss.scores))
    pull = 1 if loss.coordinate == "distance" else -1
    surrogate = 0
    for sign, share, w, score in zip((pull, -pull), loss.shares(len(x) * (len(x) - 1)), weights, scores, strict=True):
        mass = {"row": score.sum(1, keepdim=True), "batch": score.sum(), "no": torch.tensor(1.0)}[loss.normalised]
        over = 1 if loss.normalised == "batch" else len(x)
        assert (w >= 0).all()
        assert (score >= 0).all()
        assert not w.requires_grad
        surrogate = surrogate + sign * share / over * (w / mass.clamp(min=1e-300) * between).sum()
    (expected,) = torch.autograd.grad(surrogate, x)
    (found,) = torch.autograd.grad(loss(x, labels, indices), x)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-13)
    assert expected.abs().sum() > 0


WEIGHTS = {
    "cce": lambda p: 2 * (1 - p),
    "mae": lambda p: 4 * p * (1 - p),
    "mse": lambda p: 4 * p * (1 - p) ** 2,
    "gce": lambda p: 2 * p**0.7 * (1 - p),
    "sce": lambda p: 2 * (1 - p) * (6 - 0.1 * math.log(1e-4) * p),
    "imae": lambda p: math.exp(8 * p * (1 - p)),
    "dm": lambda p: math.exp(8 * p**0.5 * (1 - p)),
    "normal": lambda p: math.exp(-8 * p * (p - 1)),
    "exponential": lambda p: math.exp(2 * (1 - p)),
    "beta": lambda p: p * (1 - p),
    "feature_learning": lambda p: 2 * (1 - p) * bell(p),
}


def bell(p):
    return math.exp(-((p - 0.5) ** 2) / (2 * 0.18**2))


OVER = {"feature_learning": bell}  # weights are divided by the batch's mean of it


@of_kind("example")
def test_the_derivative_of_an_example_is_its_direction_times_its_weight(row):
    """Scaled cross entropy: w / (2 (1 - p)) (p - q), one example at a time."""
    x, labels = batch(row)
    expected = torch.zeros_like(x)
    every = [[math.exp(v) / sum(map(math.exp, z)) for v in z] for z in x.tolist()]
    over = OVER.get(row.name, lambda p: 1)
    mean = sum(over(p[y]) for p, y in zip(every, labels.tolist(), strict=True)) / len(x)
    for i, (p, y) in enumerate(zip(every, labels.tolist(), strict=True)):
        for k in range(CLASSES):
            expected[i, k] = WEIGHTS[row.name](p[y]) / mean / (2 * (1 - p[y])) * (p[k] - (k == y)) / len(x)
    assert torch.allclose(gradient(row.build(), x, labels), expected, rtol=1e-10, atol=1e-15)
    weights = row.make()(torch.linspace(0, 1, 101, requires_grad=True).detach())
    assert (weights >= 0).all()


def entropy_term(p):
    """p (log p + H(p)): what a target that is not detached adds."""
    h = -sum(v * math.log(v) for v in p)
    return [v * (math.log(v) + h) for v in p]


def towards(p, y, e):
    return [(1 - e) * (v - (k == y)) for k, v in enumerate(p)]


def proselflc(p, y):
    e = 1 / (1 + math.exp(-12 * (0 - 0.5))) * (1 + sum(v * math.log(v) for v in p) / math.log(len(p)))
    return [a - e * b for a, b in zip(towards(p, y, e), entropy_term(p), strict=True)]


TARGETS = {
    "label_smoothing": lambda p, y: [v - 0.9 * (k == y) - 0.1 / CLASSES for k, v in enumerate(p)],
    "confidence_penalty": lambda p, y: [a + 0.1 * b for a, b in zip(towards(p, y, 0.1), entropy_term(p), strict=True)],
    "bootstrapping": lambda p, y: [a - 0.05 * b for a, b in zip(towards(p, y, 0.05), entropy_term(p), strict=True)],
    "proselflc": proselflc,
}


@of_kind("target")
def test_the_derivative_of_a_revised_target_is_that_of_its_closed_form(row):
    x, labels = batch(row)
    expected = []
    for z, y in zip(x.tolist(), labels.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        expected.append([v / len(x) for v in TARGETS[row.name](p, y)])
    found = gradient(row.build(), x, labels)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-15)


@of_kind("target")
def test_a_detached_target_pulls_p_to_it(row):
    if "detach" not in row.defaults:
        pytest.skip("its target does not depend on the prediction")
    x, labels = batch(row)
    e = {"proselflc": 0.5}.get(row.name, row.defaults.get("epsilon"))
    loss = row.build(detach=True, **({"trust": "global", "sharpness": 0.0} if row.name == "proselflc" else {}))
    p, q = x.detach().softmax(1), F.one_hot(labels, CLASSES).double()
    target = (1 - e) * q + (-e if row.name == "confidence_penalty" else e) * p
    # the confidence penalty's target does not sum to one: its derivative is that of its own H(target, p)
    expected = (target.sum(1, keepdim=True) * p - target) / len(x)
    assert torch.allclose(gradient(loss, x, labels), expected, rtol=1e-10, atol=1e-15)


@rows
def test_the_order_of_the_batch_does_not_matter(row):
    x, labels = batch(row)
    order = torch.randperm(len(x))
    y = x.detach()[order].requires_grad_()
    loss, other = row.build(), row.build()
    assert torch.allclose(other(y, labels[order]), loss(x, labels))
    loss, other = row.build(), row.build()
    assert torch.allclose(gradient(other, y, labels[order]), gradient(loss, x, labels)[order])


@rows
@pytest.mark.parametrize("device", CPU_AND_CUDA)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_float32_at_least_and_gives_the_gradient_in_the_dtype_of_its_input(row, dtype, device):
    x, labels = batch(row, dtype=dtype, device=device)
    loss = row.build().to(device)(x, labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    found = gradient(row.build().to(device), x, labels)
    assert (found.dtype, found.device) == (dtype, x.device)
    exact = gradient(row.build().to(device), x.detach().double().requires_grad_(), labels)
    assert torch.allclose(found.double(), exact, rtol=1e-2, atol=1e-3 * exact.abs().max().item())


@rows
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(row, dtype):
    x, labels = batch(row, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        inside = row.build()(x, labels)
    assert torch.equal(inside, row.build()(x, labels))


EDGES = {
    "duplicates": (torch.ones(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])),
    "half duplicates": (torch.eye(4)[[0, 0, 1, 1, 2, 3]], torch.tensor([0, 1, 0, 1, 0, 1])),
    "one class": (torch.randn(5, 4), torch.zeros(5, dtype=torch.long)),
    "no positives": (torch.randn(4, 4), torch.arange(4)),
    "batch of 1": (torch.randn(1, 4), torch.zeros(1, dtype=torch.long)),
    "empty batch": (torch.randn(0, 4), torch.zeros(0, dtype=torch.long)),
    "zero rows": (torch.zeros(4, 4), torch.tensor([0, 0, 1, 1])),
    "saturated": (200 * torch.eye(4), torch.tensor([0, 1, 0, 1])),
    "huge": (torch.randn(6, 4) * 1e18, torch.tensor([0, 0, 0, 1, 1, 1])),
    "labels as int32": (torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.int32)),
}


@rows
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("edge", EDGES)
def test_value_and_gradient_are_finite_at_every_edge(row, edge, dtype):
    x, labels = EDGES[edge]
    x = x.clamp(-1e4, 1e4) if dtype == torch.float16 else x
    x = x.clone().to(dtype).requires_grad_()
    loss = row.build()(x, labels)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    if edge == "empty batch":
        assert loss == 0


@rows
def test_no_argument_however_large_gives_anything_but_finite_numbers(row):
    x, labels = batch(row, dtype=torch.float32)
    for name, default in row.defaults.items():
        if not isinstance(default, float) or name in ("balance", "epsilon", "q", "mode", "transit"):
            continue  # those are shares
        for value in (-1e6, 1e-6, 1e6):
            try:
                loss = row.build(**{name: value})(x, labels)
            except InputError:
                continue  # refused, which is as good
            assert loss.isfinite(), (name, value)
            assert torch.autograd.grad(loss, x)[0].isfinite().all(), (name, value)


@of_kind("pair")
def test_labels_of_any_size_are_told_apart(row):
    x, labels = batch(row)
    assert torch.equal(row.build()(x, labels), row.build()(x, labels + 2**40))


@of_kind("pair")
def test_rows_are_streamed_to_the_same_numbers(row):
    x, labels = batch(row)
    whole, block = row.build(), row.build(block_rows=5)
    assert torch.allclose(block(x, labels), whole(x, labels), rtol=1e-12)
    assert torch.allclose(gradient(block, x, labels), gradient(whole, x, labels), rtol=1e-9, atol=1e-14)


@rows
def test_compiles_without_a_graph_break_to_the_same_numbers(row):
    torch.compiler.reset()
    x, labels = batch(row)
    loss = row.build()
    compiled = torch.compile(copy.deepcopy(loss), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, labels), loss(x, labels))
    assert torch.allclose(gradient(compiled, x, labels), gradient(loss, x, labels))


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
@pytest.mark.parametrize("name", ["ranked_list", "instance_cross_entropy", "imae", "proselflc"])
def test_the_default_compiler_makes_the_same_numbers_of_it(name):
    torch.compiler.reset()
    row = LOSSES[name]
    x, labels = batch(row)
    loss = row.build()
    compiled = torch.compile(copy.deepcopy(loss), fullgraph=True)
    assert torch.allclose(compiled(x, labels), loss(x, labels))
    assert torch.allclose(gradient(compiled, x, labels), gradient(loss, x, labels))


@of_kind("pair")
def test_no_gradient_survives_a_miner_that_chose_nothing(row):
    x, labels = batch(row)
    nothing = (torch.zeros(0, dtype=torch.long),) * 4
    row.build()(x, labels, nothing).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@of_kind("pair")
def test_a_miner_that_chose_everything_changes_nothing(row):
    x, labels = batch(row)
    positive, negative = from_labels(labels)
    everything = (*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True))
    assert torch.allclose(row.build()(x, labels, everything), row.build()(x, labels))
    twice = tuple(indices.repeat(2) for indices in everything)
    assert torch.equal(row.build()(x, labels, twice), row.build()(x, labels, everything))


@of_kind("pair")
def test_a_gallery_that_is_a_copy_of_the_batch_differs_by_the_items_themselves_alone(row):
    x, labels = batch(row)
    y = x.detach().clone()
    positive, negative = from_labels(labels)
    others = (*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True))
    with_gallery = row.build()(x, labels, others, ref_emb=y, ref_labels=labels)
    assert torch.allclose(with_gallery, row.build()(x, labels), rtol=1e-10)


@rows
def test_its_repr_builds_it_and_it_pickles(row):
    loss = row.build()
    names = {**vars(mw.emphasis), **vars(mw.losses)}
    assert repr(eval(repr(loss), names)) == repr(loss)
    assert repr(pickle.loads(pickle.dumps(loss))) == repr(copy.deepcopy(loss)) == repr(loss)


@rows
@pytest.mark.parametrize(
    ("x", "labels", "words"),
    [
        (torch.randn(4, 3, 2), torch.arange(4), r"of a floating dtype, got \[4, 3, 2\]"),
        (torch.arange(12).view(4, 3), torch.arange(4), "floating dtype, got .* of torch.int64"),
        (torch.randn(4, 3), torch.arange(3), r"labels must be \[4\] to match (embeddings|logits) \[4, 3\], got \[3\]"),
        (torch.randn(4, 3), torch.rand(4), r"labels must be integers, got torch.float32; convert"),
    ],
)
def test_wrong_shapes_and_dtypes_get_one_plain_sentence(row, x, labels, words):
    with pytest.raises(ValueError, match=words):
        row.build()(x, labels)


@pytest.mark.cuda
@rows
def test_nothing_waits_for_the_gpu(row):
    x, labels = batch(row, device="cuda")
    loss = row.build().to("cuda")
    loss(x, labels).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(x, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@of_kind("pair")
def test_it_is_captured_in_a_cuda_graph(row):
    x, labels = batch(row, device="cuda", dtype=torch.float32)
    loss = row.build()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            expected = gradient(loss, x, labels)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradient(loss, x, labels)
    graph.replay()
    assert torch.allclose(captured, expected, rtol=1e-4, atol=1e-6)


def test_the_list_is_in_order_of_kind_and_every_row_says_what_it_weighs():
    kinds = [row.kind for row in LOSSES.values()]
    assert sorted(kinds, key=["pair", "example", "target"].index) == kinds
    assert all(row.weights for row in LOSSES.values())
