"""What one look at a picture tells: whether all of it decodes, its size and kind, and two fingerprints of it.

Looking at a million pictures takes hours, so it is done by several processes and kept in a file as it goes on: a
`Book`. These processes load this file and nothing that is heavy.
"""

import base64
import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from metricweight.checks import InputError

Ints = NDArray[np.int64]
Task = tuple[str, int]  # path and member of a picture

FLAT = 12  # of 255: between the darkest and the lightest of 32 x 32 parts; less has no look of its own
TOGETHER = 32  # pictures that a process is given at a time
FEW = 256  # pictures for which no process is started
SCHEMA = 1

_WAVES = np.cos(np.pi / 32 * (np.arange(32) + 0.5) * np.arange(8)[:, None])
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")


class Look(NamedTuple):
    """What was seen of a picture.

    size, time     of its file: bytes, and nanoseconds at which it was last changed; they tell whether to look again
    digest         64 bits of BLAKE2b of its bytes; of the pixels, where it is a member of an array
    pattern        64 bits; pictures that look alike differ in few of them. See `appearance`
    colours        48 bytes: red, green and blue of 4 x 4 parts
    flat           whether it is all of one colour, or nearly so: then pattern and colours tell nothing
    width, height  in pixels, turned as its EXIF tag says
    mode, form     as Pillow calls them: L, RGB; JPEG, PNG. The form of a member of an array is NPY
    turn           its EXIF orientation, 1 where nothing is to be turned
    several        whether its file holds more than one picture
    fault          "", or what is wrong: damaged, not_a_picture
    reason         the fault in words
    """

    size: int
    time: int
    digest: int
    pattern: int = 0
    colours: bytes = bytes(48)
    flat: bool = False
    width: int = 0
    height: int = 0
    mode: str = ""
    form: str = ""
    turn: int = 1
    several: bool = False
    fault: str = ""
    reason: str = ""


def look(path: str, member: int = -1) -> Look:
    """Reads and decodes all of a picture.

    A JPEG whose data are changed but still decode to something looks well: only its digest differs from before. One
    that was cut short and ended properly afterwards decodes too, with a grey rest.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of large pictures and damaged tags
        try:
            return _look_at_member(path, member) if path.lower().endswith(".npy") else _look_at_file(path, member)
        except OSError as error:
            return Look(-1, -1, 0, fault="damaged", reason=f"it cannot be read: {error.strerror or error}")


def _look_at_file(path: str, member: int) -> Look:
    with open(path, "rb") as file:
        state = os.fstat(file.fileno())
        data = file.read()
    seen = Look(state.st_size, state.st_mtime_ns, _digest(data))
    if member >= 0:
        return seen._replace(fault="damaged", reason=f"it is not an .npy of pictures, so it has no member {member}")
    if not data:
        return seen._replace(fault="damaged", reason="the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            form, mode, turn = picture.format or "", picture.mode, int(picture.getexif().get(0x0112, 1) or 1)
            several = bool(getattr(picture, "is_animated", False))
            if form == "PNG":
                with Image.open(io.BytesIO(data)) as again:
                    again.verify()  # its checksums; not all damage keeps it from decoding
            upright = (ImageOps.exif_transpose(picture) if 2 <= turn <= 8 else picture).convert("RGB")
            pattern, colours, flat = appearance(upright)
    except UnidentifiedImageError:
        if data.startswith(_BEGINNINGS):
            return seen._replace(fault="damaged", reason="it begins as a picture does, but what follows is damaged")
        return seen._replace(fault="not_a_picture", reason=f"it begins with {data[:12]!r}")
    except Exception as error:  # a damaged file fails in many ways, all of them meaning the same
        return seen._replace(fault="damaged", reason=str(error) or type(error).__name__)
    width, height = upright.size
    return seen._replace(
        pattern=pattern, colours=colours, flat=flat, width=width, height=height,
        mode=mode, form=form, turn=turn, several=several,
    )  # fmt: skip


def _look_at_member(path: str, member: int) -> Look:
    state = os.stat(path)
    seen = Look(state.st_size, state.st_mtime_ns, 0, form="NPY")
    try:
        pictures = _mapped(path, state.st_mtime_ns, state.st_size)
    except (ValueError, EOFError) as error:
        return seen._replace(fault="damaged", reason=str(error))
    shape = list(pictures.shape)
    if pictures.dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)) or 0 in shape:
        reason = f"it must hold uint8 [N, H, W] or [N, H, W, 3], got {pictures.dtype} {shape}"
        return seen._replace(fault="damaged", reason=reason)
    if not 0 <= member < shape[0]:
        return seen._replace(fault="damaged", reason=f"there is no member {member} among its {shape[0]:,}")
    pixels = np.array(pictures[member])
    picture = Image.fromarray(pixels)
    pattern, colours, flat = appearance(picture.convert("RGB"))
    return seen._replace(
        digest=_digest(pixels.tobytes()), pattern=pattern, colours=colours, flat=flat,
        width=shape[2], height=shape[1], mode=picture.mode,
    )  # fmt: skip


@lru_cache(maxsize=4)
def _mapped(path: str, *state: int) -> NDArray[Any]:
    """An array that is not read yet; `state` of the file: one that was written anew is not the one of before."""
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def appearance(picture: Image.Image) -> tuple[int, bytes, bool]:
    """How a picture looks, with its details left out: pattern, colours, and whether it is flat. See `Look`.

    pattern  which of the 64 slowest cosine waves over 32 x 32 parts of it are above their median
    """
    small = np.asarray(picture.resize((32, 32), Image.Resampling.BOX)).astype(np.float64)
    grey = small @ (0.299, 0.587, 0.114)
    waves = (_WAVES @ grey @ _WAVES.T).ravel()
    pattern = int.from_bytes(np.packbits(waves > np.median(waves[1:])).tobytes(), "big")
    colours = small.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)).round().astype(np.uint8).tobytes()
    return pattern, colours, bool(np.ptp(grey) < FLAT)


# ---- by several processes


def look_at_all(root: Path, tasks: Sequence[Task], processes: int) -> Iterator[tuple[list[int], list[Look]]]:
    """Looks at pictures below a root, some at a time, in the order in which they get ready: (which, looks)."""
    blocks = [list(range(i, min(i + TOGETHER, len(tasks)))) for i in range(0, len(tasks), TOGETHER)]
    given = ([(os.path.join(root, tasks[i][0]), tasks[i][1]) for i in block] for block in blocks)
    if processes == 1 or len(tasks) <= FEW:
        for block, work in zip(blocks, given, strict=True):
            yield block, _look_at_each(work)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(blocks)), mp_context=spawn, initializer=_end_with_parent)
    try:
        waiting: dict[Future[list[Look]], list[int]] = {}
        for block, work in zip(blocks, given, strict=True):
            waiting[pool.submit(_look_at_each, work)] = block
            while len(waiting) >= 3 * processes:
                yield from _ready(waiting)
        while waiting:
            yield from _ready(waiting)
    except BrokenProcessPool:
        raise InputError(
            "a process that was looking at pictures ended all at once, perhaps for want of memory; what was seen "
            "until then is kept: run it again, with --processes 1 if that does not help."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ready(waiting: "dict[Future[list[Look]], list[int]]") -> Iterator[tuple[list[int], list[Look]]]:
    for done in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(done), done.result()


def _look_at_each(work: Sequence[Task]) -> list[Look]:
    return [look(path, member) for path, member in work]


def _end_with_parent() -> None:
    """Ctrl-C is for the parent to hear; and where it is killed, its processes must not stay behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ---- kept


LOOKS = np.dtype(
    [
        ("size", np.int64), ("time", np.int64), ("digest", np.uint64), ("pattern", np.uint64),
        ("colours", np.uint8, 48), ("flat", bool), ("width", np.int32), ("height", np.int32),
        ("mode", "S8"), ("form", "S8"), ("turn", np.uint8), ("several", bool), ("known", bool), ("fault", "S16"),
    ]
)  # fmt: skip


class Book:
    """What is known of some pictures, in memory and in a file.

    looks    [N] of dtype LOOKS; `known` is False where nobody looked yet
    reasons  {i: what is wrong with picture i, in words}
    before   [N] its digest when all of them had last been looked at; 0: never

    The file has a line of JSON per look, the latest one counts. Lines are written as looks are taken, so whoever is
    killed loses the last seconds; a line that is torn or damaged is passed over. A file of another root, or of
    another version, is begun anew.
    """

    def __init__(self, file: Path, root: Path, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.looks = np.zeros(len(tasks), dtype=LOOKS)
        self.reasons: dict[int, str] = {}
        self.before = np.zeros(len(tasks), dtype=np.uint64)
        head = json.dumps({"looks": SCHEMA, "root": str(root.resolve())})
        told = self._read(file, head)
        self._file = open(file, "ab" if told else "wb")  # noqa: SIM115  (closed by `close`)
        self._file.write(b"\n" if told else f"{head}\n".encode())  # ends a torn line

    def _read(self, file: Path, head: str) -> bool:
        if not file.is_file():
            return False
        index = {_key(*task): i for i, task in enumerate(self.tasks)}
        with open(file, "rb") as lines:
            if lines.readline().rstrip(b"\n") != head.encode():
                return False
            for line in lines:
                try:
                    path, member, *values = json.loads(line)
                    if path == DONE:
                        np.copyto(self.before, self.looks["digest"], where=self.looks["known"])
                    elif (i := index.get(_key(path, member))) is not None:
                        self._set(i, Look(*values)._replace(colours=base64.b64decode(values[4], validate=True)))
                except (ValueError, TypeError, IndexError, OverflowError):
                    continue
        return True

    def _set(self, i: int, seen: Look) -> None:
        self.looks[i] = (
            seen.size, seen.time, seen.digest, seen.pattern, np.frombuffer(seen.colours, np.uint8), seen.flat,
            seen.width, seen.height, seen.mode.encode(), seen.form.encode(), seen.turn, seen.several, True,
            seen.fault.encode(),
        )  # fmt: skip
        self.reasons.pop(i, None)
        if seen.reason:
            self.reasons[i] = seen.reason

    def add(self, numbers: Sequence[int], seen: Sequence[Look]) -> None:
        lines = []
        for i, one in zip(numbers, seen, strict=True):
            self._set(i, one)
            kept = one._replace(colours=base64.b64encode(one.colours).decode())  # type: ignore[arg-type]
            lines.append(json.dumps([*self.tasks[i], *kept]))
        self._file.write(("\n".join(lines) + "\n").encode())
        self._file.flush()

    def close(self, done: bool) -> None:
        """done: all were looked at, so what is known now is what later runs are compared with."""
        if done:
            self._file.write(f"{json.dumps([DONE, -1])}\n".encode())
        self._file.close()


DONE = "\0done"


def _key(path: str, member: int) -> str:
    return path if member < 0 else f"{path}\0{member}"
