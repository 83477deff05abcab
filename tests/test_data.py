"""Pictures, splits, batches and what is done to pixels."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from metricweight.checks import InputError
from metricweight.data.images import decode, digits, from_manifest, open_picture
from metricweight.data.split import split_by_class

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding")  # of torchvision 0.29, which will lose it

LABELS = np.repeat(np.arange(20), np.arange(1, 21))  # class c has c + 1 items


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
    assert [picture.shape for picture in pixels] == [(1, 8, 8)] * 2
    assert images.labels[:10].tolist() == list(range(10))
    assert pixels[0][0, 0].tolist() == pytest.approx(
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
    images = from_manifest(pictures)
    assert list(images.classes) == ["blue", "red"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = torch.stack(images.read(np.arange(6)))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (6, 3, 50, 30)
    assert all(torch.equal(images.picture(i), pixels[i]) for i in range(6))
    red = pixels[3:].float().mean((2, 3))
    assert (red[:, 0] > 250).all()
    assert (red[:, 1:] < 5).all()
    assert {picture.shape for picture in from_manifest(pictures, channels=1).read(np.arange(6))} == {(1, 50, 30)}


def test_a_csv_names_paths_that_begin_where_it_lies(pictures, tmp_path):
    table = pd.DataFrame({"path": ["pictures/red/a.png", str(pictures / "blue/grey.png")], "label": ["7", "NA"]})
    table.to_csv(tmp_path / "mine.csv", index=False)
    images = from_manifest(tmp_path / "mine.csv")
    assert list(images.classes) == ["7", "NA"]
    assert images.picture(0)[0].min() > 250


def test_a_picture_lying_on_its_side_is_turned_as_its_tag_says(tmp_path):
    path = tmp_path / "a" / "x.jpg"
    path.parent.mkdir()
    picture = Image.new("RGB", (40, 40), "white")
    picture.paste("black", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: top is to be seen on the right
    picture.save(path, exif=exif)
    pixels = from_manifest(tmp_path).picture(0)[0].float()
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
        from_manifest(make(tmp_path))


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "broken.png", "not a picture")
    with pytest.raises(InputError, match=r"broken.png cannot be read as a picture"):
        from_manifest(tmp_path).read(np.array([0]))


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
    pixels = decode(stack, 3, member=2)
    assert pixels.shape == (3, 4, 6)
    assert (pixels[:, :, :5] == 2).all()
    assert pixels[:, 0, 5].tolist() == [255, 0, 0]
    assert decode(stack.with_name("grey.npy"), 3, member=2)[:, 0, 5].tolist() == [255, 255, 255]


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


def test_sixteen_bits_become_eight(tmp_path):
    pixels = np.full((8, 8), 128 * 257, dtype=np.uint16)
    pixels[0, :2] = [0, 65535]
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    for channels in (1, 3):
        found = decode(tmp_path / "deep.png", channels)
        assert found[0, 0, :3].tolist() == [0, 255, 128]
        assert (found[:, 1:] == 128).all()


def photo(height, width):
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_decodes_to_what_pillow_makes_of_it_whatever_its_mode_and_tag(tmp_path, mode, turn, channels):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "x.png"  # what it is is told by its first bytes
    photo(40, 64).convert(mode).save(path, "jpeg", quality=95, **({} if turn == 1 else {"exif": exif}))
    found = decode(path, channels)
    assert found.shape == ((channels, 40, 64) if turn in (1, 3) else (channels, 64, 40))
    with Image.open(path) as opened:
        turned = opened.rotate({1: 0, 3: 180, 6: 270, 8: 90}[turn], expand=True)
        expected = np.asarray(turned.convert("L" if channels == 1 else "RGB")).reshape(*turned.size[::-1], channels)
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2
    assert torch.equal(decode(path, channels, at_least=40), found)


def test_plain_jpegs_are_decoded_by_torchvision_and_others_are_not(tmp_path, monkeypatch):
    import torchvision

    seen = []
    decode_jpeg = torchvision.io.decode_jpeg
    monkeypatch.setattr(torchvision.io, "decode_jpeg", lambda data: seen.append(len(data)) or decode_jpeg(data))
    photo(64, 64).save(tmp_path / "x.jpg")
    photo(64, 64).save(tmp_path / "x.png")
    by = [decode(tmp_path / "x.jpg", 3), decode(tmp_path / "x.jpg", 3, at_least=33)]
    assert len(seen) == 2
    decode(tmp_path / "x.jpg", 1)
    decode(tmp_path / "x.png", 3)
    assert decode(tmp_path / "x.jpg", 3, at_least=32).shape == (3, 32, 32)
    assert len(seen) == 2
    monkeypatch.setattr(torchvision.io, "decode_jpeg", lambda data: 1 / 0)  # built without libjpeg
    assert (decode(tmp_path / "x.jpg", 3).int() - by[0].int()).abs().max() <= 2


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp"])
def test_a_file_that_was_cut_short_anywhere_is_refused_with_its_name(tmp_path, kind):
    path = tmp_path / "cut"
    photo(64, 64).save(path, kind)
    whole = path.read_bytes()
    for share in (0, 0.01, 0.3, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=r"cut cannot be read as a picture"):
            decode(path, 3)


def test_transparency_and_palettes_become_plain_colours(tmp_path):
    picture = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    picture.save(tmp_path / "alpha.png")
    Image.new("RGB", (8, 8), (10, 20, 30)).quantize().save(tmp_path / "palette.png", transparency=0)
    for name in ("alpha", "palette"):
        assert decode(tmp_path / f"{name}.png", 3)[:, 3, 3].tolist() == [10, 20, 30]
