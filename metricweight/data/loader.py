"""Batches of pictures as a network sees them, prepared by threads or processes while the one before is used."""

import hashlib
import os
import signal
import struct
import threading
import zlib
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import numpy as np
import torch
from PIL import __version__ as pillow_version
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metricweight.checks import InputError
from metricweight.data.images import Files, Held, Images, threads
from metricweight.data.split import Indices
from metricweight.data.transforms import Key, View

Damaged = Literal["fatal", "skip"]
AHEAD = 2  # batches that each process prepares before they are asked for

_HEADER = struct.Struct("<4I")  # checksum of what follows, channels, height, width


class Wanted(NamedTuple):
    """Which pictures a batch is made of.

    indices   [B]
    training  (seed, step) of a training batch: the key of picture i is (seed, step, first + i). None: a test, the key
              of a picture is (seed of the view, index)
    first     place of the first picture in the whole batch, of which this may be a part
    """

    indices: Indices
    training: tuple[int, int] | None = None
    first: int = 0


@dataclass(frozen=True)
class Batch:
    """Pictures as a network sees them.

    images   float32 [B, C, h, w]
    indices  [B] of the pictures that they are really of: where damaged ones are skipped, not all that were wanted
    damaged  what could not be read, a sentence each, with the name
    """

    images: Tensor
    indices: Indices
    damaged: tuple[str, ...] = ()

    def pin_memory(self) -> "Batch":
        """In memory from which a GPU copies while others work; torch's DataLoader calls it."""
        return replace(self, images=self.images.pin_memory())


def auto_workers(images: Images) -> int:
    """How many processes should read them: none where they are in memory, else one for each core, 8 at most."""
    return 0 if isinstance(images.picture, Held) else threads()


def keys_of(wanted: Wanted, seed: int) -> list[Key]:
    """The key of each picture. seed: of the view, for tests."""
    if wanted.training is None:
        return [(seed, index) for index in wanted.indices.tolist()]
    return [(*wanted.training, wanted.first + place) for place in range(len(wanted.indices))]


def batches(
    images: Images,
    view: View,
    wanted: Iterable[Wanted],
    *,
    workers: int = 0,
    pin: bool = False,
    damaged: Damaged = "fatal",
    cache: Path | None = None,
) -> Generator[Batch, None, None]:
    """The batches that are wanted, in their order; the same numbers for any number of workers.

    workers  processes that read and change pictures, and stay until the last batch; 0: threads of this one
    pin      in pinned memory, where there is a GPU
    damaged  what a picture that cannot be read is. fatal: an InputError with its name. skip: it is left out of a test;
             in a training batch the next picture of its class that can be read takes its place, see `Reader`
    cache    folder where pictures in files are kept as `view.prepare` makes them, see `Cache`

    Closing the iterator ends threads and processes. It reads ahead in `wanted`. Raises InputError where a process was
    killed or failed, and where the cache cannot be written at all.
    """
    if cache is not None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"data.cache={cache} cannot be made a folder ({error.strerror}); choose another."
            ) from None
    reader = Reader(images, view, damaged, None if cache is None else Cache(cache, view))
    pin = pin and torch.cuda.is_available()
    return _by_processes(reader, wanted, workers, pin) if workers else _by_threads(reader, wanted, pin)


@dataclass(frozen=True)
class Reader:
    """Makes any batch on its own, so that it does not matter who does it.

    A damaged picture of a training batch, where these are skipped, is replaced by the next of its tracklet, if it has
    one, or of its class, in the order of the data and from the last on to the first, that can be read. It comes from
    the same split, where the data have splits. The place in the batch, and so the key, stays the same.
    """

    images: Images
    view: View
    damaged: Damaged = "fatal"
    cache: "Cache | None" = None

    def batch(self, wanted: Wanted, each: Callable[..., Iterable[Any]] = map) -> Batch:
        """A batch. each: how a function is applied to all indices, as `map` does it."""
        pictures: list[Tensor] = []
        indices: list[int] = []
        keys: list[Key] = []
        bad: list[str] = []
        tried = each(self.tried, wanted.indices.tolist())
        for index, key, found in zip(wanted.indices.tolist(), keys_of(wanted, self.view.seed), tried, strict=True):
            if isinstance(found, InputError):
                if self.damaged == "fatal":
                    raise found
                bad.append(str(found))
                if wanted.training is None:
                    continue
                index, found = self._instead(index, bad)
            pictures.append(found)
            indices.append(index)
            keys.append(key)
        if pictures:
            seen = self.view.finish(pictures, keys, wanted.training is not None)
        else:
            seen = torch.empty(0, self.images.channels, *self.view.shape)
        return Batch(seen, np.array(indices, dtype=np.int64), tuple(dict.fromkeys(bad)))

    def tried(self, index: int) -> Tensor | InputError:
        """A prepared picture, or why it cannot be read."""
        try:
            return self._prepared(index)
        except InputError as error:
            return error

    def _prepared(self, index: int) -> Tensor:
        picture = self.images.picture
        if self.cache is None or not isinstance(picture, Files):
            return self.view.prepare(picture(index))
        mark = picture.mark(index)
        kept = self.cache.get(mark)
        if kept is None:
            kept = self.view.prepare(picture(index))
            self.cache.put(mark, kept)
        return kept

    def _instead(self, index: int, bad: list[str]) -> tuple[int, Tensor]:
        """Another picture for one that cannot be read; what cannot be read on the way is added to `bad`."""
        labels = self.images.labels
        others = np.flatnonzero(labels == labels[index])
        for rows in self.images.splits.values():
            if index in rows:
                others = np.intersect1d(others, rows)
        others = np.concatenate([others[others > index], others[others < index]])
        tracklets = self.images.tracklets
        if tracklets is not None and tracklets[index] >= 0:
            others = others[np.argsort(tracklets[others] != tracklets[index], kind="stable")]
        for other in others.tolist():
            found = self.tried(other)
            if not isinstance(found, InputError):
                return other, found
            bad.append(str(found))
        raise InputError(
            f"none of the {len(others) + 1} pictures of class {self.images.classes[labels[index]]} can be read "
            f"({bad[-1]}); take the class out."
        )


@dataclass(frozen=True)
class Cache:
    """Prepared pictures in a folder, a file each, not compressed: C x H x W bytes.

    A file is named by a hash of the path, member, size and time of the picture, of what was done to it and by which
    versions: nothing in it is ever out of date. It is written beside its place and put there whole, and carries a
    checksum; one that does not match, after the machine lost power, counts as not there. Any number of processes may
    use the folder at once. Where the disk is full, pictures are decoded each time. Delete the folder when you like.
    """

    folder: Path
    view: View

    def get(self, mark: str) -> Tensor | None:
        """The picture [C, H, W] with a mark; None: it is not there."""
        try:
            data = np.fromfile(self.place(mark), dtype=np.uint8)
        except OSError:
            return None
        if len(data) < _HEADER.size:
            return None
        checksum, channels, height, width = _HEADER.unpack(data[: _HEADER.size].tobytes())
        if len(data) != _HEADER.size + channels * height * width or checksum != zlib.crc32(data[4:].data):
            return None
        return torch.from_numpy(data[_HEADER.size :].reshape(height, width, channels)).permute(2, 0, 1)

    def put(self, mark: str, picture: Tensor) -> None:
        place = self.place(mark)
        pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
        rest = struct.pack("<3I", *picture.shape)
        checksum = zlib.crc32(pixels.data, zlib.crc32(rest))
        temporary = place.with_name(f".{place.name}.{uuid4().hex}")
        try:
            place.parent.mkdir(exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(struct.pack("<I", checksum) + rest)
                file.write(pixels.data)
            os.replace(temporary, place)
        except OSError:
            temporary.unlink(missing_ok=True)

    def place(self, mark: str) -> Path:
        """The file of the picture with a mark."""
        name = hashlib.sha256(f"{self._made} {mark}".encode()).hexdigest()
        return self.folder / name[:2] / name

    @cached_property
    def _made(self) -> str:
        return f"1 {self.view.transform} {self.view.shape} {torch.__version__} {pillow_version}"


def _by_threads(reader: Reader, wanted: Iterable[Wanted], pin: bool) -> Generator[Batch, None, None]:
    """One thread makes the next batch while this one is used; pictures in files are read by several."""
    with (
        ThreadPoolExecutor(1, thread_name_prefix="batch") as one,
        ThreadPoolExecutor(threads(), thread_name_prefix="decode") as pool,
    ):
        each = map if isinstance(reader.images.picture, Held) else pool.map

        def make(asked: Wanted) -> Batch:
            batch = reader.batch(asked, each)
            return batch.pin_memory() if pin else batch

        coming: Future[Batch] | None = None
        for asked in wanted:
            ready, coming = coming, one.submit(make, asked)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


@dataclass(frozen=True)
class _Failed:
    """Why a process could not make a batch."""

    reason: str


class _Made(Dataset[Any]):
    """What a process is asked for: the batch of a `Wanted`. Exceptions come back as they are, without a stack trace."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, wanted: Wanted) -> Batch | _Failed:
        try:
            return self.reader.batch(wanted)
        except InputError as error:
            return _Failed(str(error))
        except MemoryError:
            return _Failed("a process that reads pictures ran out of memory; lower data.workers or batch.images.")
        except Exception as error:
            return _Failed(
                f"a process that reads pictures failed ({type(error).__name__}: {error}); "
                "data.workers=0 shows where it happens."
            )


def _by_processes(reader: Reader, wanted: Iterable[Wanted], workers: int, pin: bool) -> Generator[Batch, None, None]:
    """Processes make the batches in turn, AHEAD of them each before they are asked for."""
    loader: DataLoader[Any] = DataLoader(
        _Made(reader),
        batch_size=None,
        sampler=wanted,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        prefetch_factor=AHEAD,
        worker_init_fn=_start,
        generator=torch.Generator(),  # its own, so that the random numbers of the training stay as they are
    )
    coming = _started(loader)
    try:
        while True:
            try:
                batch = next(coming)
            except StopIteration:
                return
            except Exception:
                ended = [(i, w.exitcode) for i, w in enumerate(coming._workers) if not w.is_alive()]
                if not ended:
                    raise
                raise InputError(_how(*ended[0], workers)) from None
            if isinstance(batch, _Failed):
                raise InputError(batch.reason)
            yield batch
    finally:
        _stop(coming)


def _started(loader: "DataLoader[Any]") -> Any:
    """An iterator of the loader. torch lets the end of a process raise an error in whatever the main thread does just
    then; here it is found, within seconds, when the next batch is waited for."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _stop(coming: Any) -> None:
    """Ends the processes of an iterator, also where some were killed."""
    if not all(worker.is_alive() for worker in coming._workers):
        for worker in coming._workers:
            worker.kill()
            worker.join()
        coming._workers_done_event = threading.Event()  # one that was killed may hold the lock of the other for ever
    coming._shutdown_workers()


def _how(worker: int, code: int | None, workers: int) -> str:
    """What to say of a process that is gone."""
    try:
        by = f"was ended by {signal.Signals(-(code or 0)).name}"
    except ValueError:
        by = f"ended with code {code}"
    return (
        f"process {worker + 1} of {workers} that read pictures {by}, as it happens when memory, or shared memory in "
        f"/dev/shm, runs out; lower data.workers (now {workers}) or free memory."
    )


def _start(worker: int) -> None:
    """In each process: Ctrl-C is for the main one, which ends the others. (torch lets each use one thread.)"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
