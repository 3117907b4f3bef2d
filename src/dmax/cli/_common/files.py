"""Files that a command writes: checked before any work, appended to line by line, resumed where they broke off."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from dmax.cli._common.errors import CommandError, user_errors

_FIRST_KEY = b'{"line":'
"""How every line of a batch begins; tells a torn line of ours from somebody else's file."""


def check_writable(path: Path) -> None:
    """Make sure that ``path`` can be written, without changing anything.

    Raises:
        CommandError: it cannot.
    """
    if path.is_dir():
        raise CommandError(f"cannot write {path}: it is a folder; give the name of a file.")
    if path.exists():
        writable = os.access(path, os.W_OK)
    elif not path.parent.is_dir():
        raise CommandError(f"cannot write {path}: there is no folder {path.parent}; make it first.")
    else:
        writable = os.access(path.parent, os.W_OK | os.X_OK)
    if not writable:
        raise CommandError(f"cannot write {path}: permission denied; choose another place.")


def to_json(record: dict[str, Any]) -> str:
    """Write one line of JSON, text as it is; a value that JSON lacks (of a third-party decoder) as its name."""
    return json.dumps(record, ensure_ascii=False, default=str)


def write_text(path: Path, text: str) -> None:
    """Write a whole file.

    Raises:
        CommandError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}.") from error


class LineFile:
    """A file of JSON objects, each with the number of the input ``line`` it belongs to.

    What the file already holds is read when the object is made and left untouched until it is entered. Then a torn
    last line goes, new records are appended one at a time, and on leaving, the lines are in the order of the input.

    Args:
        path: the file; it may not exist yet.
        keys: what every record in it must hold, beside ``line``.

    Raises:
        CommandError: the file cannot be written, or holds something else.
    """

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        check_writable(path)
        self._path = path.resolve()
        self._shown = path
        self._keys = keys
        self._raw: dict[int, bytes] = {}
        self._file: BinaryIO | None = None
        self._stale = False
        self.records: dict[int, dict[str, Any]] = {}
        with user_errors():
            data = self._path.read_bytes() if self._path.is_file() else b""
        self._read(data)

    def drop(self, lines: set[int]) -> None:
        """Forget records, which leave the file when it is entered."""
        for line in lines & self.records.keys():
            del self.records[line], self._raw[line]
            self._stale = True

    def __enter__(self) -> LineFile:
        if self._stale:
            self._rewrite(list(self._raw))
        self._file = self._path.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            self._file.close()
        except OSError:
            # What could not be written is flushed again; the first failure has been reported.
            if kind is None:
                raise
        order = sorted(self._raw)
        if kind is None and order != list(self._raw) and self._path.is_file():
            self._rewrite(order)

    def append(self, line: int, record: dict[str, Any]) -> None:
        """Write the record of an input line, all of it before this returns."""
        assert self._file is not None
        raw = to_json({"line": line, **record}).encode("utf-8")
        try:
            self._file.write(raw + b"\n")
            self._file.flush()
        except OSError as error:
            raise CommandError(f"cannot write {self._shown}: {error.strerror}; the lines in it are kept.") from error
        self._raw[line] = raw

    def _read(self, data: bytes) -> None:
        *whole, tail = data.split(b"\n")
        for number, raw in enumerate(whole, 1):
            self._take(raw, number)
        if not tail:
            return
        # Either an editor took the last newline away, or the write broke off.
        self._stale = True
        try:
            self._take(tail, len(whole) + 1)
        except CommandError:
            if not tail.startswith(_FIRST_KEY) and not _FIRST_KEY.startswith(tail):
                raise

    def _take(self, raw: bytes, number: int) -> None:
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not {"line", *self._keys} <= record.keys():
            raise CommandError(
                f"{self._shown} holds something else than the answers of an earlier run (line {number}); "
                "it is left as it is: choose another file."
            )
        line = record["line"]
        if not isinstance(line, int) or line in self.records:
            raise CommandError(f"{self._shown} answers input line {line} twice (line {number}); choose another file.")
        self.records[line], self._raw[line] = record, raw

    def _rewrite(self, order: list[int]) -> None:
        """Replace the file in one step, so that no moment exists in which its lines could be lost."""
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_bytes(b"".join(self._raw[line] + b"\n" for line in order))
        partial.replace(self._path)
        self._raw = {line: self._raw[line] for line in order}
