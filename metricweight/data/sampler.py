"""How training batches are formed."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from metricweight.checks import InputError
from metricweight.data.split import Indices

SamplerRule = Literal["ranked_list", "per_class", "identity", "remaining", "balanced", "independent", "shuffle"]


class ClassBalancedSampler(Sampler[list[int]]):
    """Batches of `classes` x `images`: that many classes, and that many items of each, grouped by class.

        for batch in ClassBalancedSampler(labels, classes=32, images=4): ...      # lists of 128 indices

    An epoch is one random permutation of the classes, cut into groups of `classes`; what is left over when their
    number does not divide sits this epoch out, so every batch is full. Items are drawn without replacement; a
    class with fewer than `images` items repeats them as evenly as it can. The batches are a function of
    (seed, epoch): call `set_epoch` before each pass, or `batch(step)` for any one of them.

    labels   [N]  integers; index i of a batch means labels[i]

    Use as `batch_sampler` of a torch DataLoader. Raises InputError when there are fewer than `classes` classes.
    """

    def __init__(self, labels: Indices, classes: int, images: int, seed: int = 0) -> None:
        order = np.argsort(labels, kind="stable")
        _, starts = np.unique(np.asarray(labels)[order], return_index=True)
        self.items = np.split(order, starts[1:]) if len(order) else []
        if classes < 1 or images < 1:
            raise InputError(f"a batch needs at least 1 class and 1 image, got {classes} x {images}.")
        if len(self.items) < classes:
            raise InputError(
                f"a batch of {classes} classes was asked for, but there are {len(self.items)} to train on; "
                f"set batch.classes={len(self.items)} or less."
            )
        self.classes, self.images, self.seed, self.epoch = classes, images, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.items) // self.classes

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batch(self.epoch * len(self) + place).tolist() for place in range(len(self)))

    def batch(self, step: int) -> Indices:
        """The indices of one batch, counted through all epochs: a function of (seed, step), in any order."""
        epoch, place = divmod(step, len(self))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        random = np.random.default_rng([self.seed, epoch, place])
        chosen = order[place * self.classes : (place + 1) * self.classes]
        return np.concatenate([np.resize(random.permutation(self.items[label]), self.images) for label in chosen])
