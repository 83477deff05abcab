"""Miners: which pairs count, and how much."""

from metricweight.miners.soft import InstanceMiner, OnlineSoftMiner, PairMiner, RankedListMiner

__all__ = ["InstanceMiner", "OnlineSoftMiner", "PairMiner", "RankedListMiner"]
