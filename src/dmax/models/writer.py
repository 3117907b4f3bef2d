"""Writing checkpoint folders: tensors streamed to safetensors files, and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmax.models.source import (
    COMPANION_FILES,
    CONFIG_FILE,
    FLOAT_DTYPES,
    INDEX_FILE,
    QUANTIZED_DTYPES,
    WEIGHTS_FILE,
    CheckpointError,
    listing,
)

DEFAULT_SHARD_BYTES = 4 * 2**30
_DTYPES = {**FLOAT_DTYPES, **QUANTIZED_DTYPES}
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNED = 64
"""Bytes of a cache line, on which mapped tensors begin as far as their sizes allow."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor about to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """The safetensors name, such as ``BF16``."""

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> TensorSpec:
        return cls(name, tuple(tensor.shape), DTYPE_NAMES[tensor.dtype])

    @property
    def item_bytes(self) -> int:
        return _DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.item_bytes


@dataclass(frozen=True)
class FilePlan:
    """A safetensors file about to be written: length of the header (8 bytes, little-endian), header (JSON), tensors."""

    name: str
    specs: tuple[TensorSpec, ...]
    """In the order of the file."""
    header: bytes
    starts: dict[str, int]
    """Of each tensor, by name: bytes from the begin of the file."""

    @classmethod
    def of(cls, name: str, specs: Sequence[TensorSpec]) -> FilePlan:
        """Lay tensors out in a file."""
        # Wide dtypes first keep every tensor aligned to its items; odd sizes last, the others to a cache line.
        ordered = tuple(sorted(specs, key=lambda spec: (-spec.item_bytes, spec.num_bytes % _ALIGNED > 0)))
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for spec in ordered:
            start, end = end, end + spec.num_bytes
            entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
        encoded = json.dumps(entries, separators=(",", ":")).encode()
        encoded += b" " * (-(8 + len(encoded)) % _ALIGNED)
        header = len(encoded).to_bytes(8, "little") + encoded
        starts = {spec.name: len(header) + entries[spec.name]["data_offsets"][0] for spec in ordered}
        return cls(name, ordered, header, starts)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(spec.num_bytes for spec in self.specs)


def plan_files(units: Sequence[Sequence[TensorSpec]], max_shard_bytes: int) -> list[FilePlan]:
    """Lay tensors out in one ``model.safetensors``, or in shards where they exceed the limit.

    Args:
        units: tensors in order; those of a unit stay together, and a unit larger than the limit gets a file of its own.
        max_shard_bytes: most bytes of weights in a file.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1.")
    shards: list[list[TensorSpec]] = [[]]
    room = max_shard_bytes
    for unit in units:
        size = sum(spec.num_bytes for spec in unit)
        if shards[-1] and size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1] += unit
        room -= size
    if len(shards) == 1:
        return [FilePlan.of(WEIGHTS_FILE, shards[0])]
    return [
        FilePlan.of(f"model-{number:05d}-of-{len(shards):05d}.safetensors", shard)
        for number, shard in enumerate(shards, start=1)
    ]


def write_index(folder: Path, plans: Sequence[FilePlan]) -> None:
    """Write the index of several files; one alone needs none."""
    if len(plans) > 1:
        weight_map = {spec.name: plan.name for plan in plans for spec in plan.specs}
        total = sum(spec.num_bytes for plan in plans for spec in plan.specs)
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tensors(
    folder: Path, specs: Sequence[TensorSpec], tensor_of: Callable[[str], Tensor], max_shard_bytes: int
) -> None:
    """Write tensors as one ``model.safetensors``, or as shards with an index where they exceed the limit.

    The shapes are known beforehand, so each header is written first and the tensors follow one at a time: no more
    than one is in memory on our account.

    Args:
        folder: where the files go.
        specs: what to write, in order.
        tensor_of: gives a tensor by name; called once for each.
        max_shard_bytes: as for :func:`plan_files`.
    """
    plans = plan_files([[spec] for spec in specs], max_shard_bytes)
    for plan in plans:
        with (folder / plan.name).open("wb") as file:
            file.write(plan.header)
            for spec in plan.specs:
                tensor = tensor_of(spec.name)
                assert TensorSpec.of(spec.name, tensor) == spec
                file.write(bytes_of(tensor.detach().cpu()))
    write_index(folder, plans)


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU; without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_config(folder: Path, values: dict[str, Any]) -> None:
    """Write ``config.json``."""
    write_json(folder / CONFIG_FILE, values)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder beside its final place and move it there at the end; on an error nothing is left.

    Raises:
        CheckpointError: the place is taken (with ``overwrite``: by anything but a checkpoint), or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_free(folder, overwrite)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed and had the same id
    try:
        partial.mkdir(parents=True)
        yield partial
        move_into_place(partial, folder)
    except OSError as error:
        raise CheckpointError(f"Checkpoint {folder} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(partial: Path, folder: Path) -> None:
    """Give a folder that was filled beside its place its own name; what was there goes."""
    if not folder.exists():
        partial.rename(folder)
        return
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced)


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a place for a checkpoint that is taken.

    Raises:
        CheckpointError: by anything, or with ``overwrite`` by anything but a checkpoint.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: choose a folder for the checkpoint.")
    names = sorted(path.name for path in folder.iterdir())
    if names and not overwrite:
        raise CheckpointError(f"{folder} is not empty ({listing(names, 3)}): choose another folder.")
    foreign = [name for name in names if name not in (*COMPANION_FILES, INDEX_FILE) and not _is_weights(name)]
    if foreign:
        raise CheckpointError(f"{folder} holds more than a checkpoint ({listing(foreign, 3)}): it is not replaced.")


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors")
