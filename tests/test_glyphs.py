"""The built-in data."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from metricweight.data import glyphs


@pytest.fixture(scope="module")
def images():
    return glyphs.load().images


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "metricweight"


def arrays(images):
    return torch.stack(images.read(np.arange(len(images)))).numpy(), images.labels, list(images.names)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


def test_there_are_about_as_many_as_promised(images):
    assert 2000 < len(images.classes) < 2400
    assert 27_000 < len(images) < 33_000
    assert np.bincount(images.labels).max() <= 16  # a picture per face


def test_no_picture_is_empty_or_touches_an_edge_it_would_not_fit_in(images):
    pixels, _, _ = arrays(images)
    assert pixels.reshape(len(pixels), -1).any(axis=1).all()
    assert pixels.shape[1:] == (1, 32, 32)


def test_characters_that_are_drawn_alike_are_one_class(images):
    """Latin A, Greek Alpha and Cyrillic A; but e and the Cyrillic e with a grave are not, nor I and l."""
    named = {name.split()[0] for name in images.classes}
    assert "U+0041" in named
    assert not {"U+0391", "U+0410"} & named
    assert {"U+0065", "U+00E8", "U+0049", "U+006C"} <= named
    assert {"U+006D", "U+0442"} <= named  # m and the Cyrillic t coincide in two italic faces of sixteen


def test_few_pictures_are_left_that_two_classes_share(images):
    pixels, labels, _ = arrays(images)
    owners = {}
    for picture, label in zip(pixels, labels, strict=True):
        owners.setdefault(picture.tobytes(), set()).add(label)
    shared = sum(len(classes) > 1 for classes in owners.values())
    assert shared < 0.01 * len(pixels)


def test_a_second_load_reads_what_the_first_drew(cache, monkeypatch, images):
    first = glyphs.load().images
    monkeypatch.setattr(glyphs, "draw", lambda progress: pytest.fail("drawn again"))
    second = glyphs.load().images
    assert same(first, second)
    assert same(first, images)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_cache_is_drawn_again_not_trusted(cache, images, damage):
    glyphs.load()
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "empty":
        content = b""
    else:
        np.savez(path, pixels=np.zeros(3))
        content = path.read_bytes()
    path.write_bytes(content)
    found = glyphs.load()
    assert any("damaged" in note for note in found.notes)
    assert same(found.images, images)
    assert not glyphs.load().notes


def test_a_cache_that_cannot_be_written_is_said_and_does_not_stop_anything(tmp_path, monkeypatch, images):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    found = glyphs.load()
    assert "the cache cannot be written" in found.notes[0]
    assert same(found.images, images)


def test_a_cache_that_cannot_be_read_is_no_obstacle(cache, monkeypatch, images):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", refuse)
    monkeypatch.setattr(glyphs, "write_arrays", refuse)
    found = glyphs.load()
    assert "Permission denied" in found.notes[0]
    assert same(found.images, images)


def test_two_processes_that_start_at_once_both_get_the_pictures(cache):
    code = "from metricweight.data import glyphs; g = glyphs.load(); print(len(g.images), g.notes)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert said[0] == said[1]
    assert said[0].endswith(" []\n")
    assert len(list(cache.iterdir())) == 1  # nothing half-written stays


def test_other_fonts_are_another_stamp(tmp_path, monkeypatch):
    before = glyphs.stamp()
    files = glyphs.faces()
    assert len(files) == 16
    copy = tmp_path / "DejaVuSans.ttf"
    copy.write_bytes(files["DejaVuSans"].read_bytes() + b"\0")
    monkeypatch.setattr(glyphs, "faces", lambda: {**files, "DejaVuSans": copy})
    assert glyphs.stamp() != before
