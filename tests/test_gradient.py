"""The two ways in which a derivative is touched."""

import re

import pytest
import torch

from metricweight import scale_gradient, with_derivative


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def test_scale_gradient_leaves_the_values_alone():
    x = leaf(4, 3)
    assert torch.equal(scale_gradient(x, torch.rand(4, 1)), x)


def test_scale_gradient_multiplies_each_rows_gradient_by_its_weight():
    x, weight = leaf(4, 3), torch.tensor([[0.0], [0.5], [1.0], [7.0]], dtype=torch.float64)
    (scale_gradient(x, weight) ** 2).sum().backward()
    assert torch.equal(x.grad, weight * 2 * x.detach())


def test_no_gradient_flows_into_the_weight():
    x, weight = leaf(4, 3), torch.rand(4, 1, dtype=torch.float64, requires_grad=True)
    (scale_gradient(x, weight * 3) ** 2).sum().backward()
    assert weight.grad is None


def test_scale_gradient_by_one_passes_gradcheck_to_the_second_order():
    x, one = leaf(3, 2), torch.ones(3, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: scale_gradient(x, one) ** 3, x)
    assert torch.autograd.gradgradcheck(lambda x: scale_gradient(x, one) ** 3, x)


def test_a_second_derivative_carries_the_weight_twice():
    x, w = leaf(5), torch.full((5,), 3.0, dtype=torch.float64)
    (first,) = torch.autograd.grad((scale_gradient(x, w) ** 3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(first, 3 * 3 * x**2)
    assert torch.allclose(second, 3 * 3 * 6 * x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scale_gradient_keeps_the_dtype_and_weighs_in_the_wider_one(dtype):
    x = torch.ones(100, 2, dtype=dtype, requires_grad=True)
    weight, grad = torch.rand(100, 1), torch.randn(100, 2).to(dtype)
    y = scale_gradient(x, weight)
    y.backward(grad)
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(x.grad, (grad.to(torch.promote_types(dtype, torch.float32)) * weight).to(dtype))


def test_scale_gradient_works_under_autocast():
    x, layer = leaf(4, 3, dtype=torch.float32), torch.nn.Linear(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = scale_gradient(layer(x), torch.zeros(4, 1))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert torch.equal(x.grad, torch.zeros(4, 3))


def test_both_compile_without_a_graph_break():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x, weight):
        y = scale_gradient(x, weight)
        return with_derivative(y.square().sum(), y, 2 * y)

    x, weight = leaf(4, 3), torch.rand(4, 1, dtype=torch.float64)
    step(x, weight).backward()
    assert torch.allclose(x.grad, weight * 2 * x.detach())


def test_a_weight_that_would_widen_the_tensor_is_refused():
    for shape in ([2, 4, 3], [4], [4, 2], [1, 4, 3]):
        with pytest.raises(RuntimeError, match=rf"broadcasts to \[4, 3\], got {re.escape(str(shape))}"):
            scale_gradient(leaf(4, 3), torch.ones(shape))
    for shape in ([], [1], [3], [4, 1], [4, 3]):
        scale_gradient(leaf(4, 3), torch.ones(shape))


def test_with_derivative_has_that_value_and_that_derivative():
    x, derivative = leaf(3, 2), torch.randn(3, 2, dtype=torch.float64)
    loss = with_derivative(torch.tensor(4.25, dtype=torch.float64), x, derivative)
    assert loss.item() == 4.25
    (5 * loss).backward()
    assert torch.equal(x.grad, 5 * derivative)


def test_with_derivative_lets_nothing_through_the_value_or_the_derivative():
    x = leaf(3)
    y = x * 1
    with_derivative((y**2).sum(), y, y).backward()  # by the value it would be 2 x, by both 3 x and more
    assert torch.equal(x.grad, x.detach())


def test_an_infinite_input_does_no_harm_where_its_derivative_is_zero():
    x = torch.tensor([1.0, float("inf")], requires_grad=True)
    loss = with_derivative(torch.tensor(1.0), x, torch.tensor([2.0, 0.0]))
    loss.backward()
    assert loss.item() == 1
    assert x.grad.tolist() == [2, 0]


def test_with_derivative_refuses_another_shape():
    with pytest.raises(RuntimeError, match=r"shape \[3, 2\], got \[2, 3\]"):
        with_derivative(torch.tensor(0.0), leaf(3, 2), torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match=r"a scalar, got \[3\]"):
        with_derivative(torch.zeros(3), leaf(3, 2), torch.zeros(3, 2))
