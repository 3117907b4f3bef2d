"""Rewrite a checkpoint with its experts merged or separate, or its weights in 8 bits, without building the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dmax.models.checkpoint import expert_name, inspect_checkpoint, is_stack, layout_of, native_name
from dmax.models.quantized import STORED_AS, Part, WeightFormat, dequantize, part_of, quantize, scale_name, scales_of
from dmax.models.source import (
    COMPANION_FILES,
    CONFIG_FILE,
    QUANTIZED_DTYPES,
    CheckpointError,
    StoredTensor,
    listing,
    open_tensors,
    read_json,
    resolve,
)
from dmax.models.writer import DEFAULT_SHARD_BYTES, TensorSpec, new_folder, write_config, write_tensors

ExpertLayout = Literal["merged", "separate"]
Progress = Callable[[int, int], None]
"""Told the bytes written so far and in all."""


@dataclass(frozen=True)
class QuantizationError:
    """What 8 bits cost the weights of one part of one layer."""

    layer: int
    part: Part
    relative_error: float
    """Root of the summed squared differences over the summed squared weights."""


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    layout: ExpertLayout = "separate",
    *,
    weights: WeightFormat | None = None,
    parts: Sequence[Part] = get_args(Part),
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[QuantizationError]:
    """Write a checkpoint anew in one of the two expert layouts, and in 8 bits where that is asked.

    Without ``weights`` every value keeps its bits and its dtype, so converting there and back gives the tensors of the
    start. Weights pass through one tensor at a time; in memory there is never more than one stack of experts.
    Configuration and tokenizer files are copied; tensors that no model reads (stored rotary tables) are not.

    Args:
        source: a folder or a Hugging Face Hub id.
        destination: must not exist yet, or be empty; it appears whole or not at all.
        layout: ``merged`` stores a layer's experts as one stack a projection, ``separate`` (as published) one by one.
        weights: ``fp8`` (e4m3) or ``int8``, with one float32 scale an output channel.
        parts: what becomes 8-bit: the routed experts, and the dense projections (attention, dense layers and shared
            experts). Routers, norms, embeddings and head never do.
        max_shard_bytes: weights beyond this many bytes are split over several files with an index.
        overwrite: replace a checkpoint that is already at the destination.
        progress: called after every tensor.

    Returns:
        The cost of 8 bits, part by part of every layer; empty without ``weights``.

    Raises:
        CheckpointError: the source is not a whole checkpoint, is in 8 bits already where that is asked, or holds
            weights that are not finite; the destination is taken or cannot be written.
    """
    _check_options(layout, weights, parts)
    model, stored = inspect_checkpoint(source)
    target = layout_of(model, model.state_dict() if layout == "merged" else ())
    pieces = {name: _pieces(name, shape, stored) for name, shape in target.items()}
    specs = [
        TensorSpec(name, target[name], _common_dtype(name, names, stored)) for name, names in pieces.items() if names
    ]
    with new_folder(Path(destination), overwrite) as partial, ExitStack() as stack:
        opened = {path: stack.enter_context(open_tensors(path)) for path in {t.file for t in stored.values()}}

        def read(name: str) -> Tensor:
            return _assemble(name, [(opened[stored[piece].file], piece) for piece in pieces[name]])

        quantizer = None if weights is None else _Quantizer(STORED_AS[weights], parts, read)
        specs = specs if quantizer is None else quantizer.respecify(specs)
        tensor_of = read if quantizer is None else quantizer.tensor_of
        write_tensors(partial, specs, _reporting(tensor_of, specs, progress), max_shard_bytes)
        for companion in (resolve(source) / name for name in COMPANION_FILES):
            if companion.exists():
                shutil.copyfile(companion, partial / companion.name)
        if quantizer is not None:
            said = {"quant_method": "dmax", "weights": weights, "parts": list(parts), "scales": "output channel"}
            write_config(partial, {**read_json(partial / CONFIG_FILE), "quantization_config": said})
    return [] if quantizer is None else quantizer.errors()


def _check_options(layout: str, weights: str | None, parts: Sequence[str]) -> None:
    """Check that each is one of its literal type."""
    asked = [("Layout", layout, ExpertLayout), *(("Part", part, Part) for part in parts)]
    if weights is not None:
        asked.append(("Weight format", weights, WeightFormat))
    for what, given, allowed in asked:
        if given not in get_args(allowed):
            raise CheckpointError(f"{what} {given!r} does not exist: choose {' or '.join(get_args(allowed))}.")


def _reporting(
    tensor_of: Callable[[str], Tensor], specs: Sequence[TensorSpec], progress: Progress | None
) -> Callable[[str], Tensor]:
    """Return ``tensor_of``, telling ``progress`` what it has given so far."""
    if progress is None:
        return tensor_of
    total = sum(spec.num_bytes for spec in specs)
    written = 0

    def told(name: str) -> Tensor:
        nonlocal written
        tensor = tensor_of(name)
        written += tensor.nbytes
        progress(written, total)
        return tensor

    return told


class _Quantizer:
    """Gives tensors in 8 bits and their scales, by name, and adds up what that costs."""

    def __init__(self, dtype: torch.dtype, parts: Sequence[Part], read: Callable[[str], Tensor]) -> None:
        self._dtype = dtype
        self._dtype_name = next(name for name, stored in QUANTIZED_DTYPES.items() if stored == dtype)
        self._parts = parts
        self._read = read
        self._scales: dict[str, Tensor] = {}
        self._squares: dict[tuple[int, Part], list[float]] = {}

    def respecify(self, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
        """List the tensors to write: 8-bit weights each with its scales, and all others as they were."""
        found = []
        for spec in specs:
            if spec.dtype in QUANTIZED_DTYPES:
                raise CheckpointError(f"{spec.name} is in 8 bits already: quantise the checkpoint it was made from.")
            if part_of(spec.name) in self._parts:
                found.append(TensorSpec(spec.name, spec.shape, self._dtype_name))
                found.append(TensorSpec(scale_name(spec.name), spec.shape[:-1], "F32"))
            else:
                found.append(spec)
        return found

    def tensor_of(self, name: str) -> Tensor:
        # Scales and weights are asked for in an order that depends on the file; scales are small enough to be kept.
        if name.endswith("_scale"):
            return self._scale(name.removesuffix("_scale"))
        part = part_of(name)
        if part not in self._parts:
            return self._read(name)
        assert part is not None
        scale_O = self._scale(name)
        weight_OI = self._read(name)
        quantized_OI = quantize(weight_OI, scale_O, self._dtype)
        difference_OI = dequantize(quantized_OI, scale_O, torch.float32) - weight_OI
        sums = self._squares.setdefault((_layer_of(name), part), [0.0, 0.0])
        sums[0] += difference_OI.square().sum(dtype=torch.float64).item()
        sums[1] += weight_OI.float().square().sum(dtype=torch.float64).item()
        return quantized_OI

    def errors(self) -> list[QuantizationError]:
        return [
            QuantizationError(layer, part, (wrong / whole) ** 0.5 if whole else 0.0)
            for (layer, part), (wrong, whole) in sorted(self._squares.items())
        ]

    def _scale(self, name: str) -> Tensor:
        if name not in self._scales:
            scale_O = scales_of(self._read(name), self._dtype)
            if not scale_O.isfinite().all():
                raise CheckpointError(f"{name} holds values that are not finite: it cannot be quantised.")
            self._scales[name] = scale_O
        return self._scales[name]


def _layer_of(name: str) -> int:
    return int(name.split(".layers.")[1].split(".")[0])


def _pieces(name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor]) -> list[str]:
    """List the stored tensors that hold a target one: itself, the experts of a stack, or the stack of an expert."""
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
