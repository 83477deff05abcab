"""What each transform does to a picture, and that its random numbers are those of a key."""

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from metricweight.checks import InputError
from metricweight.data.transforms import TRANSFORMS, PixelsName, TransformName, View, distort, listing, scaled

KEYS = [(5, 7, i) for i in range(300)]
INK = (torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.8).to(torch.uint8) * 255


def photo(height, width, seed=0, channels=3):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8))


def places(height, width):
    """A picture whose red is its row and whose green its column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 9)]).to(torch.uint8)


def train(name, picture, shape, keys=KEYS):
    """Training images in 0 to 255, which pixels=half gave."""
    view = View(name, shape, "half")
    return 255 * (view.finish([view.prepare(picture)] * len(keys), keys, True) / 2 + 0.5)


def test(name, picture, shape):
    return 255 * (View(name, shape, "half")([picture], [(0, 0)], False)[0] / 2 + 0.5)


test.__test__ = False


def resized(picture, height, width):
    """By Pillow, whose antialiasing torchvision follows."""
    fine = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fine)).permute(2, 0, 1).float()


def corners(images):
    """(top, left, flipped) of crops of `places`, whose columns must follow one another, and so must rows."""
    found = []
    for image in images.round().int():
        rows, columns = image[0, :, 0], image[1, 0]
        step = int(columns[1] - columns[0])
        assert torch.equal(rows, rows[0] + torch.arange(len(rows)))
        assert torch.equal(columns, columns[0] + step * torch.arange(len(columns)))
        found.append((int(rows[0]), int(columns.min()), step == -1))
    return found


def test_there_is_a_row_for_each_name_and_the_list_shows_them():
    assert set(TRANSFORMS) == set(get_args(TransformName))
    assert [line.split()[0] for line in listing().splitlines()] == ["name", *TRANSFORMS]
    assert max(map(len, listing(100).splitlines())) <= 100
    with pytest.raises(InputError, match=r"'crops' is not a transform; did you mean crop\? Known: none, crop"):
        View("crops", (32, 32))


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "distort"])
def test_each_transform_gives_its_shape_for_any_picture_and_is_a_function_of_the_key_alone(name):
    view = View(name, (40, 24), "half", seed=3)
    pictures = [photo(*size, seed) for seed, size in enumerate([(60, 90), (300, 31), (40, 24), (9, 200), (57, 32)])]
    keys = KEYS[: len(pictures)]
    for training in (True, False):
        together = view(pictures, keys, training)
        assert together.shape == (5, 3, 40, 24)
        assert together.dtype == torch.float32
        with ThreadPoolExecutor(4) as pool:
            alone = list(pool.map(lambda i: view([pictures[i]], [keys[i]], training)[0], reversed(range(5))))  # noqa: B023
        assert torch.equal(torch.stack(alone[::-1]), together)
        again = pickle.loads(pickle.dumps(view))
        assert torch.equal(again.finish([again.prepare(picture) for picture in pictures], keys, training), together)
    other = view(pictures, [(9, *key) for key in keys], True)
    assert torch.equal(other, view(pictures, keys, True)) == (name == "none")
    assert torch.equal(view(pictures, keys, False), view(pictures, KEYS[9:14], False))


def test_none_resizes_the_shorter_side_and_keeps_the_middle():
    picture = photo(120, 61)
    whole = resized(picture, 2 * 120 * 40 // 122, 40)  # 78 x 40
    assert (test("none", picture, (40, 40)) - whole[:, 19:59]).abs().max() < 1.5
    assert (train("none", picture, (40, 40), KEYS[:1])[0] - whole[:, 19:59]).abs().max() < 1.5
    assert (test("none", picture, (20, 40)) - whole[:, 29:49]).abs().max() < 1.5  # 40 wide is 78 high, 20 are kept


def test_pixels_of_a_picture_of_the_right_size_are_not_touched():
    picture = photo(32, 32)
    assert torch.equal(View("none", (32, 32), "half")([picture], [(0,)], True)[0], (picture.float() / 255 - 0.5) / 0.5)
    kept = View("crop", (28, 28), "imagenet")([picture], KEYS[:1], True)[0]
    top, left, flip = np.random.default_rng(KEYS[0]).integers([5, 5, 2])
    cut = picture[:, top : top + 28, left : left + 28].float() / 255
    assert torch.equal(kept, scaled((cut.flip(-1) if flip else cut)[None])[0])


@pytest.mark.parametrize(
    ("name", "room", "size"), [("crop", 32, 28), ("norm_softmax", 32, 28), ("ranked_list", 34, 30)]
)
def test_a_random_crop_is_anywhere_in_the_room_and_flipped_half_of_the_time(name, room, size):
    assert round(size * {28: 8 / 7, 30: 256 / 227}[size]) == room
    found = corners(train(name, places(room, room), (size, size)))
    for axis in (0, 1):
        assert {corner[axis] for corner in found} == set(range(room - size + 1))
    assert 110 < sum(flip for _, _, flip in found) < 190  # of 300
    assert corners(test(name, places(room, room), (size, size))[None]) == [((room - size) // 2,) * 2 + (False,)]


def test_ranked_list_cuts_the_white_border_off_and_fits_what_is_left_on_white():
    page = torch.full((3, 300, 400), 255, dtype=torch.uint8)
    page[:, :5] = 250  # not dark enough to count
    page[:, 100:170, 150:350] = 100  # with 15 around it: 100 x 230
    view = View("ranked_list", (227, 227))
    made = view.prepare(page)
    assert made.shape == (3, 256, 256)
    high = round(100 * 256 / 230)  # 111
    top = (256 - high) // 2
    expected = resized(page[:, 85:185, 135:365], high, 256)
    assert (made[:, top : top + high].float() - expected).abs().max() < 1.5
    assert (made[:, :top] == 255).all()
    assert (made[:, top + high :] == 255).all()
    edge = torch.full((3, 64, 32), 249, dtype=torch.uint8)  # nothing to cut off
    assert (view.prepare(edge)[:, :, 64:192] == 249).all()
    assert (view.prepare(edge)[:, :, :64] == 255).all()
    assert (view.prepare(torch.full((3, 50, 70), 255, dtype=torch.uint8)) == 255).all()
    assert view.needed is None  # a border of small details must be seen


def test_what_is_dark_enough_is_decided_in_grey():
    page = torch.full((3, 200, 200), 255, dtype=torch.uint8)
    page[:, 0, 0] = torch.tensor([255, 255, 0], dtype=torch.uint8)  # grey 226
    page[:, 199, 199] = torch.tensor([255, 255, 250], dtype=torch.uint8)  # grey 254.4
    made = View("ranked_list", (227, 227)).prepare(page)  # 16 x 16 with the one corner, enlarged 16 times
    assert made[2, :8, :8].max() < 120
    assert made[2, -100:, -100:].min() == 255


def windows(images, height, width):
    """Area and aspect of the cuts of `gradients(height, width)` that were resized to images, from their slopes."""
    images = images / 255
    across, down = (images[:, 1, :, -2] - images[:, 1, :, 1]).mean(1), (images[:, 0, -2] - images[:, 0, 1]).mean(1)
    n = images.shape[-1] - 3
    wide, high = across.abs() / n * images.shape[-1], down / n * images.shape[-2]  # shares of the sides
    return (wide * high).numpy(), (wide * width / (high * height)).numpy(), (across < 0).numpy()


def gradients(height, width):
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return (255 * torch.stack([rows, columns, rows])).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("name", "least", "narrow", "room", "size"),
    [
        ("ranked_list_simpler", 0.5, 3 / 4, (127, 127), 113),
        ("multi_similarity", 0.16, 3 / 4, (127, 190), 113),
        ("reality_check", 0.16, 0.75, (127, 190), 113),
        ("proxy_anchor", 0.08, 3 / 4, (128, 192), 112),
        ("proxy_nca", 0.08, 3 / 4, (144, 216), 128),
    ],
)
def test_an_area_crop_has_areas_and_aspects_between_its_bounds(name, least, narrow, room, size):
    found = train(name, gradients(256, 384), (size, size), KEYS)
    area, aspect, flipped = windows(found, *room)
    assert least * 0.93 < area.min() < least + 0.08
    assert 0.8 < area.max() < 1.03  # 8/9 at most where the picture is 2:3
    assert abs(np.quantile(area, 0.25) - (least + 0.25 * (1 - least))) < 0.08  # uniform, but the largest fit less often
    assert narrow * 0.94 < aspect.min() < narrow + 0.05
    assert 1.28 < aspect.max() < 4 / 3 * 1.07
    assert 110 < flipped.sum() < 190
    shown = test(name, photo(256, 384), (size, size))
    whole = resized(photo(256, 384), *room)
    top, left = (room[0] - size) // 2, (room[1] - size) // 2
    assert (shown - whole[:, top : top + size, left : left + size]).abs().max() < 1.5


def test_an_area_crop_follows_its_numbers():
    """Ten lines of numpy: share of the area, aspect, place, flip; drawn again where it does not fit."""
    picture = photo(60, 90)
    for key in KEYS[:40]:
        random = np.random.default_rng(key)
        for _ in range(10):
            area = 60 * 90 * random.uniform(0.08, 1)
            aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if w <= 90 and h <= 60:
                break
        top, left = random.integers([60 - h + 1, 90 - w + 1])
        cut = resized(picture[:, top : top + h, left : left + w], 24, 24)
        cut = cut.flip(-1) if random.integers(2) else cut
        assert (train("proxy_anchor", picture, (24, 24), [key])[0] - cut).abs().max() < 2.5


def test_where_no_area_crop_fits_it_is_the_middle():
    tall = places(250, 8)  # 8 % of it, 160 pixels, are 20 high: an aspect of 0.4
    for image in train("proxy_anchor", tall, (11, 8), KEYS[:20]).round():  # 8 / 0.75 is 11
        assert image[0, :, 0].tolist() == list(range(119, 130))
        assert sorted(image[1, 0].tolist()) == list(range(8))
    strip = train("ranked_list_simpler", photo(4, 200), (20, 20), KEYS[:3])
    assert strip.shape == (3, 3, 20, 20)


def test_a_person_is_resized_padded_and_cut_and_in_tests_only_resized():
    picture = photo(128, 64)
    assert (test("person", picture, (256, 128)) - resized(picture, 256, 128)).abs().max() < 1.5
    white = torch.full((3, 256, 128), 255, dtype=torch.uint8)
    found = View("person", (256, 128), "half")([white] * 200, KEYS[:200], True)[:, 0]
    black = found == -1  # erased is 0
    tops = black.all(2).float()
    sides = black.all(1).float()
    assert tops.sum(1).max() == 10
    assert sides.sum(1).max() == 10
    assert {int(x) for x in tops[:, :10].sum(1)} | {-int(x) for x in tops[:, -10:].sum(1)} == set(range(-10, 11))
    half = View("person", (128, 64), "half")([white] * 100, KEYS[:100], True)[:, 0]
    assert (half == -1).all(2).sum(1).max() == 5  # in proportion


def test_half_of_the_persons_lose_a_rectangle_to_the_mean_after_scaling():
    white = torch.full((3, 256, 128), 255, dtype=torch.uint8)
    found = View("person", (256, 128), "imagenet")([white] * 300, KEYS, True)
    shares, aspects = [], []
    for image in found:
        gone = (image == 0).all(0)
        rows, columns = torch.nonzero(gone.any(1)), torch.nonzero(gone.any(0))
        if len(rows):
            high, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            assert gone.sum() == high * wide
            shares.append(high * wide / (256 * 128))
            aspects.append(high / wide)
    assert 120 < len(shares) < 180
    assert 0.018 < min(shares) < 0.05
    assert 0.33 < max(shares) < 0.405
    assert 0.28 < min(aspects) < 0.6
    assert 2.8 < max(aspects) < 3.5


def test_small_pictures_are_padded_by_four_and_cut():
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    found = train("small", white, (32, 32))
    shifts = {(int((x[0] == 0).all(1).sum()), int((x[0] == 0).all(0).sum())) for x in found}
    assert shifts == {(a, b) for a in range(5) for b in range(5)}
    assert torch.equal(View("small", (32, 32), "half")([white], [(0,)], False), torch.ones(1, 3, 32, 32))


def test_colours_are_put_on_the_scale_and_in_the_order_of_the_network():
    assert set(get_args(PixelsName)) == {"imagenet", "caffe", "bn_inception", "half", "clip"}
    red = torch.tensor([1.0, 0.0, 0.5]).view(1, 3, 1, 1)

    def pixels(name):
        return scaled(red, name).flatten().tolist()

    assert pixels("caffe") == pytest.approx([127.5 - 104, 0 - 117, 255 - 123])  # blue, green, red
    assert pixels("bn_inception") == pytest.approx([127.5 - 104, 0 - 117, 255 - 128])
    assert pixels("half") == pytest.approx([1, -1, 0])
    assert pixels("imagenet") == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.5 - 0.406) / 0.225])
    assert pixels("clip") == pytest.approx([0.51854534 / 0.26862954, -0.4578275 / 0.26130258, 0.09178929 / 0.27577711])
    assert pixels(None) == pixels("imagenet")
    grey = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    for name in (None, "half", "imagenet"):
        assert scaled(grey, name).flatten().tolist() == [-1, 1]
    for name in ("caffe", "bn_inception", "clip"):
        with pytest.raises(InputError, match=f"data.pixels={name} is for colour, these pictures are grey"):
            scaled(grey, name)


def test_grey_pictures_go_through_every_transform():
    for name in TRANSFORMS:
        assert View(name, (32, 32))([photo(32, 32, channels=1)] * 2, KEYS[:2], True).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("name", "shape", "side"),
    [
        ("none", (32, 32), 32),
        ("crop", (224, 224), 256),
        ("ranked_list", (227, 227), None),
        ("multi_similarity", (227, 227), 256),
        ("proxy_nca", (256, 256), 288),
        ("person", (256, 128), 256),
        ("proxy_anchor", (224, 224), 914),  # 8 % of the area at an aspect of 3/4 are 224 wide
    ],
)
def test_a_view_tells_how_large_a_picture_it_needs(name, shape, side):
    assert View(name, shape).needed == side


def test_a_distortion_is_a_function_of_its_key_alone_and_is_there_in_tests_too():
    keys = [(0, i) for i in range(6)]
    together = distort(INK, keys)
    for i in range(6):
        assert torch.equal(distort(INK[i : i + 1], keys[i : i + 1])[0], together[i])
    assert not torch.equal(distort(INK, [(1, i) for i in range(6)]), together)
    for training in (True, False):
        assert torch.equal(View("distort", (32, 32))(list(INK), keys, training), (together - 0.5) / 0.5)


def test_a_distortion_moves_ink_about_as_far_as_it_says():
    block = torch.zeros(200, 1, 32, 32, dtype=torch.uint8)
    block[:, :, 14:18, 14:18] = 255
    seen = distort(block, [(i,) for i in range(200)])
    darkest = torch.nn.functional.avg_pool2d(seen, 4, stride=1).flatten(1).argmax(1)  # of 29 x 29 places
    for moved in (darkest // 29 - 14, darkest % 29 - 14):
        assert moved.abs().max() <= 3  # 2 pixels, a tenth of stretch, and rounding
        assert 0.8 < moved.float().std() < 1.5  # uniform over 2 pixels either way: 1.15
    assert seen.min() >= 0
    assert seen.max() <= 1
