"""The pictures that settings name: which there are, which are learned from, and how a network sees them."""

import os
from collections.abc import Generator, Iterable
from typing import NamedTuple

import numpy as np

from metricweight.checks import InputError
from metricweight.data import glyphs
from metricweight.data.images import Held, Images, digits, from_manifest
from metricweight.data.loader import Batch, Wanted, auto_workers, batches
from metricweight.data.split import Indices, split_by_class
from metricweight.data.tracklets import numbered
from metricweight.data.transforms import View
from metricweight.models.backbones import expected_pixels
from metricweight.progress import say, track
from metricweight.retrieval.protocol import among, named
from metricweight.settings import DataSettings, Settings
from metricweight.training.distributed import Processes

BLOCK = 256  # pictures that are read and embedded at once


def load_images(data: DataSettings, channels: int | None = None) -> Images:
    """The pictures that the settings name. `channels`: what a network that is there already looks at."""
    if data.source == "glyphs":
        if data.shape != (glyphs.SIZE, glyphs.SIZE):
            raise InputError(f"the glyphs are drawn {glyphs.SIZE} x {glyphs.SIZE}; data.size={data.size} cannot be.")
        found = glyphs.load(lambda faces: track(faces, "drawing glyphs"))
        for note in found.notes:
            say(note)
        say(f"glyphs: {found.merged} characters were merged into others that are drawn alike.")
        return found.images
    if data.source == "digits":
        return digits(max(data.shape))
    if data.root is None:
        raise InputError(
            "setting data.root is needed: a folder of class folders, a CSV with path and label, or a manifest."
        )
    if data.transform == "distort":
        raise InputError("data.transform=distort is for the glyphs; use crop or none for pictures.")
    return from_manifest(data.root, view_of(data).needed, channels or 3)


def with_pixels(settings: Settings, channels: int) -> Settings:
    """The settings with colours as the weights expect them that the network starts from, where nothing else is said."""
    weights = settings.model.pretrained or settings.model.weights is not None
    if settings.data.pixels is not None or not weights or channels != 3:
        return settings
    expected = expected_pixels(settings.model.backbone)
    return settings.model_copy(update={"data": settings.data.model_copy(update={"pixels": expected})})


def view_of(data: DataSettings) -> View:
    """How a network sees pictures, by the settings."""
    return View(data.transform, data.shape, data.pixels, data.seed)


def splits_of(images: Images, data: DataSettings) -> dict[str, Indices]:
    """Indices of "train", "validation" and "test": those of the data where they have a train and a test half, with
    classes of the former held out to validate on if it has none for that; else split by class."""
    own = images.splits
    if not {"train", "test"} <= own.keys():
        return split_by_class(
            images.labels, test=data.test, validation=data.validation, order=data.order, seed=data.seed
        )
    splits = {"validation": np.arange(0), **own}
    if "validation" not in own and data.validation:
        labels = images.labels[own["train"]]
        classes = len(np.unique(labels))
        if classes < 4:
            raise InputError(
                f"{classes} training classes are too few to hold two of them out to validate on; set data.validation=0."
            )
        share = max(data.validation, 2 / classes)
        held_out = split_by_class(labels, test=share, validation=0, order=data.order, seed=data.seed)
        splits["train"], splits["validation"] = (own["train"][held_out[name]] for name in ("train", "test"))
    return splits


def blocks_of(indices: Indices) -> list[Indices]:
    return np.split(indices, range(BLOCK, len(indices), BLOCK))


class Items(NamedTuple):
    """What is judged of some images: the images themselves, or the tracklets that they are the frames of.

    of     [N] which item each image is of
    first  [I] the first image of each item, which has its label, camera and name
    """

    of: Indices
    first: Indices


def items_of(images: Images, indices: Indices) -> Items:
    """The items of the images at `indices`, in the order in which these name them first."""
    if images.tracklets is None:
        return Items(np.arange(len(indices)), indices)
    of, first = numbered(images.tracklets[indices])
    return Items(of, indices[first])


def classes_of(images: Images, indices: Indices, split: str) -> dict[int, int]:
    """How many of the images at `indices` each class has. In a test half, what its protocol calls junk or a distractor
    is no class."""
    if images.roles is not None and split == "test":
        rules = named(images.roles.protocol)
        indices = indices[~among(images.roles.numbers[indices], (*rules.junk, *rules.distractors))]
    labels, counts = np.unique(images.labels[indices], return_counts=True)
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def seen(
    images: Images, data: DataSettings, wanted: Iterable[Wanted], processes: Processes
) -> Generator[Batch, None, None]:
    """The batches that are wanted, as a network sees them by the settings."""
    workers = data.workers
    if workers is None and (workers := auto_workers(images)):  # shared among the processes of this machine
        workers = max(1, workers // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    pin = processes.device != "cpu"
    return batches(images, view_of(data), wanted, workers=workers, pin=pin, damaged=data.damaged, cache=data.cache)


def read_all(images: Images, indices: Indices, data: DataSettings, processes: Processes) -> None:
    """Reads each picture once, into the cache if there is one; processes share the work. Raises InputError for one that
    cannot be read, unless such are skipped."""
    if not isinstance(images.picture, Held):
        blocks = blocks_of(indices[processes.rows(len(indices))])
        for _ in track(seen(images, data, map(Wanted, blocks), processes), "reading pictures", total=len(blocks)):
            pass
