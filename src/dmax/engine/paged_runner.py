"""Forwards on a GPU: every block is a segment, all segments attend in one call, and a whole forward is one graph.

What follows the forward, from the head to the embeddings of the next pass, is a second one.

Shape suffixes: B blocks, L block positions, S segments, T positions of a segment, N packed positions, D hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmax.decoding import Decoder
from dmax.engine.graph_readout import GraphReadout, StaticReadouts
from dmax.engine.graphs import Segment, StaticForwards
from dmax.engine.kv_cache import PagedCache
from dmax.engine.page_table import PageTable, to_device
from dmax.engine.readout import Readout, read_at_once
from dmax.engine.runner import Part
from dmax.engine.scheduler import IDLE_PREFILL_TOKENS
from dmax.engine.sequence import Sequence
from dmax.models.llada2 import LLaDA2

_MOST_CAPTURED = 32 * 1024
"""Positions of the largest forward that is captured; launching kernels takes no noticeable part of larger ones."""


class PagedRunner:
    """A runner whose attention reads the pool through a table of pages; see :class:`dmax.engine.runner.Runner`.

    Args:
        model: in eval mode. Its weights may change, but must stay where they are.
        pages: size of the pool.
        page_length: positions of a page.
        rows: most sequences that hold pages at a time.
        graphs: whether forwards are captured as CUDA graphs.
    """

    def __init__(self, model: LLaDA2, pages: int, page_length: int, rows: int, *, graphs: bool = True) -> None:
        self._model = model
        self._shape = pages, page_length, rows
        # One page more than anyone can take: forwards that are filled up to a captured size write there.
        self._cache = PagedCache(model.config, pages + 1, page_length, device=model.device, dtype=model.dtype)
        self._table = PageTable(rows, pages, model.device)
        self._graphs = graphs
        self._memory_pool = torch.cuda.graph_pool_handle() if graphs else None
        self._forwards: dict[int, StaticForwards] = {}
        self._readouts: dict[int, StaticReadouts] = {}
        self._weights = _addresses(model)

    def forward(self, parts: list[Part], blocks: list[Tensor]) -> Tensor:
        """One forward; see :class:`Runner`. Blocks in flight come first, tokens to be stored behind them."""
        length = math.gcd(*{part.sequence.params.block_length for part in parts})
        in_flight: list[Segment] = []
        stored: list[Segment] = []
        token_ids: list[int] = []
        for part in parts:
            row, block = self._table.row(part.sequence), part.sequence.params.block_length
            if part.start < part.blocks_start:
                token_ids += part.sequence.tokens[part.start : part.blocks_start]
                stored += _segments(row, part.start, part.blocks_start, block, length)
            in_flight += _segments(row, part.blocks_start, part.end, block, length)
        self._table.update()
        embeds = [group_BLD.flatten(0, 1) for group_BLD in blocks]
        if token_ids:
            embeds.append(self._model.embed(to_device(token_ids, torch.int64, self._model.device)))
        hidden_ND = self._forwards_of(length).run(in_flight + stored, embeds)
        return hidden_ND[: len(in_flight) * length][None]

    def readout(self, decoder: Decoder, block_length: int) -> Readout | None:
        """Head and rule over static memory; see :class:`Runner`."""
        return GraphReadout(self._readouts_of(block_length), decoder) if read_at_once(decoder) else None

    def forget(self, sequence: Sequence) -> None:
        """A sequence has given its pages back."""
        self._table.forget(sequence)

    def serves(self, pages: int, page_length: int, rows: int) -> bool:
        """Whether the pool is as large as is asked for, and the model's weights are where they were."""
        own_pages, own_page_length, own_rows = self._shape
        enough = own_pages >= pages and own_page_length == page_length and own_rows >= rows
        return enough and self._weights == _addresses(self._model)

    def prepare(self, block_length: int) -> None:
        """Capture forwards and readouts of every size now, instead of each when it first comes up."""
        if self._graphs:
            self._forwards_of(block_length).capture_all()
            self._readouts_of(block_length).capture_all()

    def _forwards_of(self, length: int) -> StaticForwards:
        if length not in self._forwards:
            # Every row with a block to store beside the one in flight, and a prefill.
            largest = 2 * self._shape[2] + -(-IDLE_PREFILL_TOKENS // length)
            self._forwards[length] = StaticForwards(
                self._model, self._cache, self._table, length=length,
                limit=max(1, min(largest, _MOST_CAPTURED // length)), graphs=self._graphs,
                memory_pool=self._memory_pool,
            )  # fmt: skip
        return self._forwards[length]

    def _readouts_of(self, length: int) -> StaticReadouts:
        if length not in self._readouts:
            # Every row with two blocks in flight.
            self._readouts[length] = StaticReadouts(
                self._model, length=length, limit=2 * self._shape[2], graphs=self._graphs,
                memory_pool=self._memory_pool,
            )  # fmt: skip
        return self._readouts[length]


def _segments(row: int, start: int, end: int, block: int, length: int) -> list[Segment]:
    """The segments that make up these positions."""
    return [(row, at, at // block * block + block) for at in range(start, end, length)]


def _addresses(model: LLaDA2) -> list[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor.data_ptr() for tensor in tensors]
