"""Checkpoints of a run: weights in the published layout, optimiser state beside them, complete or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

STATE_FILE, OPTIMIZER_FILE = "trainer_state.json", "optimizer.safetensors"
_PREFIX, _PARTIAL = "step-", ".partial"


@dataclass(frozen=True)
class RunState:
    """Everything outside weights and optimiser that the next step depends on."""

    step: int
    """Optimiser steps taken."""
    recipe_digest: str
    seconds: float
    """Training time so far, over all sessions of the run."""


def checkpoint_folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"{_PREFIX}{step:07d}"


def save_checkpoint(
    output: Path, state: RunState, optimizer: dict[str, Tensor], save_weights: Callable[[Path], None], keep: int = 2
) -> Path:
    """Write a checkpoint under a temporary name, flush it, rename it, and only then drop the oldest ones."""
    final = checkpoint_folder(output, state.step)
    partial = final.with_name(final.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_weights(partial / "model")
    save_file(optimizer, partial / OPTIMIZER_FILE)
    (partial / STATE_FILE).write_text(json.dumps(asdict(state)), encoding="utf-8")
    for file in partial.rglob("*"):
        if file.is_file():
            _flush(file)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in complete_checkpoints(output)[:-keep]:
        shutil.rmtree(old)
    return final


def complete_checkpoints(output: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first; torn ones never bear the final name."""
    folders = (output / "checkpoints").glob(f"{_PREFIX}*")
    return sorted(f for f in folders if not f.name.endswith(_PARTIAL) and (f / STATE_FILE).exists())


def load_checkpoint(folder: Path) -> tuple[RunState, dict[str, Tensor]]:
    """Run state and optimiser tensors of a finished checkpoint; its weights lie in ``folder / "model"``."""
    values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return RunState(**values), load_file(folder / OPTIMIZER_FILE)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
