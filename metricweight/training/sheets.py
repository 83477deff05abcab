"""Contact sheets: the frames of tracklets as strips, each frame over its weight."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from metricweight.data.split import Indices

MOST = 14  # frames of a strip
LOW = 5  # of them, that are there since their weights are the lowest
TALL = 132  # pixels of a frame's picture
BARS = 40  # pixels of the highest bar
EDGE, GAP = 16, 8
TEXT, SMALL = 13, 12  # sizes of letters
LINE, SMALL_LINE = 18, 14

INK, GREY, PAPER = (30, 32, 36), (112, 116, 122), (255, 255, 255)
RED, ORANGE, BLUE = (204, 32, 32), (236, 150, 60), (66, 112, 168)
FAINT = 1 / 3  # of the highest weight of a tracklet: from here on down a bar is red

Colour = tuple[int, int, int]
Read = Callable[[Indices], list[Tensor]]


class Frame(NamedTuple):
    """A frame of a tracklet.

    picture  which of the images it is
    number   its order in the tracklet
    p        how typical of a training person it looks
    weight   its share in the tracklet
    marks    what is known to be wrong with it, in words
    """

    picture: int
    number: int
    p: float
    weight: float
    marks: str = ""


class Strip(NamedTuple):
    """A tracklet: its title, and all of its frames in the order of time."""

    title: str
    frames: Sequence[Frame]


def uneven(weights: NDArray[np.float64]) -> float:
    """How far the weights [F] of a tracklet are from equal ones, whatever their sum: their standard deviation over
    their mean, 0 where they are all the same."""
    return float(weights.std() / weights.mean())


def shown(weights: NDArray[np.float64], most: int = MOST, low: int = LOW) -> Indices:
    """Which frames of a tracklet a strip shows, in their order: all, or the `low` ones of the lowest weights [F] and
    others evenly among the rest, `most` in all."""
    if len(weights) <= most:
        return np.arange(len(weights))
    order = np.argsort(weights, kind="stable")
    rest = np.sort(order[low:])
    evenly = rest[np.linspace(0, len(rest) - 1, most - low).round().astype(np.int64)]
    return np.sort(np.concatenate([order[:low], evenly]))


def left_out(numbers: Sequence[int], kept: Indices) -> str:
    """The numbers of frames that are not among those `kept`, as ranges, such as "2, 4-9"."""
    gaps = pairwise([-1, *kept.tolist(), len(numbers)])
    ranges = [(numbers[before + 1], numbers[after - 1]) for before, after in gaps if after - before > 1]
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def sheet(heading: Sequence[str], strips: Sequence[Strip], read: Read, shape: tuple[int, int]) -> Image.Image:
    """A page of strips, one below the other.

    heading  lines at the top
    read     the pictures at some indices, uint8 [C, H, W], C 1 or 3
    shape    height and width of what the network sees, whose proportions a frame's place has

    Below each frame is a bar as high as its weight, the highest of the tracklet all the way up and blue, others over
    orange to red; the line across is an equal share. The frame of the lowest weight has a red border.
    """
    wide = max(52, round(TALL * shape[1] / shape[0]))
    width = 2 * EDGE + MOST * (wide + GAP) - GAP
    page = Image.new("RGB", (width, _top(heading) + sum(map(_height, strips)) + EDGE), PAPER)
    draw = ImageDraw.Draw(page)
    for place, line in enumerate(heading):
        _write(draw, (EDGE, EDGE + place * LINE), line, width, INK if place == 0 else GREY)
    y = _top(heading)
    for strip in strips:
        _strip(page, strip, read, y, wide)
        y += _height(strip)
    return page


def _top(heading: Sequence[str]) -> int:
    return EDGE + len(heading) * LINE + GAP


def _height(strip: Strip) -> int:
    marks = any(frame.marks for frame in strip.frames)
    return GAP + LINE + (len(strip.frames) > MOST) * SMALL_LINE + (1 + marks) * SMALL_LINE + TALL + BARS + 66


def _strip(page: Image.Image, strip: Strip, read: Read, y: int, wide: int) -> None:
    draw = ImageDraw.Draw(page)
    weights = np.array([frame.weight for frame in strip.frames])
    kept = shown(weights)
    lowest = int(weights.argmin()) if np.ptp(weights) > 0 else -1
    share = 1 / len(weights)
    draw.line((EDGE, y, page.width - EDGE, y), fill=(214, 216, 220))
    y += GAP
    _write(draw, (EDGE, y), strip.title, page.width, INK)
    y += LINE
    if len(kept) < len(weights):
        numbers = [frame.number for frame in strip.frames]
        said = f"{len(kept)} of {len(weights)} frames, the {LOW} lowest among them; left out: {left_out(numbers, kept)}"
        _write(draw, (EDGE, y), said, page.width, GREY, SMALL)
        y += SMALL_LINE
    marks = any(frame.marks for frame in strip.frames)
    above = y + (1 + marks) * SMALL_LINE + 4
    foot = above + TALL + GAP + BARS
    level = foot - round(BARS * share / weights.max())
    for place, (at, pixels) in enumerate(zip(kept.tolist(), read(_pictures(strip, kept)), strict=True)):
        frame, x = strip.frames[at], EDGE + place * (wide + GAP)
        part = frame.weight / weights.max()
        _write(draw, (x, y), f"{frame.number}", x + wide + EDGE, GREY, SMALL)
        if frame.marks:
            _write(draw, (x, y + SMALL_LINE), frame.marks, x + wide + EDGE + GAP, INK, SMALL)
        _put(page, pixels, (x, above, wide), RED if at == lowest else None)
        draw.rectangle((x, foot - round(BARS * part), x + wide - 1, foot), fill=_colour(part))
        _write(draw, (x, foot + 4), f"{frame.weight:#.3g}", x + wide + EDGE, RED if at == lowest else INK, TEXT)
        _write(draw, (x, foot + 4 + LINE), f"p {frame.p:.2f}", x + wide + EDGE, GREY, SMALL)
    draw.line((EDGE, level, EDGE + len(kept) * (wide + GAP) - GAP, level), fill=INK)


def _colour(part: float) -> Colour:
    """Of a bar, by its part of the highest: red up to `FAINT`, then over orange to blue at 1."""
    t = 2 * min(max((part - FAINT) / (1 - FAINT), 0.0), 1.0)
    low, high, t = (RED, ORANGE, t) if t < 1 else (ORANGE, BLUE, t - 1)
    red, green, blue = (round(a + t * (b - a)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _pictures(strip: Strip, kept: Indices) -> Indices:
    return np.array([strip.frames[at].picture for at in kept.tolist()])


def _put(page: Image.Image, pixels: Tensor, where: tuple[int, int, int], border: Colour | None) -> None:
    """A picture, as large as its place (x, y, width) allows."""
    x, y, wide = where
    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
    scale = min(wide / picture.width, TALL / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    page.paste(picture.resize(size, Image.Resampling.BICUBIC), (x + (wide - size[0]) // 2, y + (TALL - size[1]) // 2))
    if border is not None:
        ImageDraw.Draw(page).rectangle((x - 3, y - 3, x + wide + 2, y + TALL + 2), outline=border, width=3)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, end: int, ink: Colour, size: int = TEXT) -> None:
    """A line of text from `at` on, cut off at the margin before `end`."""
    font = _font(size)
    if draw.textlength(text, font) > end - EDGE - at[0]:
        while text and draw.textlength(f"{text}...", font) > end - EDGE - at[0]:
            text = text[:-1]
        text = f"{text}..."
    draw.text(at, text, ink, font)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
