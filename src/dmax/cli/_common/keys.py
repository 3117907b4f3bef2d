"""What is typed while nobody reads it: kept off the screen, and pastes kept whole, until it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PASTES_ARE_MARKED = "\x1b[?2004h"
_PASTES_ARE_NOT = "\x1b[?2004l"


@contextmanager
def no_echo() -> Iterator[None]:
    """Keep what is typed meanwhile off the picture; the terminal still holds it for the next reader."""
    try:
        import termios
    except ImportError:  # no such terminals on this system
        yield
        return
    if not sys.stdin.isatty() or not _in_foreground():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def typed_ahead() -> Iterator[None]:
    """Keep what is typed between two readers off the screen, and the lines of a paste together."""
    with no_echo():
        mark_pastes()
        try:
            yield
        finally:
            _write(_PASTES_ARE_NOT)


def mark_pastes() -> None:
    """Have the terminal mark where a paste begins and ends, which a reader takes back when it has read."""
    _write(_PASTES_ARE_MARKED)


def _write(sequence: str) -> None:
    if os.name == "posix":  # elsewhere a reader tells pastes by other means
        sys.stdout.write(sequence)
        sys.stdout.flush()


def _in_foreground() -> bool:
    """Tell whether the terminal on stdin is ours to change: a background process would be stopped for trying."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # a terminal, but not the one that controls this process
        return False
