"""Pictures of things: a thing has a look of its own, a picture shows it turned, lit and placed anew."""

import colorsys
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def product(thing: int, view: int, size: tuple[int, int] = (64, 64), kind: int = 0) -> Image.Image:
    """A picture of a thing, the same each time.

    thing  whose look: outline, colours, stripes; things of one kind have the outline in common
    view   of the picture: background, turn, size, place and light
    """
    look, seen = np.random.default_rng([7, thing]), np.random.default_rng([8, thing, view])
    corners = 3 + kind % 5 if kind else int(look.integers(3, 8))
    hue, second = look.random(2)
    stripes = int(look.integers(2, 6))
    width, height = size
    light = seen.uniform(0.75, 1.1)
    picture = Image.new("RGB", size, _colour(seen.random(), 0.15, 0.85 * light))
    radius = min(size) * seen.uniform(0.3, 0.42)
    turn = seen.uniform(-0.4, 0.4)
    centre = np.array([width, height]) * (0.5 + seen.uniform(-0.08, 0.08, 2))
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    outline = [tuple(centre + radius * np.array([np.cos(a), np.sin(a)])) for a in angles]
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    surface = Image.new("RGB", size, _colour(hue, 0.8, 0.9 * light))
    draw = ImageDraw.Draw(surface)
    for stripe in range(-8, 8):
        shift = np.array([np.cos(turn), np.sin(turn)]) * stripe * 2 * radius / stripes
        along = np.array([-np.sin(turn), np.cos(turn)]) * 2 * radius
        ends = [tuple(centre + shift - along), tuple(centre + shift + along)]
        draw.line(ends, fill=_colour(second, 0.9, 0.6 * light), width=max(1, int(radius / stripes / 1.5)))
    picture.paste(surface, mask=mask)
    noise = seen.normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def save(picture: Image.Image, path: Path, form: str = "JPEG") -> None:
    """Writes a picture in a form (JPEG, PNG, GIF), whatever its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    picture.save(written, format=form)
    path.write_bytes(written.getvalue())


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, min(1.0, value))
    return round(255 * red), round(255 * green), round(255 * blue)
