"""DATASETS: the one list of the data sets that `metricweight prepare` knows."""

from . import cub200

DATASETS = {
    "cub200": cub200.DATASET,
}
