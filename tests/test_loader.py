"""Batches: the same for any number of processes, with damaged pictures, from a cache, and when a process is lost."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from metricweight.checks import InputError
from metricweight.data.images import digits, from_manifest, threads
from metricweight.data.loader import Cache, Reader, Wanted, auto_workers, batches, keys_of
from metricweight.data.transforms import View

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding", "ignore:This DataLoader will create")

VIEW = View("multi_similarity", (32, 32), seed=4)


@pytest.fixture
def root(tmp_path):
    """Three classes of four pictures each, of several sizes and kinds."""
    random = np.random.default_rng(0)
    for label in "abc":
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i, kind in enumerate(["jpg", "png", "gif", "jpg"]):
            pixels = random.integers(0, 256, (40 + 9 * i, 70 - 5 * i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{i}.{kind}")
    return tmp_path / "pictures"


def load(root, view=VIEW):
    return from_manifest(root, view.needed)


def training(steps=5):
    return [Wanted(np.random.default_rng(step).integers(0, 12, 6), (3, step)) for step in range(steps)]


TESTS = [Wanted(np.arange(0, 7)), Wanted(np.arange(7, 12))]


def same(a, b):
    a, b = list(a), list(b)
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and np.array_equal(x.indices, y.indices) and x.damaged == y.damaged
        for x, y in zip(a, b, strict=True)
    )


def test_a_batch_is_what_its_view_makes_of_its_pictures_by_their_keys(root):
    images = load(root)
    for wanted, keys in [
        (Wanted(np.array([3, 3, 8]), (5, 2), first=7), [(5, 2, 7), (5, 2, 8), (5, 2, 9)]),
        (Wanted(np.array([3, 8])), [(4, 3), (4, 8)]),
    ]:
        assert keys_of(wanted, VIEW.seed) == keys
        (batch,) = batches(images, VIEW, [wanted])
        expected = VIEW([images.picture(i) for i in wanted.indices.tolist()], keys, wanted.training is not None)
        assert torch.equal(batch.images, expected)
        assert batch.indices.tolist() == wanted.indices.tolist()
        assert batch.damaged == ()
    whole, part = (
        next(batches(images, VIEW, [Wanted(np.array(rows), (5, 2), first)]))
        for rows, first in [([1, 2, 3], 0), ([3], 2)]
    )
    assert torch.equal(whole.images[2:], part.images)  # a process of a distributed run has its rows of the same batch


@pytest.mark.parametrize("wanted", [training(), TESTS], ids=["training", "tests"])
def test_batches_are_the_same_for_any_number_of_workers(root, wanted):
    images = load(root)
    alone = list(batches(images, VIEW, wanted))
    assert [batch.indices.tolist() for batch in alone] == [asked.indices.tolist() for asked in wanted]
    for workers in (1, 2):
        assert same(batches(images, VIEW, wanted, workers=workers, pin=True), alone)
    assert same(batches(images, VIEW, wanted[::-1]), alone[::-1])


def test_the_distortion_of_the_digits_is_the_same_by_any_workers():
    images, view = digits(32), View("distort", (32, 32), seed=1)
    wanted = [*training(), Wanted(np.arange(100))]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = list(batches(images, view, wanted))  # by two threads, before the process is forked
        assert same(batches(images, view, wanted, workers=1), expected)
    finally:
        torch.set_num_threads(before)


def test_random_numbers_of_the_training_do_not_depend_on_the_workers(root):
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for workers in (0, 1):
        list(batches(load(root), VIEW, training(2), workers=workers))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_everything_that_a_process_is_given_can_be_sent_to_it(root, tmp_path):
    for images in (load(root), digits(8)):
        again = pickle.loads(pickle.dumps(images))
        assert torch.equal(again.picture(5), images.picture(5))
    reader = pickle.loads(pickle.dumps(Reader(load(root), VIEW, "skip", Cache(tmp_path / "cache", VIEW))))
    assert torch.equal(reader.batch(TESTS[0]).images, next(batches(load(root), VIEW, TESTS)).images)


SPAWNED = """
import hashlib, sys
from pathlib import Path
import numpy as np
import torch
from metricweight.data.images import from_manifest
from metricweight.data.loader import Wanted, batches
from metricweight.data.transforms import View

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    view = View("multi_similarity", (32, 32), seed=4)
    images = from_manifest(Path(sys.argv[1]), view.needed)
    (batch,) = batches(images, view, [Wanted(np.arange(12), (3, 0))], workers=1)
    print(hashlib.sha256(batch.images.numpy().tobytes()).hexdigest())
"""


def test_processes_may_be_started_afresh(root, tmp_path):
    import hashlib

    (tmp_path / "spawned.py").write_text(SPAWNED)
    words = [sys.executable, tmp_path / "spawned.py", root]
    found = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    (batch,) = batches(load(root), VIEW, [Wanted(np.arange(12), (3, 0))])
    assert found == hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()


def test_pictures_in_memory_need_no_process_and_files_one_for_each_core(root):
    assert auto_workers(digits(8)) == 0
    assert auto_workers(load(root)) == threads()
    assert 1 <= threads() <= 8


def children():
    return {child.pid for child in multiprocessing.active_children()}


@pytest.mark.parametrize("workers", [0, 2])
def test_closing_the_iterator_leaves_no_process_and_no_thread(root, workers):
    processes, running = children(), set(threading.enumerate())
    coming = batches(load(root), VIEW, training(50), workers=workers)
    next(coming)
    assert len(children() - processes) == workers
    coming.close()
    assert children() == processes
    left = [thread for thread in set(threading.enumerate()) - running if "QueueFeeder" not in thread.name]
    assert not left


@pytest.mark.parametrize("workers", [0, 2])
def test_it_reads_ahead_but_not_all_at_once(root, workers):
    asked = []

    def wanted():
        for step, one in enumerate(training(40)):
            asked.append(step)
            yield one

    coming = batches(load(root), VIEW, wanted(), workers=workers)
    next(coming)
    assert 2 <= len(asked) <= 8
    coming.close()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_an_error_with_its_name_unless_it_is_to_be_skipped(root, workers):
    cut_short(root / "b" / "1.png")
    coming = batches(load(root), VIEW, [Wanted(np.arange(4)), Wanted(np.arange(3, 8))], workers=workers)
    assert next(coming).images.shape == (4, 3, 32, 32)
    with pytest.raises(InputError) as raised:
        next(coming)
    assert str(raised.value).startswith(f"{root / 'b' / '1.png'} cannot be read as a picture (")
    assert str(raised.value).endswith("); mend it or take it out.")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_skipped_picture_is_replaced_by_the_next_of_its_class_in_training_and_left_out_of_tests(root, workers):
    for name in ("1.png", "2.gif"):
        cut_short(root / "b" / name)
    images = load(root)
    asked = [Wanted(np.array([0, 5, 6, 9, 5]), (3, 1)), Wanted(np.array([4, 5, 6, 7]))]
    trained, tested = batches(images, VIEW, asked, workers=workers, damaged="skip")
    assert trained.indices.tolist() == [0, 7, 7, 9, 7]
    keys = keys_of(asked[0], VIEW.seed)
    assert torch.equal(trained.images, VIEW([images.picture(i) for i in (0, 7, 7, 9, 7)], keys, True))
    assert [sentence.split(" cannot")[0] for sentence in trained.damaged] == [
        str(root / "b" / x) for x in ("1.png", "2.gif")
    ]
    assert tested.indices.tolist() == [4, 7]
    assert torch.equal(tested.images, VIEW([images.picture(i) for i in (4, 7)], [(4, 4), (4, 7)], False))
    assert len(tested.damaged) == 2


def test_after_the_last_of_a_class_comes_its_first_and_never_one_of_another_split(root):
    cut_short(root / "c" / "3.jpg")
    images = load(root)
    assert next(batches(images, VIEW, [Wanted(np.array([11]), (0, 0))], damaged="skip")).indices.tolist() == [8]
    halves = {"train": np.array([1, 5, 9, 10, 11]), "test": np.array([0, 2, 3, 4, 6, 7, 8])}
    images = replace(images, splits=halves)
    assert next(batches(images, VIEW, [Wanted(np.array([11]), (0, 0))], damaged="skip")).indices.tolist() == [9]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_without_a_picture_that_can_be_read_is_an_error(root, workers):
    for path in (root / "a").iterdir():
        cut_short(path)
    images = load(root)
    coming = batches(images, VIEW, [Wanted(np.array([4, 1]), (0, 0))], workers=workers, damaged="skip")
    with pytest.raises(InputError, match=r"none of the 4 pictures of class a can be read \(.*\); take the class out"):
        next(coming)
    (tested,) = batches(images, VIEW, [Wanted(np.arange(4))], workers=workers, damaged="skip")
    assert tested.images.shape == (0, 3, 32, 32)
    assert len(tested.damaged) == 4


class Fatal:
    """Pictures of which one ends the process that reads it."""

    def __init__(self, picture, end):
        self.picture, self.end = picture, end

    def __call__(self, index):
        if index == 9:
            self.end()
        return self.picture(index)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_later():
    time.sleep(0.5)
    kill()


def no_memory():
    raise MemoryError


def mistake():
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            kill,
            r"^process 2 of 2 that read pictures was ended by SIGKILL, .*; lower data.workers \(now 2\) or free memory",
        ),
        (no_memory, r"^a process that reads pictures ran out of memory; lower data.workers or batch.images\.$"),
        (
            mistake,
            r"^a process that reads pictures failed \(ZeroDivisionError: division by zero\); data.workers=0 shows",
        ),
    ],
)
def test_a_process_that_is_lost_is_one_sentence_and_the_others_are_ended(root, end, words):
    processes = children()
    images = load(root)
    images = replace(images, picture=Fatal(images.picture, end))
    coming = batches(images, VIEW, [Wanted(np.array([i])) for i in (0, 1, 2, 9, 3, 4, 5, 6)], workers=2)
    started = time.monotonic()
    assert next(coming).indices.tolist() == [0]
    with pytest.raises(InputError, match=words) as raised:
        list(coming)
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    assert "\n" not in str(raised.value)
    assert children() == processes
    assert time.monotonic() - started < 30


def test_the_loss_of_a_process_does_not_break_into_what_is_done_with_a_batch(root, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    processes = children()
    images = load(root)
    images = replace(images, picture=Fatal(images.picture, kill_later))
    try:
        coming = batches(images, VIEW, [Wanted(np.array([i])) for i in (0, 9)], workers=1)
        next(coming)
        while children() != processes:
            time.sleep(0.01)  # a step of the training, in which torch would raise
        coming.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_goes_wrong_in_naming_the_batches_is_said_as_it_is(root):
    def wanted():
        yield TESTS[0]
        raise InputError("no more.")

    for workers in (0, 1):
        with pytest.raises(InputError, match=r"^no more\.$"):
            list(batches(load(root), VIEW, wanted(), workers=workers))


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["none", "crop", "ranked_list", "multi_similarity", "proxy_anchor", "person"])
def test_batches_from_a_cache_are_the_same_and_nothing_is_decoded_again(root, tmp_path, monkeypatch, name):
    view = View(name, (32, 24), seed=4)
    images, cache = load(root, view), tmp_path / "cache"
    expected = list(batches(images, view, [*training(3), *TESTS]))
    assert same(batches(images, view, [*training(3), *TESTS], cache=cache), expected)
    assert len(entries(cache)) == 12
    monkeypatch.setattr("metricweight.data.images.decode", lambda *_: pytest.fail("decoded again"))
    assert same(batches(images, view, [*training(3), *TESTS], cache=cache), expected)


def test_a_cache_is_filled_by_several_processes(root, tmp_path):
    expected = list(batches(load(root), VIEW, training()))
    for _ in range(2):
        assert same(batches(load(root), VIEW, training(), workers=2, cache=tmp_path / "cache"), expected)


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"",
        lambda data: data[:9],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:500] + bytes(500) + data[1000:],
        lambda data: bytes(len(data)),
    ],
    ids=["empty", "header", "cut", "longer", "changed", "zeros"],
)
def test_a_damaged_entry_of_a_cache_counts_as_not_there_and_is_written_anew(root, tmp_path, harm):
    images, cache = load(root), tmp_path / "cache"
    expected = list(batches(images, VIEW, TESTS, cache=cache))
    whole = [path.read_bytes() for path in entries(cache)]
    for path, data in zip(entries(cache), whole, strict=True):
        path.write_bytes(harm(data))
    assert same(batches(images, VIEW, TESTS, cache=cache), expected)
    assert [path.read_bytes() for path in entries(cache)] == whole


def test_an_entry_is_whole_before_it_has_its_name(root, tmp_path, monkeypatch):
    """A kill at the last moment, when all is written, leaves what does not count."""
    images, cache = load(root), tmp_path / "cache"

    def killed(*_):
        raise KeyboardInterrupt

    reader = Reader(images, VIEW, cache=Cache(cache, VIEW))
    cache.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            reader.batch(TESTS[0])
    (left,) = entries(cache)
    assert left.name.startswith(".")
    assert same(batches(images, VIEW, TESTS, cache=cache), batches(images, VIEW, TESTS))


def test_a_picture_that_was_changed_or_is_needed_otherwise_is_not_taken_from_the_cache(root, tmp_path):
    cache = tmp_path / "cache"
    list(batches(load(root), VIEW, TESTS, cache=cache))
    Image.new("RGB", (50, 50), "red").save(root / "a" / "1.png")
    assert same(batches(load(root), VIEW, TESTS, cache=cache), batches(load(root), VIEW, TESTS))
    others = ["multi_similarity", (24, 24)], ["multi_similarity", (32, 24)], ["ranked_list_simpler", (32, 32)]
    for view in (View(name, shape, seed=4) for name, shape in others):
        images = load(root, view)
        assert same(batches(images, view, TESTS, cache=cache), batches(images, view, TESTS))
    grey, view = from_manifest(root, VIEW.needed, channels=1), VIEW
    assert same(batches(grey, view, TESTS, cache=cache), batches(grey, view, TESTS))


def test_a_cache_that_cannot_be_written_is_done_without_and_one_that_cannot_be_is_refused(root, tmp_path, monkeypatch):
    images = load(root)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data.cache=.*file cannot be made a folder \(File exists\); choose another"):
        batches(images, VIEW, TESTS, cache=tmp_path / "file")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert same(batches(images, VIEW, TESTS, cache=tmp_path / "cache"), batches(images, VIEW, TESTS))
    assert entries(tmp_path / "cache") == []
