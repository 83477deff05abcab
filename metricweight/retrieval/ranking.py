"""Exact ranks of all positives of every query, without a full sort and without the Q x G matrix."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Ranks(NamedTuple):
    """Where the positives of some queries stand. All that a metric of a ranking needs.

    start    [Q + 1]  the positives of query q are those from start[q] to start[q + 1], T in all; nearest first
    above    [T]      how many negatives are strictly closer than this positive
    tied     [T]      how many negatives are exactly as close
    ranked   [Q]      how many items the query ranks: its positives and its negatives

    The m-th positive of a query (m from 1) has a rank from m + above to m + above + tied. Positives of one query with
    the same `above` and the same `tied` > 0 are as close as each other and as those negatives: they share the places
    from (positives before them) + above + 1 on, in an order that is chance. Positives with tied = 0 have a certain
    place each, up to the order among themselves, which no metric sees.
    """

    start: NDArray[np.int64]
    above: NDArray[np.int64]
    tied: NDArray[np.int64]
    ranked: NDArray[np.int64]
