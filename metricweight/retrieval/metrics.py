"""Metrics per query, [Q], from the ranks of its positives; where distances tie, what is expected of a random order.

Letters: R positives of a query, hit_k: its k-th nearest item is one, precision@k = (hits among the first k) / k.

A tie is n negatives and p positives of a query at one distance, L = n + p. They share the places s + 1 to s + L, after
b positives and s - b negatives that are closer, in an order that is chance. So

    P(place s + t is a hit)                    =  p / L
    E[hits among the first t - 1 of the tie]   =  (t - 1) (p - 1) / (L - 1)      given that the t-th is a hit
    P(none of the first x of the tie is a hit) =  C(n, x) / C(L, x)

from which the expected value of every metric follows in closed form (McSherry and Najork, Computing information
retrieval performance measures efficiently in the presence of tied scores, ECIR 2008). A positive that is tied with no
negative is a group of its own, n = 0 and p = 1, and its place is certain.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricweight.retrieval.ranking import Ranks

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NEGLIGIBLE = 1e-17  # a probability that no sum of float64 near 1 would notice
PART = 2**18  # positives
BLOCK = 64, 512  # groups and places that are looked at together: arrays that stay in the cache


def per_query(ranks: Ranks, ks: Sequence[int]) -> dict[str, Floats]:
    """Every metric of every query, as expected over a random order of what is tied.

        recall@k       any hit among the first k, 0 or 1; also called CMC at rank k, or hit rate
        precision@k    hits among the first k, / k; also where the query ranks fewer than k
        map@r          1/R sum_{k <= R} hit_k precision@k        (Musgrave et al., ECCV 2020)
        r_precision    hits among the first R, / R
        map            1/R sum_k hit_k precision@k               average precision over the full list, as steps
        map_trapezoid  1/R sum_k hit_k (precision@k + precision@(k - 1)) / 2, with precision@0 = 1: what the code that
                       came with Market-1501 and MARS computes (Zheng et al., ICCV 2015 and ECCV 2016)
        minp           R / rank of the last positive             (Ye et al., Deep Learning for Person Re-ID, 2021)
        mrr            1 / rank of the first positive

    ranks  of Q queries
    ks     each at least 1

    Returns recall@k for each k, precision@k for each k and the others, in this order, each [Q] float64: NaN for a
    query without positives. What is certain is exact: a recall is 0.0 or 1.0 where no tie reaches across k. Time is
    linear in the number of positives and, for minp and mrr, in the negatives that tie with a query's last or first
    positive (in 40 L / p of them where p is large), but once for all queries with the same s, n and p.
    """
    parts = [_per_query(part, ks) for part in _parts(ranks)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _parts(ranks: Ranks) -> Iterator[Ranks]:
    """The same a few queries at a time, so that what is computed on the way stays small; one part at least."""
    begins = np.searchsorted(ranks.start, np.arange(PART, len(ranks.above), PART))
    begins = np.unique(np.append(0, begins))
    for begin, end in zip(begins, np.append(begins[1:], len(ranks.ranked)), strict=True):
        start = ranks.start[begin : end + 1]
        some = slice(start[0], start[-1])
        yield Ranks(start - start[0], ranks.above[some], ranks.tied[some], ranks.ranked[begin:end])


def _per_query(ranks: Ranks, ks: Sequence[int]) -> dict[str, Floats]:
    valid = ranks.start[1:] > ranks.start[:-1]
    start = np.append(ranks.start[:-1][valid], len(ranks.above))
    positives = np.diff(start)
    groups = _groups(start, ranks)
    queries = len(positives)
    first, last = _edges(groups, queries)
    sought = positives[groups.query]

    found = {f"recall@{k}": _recall(first, k) for k in ks}
    found |= {f"precision@{k}": _hits(groups, k, queries) / k for k in ks}
    among_first_r, everywhere = _precisions(groups, _within(groups, sought)), _precisions(groups, groups.size)
    found["map@r"] = _added(among_first_r, groups, queries) / positives
    found["r_precision"] = _hits(groups, sought, queries) / positives
    found["map"] = _added(everywhere, groups, queries) / positives
    found["map_trapezoid"] = _added((everywhere + _precisions_before(groups)) / 2, groups, queries) / positives
    found["minp"] = _over_rank(positives, last.place + last.size + 1, -1, last)
    found["mrr"] = _over_rank(np.ones_like(positives), first.place, 1, first)
    return {name: _spread(values, valid) for name, values in found.items()}


def optimistic(ranks: Ranks) -> Ranks:
    """The same with ties broken in favour of the query: each positive before the negatives that are as close."""
    return ranks._replace(tied=np.zeros_like(ranks.tied))


def pessimistic(ranks: Ranks) -> Ranks:
    """The same with ties broken against the query: each positive after the negatives that are as close."""
    return ranks._replace(above=ranks.above + ranks.tied, tied=np.zeros_like(ranks.tied))


class _Groups(NamedTuple):
    """What is at one distance of one query and holds a positive; all [M], nearest first, query by query."""

    query: Ints
    before: Ints  # b
    place: Ints  # s
    negatives: Ints  # n
    positives: Ints  # p
    size: Ints  # L


def _groups(start: Ints, ranks: Ranks) -> _Groups:
    """Groups of queries that all have positives, those from start[q] to start[q + 1]."""
    begins = (ranks.tied == 0) | (np.diff(ranks.above, prepend=-1) != 0) | (np.diff(ranks.tied, prepend=-1) != 0)
    begins[start[:-1]] = True
    begin = np.flatnonzero(begins)
    query = np.repeat(np.arange(len(start) - 1), np.diff(start))[begin]
    before = begin - start[query]
    negatives = ranks.tied[begin]
    positives = np.diff(begin, append=len(begins))
    return _Groups(query, before, before + ranks.above[begin], negatives, positives, negatives + positives)


def _edges(groups: _Groups, queries: int) -> tuple[_Groups, _Groups]:
    """The first and the last group of each query."""
    after = np.cumsum(np.bincount(groups.query, minlength=queries))
    first, last = np.append(0, after[:-1])[:queries], after - 1
    return _Groups(*(x[first] for x in groups)), _Groups(*(x[last] for x in groups))


def _added(values: Floats, groups: _Groups, queries: int) -> Floats:
    return np.bincount(groups.query, values, minlength=queries).astype(np.float64)  # of nothing, it counts in integers


def _spread(values: Floats, valid: NDArray[np.bool_]) -> Floats:
    everywhere = np.full(len(valid), np.nan)
    everywhere[valid] = values
    return everywhere


def _within(groups: _Groups, k: int | Ints) -> Ints:
    """How many places of each group are among the first k."""
    return np.clip(k - groups.place, 0, groups.size)


def _hits(groups: _Groups, k: int | Ints, queries: int) -> Floats:
    """E[hits among the first k] of each query."""
    return _added(groups.positives * _within(groups, k) / groups.size, groups, queries)


def _recall(first: _Groups, k: int) -> Floats:
    """1 - C(n, x) / C(L, x) with x = k - s, the places of the first group that are among the first k.

    C(n, x) / C(L, x) = C(L - x, p) / C(L, p) = prod_{i < min(x, p)} (L - max(x, p) - i) / (L - i)
    """
    x = k - first.place
    missed = (x <= 0).astype(np.float64)
    undecided = np.flatnonzero((x > 0) & (x <= first.negatives))
    few, many = np.minimum(x, first.positives), np.maximum(x, first.positives)
    missed[undecided] = 1
    i = 0
    while len(undecided):
        left = first.size[undecided] - i
        missed[undecided] *= (left - many[undecided]) / left
        i += 1
        undecided = undecided[(few[undecided] > i) & (missed[undecided] > NEGLIGIBLE)]
    return 1 - missed


def _precisions(groups: _Groups, count: Ints) -> Floats:
    """E[sum over the first `count` places of each group of hit_k precision@k]."""
    found = np.where(count > 0, (groups.before + 1) / (groups.place + 1), 0.0)
    tied = np.flatnonzero((groups.negatives > 0) & (count > 0))
    _, b, s, _, p, size = (x[tied] for x in groups)
    slope = (p - 1) / (size - 1)
    found[tied] = p / size * _ratios(b + 1 - slope, slope, s, count[tied])
    return found


def _precisions_before(groups: _Groups) -> Floats:
    """E[sum over the places of each group of hit_k precision@(k - 1)], with precision@0 = 1."""
    found = np.where(groups.place > 0, groups.before / np.maximum(groups.place, 1), 1.0)
    tied = np.flatnonzero(groups.negatives)
    _, b, s, _, p, size = (x[tied] for x in groups)
    found[tied] = p / size * (found[tied] + _ratios(b, (p - 1) / (size - 1), s, size - 1))
    return found


def _ratios(a: Floats | Ints, slope: Floats, s: Ints, count: Ints) -> Floats:
    """sum_{t = 1..count} (a + slope t) / (s + t) = slope count + (a - slope s) sum_t 1 / (s + t)."""
    return slope * count + (a - slope * s) * _harmonic(s, count)


def _harmonic(s: Ints, count: Ints) -> Floats:
    """1 / (s + 1) + ... + 1 / (s + count), to the precision of float64 relative to itself.

    Beyond 64 by H(x) = log x + 0.5772... + 1/(2x) - 1/(12 x^2) + 1/(120 x^4) - 1/(252 x^6) + less than 1e-16. The
    logarithm is taken of the ratio: the difference of two sums from 1 on would lose s / count times the rounding.
    """
    exact = np.append(0, np.cumsum(1 / np.arange(1, 65)))
    end = s + count
    near = exact[np.minimum(end, 64)] - exact[np.minimum(s, 64)]
    low, high = np.maximum(s, 64).astype(np.float64), np.maximum(end, 64).astype(np.float64)
    return np.asarray(near + np.log1p((high - low) / low) + _beyond_log(high) - _beyond_log(low))


def _beyond_log(x: Floats) -> Floats:
    y = 1 / (x * x)
    return 1 / (2 * x) - y * (1 / 12 - y * (1 / 120 - y / 252))


def _over_rank(numerator: Ints, origin: Ints, step: int, groups: _Groups) -> Floats:
    """E[numerator / (origin + step t)], where t is the place of the first positive of the group, counted by `step`.

    step 1 and the place before the group give the rank of its first positive; step -1 and the place after the group
    that of its last, since an order that is chance is so from behind too.
    """
    found = numerator / (origin + step)
    tied = np.flatnonzero(groups.negatives)
    cases = np.stack([groups.negatives, groups.positives, origin])[:, tied]
    cases, which = np.unique(cases, axis=1, return_inverse=True)
    reciprocals = np.empty(cases.shape[1])
    for begin in range(0, len(reciprocals), BLOCK[0]):
        some = slice(begin, begin + BLOCK[0])
        n, p, origins = cases[:, some, None].astype(np.float64)
        reciprocals[some] = _reciprocals(n, p, origins, step)
    found[tied] = numerator[tied] * reciprocals[which.reshape(-1)]
    return found


def _reciprocals(n: Floats, p: Floats, origin: Floats, step: int) -> Floats:
    """E[1 / (origin + step t)] of each row [m, 1], where t is the place of the first of p positives among n negatives.

    P(t) = P(t - 1) (n + 2 - t) / (L + 1 - t)  with  P(0) = p / (n + 1),  zero from n + 2 on;
    P(later than t) = P(t) (n + 1 - t) / p. Block by block of places, until what is left is negligible.
    """
    found, chance, later = np.zeros(len(n)), p / (n + 1), np.ones_like(n)
    begin, end = 0, int(n.max()) + 1
    while begin < end and later.max() > NEGLIGIBLE:
        place = np.arange(begin + 1, min(begin + BLOCK[1], end) + 1)
        chances = chance * np.cumprod(np.maximum(n + 2 - place, 0) / np.maximum(n + p + 1 - place, 1), axis=1)
        found += (chances / np.maximum(origin + step * place, 1)).sum(axis=1)
        begin, chance = place[-1], chances[:, -1:]
        later = chance * (n + 1 - begin) / p
    return found
