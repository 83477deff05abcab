"""What is done to pixels between the picture and the network. All randomness is a function of a key.

A key is a tuple of integers. While training it is (seed, step, position in the batch); for validation and test
images it is (seed, index of the image), so these are the same at each look, in any order and any batch.

A picture is uint8 [C, H, W] of any size. A transform works on it in two parts: `prepare`, which is the same each time,
so that its result may be kept, and then `train` or `test`, which make it [C, h, w].
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metricweight.checks import InputError, nearest

Key = tuple[int, ...]
Shape = tuple[int, int]  # height and width
TransformName = Literal[
    "none", "crop", "distort", "ranked_list", "ranked_list_simpler", "multi_similarity", "proxy_anchor",
    "proxy_nca", "reality_check", "norm_softmax", "person", "small",
]  # fmt: skip
PixelsName = Literal["imagenet", "caffe", "bn_inception", "half", "clip"]

# The distortion of the built-in glyphs. Half of it would let raw pixels find the character; this was settled by
# looking at the pictures and at raw pixels alone, before anything was trained.
ROTATION = 10.0  # degrees, either way
STRETCH = 0.10  # of each axis, natural logarithm
SHEAR = 0.15
SHIFT = 2.0  # pixels
NOISE = 0.08  # largest standard deviation
BACKGROUND = 0.3  # brightest
CONTRAST = 0.5  # faintest

WHITE = 250  # a grey value from here on is border
BORDER = 15  # pixels of it that stay
ASPECTS = (3 / 4, 4 / 3)  # width to height
SCALES = {  # mean and deviation of red, green, blue, of 1
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
MEANS = {"caffe": (104.0, 117.0, 123.0), "bn_inception": (104.0, 117.0, 128.0)}  # blue, green, red, of 255


@dataclass(frozen=True)
class View:
    """How a network sees pictures.

    transform  a name in TRANSFORMS
    shape      (h, w) of what the network sees
    pixels     their scale and the order of the colours, see `scaled`; None: imagenet for colour, half for grey
    seed       of the keys of test pictures, which are (seed, index)

    Raises InputError for a transform that is not known.
    """

    transform: str
    shape: Shape
    pixels: PixelsName | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise InputError(
                f"'{self.transform}' is not a transform{nearest(self.transform, TRANSFORMS)} "
                f"Known: {', '.join(TRANSFORMS)}."
            )

    def __call__(self, pictures: Sequence[Tensor], keys: Sequence[Key], training: bool) -> Tensor:
        """Pictures, each uint8 [C, H, W] of its own size, with a key each, as float32 [B, C, h, w]."""
        return self.finish([self.prepare(picture) for picture in pictures], keys, training)

    @property
    def needed(self) -> int | None:
        """The shorter side, in pixels, that a picture should have for this; larger ones may be read shrunk to it.
        None: as they are."""
        ratio = TRANSFORMS[self.transform].needed
        return None if ratio is None else max(_room(self.shape, ratio))

    def prepare(self, picture: Tensor) -> Tensor:
        """What is the same each time: uint8 [C, H, W] to uint8 [C, H', W']."""
        return TRANSFORMS[self.transform].prepare(picture, self.shape)

    def finish(self, prepared: Sequence[Tensor], keys: Sequence[Key], training: bool) -> Tensor:
        """What is left to do with prepared pictures: float32 [B, C, h, w]."""
        row = TRANSFORMS[self.transform]
        random = [np.random.default_rng(key) for key in keys]
        if training:
            cut = [row.train(picture, g, self.shape) for picture, g in zip(prepared, random, strict=True)]
        else:
            cut = [row.test(picture, self.shape) for picture in prepared]
        if row.drawn:
            return scaled(row.drawn(torch.stack(cut), keys), self.pixels)
        images = torch.empty(len(cut), len(cut[0]), *self.shape)
        for image, picture, g in zip(images, cut, random, strict=True):  # one at a time stays in the processor's cache
            image.copy_(scaled(picture[None].contiguous().float() / 255, self.pixels)[0])
            if training and row.erase:
                row.erase(image, g)
        return images


@dataclass(frozen=True)
class Transform:
    """A row of TRANSFORMS.

    what     what is done, in words
    paper    arXiv number of whose experiments it is from
    needed   shorter side of the picture that this works on, in multiples of (h, w); None: a picture as it is
    prepare  picture, (h, w) -> uint8 [C, H', W'], the same each time
    train    prepared picture, random numbers, (h, w) -> uint8 [C, h, w]
    test     prepared picture, (h, w) -> uint8 [C, h, w]
    drawn    batch [B, C, h, w], keys -> float32 in [0, 1], also in tests; None: the batch as it is
    erase    what is done in place to an image [C, h, w] of a training batch, last of all
    """

    what: str
    paper: str
    needed: float | None
    prepare: Callable[[Tensor, Shape], Tensor]
    train: Callable[[Tensor, np.random.Generator, Shape], Tensor]
    test: Callable[[Tensor, Shape], Tensor]
    drawn: Callable[[Tensor, Sequence[Key]], Tensor] | None = None
    erase: Callable[[Tensor, np.random.Generator], None] | None = None


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


def scaled(images: Tensor, pixels: PixelsName | None = None) -> Tensor:
    """Pixels [B, C, h, w] in [0, 1], red first, on the scale that a network expects.

    imagenet      (x - mean) / deviation of each colour over ImageNet; grey as by half
    clip          the same over the pictures of CLIP (Radford et al., 2021)
    half          (x - 1/2) / (1/2)
    caffe         255 x - 104, 117, 123, blue first
    bn_inception  255 x - 104, 117, 128, blue first
    None          imagenet

    Raises InputError where grey pictures are to be put on a scale of colours, for clip, caffe and bn_inception.
    """
    grey = images.shape[1] == 1
    if grey and pixels in (*MEANS, "clip"):
        raise InputError(
            f"data.pixels={pixels} is for colour, these pictures are grey; use data.pixels=half, or leave it out."
        )
    if pixels in MEANS:
        return images.flip(1) * 255 - torch.tensor(MEANS[pixels]).view(1, 3, 1, 1)
    if grey or pixels == "half":
        return (images - 0.5) / 0.5
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in SCALES[pixels or "imagenet"])
    return (images - mean) / deviation


def listing(width: int | None = None) -> str:
    """All transforms as a table; with a `width`, what does not fit into a line goes on below."""
    rows = [("name", "paper", "what it does; 256 > 227: it resizes to 256 where data.size=227, else in proportion")]
    rows += [(name, row.paper, row.what) for name, row in TRANSFORMS.items()]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    left = width and max(24, width - sum(widths) - 4)
    lines = []
    for name, paper, what in rows:
        for i, part in enumerate(textwrap.wrap(what, left) if left else [what]):
            cells = ("", "") if i else (name, paper)
            lines.append("  ".join([*map(str.ljust, cells, widths), part]))
    return "\n".join(lines)


def _room(shape: Shape, ratio: float) -> Shape:
    return round(shape[0] * ratio), round(shape[1] * ratio)


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    from torchvision.transforms.v2 import functional

    if picture.shape[1:] == (height, width):
        return picture
    resized: Tensor = functional.resize(picture, [height, width], antialias=True)
    return resized


def _as_it_is(picture: Tensor, shape: Shape) -> Tensor:
    return picture


def _covering(picture: Tensor, shape: Shape, ratio: float = 1.0) -> Tensor:
    """Scaled, its sides in proportion, so that it just covers `ratio` times the shape."""
    (height, width), (high, wide) = picture.shape[1:], _room(shape, ratio)
    if high * width >= wide * height:
        return _resized(picture, high, width * high // height)
    return _resized(picture, height * wide // width, wide)


def _covered(picture: Tensor, shape: Shape, ratio: float = 1.0) -> Tensor:
    """The middle of what `_covering` gives, `ratio` times the shape."""
    return _middle(_covering(picture, shape, ratio), _room(shape, ratio))


def _warped(picture: Tensor, shape: Shape, ratio: float = 1.0) -> Tensor:
    """Scaled to `ratio` times the shape, whatever becomes of its sides."""
    return _resized(picture, *_room(shape, ratio))


def _on_white(picture: Tensor, shape: Shape, ratio: float) -> Tensor:
    """Without its white border but for BORDER pixels, scaled to fit into `ratio` times the shape, white around it."""
    colours = Image.fromarray(picture.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    drawn = np.asarray(colours.convert("L")) < WHITE  # the grey of 0.299 red + 0.587 green + 0.114 blue
    if drawn.any():
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        top, left = max(0, rows[0] - BORDER), max(0, columns[0] - BORDER)
        picture = picture[:, top : rows[-1] + 1 + BORDER, left : columns[-1] + 1 + BORDER]
    (height, width), (high, wide) = picture.shape[1:], _room(shape, ratio)
    scale = min(high / height, wide / width)
    picture = _resized(picture, max(1, round(height * scale)), max(1, round(width * scale)))
    page = picture.new_full((len(picture), high, wide), 255)
    _middle(page, (picture.shape[1], picture.shape[2])).copy_(picture)
    return page


def _middle(picture: Tensor, shape: Shape) -> Tensor:
    (height, width), (h, w) = picture.shape[1:], shape
    top, left = (height - h) // 2, (width - w) // 2
    return picture[:, top : top + h, left : left + w]


def _flipped(picture: Tensor, flip: np.int64) -> Tensor:
    return picture.flip(-1) if flip else picture


def _random_crop(picture: Tensor, random: np.random.Generator, shape: Shape) -> Tensor:
    """A cut of that shape from anywhere, flipped left to right half of the time."""
    (height, width), (h, w) = picture.shape[1:], shape
    top, left, flip = random.integers([height - h + 1, width - w + 1, 2])
    return _flipped(picture[:, top : top + h, left : left + w], flip)


def _area_crop(
    picture: Tensor,
    random: np.random.Generator,
    shape: Shape,
    areas: tuple[float, float],
    aspects: tuple[float, float] = ASPECTS,
) -> Tensor:
    """A cut of a random share of the area and a random aspect, resized to the shape, flipped half of the time.

    The share is uniform, the aspect (width to height) uniform on a logarithmic scale. Where ten of them do not fit
    into the picture: the middle, as much of it as the aspects allow.
    """
    height, width = picture.shape[1:]
    for _ in range(10):
        area = height * width * random.uniform(*areas)
        aspect = math.exp(random.uniform(math.log(aspects[0]), math.log(aspects[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers([height - h + 1, width - w + 1])
            cut = picture[:, top : top + h, left : left + w]
            break
    else:
        w, h = min(width, round(height * aspects[1])), min(height, round(width / aspects[0]))
        cut = _middle(picture, (max(1, h), max(1, w)))
    return _flipped(_resized(cut, *shape), random.integers(2))


def _padded_crop(picture: Tensor, random: np.random.Generator, shape: Shape, pad: float) -> Tensor:
    """A random cut of the picture with black of `pad` times its height on each side, flipped half of the time."""
    black = round(pad * shape[0])
    return _random_crop(F.pad(picture, (black, black, black, black)), random, shape)


def _erase(
    image: Tensor,
    random: np.random.Generator,
    share: float = 0.5,
    areas: tuple[float, float] = (0.02, 0.4),
    aspect: float = 0.3,
) -> None:
    """Sets a random rectangle to 0, the mean of pixels that were scaled by it, in a `share` of the images.

    Its area is uniform between two parts of that of the image, its aspect (height to width) between `aspect` and
    1 / `aspect`; drawn again where it does not fit, a hundred times at most. (Zhong et al., arXiv:1708.04896)
    """
    if random.random() >= share:
        return
    height, width = image.shape[1:]
    for _ in range(100):
        area, ratio = height * width * random.uniform(*areas), random.uniform(aspect, 1 / aspect)
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = random.integers([height - h + 1, width - w + 1])
            image[:, top : top + h, left : left + w] = 0
            return


def _unchanged(picture: Tensor, random: np.random.Generator, shape: Shape) -> Tensor:
    return picture


def _areas(least: float, aspects: tuple[float, float] = ASPECTS) -> Callable[..., Tensor]:
    return partial(_area_crop, areas=(least, 1.0), aspects=aspects)


def _covering_at(ratio: float) -> Callable[[Tensor, Shape], Tensor]:
    return partial(_covering, ratio=ratio)


def _middle_of_covering(picture: Tensor, shape: Shape, ratio: float) -> Tensor:
    return _middle(_covering(picture, shape, ratio), shape)


CROP, CAFFE, RESNET, NCA = 8 / 7, 256 / 227, 256 / 224, 288 / 256  # what is resized to, in multiples of the size

TRANSFORMS: dict[str, Transform] = {
    "none": Transform(
        "shorter side resized, the middle", "", 1, _covered, _unchanged, _as_it_is
    ),
    "crop": Transform(
        "256 > 224: shorter side resized, the middle, of that a random crop, flip; test: the middle",
        "", CROP, partial(_covered, ratio=CROP), _random_crop, _middle,
    ),
    "distort": Transform(
        "glyphs as if written askew on stained paper, in tests too", "", 1, _covered, _unchanged, _as_it_is, distort
    ),
    "ranked_list": Transform(
        "256 > 227: white border cut off, longer side resized, white around it, random crop, flip; test: the middle",
        "1903.03238, CVPR",
        None, partial(_on_white, ratio=CAFFE), _random_crop, _middle,
    ),
    "ranked_list_simpler": Transform(
        "256 > 227: resized to a square, 50 to 100 % of the area, flip; test: the middle",
        "1903.03238, TPAMI",
        CAFFE, partial(_warped, ratio=CAFFE), _areas(0.5), _middle,
    ),
    "multi_similarity": Transform(
        "256 > 227: shorter side resized, 16 to 100 % of the area, flip; test: the middle",
        "1904.06627",
        CAFFE, _covering_at(CAFFE), _areas(0.16), _middle,
    ),
    "proxy_anchor": Transform(
        "256 > 224: 8 to 100 % of the area, flip; test: shorter side resized, the middle",
        "2003.13911",
        1 / math.sqrt(0.08 * ASPECTS[0]),  # so that the smallest crop is no smaller than (h, w)
        _as_it_is, _areas(0.08), partial(_middle_of_covering, ratio=RESNET),
    ),
    "proxy_nca": Transform(
        "288 > 256: shorter side resized, 8 to 100 % of the area, flip; test: the middle",
        "2004.01113",
        NCA, _covering_at(NCA), _areas(0.08), _middle,
    ),
    "reality_check": Transform(
        "256 > 227: shorter side resized, 16 to 100 % of the area, aspect .75 to 1.33, flip; test: the middle",
        "2003.08505",
        CAFFE, _covering_at(CAFFE), _areas(0.16, (0.75, 1.33)), _middle,
    ),
    "norm_softmax": Transform(
        "256 > 224: resized to a square, random crop, flip; test: the middle",
        "1811.12649",
        RESNET, partial(_warped, ratio=RESNET), _random_crop, _middle,
    ),
    "person": Transform(
        "data.size=[256,128]: resized, flip, 10 pixels of black around it, random crop, half of the images have a "
        "part erased; test: resized",
        "1903.07071",
        1, _warped, partial(_padded_crop, pad=10 / 256), _as_it_is, erase=_erase,
    ),
    "small": Transform(
        "data.size=32: 4 pixels of black around it, random crop, flip; test: as it is",
        "1512.03385",
        1, _covered, partial(_padded_crop, pad=4 / 32), _as_it_is,
    ),
}  # fmt: skip
