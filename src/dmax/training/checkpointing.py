"""Checkpoints of a run, written by ``torch.distributed.checkpoint`` as safetensors: whole, or not there at all.

A checkpoint is a folder ``step-…`` of

- ``model/``: the weights in one piece, in the merged layout, with their configuration and tokenizer; a model to load
  (where only adapters are trained, the adapters),
- ``optimizer/``: the optimisers' state, a file a process,
- ``trainer_state.json``: everything else the next step depends on, and the size of every file.

It is written under another name and bears its own only once it is complete and on the disk. Any number of processes
can read it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from dmax.training.distributed import barrier, rank

STATE_FILE, MODEL_FOLDER, OPTIMIZER_FOLDER = "trainer_state.json", "model", "optimizer"
_PREFIX, _PARTIAL = "step-", ".partial"
_SHARDS = "sharded"
"""Where the writer leaves the pieces that it put together."""
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class ResumeError(ValueError):
    """A run that cannot go on from its checkpoints."""


class CheckpointWriteError(OSError):
    """A checkpoint that could not be written; the ones before it are untouched."""


@dataclass(frozen=True)
class RunState:
    """Everything outside weights and optimiser that the next step depends on."""

    step: int
    """Optimiser steps taken."""
    recipe_digest: str
    seconds: float
    """Training time so far, over all sessions of the run."""
    recipe: Mapping[str, Any] | None = None
    """What the digest is of (see :mod:`dmax.training.identity`); None where it was not written down."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the run's finite sources, by their keys in the recipe."""


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time, in the background if asked to.

    Args:
        output: folder of the run.
        save_companions: writes configuration and tokenizer into a folder of weights.
        asynchronous: copy the state, then write while training goes on.
        keep: complete checkpoints to keep.
    """

    def __init__(
        self, output: Path, save_companions: Callable[[Path], None], *, asynchronous: bool = False, keep: int = 2
    ) -> None:
        self._output = output
        self._save_companions = save_companions
        self._asynchronous = asynchronous
        self._keep = keep
        self._pending: tuple[RunState, list[Future[Any]]] | None = None
        # A group each: two writers that talk at once must not hear each other.
        self._groups = [dist.new_group(backend="gloo") if dist.is_initialized() else None for _ in range(2)]

    def save(self, state: RunState, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Write a checkpoint; one that is still being written is completed first.

        Raises:
            CheckpointWriteError: this one, or the one before it, could not be written.
        """
        self.finish()
        partial = _partial(self._output, state.step)
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        barrier()
        shared = dist.is_initialized()  # then every process writes its part, and the weights' parts are put together
        kinds: tuple[tuple[str, dict[str, Any], bool], ...] = (
            (MODEL_FOLDER, get_model_state_dict(model, options=_TRAINED), shared),
            (OPTIMIZER_FOLDER, _optimizer_tensors(model, optimizers), False),
        )
        futures: list[Future[Any]] = []
        try:
            for (name, tensors, together), group in zip(kinds, self._groups, strict=True):
                writer = HuggingFaceStorageWriter(
                    str(partial / name), save_distributed=shared, enable_consolidation=together
                )
                futures.append(cast(Future[Any], async_save(tensors, storage_writer=writer, process_group=group)))
        except Exception as error:
            raise self._failed(state.step, error) from error
        self._pending = (state, futures)
        if not self._asynchronous:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and give it its name.

        Raises:
            CheckpointWriteError: it could not be written.
        """
        if self._pending is None:
            return
        (state, futures), self._pending = self._pending, None
        errors = [error for error in (future.exception() for future in futures) if error is not None]
        if errors:
            raise self._failed(state.step, errors[0]) from errors[0]
        barrier()
        try:
            if rank() == 0:
                self._complete(state)
        except OSError as error:
            raise self._failed(state.step, error) from error
        barrier()

    def _complete(self, state: RunState) -> None:
        final, partial = checkpoint_folder(self._output, state.step), _partial(self._output, state.step)
        shutil.rmtree(partial / MODEL_FOLDER / _SHARDS, ignore_errors=True)
        self._save_companions(partial / MODEL_FOLDER)
        files = {str(f.relative_to(partial)): f.stat().st_size for f in partial.rglob("*") if f.is_file()}
        text = json.dumps(asdict(state) | {"files": files}, indent=1)
        (partial / STATE_FILE).write_text(text + "\n", encoding="utf-8")
        for name in (*files, STATE_FILE):
            _flush(partial / name)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(final.parent)
        for old in complete_checkpoints(self._output)[: -self._keep]:
            shutil.rmtree(old)

    def _failed(self, step: int, error: BaseException) -> CheckpointWriteError:
        if rank() == 0:
            shutil.rmtree(_partial(self._output, step), ignore_errors=True)
        if isinstance(error, CheckpointException):  # of all processes that failed, the first's reason will do
            error = next(iter(error.failures.values()))[0]
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        newest = complete_checkpoints(self._output)[-1:]
        left = f"{newest[0].name} is still there" if newest else "there is no earlier one"
        return CheckpointWriteError(f"the checkpoint of step {step} could not be written ({reason}); {left}")


def load_checkpoint(folder: Path, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Read a complete checkpoint into a model and its optimisers, each process its own part."""
    optimizers = tuple(optimizers)
    weights = get_model_state_dict(model, options=_TRAINED)
    load(weights, storage_reader=HuggingFaceStorageReader(str(folder / MODEL_FOLDER)))
    set_model_state_dict(model, weights, options=_TRAINED)
    moments = _optimizer_tensors(model, optimizers)
    load(moments, storage_reader=HuggingFaceStorageReader(str(folder / OPTIMIZER_FOLDER)))
    settings: dict[str, Any] = {**get_optimizer_state_dict(model, optimizers, options=_FLAT)}
    set_optimizer_state_dict(model, optimizers, optim_state_dict=settings | moments, options=_FLAT)


def load_state(folder: Path) -> RunState:
    """Load the run state of a complete checkpoint."""
    values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    del values["files"]
    return RunState(**values)


def checkpoint_folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"{_PREFIX}{step:07d}"


def snapshot_folder(output: Path, step: int) -> Path:
    """Return where a run keeps the weights of a step that its recipe names in ``train.snapshots``."""
    return output / "snapshots" / f"{_PREFIX}{step:07d}"


def complete_checkpoints(output: Path) -> list[Path]:
    """List checkpoints of a run whose files are all there and of their length, oldest first."""
    return sorted(folder for folder in (output / "checkpoints").glob(f"{_PREFIX}*") if _is_complete(folder))


def newest_checkpoint(output: Path) -> Path | None:
    """Find the newest complete checkpoint of a run; None where no checkpoint was ever finished.

    Raises:
        ResumeError: there are finished checkpoints, but none of them is whole any more.
    """
    complete = complete_checkpoints(output)
    if complete:
        return complete[-1]
    finished = [f.name for f in (output / "checkpoints").glob(f"{_PREFIX}*") if not f.name.endswith(_PARTIAL)]
    if finished:
        raise ResumeError(
            f"no checkpoint in {output / 'checkpoints'} is whole ({', '.join(sorted(finished))} lack files, have "
            "damaged ones or were written by another version): start anew in another output folder."
        )
    return None


def _is_complete(folder: Path) -> bool:
    if folder.name.endswith(_PARTIAL):
        return False
    try:
        files = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _partial(output: Path, step: int) -> Path:
    final = checkpoint_folder(output, step)
    return final.with_name(final.name + _PARTIAL)


def _optimizer_tensors(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    state: dict[str, Any] = {**get_optimizer_state_dict(model, tuple(optimizers), options=_FLAT)}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _flush(path: Path) -> None:
    """Put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
