"""What is done to pixels between the picture and the network. All randomness is a function of a key.

A key is a tuple of integers. While training it is (seed, step, position in the batch); for validation and test
images it is (seed, index of the image), so these are the same at each look, in any order and any batch.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Key = tuple[int, ...]
TransformName = Literal[
    "none", "crop", "distort", "ranked_list", "ranked_list_simpler", "multi_similarity", "proxy_anchor",
    "proxy_nca", "reality_check", "norm_softmax", "person", "small",
]  # fmt: skip
PixelsName = Literal["imagenet", "caffe", "bn_inception", "half"]

# The distortion of the built-in glyphs. Half of it would let raw pixels find the character; this was settled by
# looking at the pictures and at raw pixels alone, before anything was trained.
ROTATION = 10.0  # degrees, either way
STRETCH = 0.10  # of each axis, natural logarithm
SHEAR = 0.15
SHIFT = 2.0  # pixels
NOISE = 0.08  # largest standard deviation
BACKGROUND = 0.3  # brightest
CONTRAST = 0.5  # faintest


def distort(pixels: Tensor, keys: Sequence[Key]) -> Tensor:
    """Glyphs as if written askew on stained paper: a random affine map, blur, background, contrast and noise.

    pixels  uint8 [B, 1, S, S], ink is bright
    keys    [B]; image i is distorted by numbers drawn from keys[i] alone

    Returns float32 [B, 1, S, S] in [0, 1].
    """
    size = pixels.shape[-1]
    generators = [np.random.default_rng(key) for key in keys]
    share = torch.from_numpy(np.stack([g.random(12, dtype=np.float32) for g in generators]))
    noise = torch.from_numpy(np.stack([g.standard_normal((1, size, size), np.float32) for g in generators]))
    turn, wide, high, shear, right, down, x_slope, y_slope = (2 * share[:, :8] - 1).unbind(1)
    blur, stain, contrast, grain = share[:, 8:, None, None, None].unbind(1)

    angle = turn * math.radians(ROTATION)
    wide, high, shear = (STRETCH * wide).exp(), (STRETCH * high).exp(), SHEAR * shear
    right, down = right * SHIFT * 2 / size, down * SHIFT * 2 / size
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * wide, (shear * cos - sin) * high, right, sin * wide, (shear * sin + cos) * high, down]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(pixels.shape), align_corners=False)
    ink = F.grid_sample(pixels.float() / 255, grid, align_corners=False)
    ink = ink + blur * (F.avg_pool2d(ink, 3, stride=1, padding=1, count_include_pad=False) - ink)

    axis = torch.linspace(-1, 1, size)
    slope = x_slope[:, None, None, None] * axis + y_slope[:, None, None, None] * axis[:, None]
    paper = BACKGROUND * stain * (1 + slope) / 2
    strength = CONTRAST + (1 - CONTRAST) * contrast
    return (paper + (1 - paper) * strength * ink + NOISE * grain * noise).clamp(0, 1)


def crop(pixels: Tensor, keys: Sequence[Key] | None, size: int) -> Tensor:
    """A square of `size` x `size`: with keys a random one, flipped left to right half of the time; else the middle.

    pixels  uint8 [B, C, S, S] with S >= size. Returns float32 [B, C, size, size] in [0, 1].
    """
    room = pixels.shape[-1] - size
    if keys is None:
        return pixels[..., room // 2 : room // 2 + size, room // 2 : room // 2 + size].float() / 255
    cut = []
    for image, key in zip(pixels, keys, strict=True):
        top, left, flip = np.random.default_rng(key).integers([room + 1, room + 1, 2])
        square = image[:, top : top + size, left : left + size]
        cut.append(square.flip(-1) if flip else square)
    return torch.stack(cut).float() / 255


def whiten(images: Tensor) -> Tensor:
    """Pixels in [0, 1] to about zero mean and unit variance: ImageNet's statistics for colour, 1/2 for grey."""
    if images.shape[1] == 1:
        return (images - 0.5) / 0.5
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (images - mean) / deviation
