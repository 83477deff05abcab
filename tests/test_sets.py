"""From frames to sets: every formula against a loop in float64, and gradients against those of that loop."""

import math
from typing import get_args

import pytest
import torch
from conftest import CPU_AND_CUDA

from metricweight.checks import InputError
from metricweight.models.sets import (
    FUSIONS,
    FrameAttention,
    Fusion,
    TestFusion,
    fused,
    largest,
    largest_of_each,
    listing,
    of_each,
    quality,
)

S, F, D = 3, 4, 5


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def weights(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loop(frames, w):
    """sum_t w_t x_t / sum_t w_t, one number at a time."""
    sets = []
    for x, v in zip(frames, w, strict=True):
        total = sum(v[t] for t in range(len(x)))
        sets.append(torch.stack([sum(v[t] * x[t, d] for t in range(len(x))) / total for d in range(x.shape[1])]))
    return torch.stack(sets)


def test_quality_is_a_bell_round_one_and_a_constant():
    p = torch.tensor([0.0, 0.32, 1.0], dtype=torch.float64, requires_grad=True)
    a = quality(p)
    assert a.tolist() == pytest.approx([math.exp(-1 / (2 * 0.68**2)), math.exp(-0.5), 1])
    assert a[0].item() == pytest.approx(0.339, abs=5e-4)
    assert not a.requires_grad
    assert a.dtype == torch.float64
    assert quality(p.half()).dtype == quality(p.bfloat16()).dtype == quality(p.float()).dtype == torch.float32
    assert quality(p[:0]).shape == (0,)


def test_a_set_is_the_weighted_mean_of_its_frames():
    frames = torch.tensor([[[1.0, 0], [3, 8], [9, 9]]])
    assert fused(frames, torch.tensor([[1.0, 3, 0]]))[0].tolist() == pytest.approx([2.5, 6])
    assert fused(frames, None)[0].tolist() == pytest.approx([13 / 3, 17 / 3])


def test_value_and_gradient_are_those_of_the_formula():
    x, w = random(S, F, D).requires_grad_(), weights(S, F).requires_grad_()
    onto = random(S, D, seed=2)
    expected = by_loop(x, w)
    assert torch.allclose(fused(x, w), expected, rtol=1e-12)
    for found, true in zip(
        torch.autograd.grad((fused(x, w) * onto).sum(), (x, w)),
        torch.autograd.grad((expected * onto).sum(), (x, w)),
        strict=True,
    ):
        assert torch.allclose(found, true, rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(fused, (x, w))
    assert torch.autograd.gradcheck(lambda x: fused(x, None), (x,))


def test_without_weights_and_by_equal_ones_it_is_the_mean():
    x = random(S, F, D).requires_grad_()
    assert torch.allclose(fused(x, None), x.sum(1) / F)
    assert torch.allclose(fused(x, torch.full((S, F), 0.3, dtype=torch.float64)), x.sum(1) / F)
    (found,) = torch.autograd.grad(fused(x, None).sum(), x)
    assert torch.allclose(found, torch.full_like(x, 1 / F))


def test_a_set_whose_weights_are_all_zero_is_its_mean_and_the_others_stay():
    x, w = random(S, F, D).requires_grad_(), weights(S, F)
    w[1] = 0
    found = fused(x, w)
    assert torch.allclose(found[1], x[1].mean(0))
    assert torch.allclose(found[[0, 2]], by_loop(x[[0, 2]], w[[0, 2]]))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.allclose(gradient[1], torch.full((F, D), 1 / F, dtype=torch.float64))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e38, 3e38, math.inf])
def test_weights_count_by_their_ratio_however_large_or_small(scale):
    x = random(S, F, D, dtype=torch.float32)
    w = torch.ones(S, F) * scale  # 3e38 twice is no number
    w[:, 0] = 0
    assert torch.allclose(fused(x, w), x[:, 1:].mean(1), rtol=1e-5)
    assert torch.allclose(fused(x, (weights(S, F) * 1e300)), by_loop(x, weights(S, F)).float(), rtol=1e-4)
    of = torch.arange(S).repeat_interleave(F)
    assert torch.allclose(of_each(x.flatten(0, 1), of, S, w.flatten()), x[:, 1:].mean(1), rtol=1e-5)


def test_a_weight_that_is_no_number_is_not_passed_over():
    w = weights(S, F)
    w[1, 2] = math.nan
    x, of = random(S, F, D), torch.arange(S).repeat_interleave(F)
    for found in (fused(x, w), of_each(x.flatten(0, 1), of, S, w.flatten())):
        assert found[1].isnan().all()
        assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_sets_are_in_float32_at_least_and_gradients_in_the_dtype_of_the_frames(dtype, device):
    x = random(S, F, D).to(device, dtype).requires_grad_()
    w = weights(S, F).to(device, dtype)
    attention = FrameAttention(D).to(device)
    exact = x.detach().double().cpu()
    expected = {
        fused: by_loop(exact, w.double().cpu()),
        largest: exact.amax(1),
    }
    with torch.autocast(device, dtype if dtype.itemsize == 2 else torch.bfloat16):
        found = {fused: fused(x, w), largest: largest(x)}
        assert attention(x).dtype == found[fused].dtype
    for name, made in found.items():
        assert made.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.allclose(made.double().cpu(), expected[name], rtol=1e-5, atol=1e-6)
        assert torch.autograd.grad(made.sum(), x)[0].dtype == dtype


def test_a_set_of_one_frame_is_the_frame_and_no_sets_stay_none():
    x = random(S, 1, D)
    for made in (fused(x, None), fused(x, weights(S, 1)), fused(x, torch.zeros(S, 1)), largest(x)):
        assert torch.allclose(made, x[:, 0])
    assert torch.equal(FrameAttention(D)(x.float()), torch.ones(S, 1))
    none = torch.zeros(0, F, D, requires_grad=True)
    for made in (fused(none, None), fused(none, torch.zeros(0, F)), largest(none)):
        assert made.shape == (0, D)
        assert torch.autograd.grad(made.sum(), none)[0].shape == (0, F, D)
    assert FrameAttention(D)(none).shape == (0, F)


def test_the_largest_value_of_a_dimension_sends_its_gradient_to_its_frame():
    x = torch.tensor([[[1.0, 5, 2], [4, 5, 0], [2, 1, -3]]], requires_grad=True)
    made = largest(x)
    assert made.tolist() == [[4, 5, 2]]
    (found,) = torch.autograd.grad((made * torch.tensor([1.0, 10, 100])).sum(), x)
    assert found.tolist() == [[[0, 5, 100], [1, 5, 0], [0, 0, 0]]]  # two frames have the 5: half of 10 each
    assert torch.autograd.gradcheck(largest, (random(S, F, D).requires_grad_(),))
    assert largest(torch.tensor([[[math.nan], [1.0]]])).isnan().all()


def test_frames_that_are_the_same_make_a_set_that_is_the_same():
    x = random(S, 1, D).expand(S, F, D)
    for made in (fused(x, weights(S, F)), largest(x), fused(x, learned(D)(x))):
        assert torch.allclose(made, x[:, 0])


def learned(dim, inner=None, seed=5, scale=1.0):
    """An attention that is not at its start, in float64."""
    attention = FrameAttention(dim, inner).double()
    with torch.no_grad():
        for i, parameter in enumerate(attention.parameters()):
            parameter.copy_(scale * random(*parameter.shape, seed=seed + i))
    return attention


def test_the_order_of_frames_and_of_sets_does_not_matter():
    x, w, attention = random(S, F, D), weights(S, F), learned(D)
    order, sets = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    assert torch.allclose(fused(x[:, order], w[:, order]), fused(x, w))
    assert torch.equal(largest(x[:, order]), largest(x))
    assert torch.allclose(attention(x[:, order]), attention(x)[:, order])
    assert torch.allclose(attention(x[sets]), attention(x)[sets])


def test_attention_is_the_mean_over_frames_of_scaled_dot_product_softmax():
    x, attention = random(S, F, D), learned(D, 3)
    w, b, v = attention.query.weight, attention.query.bias, attention.key.weight
    found = attention(x)
    for s in range(S):
        expected = torch.zeros(F, dtype=torch.float64)
        for t in range(F):
            scores = [((w @ x[s, t] + b) @ (v @ x[s, other])).item() / math.sqrt(3) for other in range(F)]
            total = sum(map(math.exp, scores))
            expected += torch.tensor([math.exp(score) / total / F for score in scores], dtype=torch.float64)
        assert torch.allclose(found[s], expected, rtol=1e-10)
    assert torch.allclose(found.sum(1), torch.ones(S, dtype=torch.float64))
    assert (found - 1 / F).abs().max() > 0.01


def test_attention_starts_at_the_mean_and_learns_from_there():
    x, attention = random(S, F, D).float(), FrameAttention(D)
    assert torch.allclose(fused(x, attention(x)), x.mean(1), atol=1e-6)
    wanted = x[:, 0]  # of each set the frame whose first dimension is largest
    x = torch.stack([row[row[:, 0].argsort(descending=True)] for row in x])
    wanted = x[:, 0]
    optimizer = torch.optim.Adam(attention.parameters(), 0.1)
    start = (fused(x, attention(x)) - wanted).square().mean().item()
    for _ in range(100):
        loss = (fused(x, attention(x)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * start
    assert attention(x)[:, 0].amin() > 0.5


def test_the_gradient_of_attention_goes_to_frames_and_parameters():
    attention = learned(D, 2)
    x = random(2, 3, D).requires_grad_()
    parameters = tuple(attention.parameters())

    def made(x, *parameters):
        names = [name for name, _ in attention.named_parameters()]
        return fused(x, torch.func.functional_call(attention, dict(zip(names, parameters, strict=True)), (x,)))

    assert torch.autograd.gradcheck(made, (x, *parameters))


def test_blocks_of_frames_change_nothing_and_bound_what_is_held(monkeypatch):
    x, attention = random(2, 37, D), learned(D)
    expected = attention(x)
    shapes = []
    whole = torch.Tensor.softmax
    monkeypatch.setattr("metricweight.models.sets._BLOCK", 2 * 37 * 5)
    monkeypatch.setattr(torch.Tensor, "softmax", lambda t, dim: (shapes.append(t.shape), whole(t, dim))[1])
    with torch.no_grad():
        assert torch.allclose(attention(x), expected, rtol=1e-12)
    assert {tuple(shape) for shape in shapes} == {(2, 5, 37), (2, 2, 37)}


def test_attention_to_embeddings_of_any_length_is_finite():
    x = random(S, F, D, dtype=torch.float32).mul(1e18).requires_grad_()
    w = learned(D, scale=0.1).float()(x)
    assert w.isfinite().all()
    assert torch.allclose(w.sum(1), torch.ones(S))
    assert torch.autograd.grad(w.square().sum(), x)[0].isfinite().all()


def test_items_of_different_lengths_are_what_each_is_alone():
    lengths = [1, 4, 7, 2]
    items = [random(n, D, seed=n) for n in lengths]
    w = [weights(n, seed=n) for n in lengths]
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(0))
    of = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[order]
    frames, all_weights = torch.cat(items)[order], torch.cat(w)[order]
    alone = [torch.cat([by_loop(x[None], v[None]) for x, v in zip(items, w, strict=True)])]
    alone += [torch.stack([x.mean(0) for x in items]), torch.stack([x.amax(0) for x in items])]
    found = [of_each(frames, of, 4, all_weights), of_each(frames, of, 4, None), largest_of_each(frames, of, 4)]
    for made, expected in zip(found, alone, strict=True):
        assert made.dtype == torch.float32
        assert torch.allclose(made, expected.float(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_items_of_one_length_are_the_sets(dtype):
    x, w = random(S, F, D, dtype=dtype), weights(S, F)
    w[2] = 0
    flat, of = x.flatten(0, 1), torch.arange(S).repeat_interleave(F)
    assert torch.allclose(of_each(flat, of, S, w.flatten()), fused(x, w).float(), rtol=1e-6, atol=1e-6)
    assert torch.allclose(of_each(flat, of, S, None), fused(x, None).float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(largest_of_each(flat, of, S), largest(x).float())


def test_items_are_summed_in_float64_have_no_graph_and_are_the_same_each_time():
    frames = torch.tensor([[1e8], [1.0], [-1e8], [1.0]], requires_grad=True)  # float32 loses both ones
    of = torch.zeros(4, dtype=torch.long)
    assert of_each(frames, of, 1, None).item() == 0.5
    assert not of_each(frames, of, 1, torch.ones(4)).requires_grad
    assert not largest_of_each(frames, of, 1).requires_grad
    x, of = random(5000, 8, dtype=torch.float32), torch.arange(5000) % 7
    assert torch.equal(of_each(x, of, 7, None), of_each(x, of, 7, None))


def test_no_items_stay_none():
    none, of = torch.zeros(0, D), torch.zeros(0, dtype=torch.long)
    assert of_each(none, of, 0, None).shape == of_each(none, of, 0, torch.zeros(0)).shape == (0, D)
    assert largest_of_each(none, of, 0).shape == (0, D)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fused(torch.zeros(4, 5), None), r"frames must be \[S, F, D\] .* got \[4, 5\] of torch.float32"),
        (lambda: fused(torch.zeros(4, 0, 5), None), r"at least 1 frame in a set, got \[4, 0, 5\]"),
        (lambda: largest(torch.zeros(4, 2, 5).long()), r"of a floating dtype.* torch.int64"),
        (lambda: fused(torch.zeros(4, 2, 5), torch.zeros(2, 4)), r"weights of frames must be \[4, 2\] .* got \[2, 4\]"),
        (lambda: FrameAttention(5)(torch.zeros(4, 2, 6)), r"frames must be \[S, F, 5\], got \[4, 2, 6\]"),
        (lambda: FrameAttention(5, 0), "dim and inner are sizes, at least 1, got 5 and 0"),
        (lambda: of_each(torch.zeros(4), torch.zeros(4), 1, None), r"frames must be \[n, D\] .* got \[4\]"),
        (lambda: largest_of_each(torch.zeros(4, 2), torch.zeros(3).long(), 1), r"of must be \[4\], .* got \[3\]"),
        (
            lambda: of_each(torch.zeros(4, 2), torch.zeros(4).long(), 1, torch.ones(4, 1)),
            r"weights must be \[4\], one for each frame, got \[4, 1\]",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_the_listing_has_a_line_for_each_rule_and_says_which_are_for_tests():
    lines = listing().splitlines()
    assert [line.split()[0] for line in lines] == ["fusion", *get_args(Fusion)]
    assert [row.name for row in FUSIONS if row.test != "no"] == list(get_args(TestFusion))
    assert max(map(len, lines)) <= 120
