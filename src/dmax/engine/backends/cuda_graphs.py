"""Forwards of fixed sizes over static memory, each captured once as a CUDA graph and replayed from then on.

A forward of a small model, or of few positions, takes less time than launching its kernels one by one. A graph launches
them all at once, at the price of fixed shapes and addresses: inputs are copied to where the graph reads them, and a
forward is filled up to the next captured size.

Shape suffixes: S segments, T positions of a segment, N packed positions (S * T), D hidden, X positions of the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmax.engine.backends.page_table import PageTable, to_device
from dmax.engine.kv_cache import KVCache
from dmax.kernels.paged_attention import paged_attention, parts_for
from dmax.kernels.rotary import LayerCache
from dmax.models.transformer import BlockDiffusionLM

Segment = tuple[int, int, int]
"""Row of the page table, first position, and the end of the block, up to which the segment sees."""


def captured_size(segments: int) -> int:
    """Return the size a forward is filled up to: exact up to 8 segments, then in four steps an octave."""
    step = 1 << max(segments.bit_length() - 3, 0)
    return segments if segments <= 8 else -(-segments // step) * step


def captured_sizes(limit: int) -> list[int]:
    """List all sizes up to that of ``limit``, the largest first, so that the smaller ones find its memory."""
    return sorted({captured_size(count) for count in range(1, limit + 1)}, reverse=True)


def capture(run: Callable[[], None], device: torch.device, memory_pool: Any) -> torch.cuda.CUDAGraph:
    """Record what a function launches over static memory, which then holds what it gives for its present contents."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # kernels are compiled and workspaces made before anything is recorded
        run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory_pool, capture_error_mode="thread_local"):
        run()
    return graph


class PagedStore:
    """The pool as the model's attention sees it in one forward.

    Args:
        cache: the memory; its last page is the dummy page.
        tables_RP: int32, the pages of every row.
        segments_S3: int32, every segment's three numbers.
        length: positions of a segment.
        parts: into how many the keys of a segment are cut.
    """

    def __init__(self, cache: KVCache, tables_RP: Tensor, segments_S3: Tensor, length: int, parts: int) -> None:
        rows_S, starts_S, self._ends_S = segments_S3.unbind(1)
        positions_ST = starts_S[:, None] + torch.arange(length, dtype=torch.int32, device=starts_S.device)
        page_length = cache.page_length
        pages_ST = tables_RP[rows_S[:, None], positions_ST // page_length]
        self._places_N = (pages_ST.long() * page_length + positions_ST % page_length).flatten()
        self._cache, self._tables_RP, self._rows_S, self._parts = cache, tables_RP, rows_S, parts
        self.position_ids = positions_ST.flatten().long()[None]
        """``(1, N)`` int64."""

    def layer_cache(self, layer: int) -> LayerCache:
        """Return the places of all positions."""
        return LayerCache(self._cache.keys[layer], self._cache.values[layer], self._places_N)

    def attend(self, layer: int, q_1HNC: Tensor, k_1KNC: Tensor, v_1KNC: Tensor) -> Tensor:
        """Let every segment attend to what it may see of the pool, its own positions included: ``(1, H, N, C)``."""
        mixed_NHC = paged_attention(
            q_1HNC[0].transpose(0, 1), self._cache.keys[layer], self._cache.values[layer],
            self._tables_RP, self._rows_S, self._ends_S, page_length=self._cache.page_length, parts=self._parts,
        )  # fmt: skip
        return mixed_NHC.transpose(0, 1)[None]


class _Memory:
    """What a forward of at most ``segments`` segments reads and writes."""

    def __init__(self, model: BlockDiffusionLM, segments: int, length: int) -> None:
        shape = segments * length, model.config.hidden_size
        self.embeds_ND = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.hidden_ND = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.segments_S3 = torch.zeros((segments, 3), dtype=torch.int32, device=model.device)
        self.loaded: list[Segment] = []
        """What ``segments_S3`` begins with."""


class StaticForwards:
    """Forwards over segments of one length.

    Args:
        model: in eval mode; its weights must stay where they are.
        cache: the pool's memory.
        table: the pages of every sequence.
        length: positions of a segment.
        limit: segments of the largest forward that is captured.
        graphs: whether anything is captured; without, the same forwards are launched kernel by kernel.
        memory_pool: of ``torch.cuda.graph_pool_handle``, shared by all graphs of a model.
    """

    def __init__(
        self,
        model: BlockDiffusionLM,
        cache: KVCache,
        table: PageTable,
        *,
        length: int,
        limit: int,
        graphs: bool,
        memory_pool: Any,
    ) -> None:
        self._model, self._cache, self._table = model, cache, table
        self._length, self._limit = length, captured_size(limit)
        self._capture = graphs
        self._memory_pool = memory_pool
        self._memory = _Memory(model, self._limit, length)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._processors = _processors(model.device)

    def run(self, segments: list[Segment], embeds: list[Tensor]) -> Tensor:
        """Run one forward.

        Args:
            segments: at least one.
            embeds: ``(n, D)`` each, together the N positions of the segments in their order.

        Returns:
            ``(N, D)`` hidden states, which hold until the next forward.
        """
        count = len(segments)
        fits = count <= self._limit
        size = captured_size(count) if fits else count
        memory = self._memory if fits else _Memory(self._model, size, self._length)
        self._load(memory, segments, size)
        end = 0
        for part_ND in embeds:
            start, end = end, end + part_ND.shape[0]
            memory.embeds_ND[start:end].copy_(part_ND)
        if size > count:
            memory.embeds_ND[end : size * self._length].zero_()
        if fits and self._capture:
            self._graph(size).replay()
        else:
            self._forward(memory, size)
        return memory.hidden_ND[:end]

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Capture every size there is."""
        self._load(self._memory, [], self._limit)
        for size in captured_sizes(self._limit):
            self._graph(size)

    def _load(self, memory: _Memory, segments: list[Segment], size: int) -> None:
        """Tell the device which segments there are, filled up with some that see only the dummy page."""
        filled = segments + [(self._table.dummy_row, 0, self._length)] * (size - len(segments))
        if filled != memory.loaded:  # passes that refine the same blocks need nothing new
            memory.segments_S3[:size].copy_(to_device(filled, torch.int32, self._model.device))
            memory.loaded = filled

    def _graph(self, size: int) -> torch.cuda.CUDAGraph:
        """Return the graph of a size, captured over what its inputs hold now."""
        if size not in self._graphs:
            self._graphs[size] = capture(
                lambda: self._forward(self._memory, size), self._model.device, self._memory_pool
            )
        return self._graphs[size]

    def _forward(self, memory: _Memory, segments: int) -> None:
        config = self._model.config
        parts = parts_for(segments, config.num_key_value_heads, config.max_position_embeddings, self._processors)
        store = PagedStore(self._cache, self._table.tables_RP, memory.segments_S3[:segments], self._length, parts)
        positions = segments * self._length
        hidden_1ND = self._model(memory.embeds_ND[:positions][None], store.position_ids, None, store)
        memory.hidden_ND[:positions].copy_(hidden_1ND[0])


def _processors(device: torch.device) -> int:
    """Count multiprocessors of a GPU; elsewhere kernels run for their results alone."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
