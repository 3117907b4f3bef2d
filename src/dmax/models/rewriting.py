"""From the mapped files of one checkpoint to the places of their tensors in a file of another, some rows at a time.

Shape suffixes: O rows, I numbers of a row: a weight's input channels, or one number where bytes are copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from dmax.models.names import Place, TensorNames, expert_name, is_stack
from dmax.models.quantized import Scheme, scale_name
from dmax.models.rounding import Method, round_rows
from dmax.models.source import CheckpointError, StoredTensor, open_tensors
from dmax.models.writer import DTYPE_NAMES, FilePlan, TensorSpec, bytes_of

_TASK = 2**22
"""Numbers that a thread takes at a time."""
_ROUNDED = 2**18
"""Numbers that are rounded at a time: what is done to them in turn stays in a cache."""
BYTES_OF_A_THREAD = 16 * 4 * _ROUNDED
"""What rounding needs of memory, and to spare: :func:`~dmax.models.rounding.round_rows` makes up to nine copies."""


@dataclass(frozen=True)
class Target:
    """A tensor to be written, its scales apart, and the stored tensors that hold it."""

    name: str
    place: Place
    """What it is of the model's."""
    shape: tuple[int, ...]
    dtype: str
    """Of what is stored."""
    pieces: tuple[str, ...]
    scheme: Scheme | None

    @property
    def specs(self) -> list[TensorSpec]:
        """What is written: the tensor, and its scales where it is quantised."""
        scheme = self.scheme
        if scheme is None:
            return [TensorSpec(self.name, self.shape, self.dtype)]
        return [
            TensorSpec(self.name, scheme.weight_shape(self.shape), DTYPE_NAMES[scheme.dtype]),
            TensorSpec(scale_name(self.name), scheme.scale_shape(self.shape), DTYPE_NAMES[scheme.scale_dtype]),
        ]


def pieces_of(
    name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor], names: TensorNames
) -> tuple[str, ...]:
    """Return the stored tensors that hold a target one: itself, the experts of a stack, or the stack of an expert.

    A tensor that the configuration makes optional may have none.
    """
    if name in stored:
        return (name,)
    if is_stack(name):
        return tuple(expert_name(name, e) for e in range(shape[0]))
    stack = names.place(name).name
    return (stack,) if stack in stored else ()


class Squares(NamedTuple):
    """Sums over a quantised weight: of squared errors, and of squared weights."""

    error: float = 0.0
    weight: float = 0.0

    def plus(self, other: Squares) -> Squares:
        """Return the sums over both."""
        return Squares(self.error + other.error, self.weight + other.weight)


def write_targets(
    descriptor: int, plan: FilePlan, targets: Sequence[Target], stored: Mapping[str, StoredTensor], method: Method,
    written: Callable[[int], None],
) -> dict[str, Squares]:  # fmt: skip
    """Write all tensors of a file, by as many threads as torch uses.

    Args:
        descriptor: of the file, which has its size.
        plan: of the file.
        targets: that it holds.
        stored: all tensors of the source.
        method: of rounding.
        written: told bytes as they are written.

    Returns:
        Of each quantised weight, by its native name, what rounding it cost in this file.

    Raises:
        CheckpointError: a weight that is to be quantised is not finite.
    """
    sums: dict[str, Squares] = {}
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        files = {stored[piece].file for target in targets for piece in target.pieces}
        opened = {path: stack.enter_context(open_tensors(path)) for path in files}
        sources = {piece: opened[stored[piece].file] for target in targets for piece in target.pieces}
        tasks = [
            (target, rows_OI, first) for target in targets for rows_OI, first in _split(_parts(target, sources), _TASK)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)))
        stack.callback(pool.shutdown, cancel_futures=True)
        run = partial(_write_rows, descriptor, plan, method)
        for (target, *_), (count, squares) in zip(tasks, pool.map(run, tasks), strict=True):
            written(count)
            if squares is not None:
                name = target.place.name
                sums[name] = sums.get(name, Squares()).plus(squares)
    return sums


def _parts(target: Target, sources: Mapping[str, object]) -> Iterator[tuple[Tensor, int]]:
    """Yield a target's pieces as rows, mapped from their files, and the row of the target that each begins with."""
    is_stacked = is_stack(target.name) and target.pieces != (target.name,)
    shape = target.shape[1:] if is_stacked else target.shape
    width = 1 if target.scheme is None else shape[-1]
    for index, piece in enumerate(target.pieces):
        file = sources[piece]
        tensor = file.get_tensor(piece)  # type: ignore[attr-defined]
        if piece == target.place.name:
            tensor = target.place.of(tensor)
        # Scales may be stored as one for a whole weight, or as a column.
        tensor = tensor.reshape(shape) if tensor.numel() == prod(shape) else tensor.expand(shape)
        yield tensor.reshape(-1, width), index * prod(shape) // width


def _split(parts: Iterator[tuple[Tensor, int]], numbers: int) -> Iterator[tuple[Tensor, int]]:
    """Yield the same in parts of at most so many numbers, if a row has no more."""
    for rows_OI, first in parts:
        at = first
        for some_OI in rows_OI.split(max(1, numbers // rows_OI.shape[1])):
            yield some_OI, at
            at += some_OI.shape[0]


def _write_rows(
    descriptor: int, plan: FilePlan, method: Method, task: tuple[Target, Tensor, int]
) -> tuple[int, Squares | None]:
    """Write some rows to their place, quantised if they are to be; gives the bytes written."""
    target, rows_OI, first = task
    if target.scheme is None:
        return write_at(descriptor, plan.starts[target.name], rows_OI, first), None
    count, squares = 0, Squares()
    for some_OI, at in _split(iter([(rows_OI, first)]), _ROUNDED):
        rounded = round_rows(some_OI, target.scheme, method)
        if not rounded.is_finite:
            raise CheckpointError(f"{target.name} holds values that are not finite: it cannot be quantised.")
        count += write_at(descriptor, plan.starts[target.name], rounded.weight, at)
        count += write_at(descriptor, plan.starts[scale_name(target.name)], rounded.scale, at)
        squares = squares.plus(Squares(rounded.error_squares, rounded.weight_squares))
    return count, squares


def write_at(descriptor: int, start: int, rows: Tensor, first: int) -> int:
    """Write rows of a tensor that begins at ``start`` of a file, from its row ``first`` on; return their bytes."""
    data = bytes_of(rows)
    at = start + first * (len(data) // rows.shape[0])
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], at + written)
    return written
