"""Several processes that do one piece of work, as torchrun starts them."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from metricweight.checks import InputError
from metricweight.progress import console

Plain = TypeVar("Plain")


@dataclass(frozen=True)
class Processes:
    """Who this process is among those that work together.

    rank    its number, from 0 on; process 0 alone writes files and speaks
    size    how many there are
    device  what it computes on, such as "cpu" or "cuda:1"
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, x: Tensor) -> Tensor:
        """[size * b, ...]: the [b, ...] of all processes, in their order. Without a graph."""
        if self.size == 1:
            return x.detach()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        torch.distributed.all_gather(parts, x.detach().contiguous())
        return torch.cat(parts)

    def add_up(self, x: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(x)
        return x

    def from_first(self, x: Tensor) -> Tensor:
        """What process 0 has, on all of them, in place."""
        if self.size > 1:
            torch.distributed.broadcast(x, 0)
        return x

    def tell(self, plain: Plain) -> Plain:
        """What process 0 has, on all of them."""
        if self.size == 1:
            return plain
        box = [plain]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    def all_tell(self, plain: Plain) -> list[Plain]:
        """What each process has, on all of them."""
        if self.size == 1:
            return [plain]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, plain)
        return found

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Process 0 goes through the block before all others do."""
        if not self.first:
            self.tell(None)
        yield
        if self.first:
            self.tell(None)

    def rows(self, count: int) -> slice:
        """This process's part of `count` rows; parts differ by one row at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


def several() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str = "cpu") -> Iterator[Processes]:
    """This process among those that torchrun started, joined while the block runs; alone if it did not.

    device  "cpu", "cuda" or "auto": cuda where there is one. Each process of a machine takes a GPU of its own

    All but the first are silent. Raises InputError where there is no GPU, or one too few.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda was asked for, but torch finds no GPU; use device=cpu.")
    cuda = device != "cpu" and torch.cuda.is_available()
    if not several():
        with plainly():
            yield Processes(device="cuda" if cuda else "cpu")
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "start as many with --nproc-per-node."
            )
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    rank = torch.distributed.get_rank()
    quiet = console.quiet
    console.quiet = quiet or rank > 0
    try:
        with plainly():
            yield Processes(rank, torch.distributed.get_world_size(), f"cuda:{local}" if cuda else "cpu")
        gc.collect()  # a network that is shared must be gone before the group is, else a process may end in an abort
        torch.distributed.destroy_process_group()  # not after an error, where it might wait for the others
    finally:
        console.quiet = quiet


@contextmanager
def plainly() -> Iterator[None]:
    """What torch says of lost processes and of too little memory, as an InputError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        why = (str(error).splitlines() or ["no more memory"])[0][:120]
        memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if memory:
            raise InputError(f"out of memory ({why}); lower data.size, data.workers, or the batch.") from None
        if any(word in str(error) for word in ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL")):
            raise InputError(
                f"another process of this work is gone ({why}); its own message says why. A training goes on from its "
                "last checkpoint with --resume."
            ) from None
        raise
