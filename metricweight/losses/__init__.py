"""Losses: a direction times a weight. `LOSSES` is the list of all of them."""

from metricweight.losses.table import *  # noqa: F403  (exactly the list that table.py ends with)
from metricweight.losses.table import __all__ as __all__
