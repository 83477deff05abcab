"""Files that are either whole or not there."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its place at `path` when the block ends, all of it at once.

    If the block fails, or the machine does, whatever stood at `path` before still stands there. Two processes
    may write the same path: one of the two files wins, whole.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        file = open(temporary, "xb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def checksum(path: Path, kind: str, told: Callable[[float], None] = lambda done: None) -> str:
    """The checksum of a file in hexadecimal. kind: md5, sha256; told: hears, now and then, which share was read."""
    found = hashlib.new(kind, usedforsecurity=False)
    size = path.stat().st_size
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
            told(file.tell() / size)
    return found.hexdigest()


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


def write_arrays(path: Path, **arrays: NDArray[Any] | str) -> None:
    """An .npz file of plain arrays."""
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
