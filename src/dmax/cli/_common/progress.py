"""How far long work has come: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 10.0
"""Seconds between two lines."""


@contextmanager
def bytes_done(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show bytes done of all on stderr, as they are told."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, console).tell
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, what: str, console: Console) -> None:
        self._what, self._console = what, console
        self._began = self._told = time.monotonic()
        self._first: int | None = None

    def tell(self, done: int, total: int) -> None:
        """Print a line if the last is old enough."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = done, now  # what was there already says nothing about the speed
            return
        if now - self._told < EVERY:
            return
        self._told = now
        left = (total - done) * (now - self._began) / max(done - self._first, 1)
        text = f"{self._what}: {done / 2**30:.1f} of {total / 2**30:.1f} GiB, about {left:.0f} s left"
        self._console.print(text, soft_wrap=True, highlight=False)
