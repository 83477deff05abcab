"""Weightings against the derivatives of the losses they stand for, and against the papers' numbers."""

import math
import pickle

import pytest
import torch

from metricweight import emphasis
from metricweight.emphasis import (
    BatchSum,
    Beta,
    Clip,
    CrossEntropy,
    Density,
    Emphasis,
    Exponential,
    FeatureLearningAttention,
    GeneralisedCrossEntropy,
    MeanAbsoluteError,
    MeanSquaredError,
    Normal,
    Power,
    SymmetricCrossEntropy,
    UnitMean,
    chain,
    density,
    emphasis_mode,
    emphasis_variance,
    imae,
)
from metricweight.losses import LOSSES, ClassAwareAttention

A = math.log(1e-4)
OF_P = [  # the weighting, and the loss as a function of p
    (CrossEntropy(), lambda p: -p.log()),
    (MeanAbsoluteError(), lambda p: 2 * (1 - p)),
    (MeanSquaredError(), lambda p: (1 - p) ** 2),
    (GeneralisedCrossEntropy(), lambda p: (1 - p**0.7) / 0.7),
    (GeneralisedCrossEntropy(q=1), lambda p: 1 - p),
    (GeneralisedCrossEntropy(q=0.3, k=0.5), lambda p: (1 - p.clamp(min=0.5) ** 0.3) / 0.3),
    (SymmetricCrossEntropy(), lambda p: -6 * p.log() - 0.1 * A * (1 - p)),
    (SymmetricCrossEntropy(0.1, 1.0, -4.0), lambda p: -0.1 * p.log() + 4 * (1 - p)),
]
EVERY = [
    *(weighting for weighting, _ in OF_P),
    Emphasis(),
    Emphasis(0.5, 1e6),
    Emphasis(0.0, -2.0),
    Normal(),
    Normal(0.3, 1e6),
    Exponential(),
    Exponential(1e6),
    Beta(2, 2),
    Beta(0.5, 0.5),
    FeatureLearningAttention(),
    FeatureLearningAttention(0.9, 1e-6),
    chain(FeatureLearningAttention(), Power(2), UnitMean()),
    chain(Emphasis(), Density(), Power(2), Clip(3), UnitMean()),
    chain(Emphasis(0.5, 1e6), BatchSum()),
]


@pytest.mark.parametrize(("weighting", "loss"), OF_P)
def test_weights_are_the_l1_norms_of_the_losss_derivative(weighting, loss):
    z = (3 * torch.randn(50, 4, dtype=torch.float64)).requires_grad_()
    p = z.softmax(1)[:, 0]
    (slope,) = torch.autograd.grad(loss(p).sum(), z)
    assert torch.allclose(weighting(p.detach()), slope.abs().sum(1), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("beta", [-2.0, 0.0, 8.0])
def test_emphasis_is_the_exponential_of_p_to_lambda_times_one_minus_p(exponent, beta):
    p = [0.0, 0.1, 0.5, 0.9, 1.0]
    expected = [math.exp(beta * v**exponent * (1 - v)) for v in p]
    w = Emphasis.from_lambda(exponent, beta)
    assert w(torch.tensor(p, dtype=torch.float64)).tolist() == pytest.approx(expected)
    assert w.mode == pytest.approx(exponent / (exponent + 1))
    if exponent == 0:
        assert Exponential(beta)(torch.tensor(p)).tolist() == pytest.approx(expected)


def test_normal_and_beta_are_the_papers():
    p = [0.0, 0.2, 0.7, 1.0]
    x = torch.tensor(p, dtype=torch.float64)
    assert Normal(0.3, 5)(x).tolist() == pytest.approx([math.exp(-5 * v * (v - 0.6)) for v in p])
    assert Beta(2.5, 3)(x).tolist() == pytest.approx([v**1.5 * (1 - v) ** 2 for v in p])
    assert torch.allclose(Normal(0.5, 8)(x), imae(8)(x))
    for same, (a, eta), factor in (
        (CrossEntropy(), (1, 2), 2),
        (MeanAbsoluteError(), (2, 2), 4),
        (MeanSquaredError(), (2, 3), 4),
        (GeneralisedCrossEntropy(0.7), (1.7, 2), 2),
    ):
        assert torch.allclose(same(x), factor * Beta(a, eta)(x))


MODES = [
    (CrossEntropy(), 0),
    (MeanAbsoluteError(), 1 / 2),
    (MeanSquaredError(), 1 / 3),
    (GeneralisedCrossEntropy(0.7), 0.7 / 1.7),
    (GeneralisedCrossEntropy(0.7, k=0.2), 0.7 / 1.7),
    (GeneralisedCrossEntropy(0.7, k=0.5), 0.5),
    (SymmetricCrossEntropy(), 0),  # 6 > 0.9: cross entropy outweighs the rest
    (SymmetricCrossEntropy(0.1, 1, -4), 1 / 2 - 0.1 / 8),
    (SymmetricCrossEntropy(1, 0), 0),
    (Emphasis.from_lambda(0, 2), 0),
    (Emphasis.from_lambda(0.5, 8), 1 / 3),
    (Emphasis.from_lambda(2, 24), 2 / 3),
    (imae(), 1 / 2),
    (Normal(0.3, 5), 0.3),
    (Normal(1, 5), 1),
    (Exponential(2), 0),
    (Exponential(-0.5), 1),
    (Beta(3, 2), 2 / 3),
    (Beta(1, 2), 0),
    (Beta(2, 1), 1),
    (Beta(1, 0.5), 1),
    (Beta(0.5, 1), 0),
    (Beta(0.5, 3), 0),
    (Beta(3, 0.5), 1),
    (FeatureLearningAttention(), 0.75 - (0.5**2 / 4 + 0.18**2) ** 0.5),  # (p - 0.5) (1 - p) = -0.18^2
    (FeatureLearningAttention(0.5, 1e-6), 0.5),
    (FeatureLearningAttention(1, 0.3), 0.7),
    (FeatureLearningAttention(0.1, 2), 0),
]


@pytest.mark.parametrize(("weighting", "mode"), MODES, ids=repr)
def test_a_weighting_peaks_at_its_mode(weighting, mode):
    assert weighting.mode == pytest.approx(mode)
    assert emphasis_mode(weighting) == pytest.approx(mode, abs=1e-6)
    assert emphasis_mode(chain(weighting, Power(2), UnitMean())) == pytest.approx(mode, abs=1e-6)


def test_where_no_p_counts_most_there_is_no_mode():
    assert [w.mode for w in (Beta(1, 1), Beta(0.5, 0.5), Beta(0.5, 0.9), Exponential(0))] == [None] * 4


NUMBERS = [  # mean, variance, variance at unit mean: fractions by hand; decimals by a quadrature of scipy, as printed
    (CrossEntropy(), 1, 1 / 3, 1 / 3),
    (MeanAbsoluteError(), 2 / 3, 4 / 45, 1 / 5),
    (GeneralisedCrossEntropy(q=1), 1 / 3, 1 / 45, 1 / 5),
    (MeanSquaredError(), 1 / 3, 16 / 105 - 1 / 9, 13 / 35),
    (GeneralisedCrossEntropy(0.7), 2 / (1.7 * 2.7), 8 / (2.4 * 3.4 * 4.4) - (2 / (1.7 * 2.7)) ** 2, 0.1736),
    (imae(8), 4.4197, 4.5461, 0.2327),
    (Exponential(2), (math.e**2 - 1) / 2, (math.e**4 - 1) / 4 - ((math.e**2 - 1) / 2) ** 2, 0.3130),
    (Emphasis.from_lambda(0.5, 6), 5.94, 9.11, 0.258),
    (Emphasis.from_lambda(0.5, 8), 11.41, 50.4, 0.387),
    (Emphasis.from_lambda(0.5, 12), 44.4, 1257.7, 0.639),
    (Emphasis.from_lambda(1, 2), 1.41, 0.040, 0.020),
    (Emphasis.from_lambda(1, 16), 24.1, 354, 0.611),
    (Emphasis.from_lambda(2, 24), 13.4, 143, 0.800),
    (Beta(1, 2), 1 / 2, 1 / 12, 1 / 3),
    (Beta(0.75, 1), 4 / 3, 2 - 16 / 9, 1 / 8),  # p^-1/4 is infinite at 0, its square has the integral 2
    (Beta(1, 0.75), 4 / 3, 2 - 16 / 9, 1 / 8),
    (chain(CrossEntropy(), Clip(1.0)), 3 / 4, 2 / 3 - 9 / 16, 5 / 27),
    (GeneralisedCrossEntropy(q=1, k=0.5), 1 / 6, 1 / 15 - 1 / 36, 7 / 5),
]


@pytest.mark.parametrize(("weighting", "mean", "variance", "normalised"), NUMBERS, ids=repr)
def test_mean_and_variance_are_those_of_the_paper(weighting, mean, variance, normalised):
    def printed(x):  # a decimal is good to half of its last digit, a fraction to what the infinite ends leave
        decimals = len(str(x).partition(".")[2])
        return pytest.approx(x, rel=1e-6, abs=0.51 * 10.0**-decimals if decimals < 6 else 0)

    p, h = density(weighting, points=5)
    assert (weighting(p) / h)[3].item() == printed(mean)
    assert emphasis_variance(weighting) == printed(variance)
    assert emphasis_variance(chain(weighting, Density())) == printed(normalised)


@pytest.mark.parametrize("weighting", [CrossEntropy(), imae(), Emphasis.from_lambda(2, 1000), Beta(1.5, 4)], ids=repr)
def test_a_density_has_unit_area(weighting):
    p, h = density(weighting, points=200_001)
    assert (p[0], p[-1], len(p)) == (0, 1, 200_001)
    assert torch.trapezoid(h, p).item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(h * weighting(p[70_000:70_001]), h[70_000] * weighting(p))  # the shape is the weighting's


def test_a_density_with_infinite_ends_is_finite():
    _, h = density(Beta(0.5, 0.5), points=3)
    assert h[1].item() == pytest.approx(2 / math.pi)  # 1 / (pi sqrt(p (1 - p)))
    assert h.isfinite().all()


def test_the_variance_of_a_batch_is_measured():
    w = torch.tensor([1.0, 2, 6])
    assert emphasis_variance(w).item() == pytest.approx((2**2 + 1**2 + 3**2) / 3)
    assert emphasis_variance(w[:1]).item() == 0
    assert emphasis_variance(w[:0]).isnan()
    p = (torch.arange(10**6, dtype=torch.float64) + 0.5) / 10**6
    assert emphasis_variance(imae()(p)).item() == pytest.approx(emphasis_variance(imae()), rel=1e-9)
    assert emphasis_variance(Beta(0.5, 2)) == math.inf


def test_a_chain_applies_its_links_in_turn():
    p = torch.tensor([0.0, 0.25, 0.5, 1.0])  # cross entropy: 2, 1.5, 1, 0
    assert chain(CrossEntropy())(p).tolist() == [2, 1.5, 1, 0]
    assert chain(CrossEntropy(), Clip(1.25))(p).tolist() == [1.25, 1.25, 1, 0]
    assert chain(CrossEntropy(), Power(2))(p).tolist() == [4, 2.25, 1, 0]
    assert chain(CrossEntropy(), Clip(1.25), Power(2))(p).tolist() == [1.5625, 1.5625, 1, 0]
    assert chain(CrossEntropy(), lambda w: w + 1)(p).tolist() == [3, 2.5, 2, 1]
    assert chain(CrossEntropy(), UnitMean())(p).tolist() == pytest.approx([2 / 1.125, 1.5 / 1.125, 1 / 1.125, 0])
    assert chain(CrossEntropy(), BatchSum())(p).tolist() == pytest.approx([2 / 4.5, 1.5 / 4.5, 1 / 4.5, 0])


def test_density_divides_by_the_integral_of_what_stands_before_it():
    p = torch.tensor([0.0, 0.25, 1.0])
    assert chain(MeanAbsoluteError(), Density())(p).tolist() == pytest.approx([0, 0.75 * 3 / 2, 0])
    assert chain(CrossEntropy(), Power(2), Density())(p).tolist() == pytest.approx([3, 2.25 * 3 / 4, 0])
    assert chain(CrossEntropy(), Density(), Clip(1))(p).tolist() == pytest.approx([1, 1, 0])
    assert chain(chain(CrossEntropy(), Power(2)), Density())(p).tolist() == pytest.approx([3, 2.25 * 3 / 4, 0])
    assert chain(Beta(0.5, 2), Density())(p)[1].item() == pytest.approx(0.25**-0.5 * 0.75 / (4 / 3))


@pytest.mark.parametrize("link", [UnitMean(), BatchSum()], ids=repr)
def test_a_batch_without_weight_stays_without_and_an_empty_one_stays_empty(link):
    assert link(torch.zeros(3)).tolist() == [0, 0, 0]
    assert link(torch.zeros(0)).shape == (0,)
    assert link(torch.tensor([7.0])).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weighting", EVERY, ids=repr)
def test_weights_are_finite_and_not_negative_in_the_shape_and_dtype_of_p(weighting, dtype):
    p = torch.linspace(0, 1, 12, dtype=torch.float64).to(dtype).view(3, 4)
    w = weighting(p)
    assert (w.shape, w.dtype) == (p.shape, dtype)
    assert w.isfinite().all()
    assert (w >= 0).all()
    assert weighting(p[:0]).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_at_the_limit_of_the_dtype_still_have_a_mean(dtype):
    w = chain(Emphasis(0.5, 1e6), UnitMean())(torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=dtype))
    assert w.tolist() == pytest.approx([0, 2, 2, 0], abs=1e-30)


@pytest.mark.parametrize("weighting", EVERY, ids=repr)
def test_its_repr_builds_it_and_it_pickles_and_compares(weighting):
    assert eval(repr(weighting), vars(emphasis)) == weighting
    assert pickle.loads(pickle.dumps(weighting)) == weighting
    assert hash(eval(repr(weighting), vars(emphasis))) == hash(weighting)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Emphasis(1.0, 2), r"Emphasis mode is a probability in \[0, 1\), got 1.0\."),
        (lambda: Emphasis(0.5, math.inf), "Emphasis beta is a finite number, got inf"),
        (lambda: Emphasis.from_lambda(-1, 2), "Emphasis lambda is a number >= 0, got -1"),
        (lambda: Normal(1.5), r"Normal mode is a probability in \[0, 1\], got 1.5"),
        (lambda: Normal(0.5, -1), "Normal beta is a number >= 0, got -1"),
        (lambda: Exponential(math.nan), "Exponential beta is a finite number, got nan"),
        (lambda: Beta(0, 1), "Beta a is a number above 0, got 0"),
        (lambda: Beta(1, -1), "Beta eta is a number above 0, got -1"),
        (lambda: GeneralisedCrossEntropy(0), r"q is in \(0, 1\], got 0"),
        (lambda: GeneralisedCrossEntropy(0.7, k=1), r"k is in \[0, 1\), got 1"),
        (lambda: SymmetricCrossEntropy(-1), "alpha and beta are not negative, got -1 and 0.1"),
        (lambda: SymmetricCrossEntropy(a=4), "a stands for log 0 and is below 0, got 4"),
        (
            lambda: FeatureLearningAttention(-0.1),
            r"FeatureLearningAttention mean is a probability in \[0, 1\], got -0.1",
        ),
        (lambda: FeatureLearningAttention(0.5, 0), "FeatureLearningAttention sigma is 1e-6 or more, got 0"),
        (lambda: Clip(0), "Clip most is a weight above 0, got 0"),
        (lambda: Power(-1), "Power exponent is a number above 0, got -1"),
        (lambda: chain(Emphasis), "each made with its arguments; got <class"),
        (lambda: chain(Emphasis(), UnitMean), "each made with its arguments; got <class"),
        (lambda: chain(Density()), r"chain takes a weighting, then links.*got Density\(\)"),
        (lambda: chain(Emphasis(), UnitMean(), Density()), r"needs a weighting of p alone, got chain\(Emphasis"),
        (lambda: density(chain(chain(Emphasis(), BatchSum()))), "needs a weighting of p alone"),
        (lambda: chain(SymmetricCrossEntropy(0, 0), Density()), "integral is above 0 and finite, got 0.0 of Symm"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def bell(p, mean=0.5, sigma=0.18):
    return (-((p - mean) ** 2) / (2 * sigma**2)).exp()


@pytest.mark.parametrize(("mean", "sigma"), [(0.5, 0.18), (0.2, 0.5), (1.0, 0.05)])
def test_feature_learning_attention_is_cross_entropy_averaged_by_a_bell_of_p(mean, sigma):
    z = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()
    labels = torch.arange(50) % 4
    log_p = z.log_softmax(1)[torch.arange(50), labels]
    v = bell(log_p.detach().exp(), mean, sigma)
    (expected,) = torch.autograd.grad(-(v * log_p).sum() / v.sum(), z)
    loss = LOSSES["feature_learning"].build(mean=mean, sigma=sigma)(z, labels)
    (found,) = torch.autograd.grad(loss, z)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14)
    assert loss.item() == pytest.approx(-log_p.mean().item())  # as of every weighting, its value is cross entropy


def test_feature_learning_attention_is_the_classification_loss_of_released_class_aware_attention():
    embeddings, labels = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 5
    attention = ClassAwareAttention(classes=5, dim=8, form="released")
    with torch.no_grad():
        attention.contexts.copy_(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)))
    (expected,) = torch.autograd.grad(attention(embeddings, labels), attention.contexts)
    logits = embeddings @ attention.contexts.T
    (found,) = torch.autograd.grad(LOSSES["feature_learning"].build()(logits, labels), attention.contexts)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_feature_learning_attention_depends_on_the_batch():
    p = torch.tensor([0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    v = [math.exp(-((x - 0.5) ** 2) / (2 * 0.18**2)) for x in (0.2, 0.5, 0.7, 1.0)]
    expected = [2 * (1 - x) * y / (sum(v) / 4) for x, y in zip((0.2, 0.5, 0.7, 1.0), v, strict=True)]
    assert FeatureLearningAttention()(p).tolist() == pytest.approx(expected)
    assert FeatureLearningAttention()(p[:2])[0].item() == pytest.approx(2 * 0.8 * v[0] / (sum(v[:2]) / 2))
    assert FeatureLearningAttention().of_batch
    assert chain(FeatureLearningAttention(), Clip(3)).of_batch


def test_an_example_alone_weighs_what_cross_entropy_gives_it():
    for p in (0.0, 0.3, 1.0):
        assert FeatureLearningAttention()(torch.tensor([p])).item() == pytest.approx(2 * (1 - p))


def test_however_far_all_p_are_from_the_mean_the_nearest_count():
    w = FeatureLearningAttention(0.5, 0.001)
    assert w(torch.tensor([0.9, 0.8, 0.2])).tolist() == pytest.approx([0, 3 * 0.4 / 2, 3 * 1.6 / 2], rel=1e-2)
    assert w(torch.tensor([0.9, 0.7])).tolist() == pytest.approx([0, 2 * 0.6])
    assert w(torch.tensor([1.0, 1.0])).tolist() == [0, 0]
    assert w(torch.tensor([0.0, 1.0, 0.0])).tolist() == pytest.approx([2, 0, 2])
    tiny = FeatureLearningAttention(0.5, 1e-6)
    assert tiny(torch.tensor([0.0, 1e-30, 1.0])).isfinite().all()
    assert chain(tiny, UnitMean())(torch.tensor([0.1, 0.2])).tolist() == pytest.approx([0, 2])


def test_by_itself_feature_learning_attention_is_that_of_p_spread_evenly():
    w = FeatureLearningAttention()
    p = (torch.arange(10**6, dtype=torch.float64) + 0.5) / 10**6
    of_batch = w(p)
    assert torch.allclose(w.even(p), of_batch, rtol=1e-9)
    assert emphasis_variance(w) == pytest.approx(emphasis_variance(of_batch).item(), rel=1e-6)
    q, h = density(w, points=100_001)
    assert torch.trapezoid(h, q).item() == pytest.approx(1, abs=1e-6)
    assert h[30_000].item() == pytest.approx(
        0.7 * bell(q[30_000]).item() / torch.trapezoid((1 - q) * bell(q), q).item()
    )
    with pytest.raises(ValueError, match="needs a weighting of p alone, got chain"):
        density(chain(w, Power(2)))


def test_truncated_gce_gives_nothing_to_p_up_to_k():
    weights = GeneralisedCrossEntropy(k=0.5)(torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64))
    assert weights.tolist() == pytest.approx([0, 0, 2 * 0.6**0.7 * 0.4])
