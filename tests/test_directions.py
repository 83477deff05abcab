"""Direction and log-odds against cross entropy's own derivative, and where that one fails."""

import math

import pytest
import torch
import torch.nn.functional as F

from metricweight.directions import direction, log_odds


def batch(count=16, classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)).to(dtype), (
        torch.arange(count) % classes
    )


def test_it_is_the_derivative_of_cross_entropy_at_unit_length():
    logits, labels = batch()
    logits.requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    found = direction(logits.detach(), labels)
    assert torch.allclose(found, slope / slope.abs().sum(1, keepdim=True), rtol=1e-12, atol=1e-15)
    assert torch.allclose(found.abs().sum(1), torch.ones(16, dtype=torch.float64))


def test_with_eps_it_is_the_released_formula_and_mutes_what_is_learned():
    logits, labels = batch()
    p = logits.softmax(1)
    own = F.one_hot(labels, 5)
    rest = 2 * (1 - p.gather(1, labels[:, None]))
    assert torch.allclose(direction(logits, labels, eps=1e-6), (p - own) / (rest + 1e-6), rtol=1e-9, atol=1e-14)
    learned = torch.tensor([[math.log(2 / 1e-6), 0, 0]])  # the others have 1e-6 of the odds: 2 (1 - p) is about 2e-6
    muted = direction(learned, torch.tensor([0]), eps=1e-6).abs().sum().item()
    assert muted == pytest.approx(2 / 3, rel=1e-4)  # 2e-6 / (2e-6 + 1e-6), which 1 - p in float32 would miss by 3 %


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([200.0, 0, 0], [-0.5, 0.25, 0.25]),
        ([-200.0, 0, math.log(3)], [-0.5, 0.125, 0.375]),
        ([1e38, -1e38, -1e38], [-0.5, 0.25, 0.25]),
        ([math.inf, 0, 0], [-0.5, 0.25, 0.25]),
        ([0, -math.inf, 0], [-0.5, 0, 0.5]),
        ([0, -math.inf, -math.inf], [-0.5, 0.25, 0.25]),
        ([-math.inf, 0, 0], [-0.5, 0.25, 0.25]),
    ],
)
def test_a_saturated_example_keeps_its_direction(logits, expected, dtype):
    z, label = torch.tensor([logits], dtype=dtype), torch.tensor([0])
    assert direction(z, label)[0].tolist() == pytest.approx(expected)
    assert direction(z, label, eps=1e-6).isfinite().all()
    assert log_odds(z, label).isfinite().all()


def test_log_odds_keep_the_digits_that_p_loses():
    z = torch.tensor([[50.0, 0, 0], [-50.0, 0, 0]])
    assert log_odds(z, torch.tensor([0, 0])).tolist() == pytest.approx([50 - math.log(2), -50 - math.log(2)])
    logits, labels = batch()
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(log_odds(logits, labels), (p / (1 - p)).log())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8])
def test_half_precision_is_upcast_and_labels_are_any_integers(dtype, kind):
    logits, labels = batch(dtype=dtype)
    found = direction(logits, labels.to(kind))
    assert found.dtype == log_odds(logits, labels.to(kind)).dtype == torch.promote_types(dtype, torch.float32)
    assert torch.allclose(found.double(), direction(logits.double(), labels), atol=1e-6)


def test_nan_stays_nan():
    assert direction(torch.tensor([[math.nan, 0, 0]]), torch.tensor([1])).isnan().any()


def test_an_empty_batch_has_no_directions():
    empty = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    assert direction(*empty).shape == direction(*empty, eps=1e-6).shape == (0, 3)
    assert log_odds(*empty).shape == (0,)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.zeros(4, 1), torch.zeros(4).long(), r"at least 2 classes, got \[4, 1\]"),
        (torch.zeros(4), torch.zeros(4).long(), r"logits must be \[B, C\] of a floating dtype, got \[4\]"),
        (torch.zeros(4, 3), torch.zeros(3).long(), r"labels must be \[4\] to match logits \[4, 3\], got \[3\]"),
        (torch.zeros(4, 3), torch.zeros(4), "labels must be integers, got torch.float32"),
    ],
)
def test_wrong_shapes_and_dtypes_get_one_plain_sentence(logits, labels, words):
    for function in (direction, log_odds):
        with pytest.raises(ValueError, match=words):
            function(logits, labels)
