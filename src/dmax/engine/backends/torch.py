"""The definition of a pass, in PyTorch's own operations, for any device.

Attends to every sequence by itself: nothing is computed twice, padded or masked.

Shape suffixes: B blocks, L block positions, N packed positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dmax.decoding import BlockState, Decoder, input_embeddings
from dmax.decoding.contract import check_result
from dmax.decoding.registry import is_built_in
from dmax.engine.backends.base import Decided, Noise, PassInput
from dmax.engine.backends.shifted import PreviousStates, Run
from dmax.engine.kv_cache import KVCache, PackedSpans, SpanStore
from dmax.engine.span import Span
from dmax.models.transformer import BlockDiffusionLM

Layers = Callable[[Tensor], Tensor]
"""From input embeddings of packed positions, ``(N, D)``, to hidden states after the final norm."""


class TorchBackend:
    """Computes passes by calling the model's modules; see :class:`~dmax.engine.backends.base.Backend`.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: BlockDiffusionLM) -> None:
        self._model = model
        self._cache: KVCache | None = None
        self._planned: tuple[list[Span], Layers] | None = None
        self._previous: PreviousStates | None = None

    @property
    def name(self) -> str:
        """``torch``."""
        return "torch"

    def open(self, pages: int, page_length: int, slots: int) -> None:
        """Provide a KV cache."""
        self._cache = KVCache(
            self._model.config, pages, page_length, device=self._model.device, dtype=self._model.dtype
        )
        self._planned = None
        self._previous = PreviousStates.of(self._model, slots)

    def close(self) -> None:
        """Free the KV cache."""
        self._cache = self._planned = self._previous = None

    def embed(self, state: BlockState) -> Tensor:
        """Compute what a pass reads at blocks in this state: ``(B, L, D)``."""
        return input_embeddings(state, self._model.embedding_table)

    def forward(self, spans: list[Span], inputs: list[Tensor]) -> Tensor:
        """Run the layers over all spans, packed one behind the other."""
        embeds: list[Tensor] = []
        kept: list[tuple[int, int]] = []
        runs: list[Run] = []
        at = 0
        every_block = (block_LD for group_BLD in inputs for block_LD in group_BLD)
        for span in spans:
            if span.start < span.blocks_start:
                embeds.append(self._embed_tokens(span.sequence.tokens[span.start : span.blocks_start]))
            in_flight = range(span.blocks_start, span.end, span.block_length)
            embeds += [next(every_block) for _ in in_flight]
            runs.append(Run(span, at, at + span.blocks_start - span.start))
            at += span.num_positions
            if in_flight:
                kept.append((at - (span.end - span.blocks_start), at))
        hidden_ND = self.over(spans)(embeds[0] if len(embeds) == 1 else torch.cat(embeds))
        if self._previous is not None:
            return self._previous.read(hidden_ND, runs)
        if at == sum(end - start for start, end in kept):
            return hidden_ND
        return torch.cat([hidden_ND[start:end] for start, end in kept] or [hidden_ND[:0]])

    def over(self, spans: list[Span]) -> Layers:
        """Return the layers over these spans, which passes that refine the same blocks share."""
        if self._planned is None or self._planned[0] != spans:
            self._planned = spans, self._plan(spans)
        return self._planned[1]

    def decide(self, decoder: Decoder, hidden_BLD: Tensor, blocks: PassInput, noise: Noise | None = None) -> Decided:
        """Apply the head, then the decoder."""
        logits_BLV = self.modules.head(hidden_BLD)
        noise_BLV = noise(logits_BLV) if noise is not None and decoder.temperature > 0 else None
        result = decoder.step(logits_BLV, blocks.state, noise_BLV)
        if not is_built_in(decoder):
            check_result(result, blocks.state, decoder.name)
        return Decided(result, PassInput(result.state))

    def warm_up(self, block_length: int) -> None:
        """Do nothing: every pass is made afresh."""

    @property
    def modules(self) -> BlockDiffusionLM:
        """The model whose modules are called."""
        return self._model

    def _plan(self, spans: list[Span]) -> Layers:
        assert self._cache is not None
        return partial(self._by_modules, PackedSpans(self._cache, spans))

    def _by_modules(self, store: SpanStore, embeds_ND: Tensor) -> Tensor:
        return self.modules(embeds_ND[None], store.position_ids, None, store)[0]

    def _embed_tokens(self, token_ids: list[int]) -> Tensor:
        return self._model.embed(torch.tensor(token_ids, device=self._model.device))
