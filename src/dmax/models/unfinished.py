"""A checkpoint folder that is filled file by file, over as many attempts as it takes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dmax.models.source import CheckpointError
from dmax.models.writer import FilePlan, check_free, move_into_place, write_json

Progress = Callable[[int, int], None]
"""Told the bytes written so far and in all."""

_RECORD = "unfinished.json"


class UnfinishedFolder:
    """The folder beside its final place.

    A file bears its name once it is complete and on the disk. What is known of it then stands in a record.

    Args:
        path: of the folder.
        record: what an earlier attempt has left.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self._record = record

    def finished(self, plan: FilePlan) -> Any:
        """Return what was noted of a file that is there already; None where it has to be written."""
        path = self.path / plan.name
        is_whole = path.is_file() and path.stat().st_size == plan.num_bytes
        return self._record["files"].get(plan.name) if is_whole else None

    def write(self, plan: FilePlan, fill: Callable[[int], Any]) -> Any:
        """Write a file.

        Args:
            plan: of the file.
            fill: given a descriptor, writes all tensors to their places, and returns what is to be noted, in JSON.

        Returns:
            What is noted.
        """
        started = self.path / f"{plan.name}.started"
        with started.open("wb") as file:
            file.write(plan.header)
            file.truncate(plan.num_bytes)
            file.flush()
            noted = fill(file.fileno())
            os.fsync(file.fileno())
        started.rename(self.path / plan.name)
        self._record["files"][plan.name] = noted
        _write_whole(self.path / _RECORD, self._record)
        return noted


@contextmanager
def unfinished_folder(folder: Path, identity: Mapping[str, Any], overwrite: bool = False) -> Iterator[UnfinishedFolder]:
    """Fill a folder beside its final place and move it there at the end.

    An attempt that is killed or stopped, or finds the disk full, is gone on with by the next that has the same
    identity. After an error of the checkpoint's own nothing is left.

    Args:
        folder: the final place.
        identity: what the content depends on, in JSON.
        overwrite: replace a checkpoint that is already there.

    Raises:
        CheckpointError: the place is taken (with ``overwrite``: by anything but a checkpoint), is being written to by
            another process, or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_free(folder, overwrite)
    partial = folder.with_name(f".{folder.name}.partial")
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            try:
                yield UnfinishedFolder(partial, _opened(partial, identity))
                (partial / _RECORD).unlink()
                move_into_place(partial, folder)
            except ValueError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise CheckpointError(f"Another process is writing {folder}: wait for it, or choose another folder.") from None
    except OSError as error:
        raise CheckpointError(
            f"Checkpoint {folder} cannot be written: {error.strerror or error}; what is done is kept in {partial}, and "
            "the same command goes on from there."
        ) from error


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin where a disk has not as many bytes free.

    Raises:
        CheckpointError: with both numbers.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"The new checkpoint needs {needed / 2**30:.1f} GiB more on the disk of {folder.parent}, which has "
            f"{free / 2**30:.1f} GiB free: make room, or choose another folder or fewer bits."
        )


class Telling:
    """Adds up the bytes that are written, and tells them."""

    def __init__(self, plans: Sequence[FilePlan], progress: Progress | None) -> None:
        self._total = sum(spec.num_bytes for plan in plans for spec in plan.specs)
        self._progress, self._done = progress, 0

    def add(self, count: int) -> None:
        """Count bytes that are there."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _opened(partial: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a folder, which is begun anew where it is of something else."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    try:
        record = json.loads((partial / _RECORD).read_text(encoding="utf-8"))
        if record["identity"] == digest:
            return record
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    record = {"identity": digest, "files": {}}
    _write_whole(partial / _RECORD, record)
    return record


def _write_whole(path: Path, values: dict[str, Any]) -> None:
    """Write JSON so that a reader finds the old or the new, never half of it."""
    started = path.with_name(f"{path.name}.started")
    write_json(started, values)
    with started.open("rb") as file:
        os.fsync(file.fileno())
    started.rename(path)
