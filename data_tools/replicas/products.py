"""Pictures of things: a thing has a look of its own, a picture shows it turned, lit and placed anew."""

import colorsys
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HUES = 8  # few enough that many things have one in common
KINDS = 6

Plane = NDArray[np.float64]  # [H, W]


def product(thing: int, view: int, size: tuple[int, int] = (64, 64), kind: int = 0) -> Image.Image:
    """A picture of a thing, the same each time.

    thing  whose look: proportions, colours, pattern and a mark; not one of these is its own, all together are
    view   of the picture: background, place, size, turn and light; what stands before the thing in one of five
    size   (width, height) in pixels
    kind   whose outline, from 1 on, which all things of the kind have; 0: one of a few, by the thing
    """
    look, seen = np.random.default_rng([7, thing]), np.random.default_rng([8, thing, view])
    own_kind = 1 + int(look.integers(KINDS))
    width, height = size
    turn, radius = seen.uniform(-0.5, 0.5), min(size) * seen.uniform(0.3, 0.45)
    x = (np.arange(width) - width * (0.5 + seen.uniform(-0.1, 0.1)))[None, :] / radius
    y = (np.arange(height) - height * (0.5 + seen.uniform(-0.1, 0.1)))[:, None] / radius
    u = (np.cos(turn) * x + np.sin(turn) * y) / look.uniform(0.75, 1.0) / seen.uniform(0.8, 1.0)
    v = np.cos(turn) * y - np.sin(turn) * x
    ground = _colour(seen.random(), 0.2, seen.uniform(0.6, 0.95)) + 60 * seen.uniform(-1, 1) * y[..., None] / 3
    picture = np.broadcast_to(ground, (height, width, 3))
    shadow = seen.uniform(-0.25, 0.25)
    surface = _surface(u, v, look) * (1 + shadow * x[..., None]) * seen.uniform(0.65, 1.05)
    inside = np.clip(0.5 + radius * (_outline(u, v, kind or own_kind) - np.hypot(u, v)), 0, 1)[..., None]
    picture = picture + inside * (surface - picture)
    if seen.random() < 0.2:
        before = np.abs(x + seen.uniform(-0.6, 0.6) + 0.2 * y)[..., None] < seen.uniform(0.1, 0.25)
        picture = np.where(before, _colour(seen.random(), 0.3, 0.5), picture)
    picture = picture + seen.normal(0, 4, picture.shape)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def save(picture: Image.Image, path: Path, form: str = "JPEG") -> None:
    """Writes a picture in a form (JPEG, PNG, GIF), whatever its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    picture.save(written, format=form)
    path.write_bytes(written.getvalue())


def _surface(u: Plane, v: Plane, look: np.random.Generator) -> NDArray[Any]:
    """The colours of a thing, [H, W, 3], at places in its own frame."""
    body, pattern, mark = (look.permutation(HUES)[:3] + 0.5) / HUES
    along, step = look.choice([0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]), look.choice([5.0, 8.0, 12.0])
    first = np.sin(step * (np.cos(along) * u + np.sin(along) * v))
    second = np.sin(step * (np.cos(along) * v - np.sin(along) * u))
    patterned = (first > 0, first * second > 0, (first > 0.2) & (second > 0.2), np.sin(step * np.hypot(u, v)) > 0)
    colours = np.where(patterned[look.integers(4)][..., None], _colour(pattern, 0.9, 0.6), _colour(body, 0.75, 0.9))
    place, round_it = look.uniform(-0.45, 0.45, 2), look.random() < 0.5
    away = np.hypot(u - place[0], v - place[1]) if round_it else np.maximum(abs(u - place[0]), abs(v - place[1]))
    return np.where(away[..., None] < 0.25, _colour(mark, 0.6, 1.0), colours)


def _outline(u: Plane, v: Plane, kind: int) -> Plane:
    """How far a kind reaches in the direction of each place; 1 at most."""
    drawn = np.random.default_rng([9, kind])
    waves = np.arange(2, 7)
    heights, shifts = drawn.uniform(0.05, 0.3, 5) / np.sqrt(waves), drawn.uniform(0, 2 * np.pi, 5)

    def reach(angle: Plane) -> Plane:
        total: Plane = 1 + np.sum(heights * np.cos(angle[..., None] * waves + shifts), axis=-1)
        return total

    farthest = reach(np.linspace(0, 2 * np.pi, 180)).max()
    outline: Plane = reach(np.arctan2(v, u)) / farthest
    return outline


def _colour(hue: float, saturation: float, value: float) -> Plane:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, min(1.0, value)))
