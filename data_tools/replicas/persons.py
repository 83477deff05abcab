"""Pictures of pedestrians, as cameras in a street cut them out.

A person has a look: clothes and their pattern, hair, a bag, a build. A camera has a tint, a background and a
viewpoint, a tracklet has light, pace and distance, and in a frame the legs are where they are. Few colours are worn
by many, and cameras change them, so the mean colour of a picture does not tell who it shows; patterns, hair, bags and
shapes do.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Place = tuple[float, float]
At = Callable[[float, float], Place]

CLOTHES: tuple[Colour, ...] = ((176, 74, 70), (70, 120, 84), (72, 96, 168), (168, 144, 78), (120, 82, 140))
DARK, LIGHT, SKIN = (38, 38, 44), (222, 220, 212), (206, 168, 142)
PATTERNS = ("plain", "hoops", "stripes", "checks", "sash")
BELOW = ("trousers", "shorts", "skirt")
HEADS = ("short hair", "long hair", "hat")
BAGS = ("none", "backpack", "handbag")
VIEWS = ("front", "back", "side")


class Seen(NamedTuple):
    """Whom a frame of a tracklet shows, and whether something hides most of them."""

    identity: int
    occluded: bool = False


class _Look(NamedTuple):
    above: Colour
    second: Colour  # of the pattern
    below: Colour
    pattern: str
    trousers: str
    head: str
    hair: Colour
    bag: str
    bag_colour: Colour
    sleeves: bool
    broad: float
    tall: float


class _Stand(NamedTuple):
    """Where someone is in the picture: feet, height in pixels, the swing of the legs from -1 to 1, from where seen."""

    x: float
    y: float
    height: float
    swing: float
    view: str


def person(
    identity: int, camera: int, tracklet: int, frame: int, size: tuple[int, int] = (64, 128), occluded: bool = False
) -> Image.Image:
    """A picture of someone, the same each time.

    identity  whose look, from -1 on
    camera    tint, background and viewpoint
    tracklet  light, pace, distance and way of walking
    frame     position and swing of the legs; later frames are further along
    size      width and height in pixels
    occluded  whether a pillar, a wall or somebody else hides most of the person
    """
    width, height = size
    walk = np.random.default_rng([43, identity + 1, camera, tracklet])
    now = np.random.default_rng([44, identity + 1, camera, tracklet, frame])
    light, pace, phase, far = (
        walk.uniform(0.75, 1.15),
        walk.uniform(0.5, 0.9),
        walk.uniform(0, 6),
        walk.uniform(0.86, 1),
    )
    drift = walk.uniform(-0.006, 0.006)
    stand = _Stand(
        width * (0.5 + walk.uniform(-0.05, 0.05) + np.clip(drift * frame, -0.1, 0.1) + now.uniform(-0.02, 0.02)),
        height * (0.97 + now.uniform(-0.015, 0.015)),
        height * 0.92 * far,
        float(np.sin(phase + pace * frame)),
        VIEWS[camera % 3],
    )
    picture = _background(camera, size, shift=int(walk.integers(width)))
    _draw(picture, _look(identity), stand)
    if occluded:
        _hide(picture, walk, camera, stand)
    return _taken(picture, camera, light, now)


def tracklet(
    owner: int, camera: int, number: int, seen: Sequence[Seen], size: tuple[int, int] = (64, 128)
) -> Iterator[Image.Image]:
    """The frames of a tracklet, the same each time: somebody walks, and a tracker cuts them out.

    Legs swing, the box wavers about the person, what is behind them passes by, and they come nearer or go away. What
    hides them is the same in a run of frames, and comes from one side and leaves at the other. Light, place and pace
    are those of the tracklet, so that someone else who is seen in it is told by their look alone.

    owner, number  whose tracklet, and which of theirs
    camera         tint, background and viewpoint
    seen           each frame in turn
    size           width and height in pixels
    """
    width, height = size
    walk = np.random.default_rng([46, owner + 1, camera, number])
    view = VIEWS[camera % 3]
    light, pace, phase = walk.uniform(0.75, 1.15), walk.uniform(0.5, 0.9), walk.uniform(0, 6)
    place, sway = walk.uniform(-0.05, 0.05), walk.uniform(0, 6)
    far, nearer = walk.uniform(0.86, 1), walk.uniform(-0.06, 0.06)
    passing = walk.uniform(1.2, 2.5) if view == "side" else walk.uniform(-0.8, 0.8)  # pixels in a frame
    behind = walk.integers(width)
    crossings = _crossings(seen)
    for frame, (identity, occluded) in enumerate(seen):
        now = np.random.default_rng([47, owner + 1, camera, number, frame])
        stand = _Stand(
            width * (0.5 + place + 0.07 * np.sin(sway + 0.3 * frame) + now.uniform(-0.02, 0.02)),
            height * (0.97 + now.uniform(-0.015, 0.015)),
            height * 0.92 * far * (1 + nearer * (2 * frame / len(seen) - 1)),
            float(np.sin(phase + pace * frame)),
            view,
        )
        picture = _background(camera, size, shift=round(behind + passing * frame))
        _draw(picture, _look(identity), stand)
        if occluded:
            run, crossing = crossings[frame]
            _hide(picture, np.random.default_rng([48, owner + 1, camera, number, run]), camera, stand, crossing)
        yield _taken(picture, camera, light, now)


def _crossings(seen: Sequence[Seen]) -> list[tuple[int, float]]:
    """For each frame the number of its run of frames that are hidden or not, and how far through it: -1 to 1."""
    found = []
    for number, (_, run) in enumerate(groupby(frame.occluded for frame in seen)):
        length = len(list(run))
        found += [(number, float(through)) for through in (np.linspace(-1, 1, length) if length > 1 else [0.0])]
    return found


def _look(identity: int) -> _Look:
    random = np.random.default_rng([41, identity + 1])
    above, below, bag = (CLOTHES[i] for i in random.permutation(len(CLOTHES))[:3])
    return _Look(
        above,
        (DARK, LIGHT)[random.integers(2)],
        below,
        PATTERNS[random.integers(len(PATTERNS))],
        BELOW[random.integers(len(BELOW))],
        HEADS[random.integers(len(HEADS))],
        ((52, 36, 28), (150, 112, 60), (120, 120, 120))[random.integers(3)],
        BAGS[random.integers(len(BAGS))],
        bag,
        bool(random.integers(2)),
        random.uniform(0.82, 1.2),
        random.uniform(0.88, 1.0),
    )


def _draw(picture: Image.Image, look: _Look, stand: _Stand) -> None:
    draw = ImageDraw.Draw(picture)
    tall = stand.height * look.tall
    broad = 0.13 * tall * look.broad * (0.75 if stand.view == "side" else 1.0)

    def at(across: float, up: float) -> Place:
        """From the feet: across in widths of half a body, up in heights of the body."""
        return stand.x + across * broad, stand.y - up * tall

    hip, neck, stride = 0.47, 0.83, 0.9 * stand.swing
    _legs(draw, look, at, stride, hip, thick=max(2, round(0.075 * tall * look.broad)))
    arm = max(2, round(0.05 * tall))
    for side in (-1, 1):
        elbow, hand = at(side * 1.15 - 0.25 * stride * side, 0.62), at(side * 1.2 - 0.6 * stride * side, 0.46)
        draw.line([at(side * 0.9, neck - 0.03), elbow], fill=look.above, width=arm)
        draw.line([elbow, hand], fill=look.above if look.sleeves else SKIN, width=arm)
    half = [(0.4, neck), (1, neck - 0.03), (0.75, hip - 0.02)]
    _clothe(picture, [*(at(x, y) for x, y in half), *(at(-x, y) for x, y in reversed(half))], look)
    if look.bag == "backpack":
        if stand.view == "back":
            draw.rectangle([at(-0.6, 0.79), at(0.6, 0.56)], fill=look.bag_colour, outline=DARK)
        elif stand.view == "side":
            draw.rectangle([at(-1.6, 0.79), at(-0.7, 0.58)], fill=look.bag_colour, outline=DARK)
        else:
            for strap in (-0.5, 0.5):
                draw.line([at(strap, neck), at(strap, 0.6)], fill=look.bag_colour, width=2)
    elif look.bag == "handbag":
        hand_at = -1.3 if stand.view == "back" else 1.3
        draw.line([at(hand_at, neck - 0.04), at(hand_at, 0.5)], fill=DARK, width=1)
        draw.rectangle([at(hand_at - 0.45, 0.5), at(hand_at + 0.45, 0.37)], fill=look.bag_colour, outline=DARK)
    _head(draw, look, at, stand.view, tall)


def _legs(draw: ImageDraw.ImageDraw, look: _Look, at: At, stride: float, hip: float, thick: int) -> None:
    for side in (-1, 1):
        knee, foot = at(0.35 * side + 0.5 * side * stride, hip / 2), at(0.4 * side + 0.9 * side * stride, 0.01)
        draw.line([at(0.35 * side, hip), knee], fill=look.below if look.trousers != "skirt" else SKIN, width=thick)
        draw.line([knee, foot], fill=look.below if look.trousers == "trousers" else SKIN, width=thick)
        draw.line([foot, at(0.4 * side + 0.9 * side * stride + 0.3, 0.01)], fill=DARK, width=max(2, thick // 2))
    if look.trousers == "skirt":
        draw.polygon([at(-0.75, hip), at(0.75, hip), at(1.15, 0.24), at(-1.15, 0.24)], fill=look.below)


def _head(draw: ImageDraw.ImageDraw, look: _Look, at: At, view: str, tall: float) -> None:
    x, y = at(0, 0.91)
    radius = 0.062 * tall
    face = look.hair if view == "back" and look.head != "hat" else SKIN
    if look.head == "long hair":
        draw.rectangle([x - 1.15 * radius, y - 0.4 * radius, x + 1.15 * radius, y + 1.7 * radius], fill=look.hair)
    draw.ellipse([x - radius, y - 1.2 * radius, x + radius, y + 1.2 * radius], fill=face)
    top = look.bag_colour if look.head == "hat" else look.hair
    draw.chord([x - 1.1 * radius, y - 1.35 * radius, x + 1.1 * radius, y + 0.8 * radius], 180, 360, fill=top)
    if look.head == "hat":
        draw.line([x - 1.7 * radius, y - 0.3 * radius, x + 1.7 * radius, y - 0.3 * radius], fill=top, width=2)


def _clothe(picture: Image.Image, outline: list[Place], look: _Look) -> None:
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    left, top = min(x for x, _ in outline), min(y for _, y in outline)
    across, down = np.meshgrid(np.arange(picture.width) - left, np.arange(picture.height) - top)
    rows, columns = (down // 4) % 2 == 1, (across // 3) % 2 == 1
    marked = {
        "plain": np.zeros_like(rows),
        "hoops": rows,
        "stripes": columns,
        "checks": rows ^ columns,
        "sash": np.abs(across - 0.6 * down) < 4,
    }[look.pattern]
    cloth = np.where(marked[..., None], look.second, look.above).astype(np.uint8)
    picture.paste(Image.fromarray(cloth), mask=mask)


def _background(camera: int, size: tuple[int, int], shift: int) -> Image.Image:
    random = np.random.default_rng([42, camera])
    width, height = size
    wall, floor, line = (tuple(int(c) for c in random.integers(70, 190, 3)) for _ in range(3))
    horizon, spacing = int(height * random.uniform(0.35, 0.75)), int(random.integers(9, 22))
    picture = Image.new("RGB", size, wall)
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, horizon, width, height], fill=floor)
    for x in range(-shift % spacing, width, spacing):
        draw.line([(x, 0), (x, horizon)], fill=line, width=1 + camera % 2)
    return picture


def _hide(picture: Image.Image, random: np.random.Generator, camera: int, stand: _Stand, crossing: float = 0.0) -> None:
    """Puts a pillar, a wall or somebody else before the person.

    crossing  how far these have come in passing: -1 first, 0 where they hide most, 1 last
    """
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    grey = (int(random.integers(80, 170)),) * 3
    kind = random.integers(3)
    if kind == 0:
        left = stand.x + width * (random.uniform(-0.3, -0.12) - 0.1 * crossing)
        draw.rectangle([left, 0, left + 0.45 * width, height], fill=grey, outline=DARK)
    elif kind == 1:
        draw.rectangle([0, height * random.uniform(0.3, 0.42), width, height], fill=grey, outline=DARK)
    else:
        x = stand.x + width * (random.uniform(-0.12, 0.12) + 0.1 * crossing)
        nearer = stand._replace(x=x, y=1.12 * height, height=1.1 * height)
        _draw(picture, _look(int(random.integers(5000, 6000))), nearer)


def _taken(picture: Image.Image, camera: int, light: float, now: np.random.Generator) -> Image.Image:
    """As the camera sees it: tinted, lit, with noise."""
    tint: NDArray[np.float64] = np.random.default_rng([45, camera]).uniform(0.6, 1.3, 3)
    seen = np.asarray(picture, dtype=np.float64) * tint * light + now.normal(0, 5, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8))
