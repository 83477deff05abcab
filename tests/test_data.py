"""Pictures, splits, batches and what is done to pixels."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from metricweight.checks import InputError
from metricweight.data import transforms
from metricweight.data.images import decode, digits, from_manifest, open_picture
from metricweight.data.sampler import ClassBalancedSampler
from metricweight.data.split import split_by_class

LABELS = np.repeat(np.arange(20), np.arange(1, 21))  # class c has c + 1 items


def epoch(number, **options):
    sampler = ClassBalancedSampler(LABELS, **{"classes": 6, "images": 4, **options})
    sampler.set_epoch(number)
    return list(sampler)


def test_every_batch_is_full_and_holds_k_of_each_of_c_classes():
    for number in range(10):
        batches = epoch(number)
        assert len(batches) == 20 // 6
        for batch in batches:
            labels, counts = np.unique(LABELS[batch], return_counts=True)
            assert len(labels) == 6
            assert set(counts) == {4}


def test_no_class_comes_twice_in_an_epoch_and_all_come_in_time():
    seen = [np.unique(LABELS[np.concatenate(epoch(number))]) for number in range(20)]
    assert all(len(labels) == 18 for labels in seen)
    assert len(np.unique(np.concatenate(seen))) == 20


def test_a_class_of_k_items_or_more_repeats_none_and_a_smaller_one_repeats_evenly():
    for batch in epoch(0) + epoch(1):
        for row in np.reshape(batch, (6, 4)):
            size = LABELS[row[0]] + 1
            _, counts = np.unique(row, return_counts=True)
            assert len(counts) == min(4, size)
            assert counts.max() - counts.min() <= 1


def test_batches_are_a_function_of_seed_and_epoch():
    assert epoch(3) == epoch(3)
    assert epoch(3) != epoch(4)
    assert epoch(3) != epoch(3, seed=1)


def test_fewer_classes_than_a_batch_needs_is_refused_with_the_number_to_set():
    with pytest.raises(InputError, match=r"21 classes was asked for, but there are 20.*batch.classes=20 or less"):
        ClassBalancedSampler(LABELS, classes=21, images=4)
    with pytest.raises(InputError, match="at least 1 class and 1 image, got 0 x 4"):
        ClassBalancedSampler(LABELS, classes=0, images=4)


def test_the_sampler_is_a_batch_sampler_of_a_data_loader():
    sampler = ClassBalancedSampler(LABELS, classes=6, images=4)
    loader = torch.utils.data.DataLoader(torch.from_numpy(LABELS), batch_sampler=sampler)
    assert [batch.shape for batch in loader] == [(24,)] * len(loader)


def test_no_class_is_on_two_sides_of_a_split():
    splits = split_by_class(LABELS, test=0.5, validation=0.2)
    sides = {name: set(LABELS[indices]) for name, indices in splits.items()}
    assert [len(sides[name]) for name in ("train", "validation", "test")] == [8, 2, 10]
    assert len(set.union(*sides.values())) == 20
    assert sum(map(len, splits.values())) == len(LABELS)


def test_a_split_is_a_function_of_its_seed_or_of_the_order_of_the_classes():
    def tested(**options):
        return set(LABELS[split_by_class(LABELS, **options)["test"]])

    assert tested(seed=1) == tested(seed=1) != tested(seed=2)
    assert tested(order="given") == set(range(10, 20))


def test_too_few_classes_for_a_split_are_refused():
    with pytest.raises(InputError, match="3 classes make 1 to train, 0 to validate and 2 to test on"):
        split_by_class(np.arange(3), validation=0)


def test_the_digits_are_the_ones_of_scikit_learn():
    images = digits(8)
    pixels = images.read(np.array([0, 5]))
    assert len(images) == 1797
    assert pixels.shape == (2, 1, 8, 8)
    assert images.labels[:10].tolist() == list(range(10))
    assert pixels[0, 0, 0].tolist() == pytest.approx(
        [0, 0, 5 * 255 / 16, 13 * 255 / 16, 9 * 255 / 16, 255 / 16, 0, 0], abs=1
    )


@pytest.fixture
def pictures(tmp_path):
    """Real files of every kind: two classes, six pictures, and things that are not pictures."""
    root = tmp_path / "pictures"
    for name in ("red/a.png", "red/b.JPG", "red/deep/c.gif", "blue/grey.png", "blue/palette.png", "blue/alpha.webp"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (30, 50), "red" if name.startswith("red") else "blue")
        mode = {"grey": "L", "palette": "P", "alpha": "RGBA"}.get(path.stem, "RGB")
        picture.convert(mode).save(path)
    (root / "red" / "._a.png").write_bytes(b"not a picture")
    (root / "red" / "Thumbs.db").write_bytes(b"not a picture")
    (root / ".hidden").mkdir()
    return root


def test_a_folder_of_class_folders_is_read_whatever_the_files_are(pictures):
    images = from_manifest(pictures, 16)
    assert list(images.classes) == ["blue", "red"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = images.read(np.arange(6))
    assert pixels.shape == (6, 3, 16, 16)
    red = pixels[3:].float().mean((2, 3))
    assert (red[:, 0] > 250).all()
    assert (red[:, 1:] < 5).all()
    assert from_manifest(pictures, 16, channels=1).read(np.arange(6)).shape == (6, 1, 16, 16)


def test_a_csv_names_paths_that_begin_where_it_lies(pictures, tmp_path):
    table = pd.DataFrame({"path": ["pictures/red/a.png", str(pictures / "blue/grey.png")], "label": ["7", "NA"]})
    table.to_csv(tmp_path / "mine.csv", index=False)
    images = from_manifest(tmp_path / "mine.csv", 8)
    assert list(images.classes) == ["7", "NA"]
    assert images.read(np.array([0]))[0, 0].min() > 250


def test_a_picture_lying_on_its_side_is_turned_as_its_tag_says(tmp_path):
    path = tmp_path / "a" / "x.jpg"
    path.parent.mkdir()
    picture = Image.new("RGB", (40, 40), "white")
    picture.paste("black", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: top is to be seen on the right
    picture.save(path, exif=exif)
    pixels = from_manifest(tmp_path, 40).read(np.array([0]))[0, 0].float()
    assert pixels[:, :15].mean() > 240
    assert pixels[:, 25:].mean() < 15


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "none", "is not there; give a folder of class folders, a CSV"),
        (lambda root: root, r"holds no pictures in class folders; expected .*CLASS/picture.jpg"),
        (lambda root: write(root / "a.csv", "file,class\nx,y\n"), "has no column 'path'; it has 'file', 'class'"),
        (lambda root: write(root / "a.csv", "path,class\nx,y\n"), "has no column 'label'"),
        (lambda root: write(root / "a.csv", "path,label\n"), "has no rows"),
        (lambda root: write(root / "a.csv", "path,label\nx.png,y\n"), "row 2: .*x.png is not there"),
    ],
)
def test_a_folder_or_csv_that_cannot_be_used_is_refused(tmp_path, make, words):
    with pytest.raises(InputError, match=words):
        from_manifest(make(tmp_path), 8)


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "broken.png", "not a picture")
    with pytest.raises(InputError, match=r"broken.png cannot be read as a picture"):
        from_manifest(tmp_path, 8).read(np.array([0]))


@pytest.fixture
def stack(tmp_path):
    """Five pictures in one file, 4 high and 6 wide; picture i is i everywhere, but for one red corner."""
    pictures = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 4, 6, 3)).copy()
    pictures[:, 0, 5] = [255, 0, 0]
    np.save(tmp_path / "stack.npy", pictures)
    np.save(tmp_path / "grey.npy", pictures[..., 0])
    return tmp_path / "stack.npy"


def test_a_picture_is_opened_by_its_number_in_a_file_of_pictures(stack):
    for member in (3, 0, 4):
        picture = open_picture(stack, member)
        assert (picture.mode, picture.size) == ("RGB", (6, 4))
        assert picture.getpixel((0, 0)) == (member, member, member)
        assert picture.getpixel((5, 0)) == (255, 0, 0)
    grey = open_picture(stack.with_name("grey.npy"), 2)
    assert (grey.mode, grey.size, grey.getpixel((0, 3)), grey.getpixel((5, 0))) == ("L", (6, 4), 2, 255)
    pixels = decode(stack, 4, 3, member=2)
    assert pixels.shape == (3, 4, 4)
    assert (pixels[:, :, :3] == 2).all()


def test_a_file_of_pictures_is_mapped_once_and_again_when_it_was_written_anew(stack, monkeypatch):
    loaded = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda *args, **options: loaded.append(options) or load(*args, **options))
    for member in (0, 1, 2, 1):
        open_picture(stack, member)
    assert loaded == [{"mmap_mode": "r"}]
    stack.unlink()
    np.save(stack, np.full((1, 2, 2, 3), 9, dtype=np.uint8))
    assert open_picture(stack, 0).getpixel((1, 1)) == (9, 9, 9)


def test_any_picture_is_opened_in_its_own_mode(pictures):
    opened = [open_picture(pictures / name) for name in ("red/a.png", "blue/grey.png", "blue/palette.png")]
    assert [picture.mode for picture in opened] == ["RGB", "L", "P"]


def test_a_jpeg_is_decoded_no_larger_than_needed_where_that_is_said(tmp_path):
    Image.new("RGB", (640, 480)).save(tmp_path / "x.jpg")
    assert open_picture(tmp_path / "x.jpg").size == (640, 480)
    assert open_picture(tmp_path / "x.jpg", at_least=100).size == (160, 120)


@pytest.mark.parametrize(
    ("name", "member", "words"),
    [
        ("stack.npy", 5, r"stack.npy has no member 5; it holds 5 pictures, from member 0 on"),
        ("stack.npy", -1, r"stack.npy has no member -1"),
        ("none.npy", 0, r"none.npy cannot be read as an .npy of pictures \(.*No such file"),
        ("text.npy", 0, r"text.npy cannot be read as an .npy of pictures"),
        ("short.npy", 0, r"short.npy cannot be read as an .npy of pictures"),
        ("objects.npy", 0, r"objects.npy cannot be read as an .npy of pictures"),
        ("floats.npy", 0, r"floats.npy must hold uint8 \[N, H, W\] or \[N, H, W, 3\], got float64 \[5, 4, 6\]"),
        ("deep.npy", 0, r"deep.npy must hold uint8 .*, got uint8 \[5, 4, 6, 4\]"),
        ("cut.jpg", -1, r"cut.jpg cannot be read as a picture"),
        ("none.jpg", -1, r"none.jpg cannot be read as a picture \(.*No such file"),
        ("whole.jpg", 1, r"whole.jpg is not an .npy of pictures, so it has no member 1; a picture has member -1"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_its_name(stack, name, member, words):
    home = stack.parent
    write(home / "text.npy", "text")
    (home / "short.npy").write_bytes(stack.read_bytes()[:-1])
    np.save(home / "objects.npy", np.array([{}] * 5))
    np.save(home / "floats.npy", np.zeros((5, 4, 6)))
    np.save(home / "deep.npy", np.zeros((5, 4, 6, 4), dtype=np.uint8))
    Image.effect_noise((64, 64), 50).save(home / "whole.jpg")
    (home / "cut.jpg").write_bytes((home / "whole.jpg").read_bytes()[:-200])
    with pytest.raises(InputError, match=words):
        open_picture(home / name, member)


def write(path, text):
    path.write_text(text)
    return path


INK = (torch.rand(6, 1, 32, 32) > 0.8).to(torch.uint8) * 255


def test_a_distortion_is_a_function_of_its_key_alone():
    keys = [(0, i) for i in range(6)]
    together = transforms.distort(INK, keys)
    for i in range(6):
        assert torch.equal(transforms.distort(INK[i : i + 1], keys[i : i + 1])[0], together[i])
    assert not torch.equal(transforms.distort(INK, [(1, i) for i in range(6)]), together)


def test_a_distortion_moves_ink_about_as_far_as_it_says():
    block = torch.zeros(200, 1, 32, 32, dtype=torch.uint8)
    block[:, :, 14:18, 14:18] = 255
    seen = transforms.distort(block, [(i,) for i in range(200)])
    darkest = torch.nn.functional.avg_pool2d(seen, 4, stride=1).flatten(1).argmax(1)  # of 29 x 29 places
    for moved in (darkest // 29 - 14, darkest % 29 - 14):
        assert moved.abs().max() <= 3  # 2 pixels, a tenth of stretch, and rounding
        assert 0.8 < moved.float().std() < 1.5  # uniform over 2 pixels either way: 1.15
    assert seen.min() >= 0
    assert seen.max() <= 1


def test_a_crop_is_centred_in_tests_and_random_by_key_in_training():
    ramp = torch.arange(10, dtype=torch.uint8).expand(200, 1, 10, 10).contiguous()
    centre = transforms.crop(ramp, None, 6) * 255
    assert torch.allclose(centre[0, 0, 0], torch.arange(2.0, 8.0))
    keys = [(0, i) for i in range(200)]
    first = transforms.crop(ramp, keys, 6) * 255
    assert torch.equal(transforms.crop(ramp[3:4], keys[3:4], 6) * 255, first[3:4])
    found = {tuple(row.round().int().tolist()) for row in first[:, 0, 0]}
    ways = {tuple(range(s, s + 6)) for s in range(5)}
    assert found == ways | {way[::-1] for way in ways}


def test_whitening_of_grey_and_of_colour():
    assert torch.equal(transforms.whiten(torch.tensor([[[[0.0, 1.0]]]])), torch.tensor([[[[-1.0, 1.0]]]]))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.allclose(transforms.whiten(mean), torch.zeros(1, 3, 2, 2))


def test_sixteen_bits_become_eight(tmp_path):
    pixels = np.full((8, 8), 128 * 257, dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    for channels in (1, 3):
        assert (decode(tmp_path / "deep.png", 8, channels) == 128).all()
