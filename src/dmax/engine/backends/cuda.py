"""Passes on a GPU: all segments attend in one call, and a whole forward is one CUDA graph.

What follows the forward, from the head to the embeddings of the next pass, is a second one.

Shape suffixes: B blocks, L block positions, N packed positions, D hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dmax.decoding import BlockState, Decoder, SoftParallelDecoder
from dmax.engine.backends.base import Decided, Noise, PassInput
from dmax.engine.backends.cuda_decisions import StaticDecisions
from dmax.engine.backends.cuda_graphs import Segment, StaticForwards
from dmax.engine.backends.cuda_modules import CUDA_KINDS
from dmax.engine.backends.page_table import PageTable, to_device
from dmax.engine.backends.shifted import PreviousStates, Run
from dmax.engine.backends.swapped import SwappedModel
from dmax.engine.backends.torch import TorchBackend
from dmax.engine.kv_cache import KVCache
from dmax.engine.scheduler import IDLE_PREFILL_TOKENS
from dmax.engine.span import Span
from dmax.kernels import soft_parallel
from dmax.models.transformer import BlockDiffusionLM

_MOST_CAPTURED = 32 * 1024
"""Positions of the largest forward that is captured; launching kernels takes no noticeable part of larger ones."""


@dataclass
class _Room:
    """What a KV cache, and all that is captured over it, is for."""

    pages: int
    page_length: int
    slots: int
    weights: list[int]
    """Addresses of the weights, which graphs hold."""
    cache: KVCache
    table: PageTable
    previous: PreviousStates | None
    memory_pool: Any
    forwards: dict[int, StaticForwards] = field(default_factory=dict)
    decisions: dict[int, StaticDecisions] = field(default_factory=dict)


class CudaBackend(TorchBackend):
    """Computes passes by kernels; see :class:`~dmax.engine.backends.base.Backend`.

    Args:
        model: in eval mode. The values of its weights may change between two requests.
        graphs: whether forwards are captured as CUDA graphs.
    """

    def __init__(self, model: BlockDiffusionLM, *, graphs: bool = True) -> None:
        super().__init__(model)
        self._graphs = graphs
        self._swapped = SwappedModel(model, CUDA_KINDS)
        self._room: _Room | None = None

    @property
    def name(self) -> str:
        """``cuda``, or ``cuda-eager`` without graphs."""
        return "cuda" if self._graphs else "cuda-eager"

    def open(self, pages: int, page_length: int, slots: int) -> None:
        """Provide a KV cache: the one that is there if it suffices, with all that is captured over it."""
        if not self._swapped.is_current():
            self._swapped = SwappedModel(self._model, CUDA_KINDS)
            self._room = None
        if self._room is not None and self._serves(self._room, pages, page_length, slots):
            return
        self._room = None  # its memory is free before the new one's is taken
        model = self._model
        self._room = _Room(
            pages, page_length, slots, _addresses(model),
            # One page more than sequences can hold, the dummy page: what fills a forward up to a captured size writes
            # there.
            KVCache(model.config, pages + 1, page_length, device=model.device, dtype=model.dtype),
            PageTable(slots, pages, model.device),
            PreviousStates.of(model, slots),
            torch.cuda.graph_pool_handle() if self._graphs else None,
        )  # fmt: skip

    def close(self) -> None:
        """Keep everything: the next engine is likely to be of the same size."""

    def embed(self, state: BlockState) -> Tensor:
        """Compute what a pass reads at blocks in this state."""
        mix, table_VD = state.mix, self._model.embedding_table
        if mix is None or not isinstance(table_VD, Tensor):
            return super().embed(state)
        return soft_parallel.soft_embeddings(
            state.tokens, mix.where, mix.token_ids, mix.weights, table_VD,
            mask_token_id=state.mask_token_id, renormalize=mix.renormalize,
        )  # fmt: skip

    def forward(self, spans: list[Span], inputs: list[Tensor]) -> Tensor:
        """Run the layers over all spans; blocks in flight come first, tokens to be stored behind them."""
        room = self._opened()
        length = math.gcd(*{span.block_length for span in spans})
        in_flight: list[Segment] = []
        stored: list[Segment] = []
        token_ids: list[int] = []
        at: list[tuple[Span, int, int]] = []
        for span in spans:
            at.append((span, len(stored) * length, len(in_flight) * length))
            row = room.table.row(span)
            if span.start < span.blocks_start:
                token_ids += span.sequence.tokens[span.start : span.blocks_start]
                stored += _segments(row, span.start, span.blocks_start, span.block_length, length)
            in_flight += _segments(row, span.blocks_start, span.end, span.block_length, length)
        room.table.update()
        embeds = [group_BLD.flatten(0, 1) for group_BLD in inputs]
        if token_ids:
            embeds.append(self._model.embed(to_device(token_ids, torch.int64, self._model.device)))
        hidden_ND = self._forwards_of(length).run(in_flight + stored, embeds)
        positions = len(in_flight) * length
        if room.previous is None:
            return hidden_ND[:positions]
        runs = [Run(span, positions + stored_at, flight_at) for span, stored_at, flight_at in at]
        return room.previous.read(hidden_ND, runs)

    def decide(self, decoder: Decoder, hidden_BLD: Tensor, blocks: PassInput, noise: Noise | None = None) -> Decided:
        """Apply head and decoder: by a graph, or the decoder by its kernels, or both by their modules."""
        is_quantized = not isinstance(self._model.embedding_table, Tensor)
        if type(decoder) is not SoftParallelDecoder or not decoder.is_common or is_quantized:
            return super().decide(decoder, hidden_BLD, blocks, noise)
        decisions = self._decisions_of(hidden_BLD.shape[1])
        if decoder.renormalize and hidden_BLD.shape[0] <= decisions.limit:
            return decisions.decide(decoder, hidden_BLD, blocks)
        state = blocks.state
        thresholds = soft_parallel.thresholds_on(hidden_BLD.device, decoder.threshold, decoder.acceptance_threshold)
        decision = soft_parallel.decide(
            self.modules.head(hidden_BLD), state.tokens, state.active, state.masked, state.passes, state.fallback,
            thresholds, mask_token_id=state.mask_token_id,
        )  # fmt: skip
        result = decoder.after(decision, state)
        return Decided(result, PassInput(result.state))

    def warm_up(self, block_length: int) -> None:
        """Capture forwards and decisions of every size now, instead of each when it first comes up."""
        if self._graphs:
            self._forwards_of(block_length).capture_all()
            self._decisions_of(block_length).capture_all()

    @property
    def modules(self) -> BlockDiffusionLM:
        """The model whose modules are called: this backend's in place of the model's."""
        return self._swapped.model

    def _serves(self, room: _Room, pages: int, page_length: int, slots: int) -> bool:
        """Tell whether the pool is as large as is asked for, and the model's weights are where they were."""
        enough = room.pages >= pages and room.page_length == page_length and room.slots >= slots
        return enough and room.weights == _addresses(self._model)

    def _opened(self) -> _Room:
        assert self._room is not None, "open comes first"
        return self._room

    def _forwards_of(self, length: int) -> StaticForwards:
        room = self._opened()
        if length not in room.forwards:
            # Every slot with a block to store beside the one in flight, and a prefill.
            largest = 2 * room.slots + -(-IDLE_PREFILL_TOKENS // length)
            room.forwards[length] = StaticForwards(
                self.modules, room.cache, room.table, length=length,
                limit=max(1, min(largest, _MOST_CAPTURED // length)), graphs=self._graphs,
                memory_pool=room.memory_pool,
            )  # fmt: skip
        return room.forwards[length]

    def _decisions_of(self, length: int) -> StaticDecisions:
        room = self._opened()
        if length not in room.decisions:
            # Every slot with two blocks in flight.
            room.decisions[length] = StaticDecisions(
                self.modules, length=length, limit=2 * room.slots, graphs=self._graphs, memory_pool=room.memory_pool
            )
        return room.decisions[length]


def _segments(row: int, start: int, end: int, block: int, length: int) -> list[Segment]:
    """Return the segments that make up these positions."""
    return [(row, at, at // block * block + block) for at in range(start, end, length)]


def _addresses(model: BlockDiffusionLM) -> list[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor.data_ptr() for tensor in tensors]
