"""How far a mean over queries would move with other classes of the same kind.

Queries of one class are alike: they search for the same items, and a class that is hard is hard for all of them. So
what was drawn at random is classes, not queries, and an interval that treats queries as independent is too narrow.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError

BLOCK = 2**20  # classes drawn at a time: four arrays of 8 MB
FEW_CLASSES = 20  # below, intervals are too narrow by more than a little


def intervals(
    values: Mapping[str, NDArray[np.float64]],
    clusters: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of means over queries, from redrawing whole classes: the cluster bootstrap.

        mean* = sum_{c in draw} sum_{i in c} v_i / sum_{c in draw} n_c,   a draw: C of C classes, with replacement

    and the interval lies between the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of mean*.

    values    metric: [Q]  a number per query; NaN where a query does not count. Differences b - a of two models on
                           the same queries give the interval of the paired difference
    clusters  [Q]          the class of each query

    All metrics share the draws. Classes of which no query counts are not drawn. The same seed gives the same numbers.
    With fewer than two classes there is nothing to redraw, and the interval is (nan, nan). Where all classes have
    the same mean its width is 0, which says that nothing was seen to vary, not that nothing could.

    Coverage: the interval is right for many classes and too narrow for few. In simulations, intervals of 95 % held
    the truth 85 % of the time with 5 classes, 90 % with 10, 92 % with 20 and 94 % with 50. The gallery and the
    networks are taken as they are: what another training run would change is not in it.

    Raises InputError where lengths do not match, and for confidence outside of (0, 1) or resamples below 1.
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, sections 3.8 and 5.3.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise InputError(
            f"intervals needs a confidence between 0 and 1 and one resample at least, got {confidence} and {resamples}."
        )
    for name, given in values.items():
        if given.shape != clusters.shape or given.ndim != 1:
            raise InputError(
                f"{name} and clusters must be [Q], a number and a class for each query, "
                f"got {list(given.shape)} and {list(clusters.shape)}."
            )
    sums, counts = _by_class(values, clusters)
    enough = (counts > 0).sum(axis=0) > 1
    bounds = np.full((2, len(values)), np.nan)
    if enough.any():
        means = _redrawn(sums[:, enough], counts[:, enough], resamples, seed)
        bounds[:, enough] = np.nanquantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {name: (float(low), float(high)) for name, (low, high) in zip(values, bounds.T, strict=True)}


def _by_class(
    values: Mapping[str, NDArray[np.float64]], clusters: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums and numbers of the queries that count [C, M], of the classes in which any does."""
    _, places = np.unique(clusters, return_inverse=True)
    sums = np.empty((places.max(initial=-1) + 1, len(values)))
    counts = np.empty_like(sums)
    for m, given in enumerate(values.values()):
        counted = ~np.isnan(given)
        sums[:, m] = np.bincount(places[counted], given[counted], minlength=len(sums))
        counts[:, m] = np.bincount(places[counted], minlength=len(sums))
    any_counts = counts.any(axis=1)
    return sums[any_counts], counts[any_counts]


def _redrawn(sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """The mean of each draw of classes [resamples, M]; NaN where a draw has no query that counts."""
    random = np.random.default_rng(seed)
    classes, metrics = sums.shape
    both = np.hstack([sums, counts])
    found = np.empty((resamples, 2 * metrics))
    for start in range(0, resamples, max(1, BLOCK // classes)):
        rows = found[start : start + max(1, BLOCK // classes)]
        draws = random.integers(classes, size=(len(rows), classes))
        draws += classes * np.arange(len(rows))[:, None]
        times = np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)
        rows[:] = times.astype(np.float64) @ both
    with np.errstate(invalid="ignore"):
        return found[:, :metrics] / found[:, metrics:]
