"""DATASETS: the one list of the data sets that `metricweight prepare` knows."""

from . import cub200, own

DATASETS = {
    "folder": own.FOLDER,
    "csv": own.CSV,
    "cub200": cub200.DATASET,
}
