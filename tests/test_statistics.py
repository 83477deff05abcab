"""What a log tells of how a batch was weighed: each number against arithmetic on a few examples."""

import json

import pytest
import torch

from metricweight.settings import resolve
from metricweight.training.objective import Objective
from metricweight.training.statistics import weight_statistics

LABELS = torch.tensor([7, 7, 9, 9])
KEYS = ["p", "emphasis_mode", "emphasis_variance", "zero_positives", "zero_negatives", "hard_share", "easy_share"]


def objective(levels=1, dim=2, labels=LABELS, **groups):
    return Objective(resolve({"data": {"source": "glyphs"}, **groups}), labels, levels, dim).double()


def at_angles(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], 1)


def logits_of(*p):
    """Of two classes, in the order of LABELS, by which each example's own has this p."""
    first = torch.logit(torch.tensor(p, dtype=torch.float64)) * torch.tensor([1, 1, -1, -1])
    return torch.stack([first, torch.zeros_like(first)], 1)


def of_logits(made, p, gradient=(1.0, 1.0, 1.0, 1.0), step=0):
    rows = torch.tensor(gradient, dtype=torch.float64)[:, None] * torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    return weight_statistics(made, logits_of(*p), at_angles(0, 1, 2, 3), rows, LABELS, step)


def of_pairs(made, embeddings, gradient=None, labels=LABELS):
    gradient = torch.ones_like(embeddings) if gradient is None else gradient
    judged = embeddings[:, -made.dim :]
    return weight_statistics(made, judged, embeddings, gradient, labels, 0)


def test_p_is_that_of_the_labels_with_a_histogram():
    found = of_logits(objective(loss={"name": "cce"}), (0.02, 0.52, 0.54, 0.98))["p"]
    assert found["mean"] == pytest.approx((0.02 + 0.52 + 0.54 + 0.98) / 4)
    assert found["histogram"] == [1] + [0] * 9 + [2] + [0] * 8 + [1]


def test_a_weighting_by_p_has_its_own_mode_and_the_variance_of_its_weights_in_the_batch():
    p = (0.1, 0.2, 0.5, 0.9)
    found = of_logits(objective(loss={"name": "mae"}), p)
    w = [4 * x * (1 - x) for x in p]
    mean = sum(w) / 4
    assert found["emphasis_mode"] == pytest.approx(0.5, abs=1e-6)
    assert found["emphasis_variance"] == pytest.approx(sum((x - mean) ** 2 for x in w) / 4)


def test_weighting_counts_before_the_loss_and_moves_with_the_step():
    groups = {"loss": {"name": "cce"}, "weighting": {"name": "dm", "mode": [0.2, 0.6]}, "steps": 5}
    made = objective(**groups)
    modes = [of_logits(made, (0.1, 0.2, 0.5, 0.9), step=step)["emphasis_mode"] for step in (0, 2, 4)]
    assert modes == pytest.approx([0.2, 0.4, 0.6], abs=1e-6)


def test_weights_that_are_all_the_same_have_no_mode():
    found = of_logits(objective(loss={"name": "dm", "beta": 0}), (0.1, 0.2, 0.5, 0.9))
    assert found["emphasis_mode"] is None
    assert found["emphasis_variance"] == 0


def test_the_emphasis_of_other_losses_is_measured_by_the_lengths_of_gradients():
    made = objective(loss={"name": "label_smoothing"})
    found = of_logits(made, (0.11, 0.12, 0.13, 0.88), gradient=(5.0, 1.0, 0.0, 3.0))
    # mean lengths: 2 in the bin from 0.10 to 0.15, 3 in that from 0.85 to 0.90
    assert found["emphasis_mode"] == pytest.approx(0.875)
    mean = 9 / 4
    assert found["emphasis_variance"] == pytest.approx(sum((x / mean - 1) ** 2 for x in (5, 1, 0, 3)) / 4)


def test_hard_and_easy_examples_share_the_gradient():
    made = objective(loss={"name": "cce"})
    found = of_logits(made, (0.1, 0.49, 0.51, 0.9), gradient=(2.0, 1.0, 4.0, 3.0))
    assert (found["hard_share"], found["easy_share"]) == pytest.approx((0.3, 0.7))
    scaled = of_logits(made, (0.1, 0.49, 0.51, 0.9), gradient=(2e4, 1e4, 4e4, 3e4))
    assert scaled["hard_share"] == pytest.approx(0.3)


def test_pairs_that_weigh_nothing_are_counted():
    x = at_angles(0, 0, 40, 90)  # distances 2 sin(half of the angle): 0.68 of 40, 0.85 of 50, 1.41 of 90
    found = of_pairs(objective(loss={"name": "contrastive", "negative_margin": 1.0}), x)
    assert found["zero_positives"] == pytest.approx(2 / 4)  # the first two are at one place
    assert found["zero_negatives"] == pytest.approx(4 / 8)  # 0.68 twice within the margin, 1.41 twice not
    both = objective(loss={"name": "contrastive"}, plus=[{"name": "contrastive", "negative_margin": 1.5}])
    assert of_pairs(both, x)["zero_negatives"] == 0  # what one of the losses weighs is not zero


def test_pairs_that_a_miner_leaves_out_weigh_nothing():
    miner = {"name": "contrastive", "positive_margin": 0.9, "negative_margin": 0.5}
    found = of_pairs(objective(loss={"name": "n_pair"}, miner=miner), at_angles(0, 60, 20, 90))
    # positives: 60 degrees is 1.0 apart, 70 degrees 1.15; negatives: 0.35 of 20 degrees, 0.52 of 30, 0.68, 1.41
    assert found["zero_positives"] == 0
    assert found["zero_negatives"] == pytest.approx(6 / 8)


def test_levels_are_averaged_and_the_least_spread_is_told():
    x = torch.cat([at_angles(0, 0, 40, 90), at_angles(0, 0, 0, 0)], 1)
    found = of_pairs(objective(levels=2, loss={"name": "contrastive"}, memory={"size": 8}), x)
    assert found["zero_positives"] == pytest.approx((2 / 4 + 4 / 4) / 2)
    assert found["zero_negatives"] == pytest.approx((4 / 8 + 0 / 8) / 2)
    assert found["spread"] == pytest.approx(0, abs=1e-7)


def test_soft_mining_with_attention_is_counted_by_its_own_labels():
    made = objective(loss={"name": "online_soft_mining"}, attention={"form": "poster"})
    found = of_pairs(made, at_angles(0, 0, 40, 90))
    assert found["zero_positives"] == pytest.approx(2 / 4)
    assert found["zero_negatives"] == pytest.approx(4 / 8)


@pytest.mark.parametrize(
    ("degrees", "spread"),
    [((5, 5, 5, 5), 0), ((0, 90, 180, 270), 1), ((0, 60, 0, 60), 0.5), ((0, 0, 180, 0), 0.75**0.5)],
)
def test_the_spread_is_0_for_one_point_and_1_for_points_all_around(degrees, spread):
    lengths = torch.tensor([[1.0], [20.0], [0.01], [3.0]], dtype=torch.float64)
    found = of_pairs(objective(loss={"name": "contrastive"}), at_angles(*degrees) * lengths)
    assert found["spread"] == pytest.approx(spread, abs=1e-7)  # |mean| is cos 30 degrees of two that are 60 apart


def test_embeddings_of_length_zero_are_a_collapse():
    assert of_pairs(objective(loss={"name": "contrastive"}), torch.zeros(4, 2, dtype=torch.float64))["spread"] == 0


@pytest.mark.parametrize("loss", ["contrastive", "cce", "proselflc"])
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_what_is_undefined_is_none_and_never_nan(loss, value):
    made = objective(loss={"name": loss}, labels=LABELS)
    x = at_angles(0, 1, 2, 3)
    judged = x if loss == "contrastive" else torch.zeros(4, 2, dtype=torch.float64)
    found = weight_statistics(made, judged, x, torch.full_like(x, value), LABELS, 0)
    assert list(found) == [*KEYS, "spread"]
    assert (found["hard_share"], found["easy_share"]) == (None, None)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    if value != 0:
        broken = weight_statistics(made, torch.full_like(judged, value), torch.full_like(x, value), x, LABELS, 0)
        json.dumps(broken, allow_nan=False)
        assert broken["spread"] is None
        assert broken["p"]["mean"] is None or value == torch.inf


def test_a_batch_of_one_class_has_no_negatives_and_an_empty_one_has_nothing():
    made = objective(loss={"name": "contrastive"})
    assert of_pairs(made, at_angles(0, 1, 2, 3), labels=torch.zeros(4, dtype=torch.long))["zero_negatives"] is None
    empty = of_pairs(made, torch.zeros(0, 2, dtype=torch.float64), labels=LABELS[:0])
    assert {key: value for key, value in empty.items() if key not in ("p", "spread")} == dict.fromkeys(KEYS[1:])
    assert empty["p"] == {"mean": None, "histogram": [0] * 20}


def test_a_real_step_has_all_numbers():
    made = objective(levels=2, loss={"name": "ranked_list"}, plus=[{"name": "cce"}]).float()
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, judged = made(x, LABELS, 0)
    loss.backward()
    found = weight_statistics(made, judged, x, x.grad, LABELS, 0)
    assert all(value is not None for value in found.values())
    assert found["hard_share"] + found["easy_share"] == pytest.approx(1)
