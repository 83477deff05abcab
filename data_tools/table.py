"""DATASETS: the one list of the data sets that `metricweight prepare` knows."""

from . import (
    cars196,
    cifar,
    clothing1m,
    cub200,
    duke_video,
    ilids_vid,
    in_shop,
    market1501,
    mars,
    online_products,
    own,
    prid2011,
)

DATASETS = {
    "folder": own.FOLDER,
    "csv": own.CSV,
    "cub200": cub200.DATASET,
    "cars196": cars196.DATASET,
    "sop": online_products.DATASET,
    "inshop": in_shop.DATASET,
    "mars": mars.DATASET,
    "market1501": market1501.DATASET,
    "duke_video": duke_video.DATASET,
    "ilids_vid": ilids_vid.DATASET,
    "prid2011": prid2011.DATASET,
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
    "clothing1m": clothing1m.DATASET,
}
