"""An exported network gives the embeddings of its run for pictures as they are decoded, or there is no file."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from metricweight.checks import InputError
from metricweight.data.images import Held, Images, from_manifest
from metricweight.data.transforms import TRANSFORMS, View, scaled
from metricweight.models.heads import embedder
from metricweight.settings import read
from metricweight.training import checkpoint, export
from metricweight.training.pictures import load_images

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CLASSES, EACH = 8, 6


def photo(random, height, width, channels=3):
    """uint8 [height, width, C]: coarse noise with a bright blob, in which a shift by one pixel shows."""
    coarse = random.integers(0, 256, (max(2, height // 5), max(2, width // 5), channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], -1)


def as_picture(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def levels(images):
    """0 to 255, of what pixels=half gave."""
    return 255 * (images / 2 + 0.5)


def cosine(one, other):
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def by_torch(network, view):
    """What would be exported, run by torch."""
    whole = export.Exported(network, view)

    def embed(pictures):
        with torch.no_grad():
            return whole(pictures.permute(0, 2, 3, 1))[1].numpy()

    return embed


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of classes: pictures of one class have its colour, and are of several sizes, one a large JPEG."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label in range(CLASSES):
        folder = root / f"class{label}"
        folder.mkdir()
        colour = random.integers(0, 256, 3)
        for i in range(EACH):
            height, width = (40, 52) if i < 3 else random.integers(34, 70, 2)
            pixels = 0.6 * photo(random, height, width) + 0.4 * colour
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(photo(random, 200, 260)).save(folder / "large.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run of a small network of three levels, with random weights."""
    folder = tmp_path_factory.mktemp("run")
    words = [f"data.root={photos}", "data.size=32", "data.transform=crop", "model.backbone=small_cnn"]
    words += ["data.test=0.75", "data.validation=0", "model.embedding_size=64"]
    words += ["model.levels=[low,middle,high]", "model.pooling=avg+max"]
    settings = read("folder", words)
    torch.manual_seed(0)
    state = checkpoint.on_cpu(checkpoint.blank(settings, 3))
    checkpoint.save_network(
        folder,
        {"step": 7, "channels": 3, "settings": settings.model_dump(mode="json"), "model": state, "origin": {}},
    )
    return folder


@pytest.fixture(scope="module")
def exported(run):
    """The file, and what was said of it."""
    from metricweight.progress import console

    with console.capture() as said:
        path = export.export(run, None, None, False)
    return path, said.get()


def test_every_transform_has_its_place_in_the_file():
    assert export.FITS.keys() == TRANSFORMS.keys()


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "distort"])
def test_the_file_sees_pictures_of_any_size_as_the_network_does(name):
    random = np.random.default_rng(1)
    for shape in ((32, 32), (48, 24), (57, 57)):
        for height, width in ((32, 32), (37, 91), (200, 61), (20, 11), (101, 333), (48, 24), (1, 1)):
            for channels in (1, 3):
                pixels = photo(random, height, width, channels)[None]
                if name == "ranked_list" and height > 1:
                    pixels[:, : height // 3] = 255
                    pixels[:, :, -width // 2 :] = 250
                view = View(name, shape, "half")
                seen = levels(view([as_picture(pixels[0])], [(0, 0)], False))
                found = levels(export.Preprocessing(view)(torch.from_numpy(pixels)))
                assert found.shape == (1, channels, *shape)
                difference = (found - seen).abs()
                assert difference.max() < 2.01, (shape, height, width, channels)
                assert difference.mean() < 0.2, (shape, height, width, channels)


@pytest.mark.parametrize("pixels", ["imagenet", "caffe", "bn_inception", "half"])
def test_the_file_scales_and_orders_colours_as_the_network_is_used_to(pixels):
    picture = torch.from_numpy(photo(np.random.default_rng(2), 32, 32))
    red = picture[0, 0, 0].item()
    expected = {
        "imagenet": (red / 255 - 0.485) / 0.229,
        "caffe": red - 123.0,
        "bn_inception": red - 128.0,
        "half": red / 127.5 - 1,
    }
    found = export.Preprocessing(View("none", (32, 32), pixels))(picture[None])[0]
    place = 2 if pixels in ("caffe", "bn_inception") else 0  # blue first
    assert found[place, 0, 0].item() == pytest.approx(expected[pixels], abs=1e-4)


def test_white_borders_are_cut_off_each_picture_of_a_batch_by_itself():
    random = np.random.default_rng(3)
    batch = np.stack([photo(random, 60, 80) for _ in range(4)])
    batch[1, :20], batch[2, :, 50:], batch[3] = 255, 255, 255
    view = View("ranked_list", (32, 32), "half")
    alone = view([as_picture(pixels) for pixels in batch], [(0, i) for i in range(4)], False)
    assert (levels(export.Preprocessing(view)(torch.from_numpy(batch))) - levels(alone)).abs().max() < 2.01


def test_rows_of_resizing_weights_sum_to_one_and_average_what_they_shrink():
    axis = export.Axis(*(torch.tensor([x]) for x in (0, 8, 4, 0)))  # 8 pixels to 4
    (rows,) = export.weights(axis, 4, 8)
    # scale 2, filter 2 wide on both sides: pixels at -1.5, -0.5, 0.5, 1.5 from the middle count 1/4, 3/4, 3/4, 1/4
    assert rows[1].tolist() == pytest.approx([0, 1 / 8, 3 / 8, 3 / 8, 1 / 8, 0, 0, 0])
    assert rows[0].tolist() == pytest.approx([3 / 7, 3 / 7, 1 / 7, 0, 0, 0, 0, 0])  # what lies outside is left out
    cut = export.Axis(*(torch.tensor([x]) for x in (2, 4, 2, 0)))  # 4 of the 8 pixels, from the third on, to 2
    assert export.weights(cut, 2, 8)[0, 0].tolist() == pytest.approx([0, 0, 3 / 7, 3 / 7, 1 / 7, 0, 0, 0])


def test_the_file_gives_the_embeddings_of_the_run(run, exported, photos):
    model, _, _ = checkpoint.load(run)
    session = onnxruntime.InferenceSession(exported[0])
    pixels = np.asarray(Image.open(photos / "class0" / "5.png").convert("RGB"))
    height, width = pixels.shape[:2]
    high, wide = (37, width * 37 // height) if height <= width else (height * 37 // width, 37)  # 32 x 8/7 = 37
    small = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR), np.float32)
    top, left = (high - 37) // 2 + 2, (wide - 37) // 2 + 2
    seen = (small[top : top + 32, left : left + 32] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        raw = model(torch.from_numpy(seen).float().permute(2, 0, 1)[None]).numpy()[0]
    embeddings, found = session.run(None, {"pictures": pixels[None]})
    assert cosine(found[0], raw) > 0.9999
    assert np.allclose(embeddings[0], raw / np.linalg.norm(raw), atol=0.01)
    assert np.linalg.norm(embeddings[0]) == pytest.approx(1, abs=1e-5)


def test_batch_height_and_width_are_free_and_a_batch_changes_nothing(exported):
    session = onnxruntime.InferenceSession(exported[0])
    batch = np.stack([photo(np.random.default_rng(seed), 45, 33) for seed in range(5)])
    together = session.run(["embeddings"], {"pictures": batch})[0]
    alone = np.concatenate([session.run(["embeddings"], {"pictures": one[None]})[0] for one in batch])
    assert together.shape == (5, 3 * 64)
    assert together.dtype == np.float32
    assert np.allclose(together, alone, atol=1e-5)


def test_the_lines_that_are_said_embed_a_large_jpeg_as_the_run_does(run, exported, photos, monkeypatch, tmp_path):
    _, said = exported
    lines = said.partition("In Python:\n")[2]
    (tmp_path / "picture.jpg").write_bytes((photos / "class3" / "large.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(line.strip() for line in lines.splitlines()), names)
    model, _, _ = checkpoint.load(run)
    view = View("crop", (32, 32))
    images = from_manifest(photos, view.needed)
    (index,) = [i for i, name in enumerate(images.names) if name.endswith("class3/large.jpg")]
    with torch.no_grad():
        raw = model(view([images.picture(index)], [(0, index)], False)).numpy()[0]
    assert cosine(names["raw"][0], raw) > 0.9999
    assert "Read in full, the cosine can be" in said


def test_the_file_says_what_it_is_and_nothing_of_this_machine(exported, photos):
    properties = onnxruntime.InferenceSession(exported[0]).get_modelmeta().custom_metadata_map
    settings, parity = json.loads(properties["settings"]), json.loads(properties["parity"])
    assert settings["model"]["backbone"] == "small_cnn"
    assert settings["data"]["root"] == photos.name
    assert properties["step"] == "7"
    assert "cosine" in properties["comparison"]
    assert "32 x 32" in properties["preprocessing"]
    assert "imagenet" in properties["preprocessing"]
    assert parity["cosine"] >= 0.9999
    assert parity["recall"][0] == parity["recall"][1]
    assert str(photos.parent) not in json.dumps(properties)
    content = exported[0].read_bytes()
    assert b"site-packages" not in content
    assert b"metricweight/" not in content


def without_mean(images, pixels):
    return images / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def blue_first(images, pixels):
    return scaled(images.flip(1), pixels)


BREAKS = {
    "mean": ("scaled", without_mean),
    "order": ("scaled", blue_first),
    "resizing": ("filter_width", torch.ones_like),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_preprocessing_that_differs_is_seen(broken, run, monkeypatch):
    model, settings, _ = checkpoint.load(run)
    images, view = load_images(settings.data), View("crop", (32, 32))
    some = np.arange(len(images))[::2]
    assert not export.compared(model, view, by_torch(model, view), images, some).wrong()
    monkeypatch.setattr(export, *BREAKS[broken])
    parity = export.compared(model, view, by_torch(model, view), images, some)
    assert parity.cosine < 0.9999
    assert parity.wrong()


def test_a_file_that_differs_is_refused_and_not_left(run, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "filter_width", torch.ones_like)
    out = tmp_path / "model.onnx"
    out.write_text("an earlier one")
    with pytest.raises(InputError, match=r"does not give the embeddings of .*the cosine .* below 0.9999.* Nothing was"):
        export.export(run, out, None, True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.read_text() == "an earlier one"


def test_a_file_that_gives_no_numbers_is_refused(run):
    model, settings, _ = checkpoint.load(run)
    images, view = load_images(settings.data), View("crop", (32, 32))
    good = by_torch(model, view)
    parity = export.compared(model, view, lambda pictures: good(pictures) * np.nan, images, np.arange(12))
    assert len(parity.wrong()) == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"cosine": 0.99989}, ["the cosine of the two embeddings of b.png is 0.999890, below 0.9999"]),
        ({"cosine": float("nan")}, ["the cosine of the two embeddings of b.png is nan, below 0.9999"]),
        ({"recall": (0.6, 0.602)}, []),  # one query of 500
        ({"recall": (0.6, 0.604)}, ["Recall@1 is 60.40 % instead of 60.00 %"]),
        ({"map_r": (0.5, 0.4)}, ["MAP@R is 40.00 % instead of 50.00 %"]),
    ],
)
def test_more_than_one_query_or_a_tenth_of_a_point_is_a_difference(changed, said):
    same = {"cosine": 0.99995, "worst": "b.png", "recall": (0.6, 0.6), "map_r": (0.5, 0.5)}
    assert export.Parity(**{"pictures": 500, "batches": (8, 1), "sizes": 2, **same, **changed}).wrong() == said


def test_one_picture_alone_is_enough_to_be_refused():
    pixels = torch.stack([as_picture(photo(np.random.default_rng(i), 32, 32)) for i in range(30)])
    names, classes = [f"p{i}" for i in range(30)], [str(i) for i in range(10)]
    images = Images(Held(pixels), np.arange(30) // 3, classes, names, 3, "")
    network, view = embedder(3).eval(), View("none", (32, 32))
    good = by_torch(network, view)

    def wrong_alone(pictures):
        found = good(pictures)
        return -found if len(found) == 1 else found

    assert not export.compared(network, view, good, images, np.arange(30)).wrong()
    assert export.compared(network, view, wrong_alone, images, np.arange(30)).wrong()


@pytest.mark.parametrize(
    ("backbone", "size", "more"),
    [
        ("convnext_tiny", 32, {"levels": ["low"], "pooling": "gem", "layer_norm": True}),
        ("swin_t", 32, {"levels": ["low"], "embedding_size": None}),
    ],
)
def test_networks_of_all_kinds_are_exported(backbone, size, more):
    torch.manual_seed(0)
    network, view = embedder(3, backbone=backbone, **more).eval(), View("norm_softmax", (size, size))
    by_file = export.run_by_onnxruntime(export.as_onnx(export.Exported(network, view), 3, backbone).SerializeToString())
    pictures = torch.stack([as_picture(photo(np.random.default_rng(i), 50, 64)) for i in range(3)])
    with torch.no_grad():
        expected = network(view(list(pictures), [(0, 0)] * 3, False)).numpy()
    found = by_file(pictures)
    assert found.shape == (3, network.levels * network.dim)
    assert min(cosine(one, other) for one, other in zip(found, expected, strict=True)) > 0.9999


def test_the_distortion_of_glyphs_is_not_in_the_file_and_is_done_to_what_it_is_compared_on():
    torch.manual_seed(0)
    ink = (torch.rand(12, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.8).to(torch.uint8) * 255
    images = Images(Held(ink), np.arange(12) // 3, list("abcd"), [f"g{i}" for i in range(12)], 1, "")
    network, view = embedder(1).eval(), View("distort", (32, 32))
    by_file = by_torch(network, view)
    seen = []

    def noted(pictures):
        seen.append(pictures)
        return by_file(pictures)

    parity = export.compared(network, view, noted, images, np.arange(12))
    assert not parity.wrong()
    assert parity.pictures == 12
    distorted = levels(view([ink[i] for i in range(12)], [(0, i) for i in range(12)], False))
    assert (seen[0].float() - distorted).abs().max() < 0.51  # rounded, and no more


def test_a_damaged_picture_is_left_out_where_the_run_leaves_them_out(photos, tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(3):
            pixels = photo(np.random.default_rng(ord(label) + i), 40, 40)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    images, view = from_manifest(tmp_path), View("none", (32, 32))
    found = [i for _, some in export._batches(view, images, np.arange(6), "skip") for i in some]
    assert found == [0, 2, 3, 4, 5]
    with pytest.raises(InputError, match=r"1\.png"):
        list(export._batches(view, images, np.arange(6), "fatal"))


def test_what_cannot_be_exported_is_said_before_any_work(run, exported, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="already there; add --overwrite"):
        export.export(run, exported[0], None, False)
    with pytest.raises(InputError, match=r"must be an \.onnx file, got .*model\.pt"):
        export.export(run, tmp_path / "model.pt", None, False)
    with pytest.raises(InputError, match=r"looks at colour pictures; digits has others"):
        export.export(run, tmp_path / "model.onnx", "digits", False)
    with pytest.raises(InputError, match=r"no checkpoint\.pt"):
        export.export(tmp_path, None, None, False)
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(InputError, match=r"needs onnxscript: pip install 'metricweight\[onnx\]'"):
        export.export(run, None, None, True)


def test_a_network_that_torch_cannot_export_is_named():
    class Odd(torch.nn.Module):
        def forward(self, images):
            return images if images.sum().item() > 0 else -images

    with pytest.raises(InputError, match="cannot export odd_net: "):
        export.as_onnx(Odd(), 3, "odd_net")
