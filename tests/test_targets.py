"""Losses that revise the target: the derivative first, then the value."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import metricweight.losses.target as target
from metricweight.losses.target import BootstrappingLoss, ConfidencePenaltyLoss, LabelSmoothingLoss, ProSelfLCLoss

EVERY = [
    LabelSmoothingLoss(),
    ConfidencePenaltyLoss(),
    ConfidencePenaltyLoss(0.3, detach=True),
    BootstrappingLoss(0.3),
    BootstrappingLoss(0.3, detach=True),
    ProSelfLCLoss(total=1),
    ProSelfLCLoss(total=1, detach=True, temperature=0.5, trust="max_p"),
    ProSelfLCLoss(total=1, temperature=0.5, trust="global", transit=0.3),
]
every = pytest.mark.parametrize("loss", EVERY, ids=repr)


def batch(count=10, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.arange(count) % classes


def gradient(loss_fn, logits, labels):
    (found,) = torch.autograd.grad(loss_fn(logits, labels), logits)
    return found


def at_rest(loss):
    """A copy whose clock stands still."""
    return copy.deepcopy(loss).eval()


def p_of(logits):
    return torch.tensor(
        [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in logits.tolist()], dtype=torch.float64
    )


def entropy(p):
    return -(p * p.log()).sum(1, keepdim=True)


def by_hand(logits, labels, epsilon, r, sharpening=0.0):
    """Mean of H(q~, p), and its derivative: that of a constant q~, p - q~, plus what the moving target adds.

    With q~ = (1 - e) q + e p not detached this is (1 - e) (p - q) - e p (log p + H(p)), since the constant part of
    e p cancels: p - q~ = (1 - e)(p - q).
    """
    p, q = p_of(logits), F.one_hot(labels, logits.shape[1]).double()
    target = (1 - epsilon) * q + epsilon * r
    value = -(target * p.log()).sum(1).mean()
    sums = target.sum(1, keepdim=True)  # 1, save for the confidence penalty
    return value.item(), (sums * p - target - sharpening * p * (p.log() + entropy(p))) / len(p)


def test_label_smoothing_is_p_less_the_smoothed_label():
    logits, labels = batch()
    value, slope = by_hand(logits, labels, 0.2, torch.full((4,), 1 / 4))
    assert torch.allclose(gradient(LabelSmoothingLoss(0.2), logits, labels), slope)
    assert LabelSmoothingLoss(0.2)(logits, labels).item() == pytest.approx(value)
    assert torch.allclose(LabelSmoothingLoss(0.2)(logits, labels), F.cross_entropy(logits, labels, label_smoothing=0.2))


@pytest.mark.parametrize("detach", [False, True])
def test_confidence_penalty_takes_the_prediction_out_of_the_label(detach):
    logits, labels = batch()
    p = p_of(logits)
    q = F.one_hot(labels, 4)
    loss = ConfidencePenaltyLoss(0.2, detach=detach)
    moving = 0.0 if detach else 0.2 * p * (p.log() + entropy(p))
    # sum q~ = 1 - 2 e: with a constant target dL/dz = (1 - 2e) p - (1 - e) q + e p = (1 - e)(p - q)
    assert torch.allclose(gradient(loss, logits, labels), (0.8 * (p - q) + moving) / 10)
    value = (0.8 * -(q * p.log()).sum(1) - 0.2 * entropy(p)[:, 0]).mean()
    assert loss(logits, labels).item() == pytest.approx(value.item())


@pytest.mark.parametrize("detach", [False, True])
def test_bootstrapping_mixes_the_prediction_in(detach):
    logits, labels = batch()
    value, slope = by_hand(logits, labels, 0.2, p_of(logits), 0.0 if detach else 0.2)
    loss = BootstrappingLoss(0.2, detach=detach)
    assert torch.allclose(gradient(loss, logits, labels), slope)
    assert loss(logits, labels).item() == pytest.approx(value)


@pytest.mark.parametrize("step", [0, 300, 500, 900])
def test_proselflc_of_2021_minimises_entropy_too(step):
    logits, labels = batch()
    loss = ProSelfLCLoss(total=1000, sharpness=8.0).eval()
    loss.step.fill_(step)
    p = p_of(logits)
    epsilon = (1 - entropy(p) / math.log(4)) / (1 + math.exp(-8 * (step / 1000 - 0.5)))
    value, slope = by_hand(logits, labels, epsilon, p, sharpening=epsilon)
    assert torch.allclose(gradient(loss, logits, labels), slope, rtol=1e-9, atol=1e-15)
    assert loss(logits, labels).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("trust", ["entropy", "max_p", "global"])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_proselflc_of_2022_moves_the_prediction_to_a_target_that_stands(trust, temperature):
    logits, labels = batch()
    loss = ProSelfLCLoss(1000, 12.0, detach=True, temperature=temperature, trust=trust, transit=0.3).eval()
    loss.step.fill_(400)
    r = p_of(logits / temperature)
    local = {"entropy": 1 - entropy(r) / math.log(4), "max_p": r.max(1, keepdim=True).values, "global": 1.0}[trust]
    epsilon = local / (1 + math.exp(-12 * (400 / 1000 - 0.3)))
    value, slope = by_hand(logits, labels, epsilon, r)
    assert torch.allclose(gradient(loss, logits, labels), slope, rtol=1e-9, atol=1e-15)
    assert loss(logits, labels).item() == pytest.approx(value, rel=1e-12)


def test_a_target_with_a_temperature_that_is_not_detached_moves_with_it():
    logits, labels = batch()
    loss = ProSelfLCLoss(total=1, temperature=0.5, trust="global", transit=0.0).eval()  # epsilon is 1/2
    q = F.one_hot(labels, 4)
    written = lambda z, y: -((q / 2 + (z / 0.5).softmax(1) / 2) * z.softmax(1).log()).sum(1).mean()  # noqa: E731
    assert torch.allclose(gradient(loss, logits, labels), gradient(written, logits, labels))


def test_detached_without_a_temperature_it_only_weighs_examples():
    logits, labels = batch()
    p, q = p_of(logits), F.one_hot(labels, 4)
    loss = ProSelfLCLoss(total=1, sharpness=6.0, detach=True).eval()
    loss.step.fill_(1)
    epsilon = (1 - entropy(p) / math.log(4)) / (1 + math.exp(-3))
    assert torch.allclose(gradient(loss, logits, labels), (1 - epsilon) * (p - q) / 10)


def test_trust_in_the_prediction_begins_near_nothing_and_ends_near_all():
    sure = torch.tensor([[30.0, 0, 0]])
    wrong = torch.tensor([1])
    loss = ProSelfLCLoss(total=100, sharpness=16.0).eval()
    assert loss(sure, wrong).item() == pytest.approx(30, rel=1e-3)  # cross entropy with the label
    loss.step.fill_(100)
    assert loss(sure, wrong).item() == pytest.approx(30 / (1 + math.exp(8)), rel=1e-3)


def test_each_pass_in_training_is_a_step_and_evaluation_is_none():
    logits, labels = batch()
    loss = ProSelfLCLoss(total=10)
    start = loss(logits, labels)
    later = [loss(logits, labels) for _ in range(4)]
    assert loss.step.item() == 5
    loss.eval()
    assert loss(logits, labels).item() == loss(logits, labels).item()
    assert loss.step.item() == 5
    again = ProSelfLCLoss(total=10).eval()
    assert torch.equal(again(logits, labels), start)
    again.load_state_dict(loss.state_dict())
    assert again.step.item() == 5
    assert torch.equal(again(logits, labels), loss(logits, labels))
    assert len({x.item() for x in (start, *later)}) == 5


@every
def test_compiles_without_a_graph_break_to_the_same_numbers_and_counts(loss):
    logits, labels = batch()
    eager, compiled_loss = copy.deepcopy(loss), copy.deepcopy(loss)
    compiled = torch.compile(compiled_loss, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        assert torch.allclose(gradient(compiled, logits, labels), gradient(eager, logits, labels))
    assert compiled_loss.state_dict() == eager.state_dict()


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_computes_in_float32_at_least_also_under_autocast(loss, dtype, kind):
    logits, labels = batch(dtype=dtype)
    loss, half = at_rest(loss), dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    with torch.autocast("cpu", half):
        inside = loss(logits, labels.to(kind))
        found = gradient(loss, logits, labels.to(kind))
    assert inside.dtype == torch.promote_types(dtype, torch.float32)
    assert found.dtype == dtype
    exact = logits.detach().double().requires_grad_()
    assert torch.allclose(inside.double(), loss(exact, labels), rtol=1e-5)
    assert torch.allclose(found.double(), gradient(loss, exact, labels), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rows",
    [
        [[200.0, 0, 0], [-200, 0, 0]],
        [[1e18, -1e18, 0], [-1e18, 0, 0]],
        [[0, -math.inf, -math.inf], [-math.inf, 0, 0]],
        [[math.inf, 0, 0], [0, math.inf, 0]],
        [[0.0, 0, 0]],
        [],
    ],
    ids=str,
)
def test_value_and_gradient_are_finite_at_every_edge(loss, rows, dtype):
    logits = torch.tensor(rows, dtype=dtype).view(-1, 3).requires_grad_()
    value = loss(logits, torch.zeros(len(rows), dtype=torch.long))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    if not rows:
        assert value.item() == 0


def test_a_saturated_prediction_has_the_derivative_of_its_limit():
    logits = torch.tensor([[200.0, 0, 0], [-200, 0, 0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    third = 0.3 / 3
    expected = [(1 - (1 - 0.3) - third) / 2, -third / 2, -third / 2, (0 - 0.7 - third) / 2] + 2 * [(0.5 - third) / 2]
    assert gradient(LabelSmoothingLoss(0.3), logits, labels).flatten().tolist() == pytest.approx(expected)
    expected = [0, 0, 0, -0.7 / 2, 0.7 / 4, 0.7 / 4]  # p (log p + H) is 0 where p is 0 or even
    found = gradient(BootstrappingLoss(0.3), logits, labels).flatten().tolist()
    assert found == pytest.approx(expected, abs=1e-7)


@every
def test_its_repr_builds_it_and_it_pickles(loss):
    assert repr(eval(repr(loss), vars(target))) == repr(loss)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(again) == repr(loss)
        assert again.state_dict() == loss.state_dict()


def test_what_cannot_be_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="LabelSmoothingLoss epsilon is a share from 0 to 1, got 2"):
        LabelSmoothingLoss(2)
    with pytest.raises(ValueError, match="BootstrappingLoss epsilon is a share from 0 to 1, got -1"):
        BootstrappingLoss(-1)
    with pytest.raises(ValueError, match="total is a number of steps above 0, got 0"):
        ProSelfLCLoss(total=0)
    with pytest.raises(ValueError, match="temperature is a number above 0, got 0"):
        ProSelfLCLoss(temperature=0)
    with pytest.raises(ValueError, match="trust is 'entropy', 'max_p' or 'global', got 'none'"):
        ProSelfLCLoss(trust="none")
    with pytest.raises(ValueError, match=r"at least 2 classes, got \[3, 1\]"):
        LabelSmoothingLoss()(torch.zeros(3, 1), torch.zeros(3).long())


@pytest.mark.cuda
@every
def test_nothing_waits_for_the_gpu(loss):
    logits, labels = batch()
    loss, logits, labels = copy.deepcopy(loss).cuda(), logits.detach().cuda().requires_grad_(), labels.cuda()
    loss(logits, labels).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(logits, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
