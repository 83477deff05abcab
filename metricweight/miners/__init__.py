"""Miners: which pairs count, and how much."""

from metricweight.miners.soft import (
    ClassAwareMiner,
    InstanceMiner,
    OnlineSoftMiner,
    PairMiner,
    RankedListMiner,
    SoftMiner,
)

__all__ = ["ClassAwareMiner", "InstanceMiner", "OnlineSoftMiner", "PairMiner", "RankedListMiner", "SoftMiner"]
