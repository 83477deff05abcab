"""How training batches are formed."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from metricweight.checks import InputError, nearest
from metricweight.data.split import Indices
from metricweight.progress import aligned

SamplerRule = Literal["ranked_list", "per_class", "identity", "remaining", "balanced", "independent", "shuffle"]


class Rule(NamedTuple):
    """How classes and their images are drawn, in words."""

    name: SamplerRule
    classes: str
    images: str
    small: str
    by: str


RULES = (
    Rule("ranked_list", "each once in an epoch", "without replacement", "cycles", "RLL, CVPR 2019"),
    Rule("per_class", "differ within a batch", "without replacement", "with replacement", "PML MPerClassSampler"),
    Rule("identity", "any with images left", "each once in an epoch", "with replacement", "torchreid, strong baseline"),
    Rule("remaining", "by how many images are left", "each once, and padding", "padded by its own", "XBM"),
    Rule("balanced", "differ within a batch", "with replacement", "with replacement", "Proxy-Anchor"),
    Rule("independent", "with replacement", "with replacement", "with replacement", "Roth et al., ICML 2020"),
    Rule("shuffle", "as they come", "each once in an epoch", "as any other", "Proxy-NCA; plain batches"),
)


class ClassBalancedSampler(Sampler[list[int]]):
    """Batches of `classes` x `images`: c classes, and k images of each, grouped by class.

        for batch in ClassBalancedSampler(labels, classes=32, images=4): ...      # lists of 128 indices

    labels     [N]  integers; index i of a batch means labels[i]
    rule       ranked_list  an epoch is a permutation of the classes, cut into groups of c; what is left over sits this
                            epoch out. Images without replacement; a class with fewer than k repeats them evenly
               per_class    c different classes, whatever the batches before had. Images without replacement; a class
                            with fewer than k draws with replacement
               identity     the images of each class are shuffled and cut into parts of k; what is left over sits this
                            epoch out, and a class with fewer than k draws k with replacement. A batch has c different
                            classes that have parts left, each as likely; the epoch ends when fewer than c have
               remaining    as identity, but a class is padded to a multiple of k by draws with replacement from its
                            own, and is drawn as likely as it has parts left
               balanced     c different classes, whatever the batches before had. Images with replacement, always
               independent  c draws of a class with replacement, so one may come twice, and images with replacement
               shuffle      an epoch is a permutation of all images, cut into batches of c k, whatever their classes;
                            what is left over sits this epoch out
    item       what errors call that which is drawn

    Every batch is full. Batches are a function of (seed, step): `batch(step)` counts through all epochs and may be
    asked in any order; call `set_epoch` before each pass over an epoch. `len` is the number of batches of that epoch,
    which differs between epochs for identity and remaining; where batches do not depend on each other it is
    N / (c k), at least 1.

    Use as `batch_sampler` of a torch DataLoader; processes that train together each take their `share(step, ...)` of
    every batch instead. Raises InputError when there are fewer than c classes (shuffle: fewer than c k images).
    """

    def __init__(
        self,
        labels: Indices,
        classes: int,
        images: int,
        seed: int = 0,
        rule: SamplerRule = "ranked_list",
        item: Literal["image", "tracklet"] = "image",
    ) -> None:
        order = np.argsort(labels, kind="stable")
        _, starts = np.unique(np.asarray(labels)[order], return_index=True)
        self.items = np.split(order, starts[1:]) if len(order) else []
        self.classes, self.images, self.seed, self.rule, self.epoch = classes, images, seed, rule, 0
        self.item = item
        self._check()
        self._starts = [0]  # the first step of each epoch that was come to, where their lengths differ
        self._last: tuple[int, Indices] = -1, np.empty(0, np.int64)  # the last epoch that was drawn, which is costly

    def _check(self) -> None:
        if self.rule not in (known := get_args(SamplerRule)):
            raise InputError(f"'{self.rule}' is not a sampler{nearest(self.rule, known)} Known: {', '.join(known)}.")
        if self.classes < 1 or self.images < 1:
            raise InputError(f"a batch needs at least 1 class and 1 {self.item}, got {self.classes} x {self.images}.")
        if self.rule == "shuffle":
            if (items := sum(map(len, self.items))) < self.size:
                raise InputError(
                    f"a batch of {self.classes} x {self.images} {self.item}s was asked for, but there are {items} to "
                    f"train on; set batch.classes and batch.images so that their product is {items} or less."
                )
        elif len(self.items) < self.classes:
            raise InputError(
                f"a batch of {self.classes} classes was asked for, but there are {len(self.items)} to train on; "
                f"set batch.classes={len(self.items)} or less."
            )

    @property
    def size(self) -> int:
        """Images of a batch, those of all processes together."""
        return self.classes * self.images

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.rule == "ranked_list":
            return len(self.items) // self.classes
        if self.rule in ("identity", "remaining"):
            return len(self._parts(self.epoch))
        return max(1, sum(map(len, self.items)) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        first = self._first(self.epoch)
        return (self.batch(step).tolist() for step in range(first, first + len(self)))

    def share(self, step: int, process: int, processes: int) -> Indices:
        """The rows of a batch that one of so many processes trains on, [c k / processes].

        The shares of processes 0, 1, ... one after the other are `batch(step)`. Nothing is sent between processes,
        and all have as many steps. Raises InputError where a batch cannot be shared equally.
        """
        if not 0 <= process < processes:
            raise InputError(f"a share is of one of the processes 0 to {processes - 1}, got {process}.")
        if self.size % processes:
            raise InputError(
                f"a batch of {self.classes} x {self.images} {self.item}s was asked for, which {processes} processes "
                f"cannot share equally; set batch.classes or batch.images to a multiple of {processes}."
            )
        each = self.size // processes
        return self.batch(step)[process * each : (process + 1) * each]

    def batch(self, step: int) -> Indices:
        """The indices of one batch, [c k], counted through all epochs: a function of (seed, step), in any order."""
        epoch, place = self._place(step)
        if self.rule == "shuffle":
            return self._permuted(epoch)[place * self.size : (place + 1) * self.size]
        if self.rule in ("identity", "remaining"):
            return np.concatenate([self._part(epoch, *part) for part in self._parts(epoch)[place].tolist()])
        random = np.random.default_rng([self.seed, epoch, place])
        if self.rule == "ranked_list":
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
            chosen = order[place * self.classes : (place + 1) * self.classes]
        else:
            chosen = random.choice(len(self.items), self.classes, replace=self.rule == "independent")
        return np.concatenate([self._images(self.items[label], random) for label in chosen])

    def _images(self, items: Indices, random: np.random.Generator) -> Indices:
        """k of the images of a class."""
        if self.rule == "ranked_list":
            return np.resize(random.permutation(items), self.images)
        again = self.rule != "per_class" or len(items) < self.images
        return random.choice(items, self.images, replace=again)

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and which of its batches it is."""
        if self.rule not in ("identity", "remaining"):
            return divmod(step, len(self))
        starts = self._starts
        while starts[-1] <= step:
            starts = [*starts, starts[-1] + len(self._parts(len(starts) - 1))]
        self._starts = starts  # at once, so that threads do no harm to each other
        epoch = bisect_right(starts, step) - 1
        return epoch, step - starts[epoch]

    def _first(self, epoch: int) -> int:
        """The first step of an epoch."""
        if self.rule not in ("identity", "remaining"):
            return epoch * len(self)
        while len(self._starts) <= epoch:
            self._place(self._starts[-1])
        return self._starts[epoch]

    def _permuted(self, epoch: int) -> Indices:
        if self._last[0] != epoch:
            items = np.random.default_rng([self.seed, epoch]).permutation(sum(map(len, self.items)))
            self._last = epoch, items
        return self._last[1]

    def _parts(self, epoch: int) -> NDArray[np.int64]:
        """The batches of an epoch, [batches, c, 2]: a class, and which of its parts of k images."""
        last = self._last
        if last[0] != epoch:
            last = self._last = epoch, self._drawn(epoch)
        return last[1]

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        random = np.random.default_rng([self.seed, epoch])
        sizes = np.array([len(items) for items in self.items])
        parts = -(-sizes // self.images) if self.rule == "remaining" else np.maximum(sizes // self.images, 1)
        left, open_ = parts.copy(), np.arange(len(parts))
        batches = []
        while len(open_) >= self.classes:
            p = left[open_] / left[open_].sum() if self.rule == "remaining" else None
            chosen = open_[random.choice(len(open_), self.classes, replace=False, p=p)]
            batches.append(np.stack([chosen, parts[chosen] - left[chosen]], axis=1))
            left[chosen] -= 1
            if not left[chosen].all():
                open_ = open_[left[open_] > 0]
        return np.stack(batches)

    def _part(self, epoch: int, label: int, part: int) -> Indices:
        """A part of the images of a class, which are shuffled anew in each epoch."""
        items, k = self.items[label], self.images
        random = np.random.default_rng([self.seed, epoch, label])
        if self.rule == "remaining":
            items = np.concatenate([items, random.choice(items, -len(items) % k)])
        elif len(items) < k:
            return random.choice(items, k)
        return random.permutation(items)[part * k : (part + 1) * k]


def listing() -> str:
    """All rules as a table, a line each."""
    return aligned([("rule", "classes", "images", "a class with fewer", "as in"), *RULES])
