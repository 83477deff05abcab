"""Losses that are direction times example weight: the derivative first, then the value."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import metricweight.losses.example as example
from metricweight import emphasis
from metricweight.confidence import ClassContexts, match_probability
from metricweight.emphasis import (
    BatchSum,
    CrossEntropy,
    Density,
    Emphasis,
    GeneralisedCrossEntropy,
    MeanAbsoluteError,
    MeanSquaredError,
    SymmetricCrossEntropy,
    UnitMean,
    chain,
    imae,
)
from metricweight.losses.example import DerivativeLoss, GradientWeighting, derivative_loss


def batch(count=16, classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.arange(count) % classes


def gradient(loss_fn, logits, labels):
    (found,) = torch.autograd.grad(loss_fn(logits, labels), logits)
    return found


WRITTEN = [  # the weighting, and the loss as the papers write it, a function of p
    (CrossEntropy(), lambda p: -p.log()),
    (MeanAbsoluteError(), lambda p: 2 * (1 - p)),
    (MeanSquaredError(), lambda p: (1 - p) ** 2),
    (GeneralisedCrossEntropy(0.7), lambda p: (1 - p**0.7) / 0.7),
    (SymmetricCrossEntropy(6, 0.1), lambda p: -6 * p.log() - 0.1 * math.log(1e-4) * (1 - p)),
]


@pytest.mark.parametrize(("weighting", "loss"), WRITTEN)
def test_the_derivative_is_that_of_the_loss_as_it_is_written(weighting, loss):
    logits, labels = batch()
    expected = gradient(lambda z, y: loss(z.softmax(1)[range(16), y]).mean(), logits, labels)
    assert torch.allclose(gradient(DerivativeLoss(weighting), logits, labels), expected, rtol=1e-9, atol=1e-15)


def manipulated(logits, labels, exponent, beta, *, released):
    """Derivative manipulation in float64 by its equations: j = y: -w/2, else w/2 p_j / (1 - p_y), one at a time."""
    rows, weights = [], []
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        odds = [math.exp(v - max(z)) for v in z]
        p = [v / sum(odds) for v in odds]
        weights.append(math.exp(beta * p[y] ** exponent * (1 - p[y])))
        rows.append([-0.5 if j == y else p[j] / (1 - p[y]) / 2 for j in range(len(z))])
    total = sum(weights) if released else len(weights)
    return torch.tensor(
        [[w * v / total for v in row] for w, row in zip(weights, rows, strict=True)], dtype=torch.float64
    )


@pytest.mark.parametrize(("exponent", "beta"), [(0, 2), (0.5, 8), (1, 8), (2, 24), (1, 0)])
def test_derivative_manipulation_is_its_equations_and_unit_mean_is_the_released_average(exponent, beta):
    logits, labels = batch()
    w = Emphasis.from_lambda(exponent, beta)
    plain = manipulated(logits.detach(), labels, exponent, beta, released=False)
    released = manipulated(logits.detach(), labels, exponent, beta, released=True)
    assert torch.allclose(gradient(DerivativeLoss(w), logits, labels), plain, rtol=1e-9, atol=1e-15)
    found = gradient(DerivativeLoss(chain(w, UnitMean())), logits, labels)
    assert torch.allclose(found, released, rtol=1e-9, atol=1e-15)
    found = gradient(DerivativeLoss(chain(w, BatchSum())), logits, labels)
    assert torch.allclose(found, released / 16, rtol=1e-9, atol=1e-15)


def test_the_papers_normalisation_divides_by_a_constant():
    logits, labels = batch()
    by = gradient(DerivativeLoss(MeanAbsoluteError()), logits, labels) / (2 / 3)
    assert torch.allclose(gradient(DerivativeLoss(chain(MeanAbsoluteError(), Density())), logits, labels), by)


def test_eps_is_the_released_division():
    logits, labels = batch()
    p = logits.detach().softmax(1)
    own = F.one_hot(labels, 5)
    rest = 2 * (1 - p[range(16), labels])[:, None]
    w = Emphasis(0.5, 8)(p[range(16), labels])[:, None]
    found = gradient(DerivativeLoss(Emphasis(0.5, 8), eps=1e-2), logits, labels)
    assert torch.allclose(found, w * (p - own) / (rest + 1e-2) / 16)


def test_the_value_is_mean_cross_entropy_whatever_the_weighting():
    logits, labels = batch()
    for weighting in (CrossEntropy(), imae(), chain(Emphasis(), UnitMean())):
        assert torch.allclose(derivative_loss(logits, labels, weighting), F.cross_entropy(logits, labels))


def test_weights_are_constants():
    logits, labels = batch()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    derivative_loss(logits, labels, lambda p: p * scale).backward()
    assert scale.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_example_is_pushed_with_its_weight(dtype):
    logits = torch.tensor([[200.0, 0, 0], [-200, 0, 0], [math.inf, 0, 0], [0, -math.inf, 0]], dtype=dtype)
    logits.requires_grad_()
    labels = torch.tensor([0, 0, 0, 1])
    half = [-0.5 / 4, 0.25 / 4, 0.25 / 4]
    found = gradient(DerivativeLoss(imae()), logits, labels)  # w(0) = w(1) = 1
    assert found[:3].flatten().tolist() == pytest.approx(3 * half, rel=1e-5)
    assert found[3].tolist() == pytest.approx([0.25 / 4, -0.5 / 4, 0.25 / 4], rel=1e-5)
    found = gradient(DerivativeLoss(CrossEntropy()), logits, labels)  # w(0) = 2, w(1) = 0
    assert found[0].tolist() == pytest.approx([0, 0, 0], abs=1e-15)
    assert found[1].tolist() == pytest.approx([2 * v for v in half])
    assert derivative_loss(logits, labels, imae()).isfinite()
    assert derivative_loss(logits[:2], labels[:2], imae()).item() == pytest.approx((0 + 200 + math.log(2)) / 2)


def test_a_learned_example_keeps_the_digits_of_its_weight_in_float32():
    logits = torch.tensor([[25.0, 0, 0]], requires_grad=True)  # 1 - p is 3e-11, which float32 takes for 0
    found = gradient(DerivativeLoss(CrossEntropy()), logits, torch.tensor([0]))
    assert found[0].tolist() == pytest.approx([-2 * math.exp(-25), math.exp(-25), math.exp(-25)], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1e3, 1e6])
def test_a_huge_beta_gives_finite_numbers(beta, dtype):
    logits, labels = batch(dtype=dtype)
    assert gradient(DerivativeLoss(Emphasis(0.5, beta)), logits, labels).isfinite().all()
    found = gradient(DerivativeLoss(chain(Emphasis(0.5, beta), UnitMean())), logits, labels)
    assert found.isfinite().all()
    assert found.abs().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_computes_in_float32_at_least_and_gives_the_gradient_in_the_dtype_of_the_logits(dtype, kind):
    logits, labels = batch(dtype=dtype)
    loss = derivative_loss(logits, labels.to(kind), imae())
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    found = gradient(DerivativeLoss(imae()), logits, labels.to(kind))
    exact = gradient(DerivativeLoss(imae()), logits.detach().double().requires_grad_(), labels)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), exact, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    logits, labels = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        inside = derivative_loss(logits, labels, imae())
        found = gradient(DerivativeLoss(imae()), logits, labels)
    assert torch.equal(inside, derivative_loss(logits, labels, imae()))
    assert torch.equal(found, gradient(DerivativeLoss(imae()), logits, labels))


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_of_one_and_an_empty_one(count):
    logits, labels = torch.zeros(count, 3, requires_grad=True), torch.zeros(count, dtype=torch.long)
    loss = derivative_loss(logits, labels, chain(Emphasis(), UnitMean()))
    loss.backward()
    assert loss.item() == pytest.approx(count * math.log(3))
    assert logits.grad.tolist() == count * [[-0.5, 0.25, 0.25]]


@pytest.mark.parametrize(
    "weighting", [imae(), chain(Emphasis(), Density(), UnitMean()), GeneralisedCrossEntropy(k=0.5)]
)
def test_compiles_without_a_graph_break_to_the_same_numbers(weighting):
    logits, labels = batch()
    loss = DerivativeLoss(weighting)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(logits, labels), loss(logits, labels))
    assert torch.allclose(gradient(compiled, logits, labels), gradient(loss, logits, labels))


def test_its_repr_builds_it_and_it_pickles():
    names = {**vars(emphasis), **vars(example)}
    for module in (
        DerivativeLoss(chain(Emphasis(), UnitMean()), eps=1e-6),
        DerivativeLoss(imae()),
        GradientWeighting(Emphasis(0.5, 2.0)),
    ):
        for again in (
            eval(repr(module), names),
            eval(repr(copy.deepcopy(module)), names),
            pickle.loads(pickle.dumps(module)),
        ):
            assert repr(again) == repr(module)
            assert again.weighting == module.weighting


def embeddings(count=12, size=4, classes=3, dtype=torch.float64):
    x = torch.randn(count, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return x.requires_grad_(), torch.arange(count) % classes


def contrast(x, labels):
    """Any loss of embeddings."""
    f = F.normalize(x.double())
    same = labels[:, None] == labels[None, :]
    return ((f @ f.T - same.double()) ** 2).mean()


@pytest.mark.parametrize("confidence", ["neighbours", "contexts", "given"])
def test_each_embeddings_gradient_is_multiplied_by_its_weight_and_the_value_is_not(confidence):
    x, labels = embeddings()
    weight = torch.randn(3, 4, dtype=torch.float64)
    p = {
        "neighbours": match_probability(x, labels),
        "contexts": (x.detach() @ weight.T).softmax(1)[range(12), labels],
        "given": torch.linspace(0, 1, 12, dtype=torch.float64),
    }[confidence]
    how = {"neighbours": match_probability, "contexts": ClassContexts(weight), "given": p}[confidence]
    weigh = GradientWeighting(Emphasis(0.5, 8.0), how)
    w = (8 * p * (1 - p)).exp()
    assert torch.allclose(weigh.weights(x, labels), w)
    assert torch.equal(weigh(x, labels), x)
    found = gradient(lambda x, y: contrast(weigh(x, y), y), x, labels)
    assert torch.allclose(found, w[:, None] * gradient(contrast, x, labels), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_embeddings_keep_their_dtype_and_weights_are_in_float32(dtype):
    x, labels = embeddings(dtype=dtype)
    weigh = GradientWeighting(Emphasis(0.5, 1e6))
    assert weigh(x, labels).dtype == gradient(lambda x, y: contrast(weigh(x, y), y), x, labels).dtype == dtype
    assert weigh.weights(x, labels).dtype == torch.float32
    assert weigh.weights(x, labels).isfinite().all()
    assert not weigh.weights(x, labels).requires_grad


def test_gradient_weighting_compiles_without_a_graph_break():
    x, labels = embeddings()
    weigh = GradientWeighting(chain(Emphasis(), UnitMean()))
    compiled = torch.compile(lambda x, y: contrast(weigh(x, y), y), fullgraph=True, backend="aot_eager")
    assert torch.allclose(gradient(compiled, x, labels), gradient(lambda x, y: contrast(weigh(x, y), y), x, labels))


def test_a_confidence_of_another_shape_is_refused():
    x, labels = embeddings()
    for p in (torch.rand(11), torch.rand(12, 1), torch.tensor(0.5)):
        with pytest.raises(ValueError, match=r"confidence must be \[12\], a p for each label, got"):
            GradientWeighting(imae(), p)(x, labels)
    with pytest.raises(ValueError, match=r"labels must be \[12\] to match embeddings \[12, 4\], got \[11\]"):
        GradientWeighting(imae(), torch.rand(11))(x, labels[:11])


def test_an_empty_batch_passes_through():
    x, labels = embeddings()
    assert GradientWeighting(imae())(x[:0], labels[:0]).shape == (0, 4)


@pytest.mark.cuda
def test_nothing_waits_for_the_gpu():
    logits, labels = batch(dtype=torch.float32)
    logits, labels = logits.detach().cuda().requires_grad_(), labels.cuda()
    loss, weigh = DerivativeLoss(chain(Emphasis(), Density(), UnitMean()), eps=1e-6), GradientWeighting(Emphasis())

    def step():
        loss(weigh(logits, labels), labels).backward()

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
