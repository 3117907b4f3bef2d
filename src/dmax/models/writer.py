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
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor about to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """The safetensors name, such as ``BF16``."""

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> TensorSpec:
        return cls(name, tuple(tensor.shape), _DTYPE_NAMES[tensor.dtype])

    @property
    def item_bytes(self) -> int:
        return _DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.item_bytes


def write_tensors(
    folder: Path, specs: Sequence[TensorSpec], tensor_of: Callable[[str], Tensor], max_shard_bytes: int
) -> None:
    """Write tensors as one ``model.safetensors``, or as shards with an index where they exceed the limit.

    The shapes are known beforehand, so each header is written first and the tensors follow one at a time: no more
    than one is in memory on our account. A tensor larger than the limit gets a file of its own.

    Args:
        folder: where the files go.
        specs: what to write, in order.
        tensor_of: gives a tensor by name; called once for each.
        max_shard_bytes: most bytes of weights in a file.
    """
    shards = _split(specs, max_shard_bytes)
    if len(shards) == 1:
        _write_file(folder / WEIGHTS_FILE, shards[0], tensor_of)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file_name, shard, tensor_of)
        weight_map.update({spec.name: file_name for spec in shard})
    total = sum(spec.num_bytes for spec in specs)
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(specs: Sequence[TensorSpec], max_shard_bytes: int) -> list[list[TensorSpec]]:
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1.")
    shards: list[list[TensorSpec]] = [[]]
    room = max_shard_bytes
    for spec in specs:
        if shards[-1] and spec.num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(spec)
        room -= spec.num_bytes
    return shards


def _write_file(path: Path, specs: Sequence[TensorSpec], tensor_of: Callable[[str], Tensor]) -> None:
    """Write the safetensors format: header length (8 bytes, little-endian), JSON header, then the tensors' bytes."""
    # Wide dtypes first, and a header that is a multiple of 8 bytes, keep every tensor aligned to its items.
    specs = sorted(specs, key=lambda spec: -spec.item_bytes)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + spec.num_bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for spec in specs:
            tensor = tensor_of(spec.name)
            assert TensorSpec.of(spec.name, tensor) == spec
            items = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(items.view(torch.uint8).numpy().data)


def write_config(folder: Path, values: dict[str, Any]) -> None:
    """Write ``config.json``."""
    _write_json(folder / CONFIG_FILE, values)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder beside its final place and move it there at the end; on an error nothing is left.

    Raises:
        CheckpointError: the place is taken (with ``overwrite``: by anything but a checkpoint), or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    _check_free(folder, overwrite)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed and had the same id
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
            folder.rename(replaced)
            partial.rename(folder)
            shutil.rmtree(replaced)
        else:
            partial.rename(folder)
    except OSError as error:
        raise CheckpointError(f"Checkpoint {folder} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(folder: Path, overwrite: bool) -> None:
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
