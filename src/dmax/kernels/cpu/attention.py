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

from dmax.kernels.cpu.library import DTYPES, LANES, Function


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
    """Whether the kernel is written for heads of this width, in this dtype."""
    return head_dim % LANES == 0 and dtype in DTYPES


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
        self._num_spans = len(spans)
        self._spans = (ctypes.c_int64 * len(numbers))(*numbers)
        self._pages = (ctypes.c_int32 * len(pages))(*pages)

    @property
    def places(self) -> tuple[int, int, int, int]:
        """Page length, and addresses for a kernel: pages, spans; and how many spans."""
        return self._page_length, ctypes.addressof(self._pages), ctypes.addressof(self._spans), self._num_spans

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
        numbers = (
            *(q_NHC.data_ptr(), q_NHC.stride(0), q_NHC.stride(1)),
            *(k_NKC.data_ptr(), k_NKC.stride(0), k_NKC.stride(1)),
            *(v_NKC.data_ptr(), v_NKC.stride(0), v_NKC.stride(1)),
            *(keys_KPC.data_ptr(), values_KPC.data_ptr(), keys_KPC.stride(0)),
            *(self._page_length, ctypes.addressof(self._pages)),
            *(out_NHC.data_ptr(), ctypes.addressof(self._spans), self._num_spans),
            *(num_heads, k_NKC.shape[1], channels),
        )
        self._run(numbers)
        return out_NHC
