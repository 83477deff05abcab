"""Losses: a direction times a weight. `LOSSES` is the list of all of them."""

from metricweight.losses.named import RankedListLoss
from metricweight.losses.table import LOSSES, Loss

__all__ = ["LOSSES", "Loss", "RankedListLoss"]
