"""What long work says while it is done: lines, and progress bars on a terminal."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words, headings first, as columns: a line each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read the output is gone (`| head`): the work goes on without a word."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = _Console(highlight=False, soft_wrap=True, emoji=False)


def say(text: str) -> None:
    """One line, above a progress bar if there is one."""
    console.print(text, markup=False)


def track(items: Iterable[Item], what: str | None, total: int | None = None) -> Iterator[Item]:
    """The items, with a progress bar called `what` on a terminal while they are gone through; None shows no bar.

    total  how many there are, where the items do not know
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=what is None or not console.is_terminal) as bar:
        yield from bar.track(items, total=total, description=what or "")


@contextmanager
def part_done(what: str, quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """A function that is told which part of something is done, from 0 to 1, and shows it on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda done: bar.update(task, completed=done)
