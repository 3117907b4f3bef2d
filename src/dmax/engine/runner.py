"""The forward of a step: what a pass carries goes in, hidden states of the blocks in flight come out.

Shape suffixes: B blocks, L block positions, N packed positions, D hidden.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from dmax import kernels
from dmax.decoding import Decoder
from dmax.engine import compiled
from dmax.engine.kv_cache import FusedSpans, PackedSpans, PagedCache, Span
from dmax.engine.readout import CpuReadout, Readout
from dmax.engine.sequence import Sequence
from dmax.models.llada2 import LLaDA2
from dmax.models.stack import LayerStack

Forward = Callable[[Tensor], Tensor]
"""From input embeddings of packed positions, ``(N, D)``, to hidden states after the final norm."""


@dataclass(frozen=True)
class Part:
    """Positions of one sequence that a forward computes, all on block boundaries."""

    sequence: Sequence
    start: int
    blocks_start: int
    """Where the blocks in flight begin; what comes before them are final tokens, whose keys and values are stored."""
    end: int


class Runner(Protocol):
    """Owns the memory of the key/value pool and runs forwards over it."""

    def forward(self, parts: list[Part], blocks: list[Tensor]) -> Tensor:
        """One forward.

        Args:
            parts: at most one a sequence; those with blocks in flight come in the order of ``blocks``.
            blocks: input embeddings of all blocks in flight, ``(B, L, D)`` for each block length and decoder.

        Returns:
            ``(1, sum of B * L, D)`` hidden states after the final norm, of the blocks in flight alone. They hold until
            the next forward.
        """
        ...

    def readout(self, decoder: Decoder, block_length: int) -> Readout | None:
        """What follows the forward of a decoder's blocks, at once; None where head and decoder have to be called."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """A sequence has given its pages back."""
        ...

    def serves(self, pages: int, page_length: int, rows: int) -> bool:
        """Whether an engine to come can go on with this runner once another has ended."""
        ...

    def prepare(self, block_length: int) -> None:
        """Do now what forwards over blocks of this length would otherwise do when they first come up."""
        ...


def make_runner(model: LLaDA2, pages: int, page_length: int, rows: int) -> Runner:
    """The runner for the device on which the model stands.

    Args:
        model: in eval mode.
        pages: size of the pool.
        page_length: positions of a page.
        rows: most sequences that hold pages at a time.
    """
    with torch.no_grad():
        by_kernels = kernels.usable(model.lm_head.weight)
    if by_kernels:
        from dmax.engine.paged_runner import PagedRunner  # here, because it imports Triton

        return PagedRunner(model, pages, page_length, rows)
    compiled.attach(model)
    return SpanRunner(model, pages, page_length)


class SpanRunner:
    """Attends to every sequence by itself: nothing is computed twice, padded or masked, on any device."""

    def __init__(self, model: LLaDA2, pages: int, page_length: int) -> None:
        self._model = model
        attention = compiled.load_attention(model)
        self.cache = PagedCache(
            model.config, pages, page_length, device=model.device, dtype=model.dtype, attention=attention
        )
        self._stack = None if attention is None else LayerStack.of(model)
        self._layers = None if self._stack is None else compiled.load_layers(model, self._stack.size)
        self._weights: Tensor | None = None
        self._looked = False
        self._spans: dict[int, tuple[tuple[int, int], Span]] = {}
        self._packed: tuple[list[Span], Forward] | None = None

    def forward(self, parts: list[Part], blocks: list[Tensor]) -> Tensor:
        """One forward; see :class:`Runner`."""
        embeds, kept = [], []
        at = 0
        every_block = (block_LD for group_BLD in blocks for block_LD in group_BLD)
        for part in parts:
            row = part.sequence
            if part.start < part.blocks_start:
                embeds.append(self._embed(row.tokens[part.start : part.blocks_start]))
            in_flight = range(part.blocks_start, part.end, row.params.block_length)
            embeds += [next(every_block) for _ in in_flight]
            at += part.end - part.start
            if in_flight:
                kept.append((at - (part.end - part.blocks_start), at))
        forward = self.over([self._span(part) for part in parts])
        hidden_1ND = forward(embeds[0] if len(embeds) == 1 else torch.cat(embeds))[None]
        if at == sum(end - start for start, end in kept):
            return hidden_1ND
        return torch.cat([hidden_1ND[:, start:end] for start, end in kept] or [hidden_1ND[:, :0]], 1)

    def readout(self, decoder: Decoder, block_length: int) -> Readout | None:
        """Head and rule in one call, where that is compiled; see :class:`Runner`."""
        return CpuReadout.of(self._model, decoder)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has given its pages back."""
        self._spans.pop(id(sequence), None)
        self._looked = False

    def serves(self, pages: int, page_length: int, rows: int) -> bool:
        """Never: the pool's memory goes back with its engine."""
        return False

    def prepare(self, block_length: int) -> None:
        """Nothing: every forward is made afresh."""

    def over(self, spans: list[Span]) -> Forward:
        """The model over these spans, which passes that refine the same blocks share."""
        if self._packed is None or self._packed[0] != spans:
            packed = self.cache.pack(spans)
            weights = self._all_weights()
            if weights is not None and isinstance(packed, FusedSpans):
                assert self._layers is not None and self._stack is not None
                self._packed = spans, packed.through(self._layers, self._stack, weights)
            else:
                self._packed = spans, partial(self._by_modules, packed)
        return self._packed[1]

    def _all_weights(self) -> Tensor | None:
        """What passes through all layers in one call read; None where the modules have to be called.

        Looking through all modules takes as long as a layer, so it is done anew only once a sequence has left.
        """
        if not self._looked and self._layers is not None and self._stack is not None:
            self._weights = self._stack.weights(self.cache.keys)
        self._looked = True
        return self._weights

    def _embed(self, token_ids: abc.Sequence[int]) -> Tensor:
        return self._model.embed(torch.tensor(token_ids, device=self._model.device))

    def _by_modules(self, packed: PackedSpans | FusedSpans, embeds_ND: Tensor) -> Tensor:
        return self._model(embeds_ND[None], packed.position_ids, None, packed)[0]

    def _span(self, part: Part) -> Span:
        """The span of these positions; passes that refine the same block share one."""
        row, bounds = part.sequence, (part.start, part.end)
        known = self._spans.get(id(row))
        if known is not None and known[0] == bounds:
            return known[1]
        pages = row.pages[: -(-part.end // self.cache.page_length)]
        span = self.cache.span(pages, part.start, part.end, row.params.block_length)
        self._spans[id(row)] = bounds, span
        return span
