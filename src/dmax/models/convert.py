"""Rewrite a checkpoint with its experts merged or separate, without building the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dmax.models.checkpoint import expert_name, inspect_checkpoint, is_stack, layout_of, native_name
from dmax.models.source import COMPANION_FILES, CheckpointError, StoredTensor, listing, open_tensors, resolve
from dmax.models.writer import DEFAULT_SHARD_BYTES, TensorSpec, new_folder, write_tensors

ExpertLayout = Literal["merged", "separate"]
Progress = Callable[[int, int], None]
"""Told the bytes written so far and in all."""


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    layout: ExpertLayout,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint anew in one of the two expert layouts.

    Every value keeps its bits and its dtype, so converting there and back gives the tensors of the start. Weights
    pass through one tensor at a time; in memory there is never more than one stack of experts. Configuration and
    tokenizer files are copied; tensors that no model reads (stored rotary tables) are not.

    Args:
        source: a folder or a Hugging Face Hub id.
        destination: must not exist yet, or be empty; it appears whole or not at all.
        layout: ``merged`` stores a layer's experts as one stack a projection, ``separate`` (as published) one by one.
        max_shard_bytes: weights beyond this many bytes are split over several files with an index.
        overwrite: replace a checkpoint that is already at the destination.
        progress: called after every tensor.

    Raises:
        CheckpointError: the source is not a whole checkpoint, or the destination is taken or cannot be written.
    """
    if layout not in get_args(ExpertLayout):
        raise CheckpointError(f"Layout {layout!r} does not exist: choose {' or '.join(get_args(ExpertLayout))}.")
    model, stored = inspect_checkpoint(source)
    target = layout_of(model, model.state_dict() if layout == "merged" else ())
    pieces = {name: _pieces(name, shape, stored) for name, shape in target.items()}
    specs = [
        TensorSpec(name, target[name], _common_dtype(name, names, stored)) for name, names in pieces.items() if names
    ]
    total = sum(spec.num_bytes for spec in specs)
    written = 0
    with new_folder(Path(destination), overwrite) as partial, ExitStack() as stack:
        opened = {path: stack.enter_context(open_tensors(path)) for path in {t.file for t in stored.values()}}

        def tensor_of(name: str) -> Tensor:
            nonlocal written
            tensor = _assemble(name, [(opened[stored[piece].file], piece) for piece in pieces[name]])
            written += tensor.nbytes
            if progress is not None:
                progress(written, total)
            return tensor

        write_tensors(partial, specs, tensor_of, max_shard_bytes)
        for companion in (resolve(source) / name for name in COMPANION_FILES):
            if companion.exists():
                shutil.copyfile(companion, partial / companion.name)


def _pieces(name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor]) -> list[str]:
    """The stored tensors that hold a target one: itself, the experts of a stack, or the stack of an expert."""
    if name in stored:
        return [name]
    if is_stack(name):
        return [expert_name(name, e) for e in range(shape[0])]
    stack, _ = native_name(name)
    return [stack] if stack in stored else []  # only a tensor that the configuration makes optional is in neither


def _common_dtype(name: str, pieces: list[str], stored: Mapping[str, StoredTensor]) -> str:
    dtypes = sorted({stored[piece].dtype for piece in pieces})
    if len(dtypes) > 1:
        raise CheckpointError(
            f"The experts of {name} are stored as {listing(dtypes)}: a stack can only have one dtype."
        )
    return dtypes[0]


def _assemble(name: str, pieces: list[tuple[Any, str]]) -> Tensor:
    """Read a target tensor from the opened files that hold its pieces."""
    file, piece = pieces[0]
    if piece == name:
        return file.get_tensor(name)
    if is_stack(name):
        return torch.stack([file.get_tensor(piece) for file, piece in pieces])
    _, expert = native_name(name)
    return file.get_slice(piece)[expert]
