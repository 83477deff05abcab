"""Emphasis: how much an example counts, as a function of p, the probability of its own label."""

from metricweight.emphasis.compose import BatchSum, Chain, Clip, Density, Power, UnitMean, chain
from metricweight.emphasis.density import density, emphasis_mode, emphasis_variance
from metricweight.emphasis.functions import (
    Beta,
    CrossEntropy,
    Emphasis,
    Exponential,
    FeatureLearningAttention,
    GeneralisedCrossEntropy,
    MeanAbsoluteError,
    MeanSquaredError,
    Normal,
    SymmetricCrossEntropy,
    Weighting,
    imae,
)

__all__ = [
    "BatchSum",
    "Beta",
    "Chain",
    "Clip",
    "CrossEntropy",
    "Density",
    "Emphasis",
    "Exponential",
    "FeatureLearningAttention",
    "GeneralisedCrossEntropy",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Normal",
    "Power",
    "SymmetricCrossEntropy",
    "UnitMean",
    "Weighting",
    "chain",
    "density",
    "emphasis_mode",
    "emphasis_variance",
    "imae",
]
