"""Passes without a KV cache: everything is computed again in every pass. Slow; what the cache is held against.

Shape suffixes: R sequences, B their blocks in flight, L block positions, T positions, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmax.decoding import BlockState, Decoder
from dmax.engine.backends.base import Backend, Decided, Noise, PassInput
from dmax.engine.backends.torch import TorchBackend
from dmax.engine.span import Span
from dmax.models.llada2 import LLaDA2
from dmax.models.masks import block_causal_mask


class UncachedBackend(TorchBackend):
    """Gives the hidden states that another backend gives, up to rounding, from the tokens alone.

    Args:
        model: in eval mode.
        inner: the backend whose modules and decisions are taken.
    """

    def __init__(self, model: LLaDA2, inner: Backend) -> None:
        super().__init__(model)
        self._inner = inner

    @property
    def name(self) -> str:
        """``uncached``."""
        return "uncached"

    @property
    def modules(self) -> LLaDA2:
        """The model whose modules are called."""
        return self._inner.modules

    def open(self, pages: int, page_length: int, slots: int) -> None:
        """Provide a cache of one page, which nobody reads."""
        self._inner.open(1, page_length, slots)

    def close(self) -> None:
        """Free it."""
        self._inner.close()

    def embed(self, state: BlockState) -> Tensor:
        """Compute what a pass reads at blocks in this state."""
        return self._inner.embed(state)

    def decide(self, decoder: Decoder, hidden_BLD: Tensor, blocks: PassInput, noise: Noise | None = None) -> Decided:
        """Apply head and decoder."""
        return self._inner.decide(decoder, hidden_BLD, blocks, noise)

    def forward(self, spans: list[Span], inputs: list[Tensor]) -> Tensor:
        """Run all layers over every sequence from its first position; tokens that are to be stored are passed over."""
        in_flight = [span for span in spans if span.blocks_start < span.end]
        hidden, at = [], 0
        for group_BLD in inputs:
            length, blocks, first = group_BLD.shape[1], 0, at
            while blocks < group_BLD.shape[0]:
                blocks += (in_flight[at].end - in_flight[at].blocks_start) // length
                at += 1
            hidden.append(self._blocks(in_flight[first:at], group_BLD))
        return torch.cat(hidden) if hidden else torch.empty(0, self._model.config.hidden_size)

    def _blocks(self, spans: list[Span], embeds_BLD: Tensor) -> Tensor:
        """Return hidden states of some sequences' blocks in flight, ``(B * L, D)``."""
        length, device = embeds_BLD.shape[1], embeds_BLD.device
        end = max(span.end for span in spans)
        # Shorter rows are filled up behind their blocks; block-causal attention keeps the filling out of sight.
        pad = self._model.config.pad_token_id
        prefixes = [span.sequence.tokens[: span.blocks_start] + [pad] * (end - span.blocks_start) for span in spans]
        embeds_RTD = self._model.embed(torch.tensor(prefixes, device=device))
        blocks = [
            (index, start) for index, span in enumerate(spans) for start in range(span.blocks_start, span.end, length)
        ]
        rows_B1, starts_B1 = torch.tensor(blocks, device=device).T[..., None]
        places_BL = starts_B1 + torch.arange(length, device=device)
        embeds_RTD[rows_B1, places_BL] = embeds_BLD
        positions_1T = torch.arange(end, device=device)[None]
        mask_1TT = block_causal_mask(positions_1T, positions_1T, length)
        hidden_RTD = self.modules(embeds_RTD, positions_1T.expand(len(spans), -1), mask_1TT)
        return hidden_RTD[rows_B1, places_BL].flatten(0, 1)
