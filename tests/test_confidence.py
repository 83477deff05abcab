"""How sure: p against loops written from the definitions."""

import math

import pytest
import torch

from metricweight.confidence import ClassContexts, match_probability, own_probability


def batch(count=9, size=4, classes=3):
    x = torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(count) % classes


def match_by_hand(x, labels, temperature):
    x = [[float(v) for v in row] for row in x]
    found = []
    for i, (xi, yi) in enumerate(zip(x, labels, strict=True)):
        own = everything = 0.0
        for j, (xj, yj) in enumerate(zip(x, labels, strict=True)):
            if j != i:
                cosine = sum(a * b for a, b in zip(xi, xj, strict=True)) / (math.hypot(*xi) * math.hypot(*xj))
                odds = math.exp(cosine / temperature)
                everything += odds
                own += odds * (yi == yj)
        found.append(own / everything)
    return found


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_match_probability_is_how_often_a_neighbour_has_the_own_label(temperature):
    x, labels = batch()
    expected = match_by_hand(x, labels.tolist(), temperature)
    assert match_probability(x, labels, temperature=temperature).tolist() == pytest.approx(expected, rel=1e-12)
    assert match_probability(5 * x, labels, temperature).tolist() == pytest.approx(expected, rel=1e-12)


def test_neighbours_that_no_label_is_shared_with_or_none_at_all():
    x, _ = batch(3)
    assert match_probability(x, torch.tensor([0, 1, 2])).tolist() == [0, 0, 0]
    assert match_probability(x, torch.tensor([4, 4, 4])).tolist() == [1, 1, 1]
    assert match_probability(x[:1], torch.tensor([0])).tolist() == [0]
    assert match_probability(x[:0], torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert match_probability(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])).tolist() == pytest.approx([1 / 3] * 4)


def test_a_small_temperature_does_not_overflow():
    x = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    assert match_probability(x, torch.tensor([0, 0, 1, 1]), temperature=1e-4).tolist() == pytest.approx([1] * 4)
    assert match_probability(x, torch.tensor([0, 1, 0, 1]), temperature=1e-4).tolist() == pytest.approx([0] * 4)
    with pytest.raises(ValueError, match="temperature above 0, got 0"):
        match_probability(x, torch.tensor([0, 0, 1, 1]), temperature=0)


def test_labels_above_2_to_the_24_are_told_apart():
    x, labels = batch()
    for large in (labels + 2**24, labels + 2**40, labels.int()):
        assert torch.equal(match_probability(x, large), match_probability(x, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype):
    x, labels = batch()
    contexts = ClassContexts(torch.randn(3, 4))
    exact = match_probability(x.to(dtype).double(), labels), contexts(x.to(dtype).double(), labels)
    with torch.autocast("cpu", dtype):
        for x_ in (x.to(dtype), x.to(dtype).float()):
            assert torch.allclose(match_probability(x_, labels), exact[0], atol=1e-6)
            assert torch.allclose(contexts(x_, labels), exact[1], atol=1e-6)


def test_own_probability_is_the_softmax_and_keeps_what_float32_cannot_tell_from_one():
    logits = torch.tensor([[2.0, 1, 0], [0, 25, 0]])
    p = own_probability(logits, torch.tensor([2, 1]))
    assert p[0].item() == pytest.approx(1 / (1 + math.e + math.e**2))
    assert 1 - p[1].item() == pytest.approx(2 / (math.exp(25) + 2), rel=1e-4)
    assert p.dtype == torch.float64


def test_class_contexts_give_the_softmax_of_the_products():
    x, labels = batch()
    weight = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    contexts = ClassContexts(weight)
    odds = [[math.exp(sum(a * b for a, b in zip(f, c, strict=True))) for c in weight.tolist()] for f in x.tolist()]
    expected = [row[y] / sum(row) for row, y in zip(odds, labels.tolist(), strict=True)]
    assert contexts(x, labels).tolist() == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():
        weight.zero_()  # the classifier has been trained in the meantime
    assert contexts(x, labels).tolist() == pytest.approx([1 / 3] * 9)
    with pytest.raises(ValueError, match=r"class contexts must be \[C, 2\] to match embeddings \[9, 2\], got \[3, 4\]"):
        contexts(x[:, :2], labels)


def test_no_gradient_flows():
    x, labels = batch()
    x.requires_grad_()
    for confidence in (own_probability, match_probability, ClassContexts(torch.randn(4, 4))):
        assert not confidence(x, labels).requires_grad
