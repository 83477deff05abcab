"""Which frames of a tracklet are learned from, and by which it is judged."""

from typing import Literal, NamedTuple, get_args

import numpy as np

from metricweight.checks import InputError, nearest
from metricweight.data.sampler import ClassBalancedSampler, SamplerRule
from metricweight.data.split import Indices
from metricweight.progress import aligned

Clip = Literal["random", "evenly", "restricted", "consecutive"]
TestClip = Literal["all", "first", "evenly"]

_CLIP = 0x636C6970  # tells the random numbers of clips from those by which tracklets are drawn


class Rule(NamedTuple):
    """Which frames of a tracklet a clip has, in words."""

    name: Clip | TestClip
    of: str
    frames: str
    shorter: str
    source: str


RULES = (
    Rule("random", "training", "F without replacement, in order", "loops", "torchreid"),
    Rule("evenly", "training", "floor(i n/F): nothing is random", "loops", "torchreid"),
    Rule("restricted", "training", "one at random from each of F equal parts", "loops", "Li et al., CVPR 2018"),
    Rule("consecutive", "training", "each `stride` further, from a random one on", "loops", "Gao & Nevatia; AP3D"),
    Rule("all", "test", "all", "", "official re-ID code"),
    Rule("first", "test", "the first F", "all it has", "AP3D, while it trains"),
    Rule("evenly", "test", "floor(i n/F)", "all it has", "torchreid"),
)


def clip(length: int, frames: int, how: Clip, stride: int, random: np.random.Generator) -> Indices:
    """Which frames of a tracklet a training clip has, [F], in order of time.

    length  n, frames of the tracklet, which are 0 to n - 1
    frames  F
    how     random       F without replacement
            evenly       floor(i n / F), i = 0 ... F - 1; nothing is random
            restricted   one at random from each of F equal parts, floor(i n / F) to floor((i + 1) n / F) - 1
            consecutive  s + stride i, where s is random, each that fits as likely; where a tracklet is too short for
                         the stride, by the largest stride that fits
    stride  of consecutive

    A tracklet with fewer than F frames loops from its first frame on, i mod n, by every rule: 0 1 2 0 1 2 0.

    Where other code differs: torchreid's `random` draws a shorter tracklet with replacement, its `evenly` leaves out
    the last n mod F frames and repeats the last frame of a shorter one. Gao and Nevatia (arXiv:1805.02104) start
    anywhere but at the last place that fits, with stride 1, and loop as here. AP3D (stride 8) draws from a tracklet of
    fewer than F stride frames as torchreid's `random`. `restricted` is of Li et al., Diversity Regularized
    Spatiotemporal Attention, CVPR 2018.

    Raises InputError for numbers below 1 and a rule that is not known.
    """
    if how not in (known := get_args(Clip)):
        raise InputError(f"'{how}' is not a rule for clips{nearest(how, known)} Known: {', '.join(known)}.")
    if min(length, frames, stride) < 1:
        raise InputError(
            "a clip has frames of a tracklet, at least 1, by a stride of at least 1; "
            f"got {frames} of {length} by {stride}."
        )
    i = np.arange(frames, dtype=np.int64)
    if length < frames:
        return i % length
    if how == "random":
        return np.sort(random.choice(length, frames, replace=False)).astype(np.int64)
    if how == "consecutive":
        stride = min(stride, (length - 1) // max(frames - 1, 1))
        return random.integers(length - stride * (frames - 1)) + stride * i
    starts = i * length // frames
    if how == "evenly":
        return starts
    return random.integers(starts, (i + 1) * length // frames)


def judged_by(length: int, how: TestClip, frames: int | None) -> Indices:
    """Which frames of a tracklet it is judged by, in order of time; each of them once.

    length  n, frames of the tracklet
    how     all; first: the first F; evenly: floor(i n / F), i = 0 ... F - 1
    frames  F of first and evenly; None for all

    A tracklet with fewer than F frames is judged by all that it has. The official code of MARS, and that of OSM and
    derivative manipulation, take all; AP3D takes all in the end and the first while it trains, by the largest stride of
    8, 4, 2 and 1 that fits; torchreid takes 15 evenly, as its training clips are.

    Raises InputError for a rule that is not known, a length below 1, and where F is missing, below 1, or not wanted.
    """
    if how not in (known := get_args(TestClip)):
        raise InputError(f"'{how}' is not a rule for test clips{nearest(how, known)} Known: {', '.join(known)}.")
    if length < 1:
        raise InputError(f"a tracklet has at least 1 frame, got {length}.")
    if how == "all":
        if frames is not None:
            raise InputError(f"a tracklet is judged by all of its frames, but {frames} were asked for; choose one.")
        return np.arange(length, dtype=np.int64)
    if frames is None or frames < 1:
        raise InputError(f"to judge a tracklet by frames '{how}', say how many, at least 1; got {frames}.")
    i = np.arange(min(frames, length), dtype=np.int64)
    return i if how == "first" or length < frames else i * length // frames


class ClipSampler:
    """Batches of P identities x T tracklets x F frames: the indices of pictures, clip after clip.

        ClipSampler(labels, tracklets, numbers, classes=8, per_class=4, frames=4).batch(step)    # 128 indices

    labels     [N]  integers; index i of a batch means picture i
    tracklets  [N]  which tracklet a picture is a frame of; -1: a still picture, a tracklet of its own
    numbers    [N]  the order of frames in their tracklet
    classes, per_class, seed, rule
               P, T and how identities and their tracklets are drawn: as `ClassBalancedSampler` draws classes and images
    frames, how, stride
               F, and which frames of a tracklet a clip has: see `clip`

    Batches are a function of (seed, step): `batch(step)` counts through all epochs and may be asked in any order. Each
    clip of a batch draws its frames from random numbers of its own, so that a tracklet that comes twice in a batch,
    as those of an identity with fewer than T may, comes with other frames where the rule is random and it has others.
    Where all pictures are stills and F = 1, batches are those of `ClassBalancedSampler(labels, P, T, seed, rule)`.

    Raises InputError where a tracklet shows two identities, where there are fewer than P identities (shuffle: fewer
    than P T tracklets), and what `clip` raises.
    """

    def __init__(
        self,
        labels: Indices,
        tracklets: Indices,
        numbers: Indices,
        *,
        classes: int,
        per_class: int,
        frames: int,
        how: Clip = "random",
        stride: int = 1,
        seed: int = 0,
        rule: SamplerRule = "ranked_list",
    ) -> None:
        if not len(labels) == len(tracklets) == len(numbers):
            raise InputError(
                "labels, tracklets and numbers are one for each picture, but there are "
                f"{len(labels)}, {len(tracklets)} and {len(numbers)}."
            )
        self.pictures = grouped(tracklets, numbers)
        _check_identities(labels, tracklets, self.pictures)
        clip(frames, frames, how, stride, np.random.default_rng(0))  # which says what of these cannot be
        self.frames, self.how, self.stride, self.seed = frames, how, stride, seed
        of = np.array([labels[rows[0]] for rows in self.pictures], dtype=np.int64)
        self._drawn = ClassBalancedSampler(of, classes, per_class, seed, rule, item="tracklet")

    @property
    def tracklets(self) -> int:
        """How many there are, still pictures included."""
        return len(self.pictures)

    @property
    def few(self) -> int:
        """How many identities have fewer than T tracklets."""
        return sum(len(items) < self._drawn.images for items in self._drawn.items)

    @property
    def size(self) -> int:
        """Pictures of a batch, those of all processes together: P T F."""
        return self._drawn.size * self.frames

    def batch(self, step: int) -> Indices:
        """The indices of one batch, [P T F], F of a clip in a row: a function of (seed, step), in any order."""
        return self._clips(self._drawn.batch(step), step, 0)

    def share(self, step: int, process: int, processes: int) -> Indices:
        """The whole clips of a batch that one of so many processes trains on, [P T F / processes].

        The shares of processes 0, 1, ... one after the other are `batch(step)`. Raises InputError where the clips of a
        batch cannot be shared equally.
        """
        mine = self._drawn.share(step, process, processes)
        return self._clips(mine, step, process * len(mine))

    def _clips(self, tracklets: Indices, step: int, first: int) -> Indices:
        """A clip of each of some tracklets, which stand in a batch from place `first` on."""
        return np.concatenate([self._clip(item, step, first + j) for j, item in enumerate(tracklets.tolist())])

    def _clip(self, tracklet: int, step: int, place: int) -> Indices:
        rows = self.pictures[tracklet]
        random = np.random.default_rng([self.seed, step, place, _CLIP])
        return rows[clip(len(rows), self.frames, self.how, self.stride, random)]


def listing() -> str:
    """All rules for clips as a table, a line each. n frames of a tracklet, F of a clip."""
    return aligned([("clip", "of", "frames", "a tracklet with fewer", "as in"), *RULES])


def numbered(tracklets: Indices) -> tuple[Indices, Indices]:
    """Which tracklet each picture is of, [N], counted in the order in which their first pictures come, and where these
    are, [T]. A still picture, -1, is a tracklet of its own."""
    keys = np.asarray(tracklets, dtype=np.int64)
    keys = np.where(keys < 0, -1 - np.arange(len(keys)), keys)
    _, firsts, of = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[of.reshape(-1)], firsts[order]


def grouped(tracklets: Indices, numbers: Indices) -> list[Indices]:
    """The pictures of each tracklet by their numbers, tracklets in the order in which their first pictures come."""
    of, _ = numbered(tracklets)
    order = np.lexsort((np.asarray(numbers), of))
    return np.split(order, np.cumsum(np.bincount(of))[:-1]) if len(order) else []


def _check_identities(labels: Indices, tracklets: Indices, pictures: list[Indices]) -> None:
    for rows in pictures:
        first, others = labels[rows[0]], labels[rows]
        if (others != first).any():
            raise InputError(
                f"tracklet {tracklets[rows[0]]} shows more than one identity, labels {first} and "
                f"{others[others != first][0]}; give all of its frames one label, or split it."
            )
