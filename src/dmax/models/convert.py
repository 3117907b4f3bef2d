"""Rewrite a checkpoint with its experts merged or separate, or its weights in 8 or 4 bits; no model is built."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from dmax.models.checkpoint import inspect_checkpoint, layout_of
from dmax.models.memory import available_memory, refuse
from dmax.models.names import TensorNames
from dmax.models.quantized import GROUPS, Part, Scheme, WeightFormat, part_of
from dmax.models.rewriting import BYTES_OF_A_THREAD, Squares, Target, pieces_of, write_targets
from dmax.models.rounding import Method
from dmax.models.source import (
    COMPANION_FILES,
    CONFIG_FILE,
    QUANTIZED_DTYPES,
    CheckpointError,
    listing,
    read_json,
    resolve,
)
from dmax.models.unfinished import Progress, Telling, check_space, unfinished_folder
from dmax.models.writer import plan_files, write_config, write_index

ExpertLayout = Literal["merged", "separate"]
SHARD_BYTES = 2**30
"""The most that an interrupted conversion does again."""


@dataclass(frozen=True)
class Quantization:
    """Which weights become what.

    Raises:
        CheckpointError: there is no such format, part, method or size of groups.
    """

    weights: WeightFormat | None = None
    """``fp8`` (e4m3) or ``int8``, with a float32 scale an output channel; or ``int4``, with a scale and a zero point a
    group of inputs."""
    parts: tuple[Part, ...] = ("experts", "dense")
    """The routed experts, and the dense projections (attention, dense layers, shared experts)."""
    group: int = 64
    """Inputs of a group; where 64 do not divide a weight's, 32."""
    method: Method = "nearest"
    """Of ``int4``; see :func:`~dmax.models.rounding.round_rows`."""
    embeddings: Literal["int8"] | None = None
    """What embedding table and head become; routers and norms are never quantised."""

    def __post_init__(self) -> None:
        asked: list[tuple[str, object, tuple[object, ...]]] = [
            ("Weight format", self.weights, (None, *get_args(WeightFormat))),
            *(("Part", part, ("experts", "dense")) for part in self.parts),
            ("Group size", self.group, GROUPS),
            ("Method", self.method, get_args(Method)),
            ("Format of the embeddings", self.embeddings, (None, "int8")),
        ]
        for what, given, allowed in asked:
            if given not in allowed:
                choices = " or ".join(str(choice) for choice in allowed if choice is not None)
                raise CheckpointError(f"{what} {given!r} does not exist: choose {choices}.")
        if self.method != "nearest" and self.weights != "int4":
            raise CheckpointError(f"Method {self.method!r} is for int4; others are rounded to nearest.")

    @property
    def is_any(self) -> bool:
        """Whether anything is quantised."""
        return self.weights is not None or self.embeddings is not None

    def scheme_of(self, name: str, shape: tuple[int, ...]) -> Scheme | None:
        """Return how a weight is to be stored; None for as it is.

        Raises:
            CheckpointError: groups of 32 do not divide its inputs.
        """
        part = part_of(name)
        if part == "embeddings":
            return Scheme(self.embeddings) if self.embeddings is not None else None
        if self.weights is None or part not in self.parts:
            return None
        if self.weights != "int4":
            return Scheme(self.weights)
        group = next((group for group in (self.group, min(GROUPS)) if shape[-1] % group == 0), None)
        if group is None:
            raise CheckpointError(
                f"{name} has {shape[-1]} inputs, which groups of {min(GROUPS)} do not divide: choose int8 or fp8, or "
                f"leave its part ({part}) out."
            )
        return Scheme("int4", group)

    def to_config(self) -> dict[str, Any]:
        """Return the ``quantization_config`` of a checkpoint's configuration."""
        said: dict[str, Any] = {"quant_method": "dmax"}
        if self.weights is not None:
            of_format = {"group_size": self.group, "method": self.method} if self.weights == "int4" else {}
            scales = "group" if of_format else "output channel"
            said |= {"weights": self.weights, "parts": list(self.parts), "scales": scales, **of_format}
        return said if self.embeddings is None else {**said, "embeddings": self.embeddings}


@dataclass(frozen=True)
class WeightError:
    """What quantising a weight cost; the experts of a stack are one."""

    name: str
    part: Part
    squares: Squares

    @property
    def relative_error(self) -> float:
        """Root of the summed squared differences over the summed squared weights."""
        return (self.squares.error / self.squares.weight) ** 0.5 if self.squares.weight else 0.0

    @property
    def layer(self) -> int | None:
        """Counted from 0; None for embeddings and head."""
        _, _, behind = self.name.partition(".layers.")
        return int(behind.partition(".")[0]) if behind else None


def errors_by_layer(errors: Iterable[WeightError]) -> list[WeightError]:
    """Put the errors of the weights of one part of one layer together, under the name of the first; embeddings last."""
    together: dict[tuple[int | None, Part], WeightError] = {}
    for error in errors:
        first = together.get((error.layer, error.part), WeightError(error.name, error.part, Squares()))
        together[error.layer, error.part] = replace(first, squares=first.squares.plus(error.squares))
    return sorted(together.values(), key=lambda error: (error.layer is None, error.layer or 0, error.part))


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    layout: ExpertLayout | None = None,
    *,
    quantization: Quantization | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
    ignore_memory: bool = False,
) -> list[WeightError]:
    """Write a checkpoint anew in one of the two expert layouts, and in 8 or 4 bits where that is asked.

    Without ``quantization`` every value keeps its bits and its dtype, so converting there and back gives the tensors of
    the start. Some rows of a weight are in memory at a time, whatever the size of the checkpoint. Configuration and
    tokenizer files are copied; tensors that no model reads (stored rotary tables) are not.

    Args:
        source: a folder or a Hugging Face Hub id.
        destination: must not exist yet, or be empty; it appears whole or not at all. Where an earlier call with the
            same arguments was interrupted, this one goes on from the files that it completed.
        layout: ``merged`` stores a layer's experts as one stack a projection, which a model can map into memory;
            ``separate`` (as published) one by one. None takes the former where weights are quantised, else the latter.
        quantization: which weights become what; None for none.
        max_shard_bytes: weights beyond this many bytes are split over several files with an index.
        overwrite: replace a checkpoint that is already at the destination.
        progress: called as bytes are written.
        ignore_memory: whether to begin although there is less memory than it needs.

    Returns:
        The errors of quantised weights.

    Raises:
        CheckpointError: the source is not a whole checkpoint, is quantised already where that is asked, or holds
            weights that are not finite; the destination is taken or cannot be written.
        DoesNotFit: there is not even the memory that this needs.
    """
    if not ignore_memory:
        _check_memory()
    if layout not in (None, *get_args(ExpertLayout)):
        raise CheckpointError(f"Layout {layout!r} does not exist: choose merged or separate.")
    quantization = Quantization() if quantization is None else quantization
    folder, is_merged = resolve(source), layout == "merged" or (layout is None and quantization.is_any)
    model, stored = inspect_checkpoint(source)
    names, targets = TensorNames(model.config), dict[str, Target]()
    for name, shape in layout_of(model, model.state_dict() if is_merged else ()).items():
        pieces = pieces_of(name, shape, stored, names)
        if pieces:
            place = names.place(name)
            dtype = _common_dtype(name, {stored[piece].dtype for piece in pieces}, quantization)
            targets[name] = Target(name, place, shape, dtype, pieces, quantization.scheme_of(place.name, shape))
    plans = plan_files([target.specs for target in targets.values()], max_shard_bytes)
    files = {tensor.file for tensor in stored.values()}
    identity = {
        "layout": is_merged, "quantization": asdict(quantization), "max_shard_bytes": max_shard_bytes,
        "files": sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files),
        "config": read_json(folder / CONFIG_FILE),
    }  # fmt: skip
    with unfinished_folder(Path(destination), identity, overwrite) as unfinished:
        check_space(unfinished.path, sum(plan.num_bytes for plan in plans if unfinished.finished(plan) is None))
        told = Telling(plans, progress)
        sums: dict[str, Squares] = {}
        for plan in plans:
            noted = unfinished.finished(plan)
            if noted is None:
                own = [targets[spec.name] for spec in plan.specs if spec.name in targets]
                method = quantization.method
                noted = unfinished.write(
                    plan, partial(write_targets, plan=plan, targets=own, stored=stored, method=method, written=told.add)
                )
            else:
                told.add(sum(spec.num_bytes for spec in plan.specs))
            for name, squares in noted.items():
                sums[name] = sums.get(name, Squares()).plus(Squares(*squares))
        write_index(unfinished.path, plans)
        for companion in (folder / name for name in COMPANION_FILES):
            if companion.exists():
                shutil.copyfile(companion, unfinished.path / companion.name)
        if quantization.is_any:
            said = {"quantization_config": quantization.to_config()}
            write_config(unfinished.path, {**read_json(folder / CONFIG_FILE), **said})
    return [WeightError(name, part, squares) for name, squares in sums.items() if (part := part_of(name)) is not None]


def _common_dtype(name: str, dtypes: set[str], quantization: Quantization) -> str:
    if len(dtypes) > 1:
        raise CheckpointError(
            f"The experts of {name} are stored as {listing(sorted(dtypes))}: a stack can only have one dtype."
        )
    [dtype] = dtypes
    if quantization.is_any and dtype in QUANTIZED_DTYPES:
        raise CheckpointError(f"{name} is quantised already: quantise the checkpoint that it was made from.")
    return dtype


def _check_memory() -> None:
    needed, device = torch.get_num_threads() * BYTES_OF_A_THREAD, torch.device("cpu")
    available = available_memory(device)
    if needed > available:
        refuse(
            "Converting", {"working memory": needed}, available, device, "end other programs or set OMP_NUM_THREADS=1"
        )
