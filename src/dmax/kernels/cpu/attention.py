"""Attention of packed spans over a paged pool on a CPU: ``attention.h``.

PyTorch's attention takes one sequence a call and gets a fraction of a core's speed out of 32 queries. This one takes
all sequences of a forward at once, stores their keys and values where they belong, and reads pages where they lie.

Shape suffixes: N packed positions, H query heads, K key/value heads, P positions of the pool, C head channels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dmax.kernels.cpu.library import DTYPES, LANES, Function, fields


class PagedSpan(Protocol):
    """Consecutive positions of a sequence, on block boundaries (:class:`dmax.engine.span.Span`)."""

    @property
    def start(self) -> int:
        """Position in the sequence of the first one."""
        ...

    @property
    def end(self) -> int:
        """Position behind the last one."""
        ...

    @property
    def block_length(self) -> int:
        """Positions of a block."""
        ...

    @property
    def pages(self) -> Sequence[int]:
        """Pages of the sequence, from its first position to ``end``."""
        ...


def serves(head_dim: int, dtype: torch.dtype) -> bool:
    """Tell whether the kernel is written for heads of this width, in this dtype."""
    return head_dim % LANES == 0 and dtype in DTYPES


class HeadsAt(ctypes.Structure):
    """``attention::Heads``."""

    _fields_ = fields(addresses="data", numbers="position_stride head_stride")


class PoolAt(ctypes.Structure):
    """``attention::Pool``."""

    _fields_ = [
        *fields(addresses="keys values", numbers="head_stride page_length channels"),
        ("pages", ctypes.c_void_p),
    ]


class AttendArguments(ctypes.Structure):
    """``attention::Arguments``."""

    _fields_ = [
        ("queries", HeadsAt),
        ("keys", HeadsAt),
        ("values", HeadsAt),
        ("pool", PoolAt),
        *fields(addresses="out spans", numbers="num_spans num_heads num_kv_heads"),
    ]


class CpuAttention:
    """The kernel.

    Args:
        path: of the compiled library.
        dtype: of queries, keys and values.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.run = Function(path, "attend", dtype)

    def plan(self, spans: Sequence[PagedSpan], page_length: int) -> SpanAttention:
        """Prepare what passes over these spans call; they are packed one behind the other."""
        return SpanAttention(self.run, spans, page_length)


class SpanAttention:
    """Attention over the same spans, in every layer of any number of passes."""

    def __init__(self, run: Function, spans: Sequence[PagedSpan], page_length: int) -> None:
        self._run = run
        self._page_length = page_length
        pages: list[int] = []
        numbers: list[int] = []
        packed = 0
        for span in spans:
            numbers += [packed, span.start, span.end, span.block_length, len(pages)]
            pages += span.pages
            packed += span.end - span.start
        self.num_spans = len(spans)
        self._spans = (ctypes.c_int64 * len(numbers))(*numbers)
        self._pages = (ctypes.c_int32 * len(pages))(*pages)

    @property
    def address(self) -> int:
        """Where the spans are."""
        return ctypes.addressof(self._spans)

    def pool(self, keys_KPC: Tensor, values_KPC: Tensor) -> PoolAt:
        """Tell where a layer of the pool is, and which of its pages are those of the spans."""
        return PoolAt(
            keys_KPC.data_ptr(),
            values_KPC.data_ptr(),
            keys_KPC.stride(0),
            self._page_length,
            keys_KPC.shape[2],
            ctypes.addressof(self._pages),
        )

    def __call__(self, q_NHC: Tensor, k_NKC: Tensor, v_NKC: Tensor, keys_KPC: Tensor, values_KPC: Tensor) -> Tensor:
        """Store the new keys and values in the pool, and attend to all that every span may see.

        Args:
            q_NHC, k_NKC, v_NKC: of the packed positions, channels side by side, on the CPU.
            keys_KPC, values_KPC: contiguous, a layer of the pool; written to.

        Returns:
            ``(N, H, C)`` contiguous.
        """
        tensors = (q_NHC, k_NKC, v_NKC, keys_KPC, values_KPC)
        assert all(tensor.dtype == self._run.dtype and tensor.stride(-1) == 1 for tensor in tensors)
        num_positions, num_heads, channels = q_NHC.shape
        out_NHC = torch.empty((num_positions, num_heads, channels), dtype=q_NHC.dtype)
        self._run(
            AttendArguments(
                queries=_heads_at(q_NHC),
                keys=_heads_at(k_NKC),
                values=_heads_at(v_NKC),
                pool=self.pool(keys_KPC, values_KPC),
                out=out_NHC.data_ptr(),
                spans=self.address,
                num_spans=self.num_spans,
                num_heads=num_heads,
                num_kv_heads=k_NKC.shape[1],
            )
        )
        return out_NHC


def _heads_at(heads_NJC: Tensor) -> HeadsAt:
    return HeadsAt(heads_NJC.data_ptr(), heads_NJC.stride(0), heads_NJC.stride(1))
