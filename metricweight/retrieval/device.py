"""The counting of `ranking`, by torch on a GPU. What float32 cannot decide is listed there and settled here."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricweight.retrieval.kernels import Compared, Wanted, settle_pairs
from metricweight.similarity import full_precision

ROWS, COLUMNS = 1024, 8192  # of a block of products
LISTED = 2**20  # undecided entries of a block of rows that there is room for at first

Rows = Callable[[int, int], NDArray[np.float32]]


def count(
    wanted: Wanted,
    end: int,
    query_rows: Rows,
    gallery: Tensor,
    compared: Compared,
    chosen: Callable[[], bool],
    progress: Callable[[int], None],
) -> None:
    """Counts for all queries that are `wanted`, up to query `end`, what stands above each of their positives.

    query_rows  compared rows of queries begin to end
    gallery     [G, D]  compared rows, on the device
    chosen      whether the next block is this process's
    progress    is told how many rows are done

    Each entry finds its place among the sorted positives by binary search; nothing waits for the device within a
    block of rows.
    """
    half, norm = (torch.from_numpy(x).to(gallery.device) for x in (compared.gallery.half, compared.gallery.norm))
    for begin in range(wanted.begin, end, ROWS):
        stop = min(begin + ROWS, end)
        if chosen():
            capacity = LISTED
            while True:
                places, listed, total = _block(
                    wanted, begin, stop, query_rows(begin, stop), gallery, half, norm, compared, capacity
                )
                if total <= capacity:
                    break
                capacity = total
            _add(wanted, begin, places)
            first = begin - wanted.begin
            settle_pairs(compared, wanted, first, *(np.ascontiguousarray(x) for x in listed[:, :total]))
        progress(stop - begin)


def _block(
    wanted: Wanted,
    begin: int,
    stop: int,
    rows: NDArray[np.float32],
    gallery: Tensor,
    half: Tensor,
    norm: Tensor,
    compared: Compared,
    capacity: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """For each query how many entries have which place among its positives [b, P + 1], the undecided entries (query,
    entry, lowest and highest place) [4, capacity], and how many these are."""
    device = gallery.device
    first = begin - wanted.begin
    counts = np.diff(wanted.start[first : first + stop - begin + 1])
    bounds = np.full((stop - begin, int(counts.max())), np.inf, dtype=np.float32)
    place = np.arange(bounds.shape[1])
    bounds[place < counts[:, None]] = wanted.bound[wanted.start[first] : wanted.start[first + stop - begin]]
    order = np.argsort(bounds, axis=1)  # largest first within a query becomes smallest first; padding stays last
    bound = torch.from_numpy(np.take_along_axis(bounds, order, axis=1)).to(device)
    c = torch.from_numpy(rows).to(device)
    own = torch.from_numpy(compared.queries.norm[begin:stop, None]).to(device)
    far = torch.from_numpy(wanted.farthest[first : first + stop - begin, None]).to(device)
    low, high = (
        torch.from_numpy(np.ascontiguousarray(x[first : first + stop - begin, None])).to(device)
        for x in (wanted.first, wanted.last)
    )
    places = torch.zeros(stop - begin, bound.shape[1] + 1, dtype=torch.int64, device=device)
    listed = torch.zeros(4, capacity + 1, dtype=torch.int64, device=device)
    total = torch.zeros((), dtype=torch.int64, device=device)
    with torch.no_grad(), full_precision(device.type):
        for column in range(0, len(gallery), COLUMNS):
            items = slice(column, min(column + COLUMNS, len(gallery)))
            scores = torch.addmm(-half[items], c, gallery[items].T)
            number = torch.arange(items.start, items.stop, device=device)
            scores.masked_fill_((number >= low) & (number < high), -torch.inf)
            longest = norm[items].max()
            slack = compared.rounding * (own * (far + longest) + (far * far + longest * longest) / 2)
            sure = torch.searchsorted(bound, scores - slack)
            maybe = torch.searchsorted(bound, scores + slack, right=True)
            places.scatter_add_(1, sure, torch.ones_like(sure))
            undecided = (maybe > sure).flatten()
            at = (total + undecided.cumsum(0) - 1).clamp(max=capacity)
            at = torch.where(undecided, at, capacity)
            query = torch.arange(stop - begin, device=device)[:, None].expand_as(sure)
            for row, value in zip(listed, (query, number.expand_as(sure), sure, maybe), strict=True):
                row.scatter_(0, at, value.flatten())
            total += undecided.sum()
    return places.cpu().numpy(), listed.cpu().numpy(), int(total)


def _add(wanted: Wanted, begin: int, places: NDArray[np.int64]) -> None:
    """An entry is above all positives that come before its place."""
    above = places[:, ::-1].cumsum(axis=1)[:, -2::-1]  # [b, P], smallest first: entries of a later place
    first = begin - wanted.begin
    for b, row in enumerate(above):
        start, stop = wanted.start[first + b], wanted.start[first + b + 1]
        wanted.above[start:stop] += row[: stop - start][::-1]
