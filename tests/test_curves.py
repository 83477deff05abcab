"""Weights and emphasis densities, drawn: what is drawn is what was asked for."""

import json

import numpy as np
import pytest

from metricweight.checks import InputError
from metricweight.curves import COLOURS, OWN, Histogram, P, _histogram, _p_of, curve, draw, table
from metricweight.settings import read

SPECS = ["imae:temperature=8", "dm:mode=0.67,beta=12", "cce", "mae"]


def integral(y):
    return ((y[1:] + y[:-1]) / 2 * np.diff(P)).sum()


def test_a_curve_is_the_weight_at_each_p_with_its_integral_mode_and_variances():
    cce = curve("cce")  # w = 2 (1 - p)
    assert np.allclose(cce.w, 2 * (1 - P))
    assert cce.area == pytest.approx(2 * (1 - 1 / 2))
    assert cce.mode == 0
    assert cce.variance == pytest.approx(4 / 3 - 1)  # E w^2 - (E w)^2
    mae = curve("mae")  # w = 4 p (1 - p)
    assert (mae.area, mae.mode) == pytest.approx((2 / 3, 1 / 2), abs=1e-7)
    assert mae.variance == pytest.approx(16 / 30 - 4 / 9)
    assert mae.density_variance == pytest.approx((16 / 30 - 4 / 9) / (2 / 3) ** 2)  # of h = w / area


def test_a_density_keeps_its_variance_when_the_weights_are_scaled():
    one, two = curve("sce:alpha=1,beta=0.1"), curve("sce:alpha=10,beta=1")
    assert two.variance == pytest.approx(100 * one.variance)
    assert two.density_variance == pytest.approx(one.density_variance)


@pytest.mark.parametrize("spec", ["dm:beta=0", "exponential:beta=0", "beta:a=1,eta=1", "beta:a=0.5,eta=0.5"])
def test_where_no_single_p_counts_most_there_is_no_mode(spec):
    assert curve(spec).mode is None
    assert table([curve(spec)]).splitlines()[1].split()[1] == "none"


def test_the_table_is_aligned_and_says_where_a_variance_is_infinite():
    lines = table([curve(spec) for spec in [*SPECS, "beta:a=0.5,eta=2", "dm:beta=60"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[5].split() == ["beta:a=0.5,eta=2", "0.00", "infinite", "infinite"]
    assert "e+" in lines[6].split()[2]


def test_the_left_panel_holds_the_weights_and_the_right_one_densities_of_unit_area():
    found = [curve(spec) for spec in SPECS]
    left, right = draw(found).axes
    for c, line in zip(found, left.lines, strict=True):
        assert np.array_equal(line.get_ydata(), c.w)
    for line in right.lines:
        assert integral(line.get_ydata()) == pytest.approx(1, abs=1e-5)
    assert left.get_ylim()[1] > max(c.w.max() for c in found)
    assert (left.get_yscale(), left.get_xlim()) == ("linear", (0, 1))


def test_the_legend_names_each_curve_with_mode_and_variances():
    figure = draw([curve(spec) for spec in SPECS])
    words = [text.get_text() for text in figure.texts]
    assert words[:5] == ["weighting", *SPECS]
    assert words[5:10] == ["mode", "0.50", "0.67", "0.00", "0.50"]
    assert words[10:15] == ["variance of w", "4.55", "2.83", "0.33", "0.09"]


def test_no_two_words_of_a_picture_overlap():
    long = "sce:alpha=0.123456,beta=0.123456,a=-9.123456"
    figure = draw([curve(spec) for spec in [*SPECS, long, "gce", "mse", "normal"]], histogram())
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [axes.xaxis.label.get_window_extent() for axes in figure.axes[:2]]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for i, one in enumerate(boxes):
        assert 0 <= one.x0 < one.x1 <= figure.bbox.width
        assert 0 <= one.y0 < one.y1 <= figure.bbox.height
        assert not any(one.overlaps(other) for other in boxes[:i])


def test_no_two_curves_look_alike():
    specs = [f"dm:beta={beta}" for beta in range(1, 2 * len(COLOURS))]
    left, _ = draw([curve(spec) for spec in specs]).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in left.lines}) == len(specs)


def test_a_weight_that_is_infinite_at_an_end_does_not_flatten_the_others():
    left, right = draw([curve("beta:a=0.5,eta=0.5"), curve("cce")]).axes
    assert left.get_ylim()[1] < 100
    assert right.get_ylim()[1] < 100
    assert np.isfinite(left.lines[0].get_ydata()).all()


def histogram():
    early, late = np.zeros(20), np.zeros(20)
    early[:2], late[10:] = 0.5, 0.1
    return Histogram(early, late, "steps 1 to 10", "steps 91 to 100", 0.05, 0.75)


def test_the_p_of_a_run_stand_behind_the_curves_in_per_cent():
    figure = draw([curve("imae")], histogram(), "the match probability")
    left, right, *behind = figure.axes
    assert len(behind) == 2
    for shade, axes in zip(behind, (left, right), strict=True):
        assert shade.get_zorder() < axes.get_zorder()
        early, late = (stairs.get_data().values for stairs in shade.patches)
        assert early.tolist() == [50, 50, *[0] * 18]
        assert late.tolist() == pytest.approx([0] * 10 + [10] * 10)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["examples, steps 1 to 10", "examples, steps 91 to 100"]
    assert left.get_xlabel() == "p, the match probability"


def test_early_and_late_are_the_first_and_the_last_tenth_of_the_logged_steps(tmp_path):
    lines = [
        {"step": step, "loss": 1.0, "p": {"mean": step / 100, "histogram": [step, 10 - step % 10] + [0] * 18}}
        for step in range(1, 31)
    ]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 30, "validation": {"recall@1": 1.0}}])
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 31, "p": {"me')  # killed while it wrote
    (tmp_path / "settings.yaml").write_text("steps: 30")
    found = _histogram(tmp_path)
    assert found.early[:2].tolist() == pytest.approx([(1 + 2 + 3) / 30, (9 + 8 + 7) / 30])
    assert found.late[0] == pytest.approx((28 + 29 + 30) / (28 + 29 + 30 + 2 + 1 + 10))
    assert (found.early_steps, found.late_steps) == ("steps 1 to 3", "steps 28 to 30")
    assert (found.early_mean, found.late_mean) == pytest.approx((0.02, 0.29))


def test_weights_without_a_density_are_refused():
    with pytest.raises(InputError, match="the weights of dm:beta=100000 are too large"):
        curve("dm:beta=100000")
    with pytest.raises(InputError, match="as good as zero everywhere"):
        curve("sce:alpha=1e-200,beta=0")


CLIPS = ["data.root=x", "tracklets.frames=4"]


@pytest.mark.parametrize(
    ("words", "p", "weighted"),
    [
        (["loss.name=mae"], OWN, "mae"),
        (["loss.name=triplet"], "the match probability", None),
        (["loss.name=triplet", "plus=[{name: imae}]"], OWN, "imae"),
        (["loss.name=triplet", "weighting.name=dm"], "the match probability", "dm"),
        (["loss.name=mae", "frame_losses=[{name: triplet}, {name: imae}]", *CLIPS], OWN, "imae"),
        (["loss.name=mae", "frame_losses=[{name: triplet}]", *CLIPS], "the match probability", None),
        (["loss.name=mae", *CLIPS], OWN, "mae"),
    ],
)
def test_p_of_a_run_is_of_its_pictures_or_else_of_whole_clips(words, p, weighted):
    settings = read("folder", ["data.root=x", *words])
    assert _p_of(settings) == p
    assert (settings.weighed_by(settings.of_pictures) or {}).get("name") == weighted
