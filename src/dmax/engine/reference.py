"""The engine without a cache: everything is run again in every pass. Slow; what the cache is held against.

Shape suffixes: B rows, L block positions, T positions, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmax.engine.core import EngineCore
from dmax.engine.group import DecodeGroup
from dmax.engine.scheduler import Chunk
from dmax.engine.sequence import Sequence
from dmax.models.masks import block_causal_mask


class UncachedCore(EngineCore):
    """Gives the hidden states that :class:`EngineCore` gives, up to rounding, from the tokens alone."""

    def _forward(self, chunks: list[Chunk], rows: list[Sequence], groups: list[DecodeGroup]) -> Tensor:
        parts = [self._blocks(group) for group in groups]
        for row in rows:
            self.scheduler.stored(row, row.block_start)
        return torch.cat(parts, 1) if parts else torch.empty(1, 0, self.model.config.hidden_size)

    def _blocks(self, group: DecodeGroup) -> Tensor:
        """Hidden states of a group's current blocks, ``(1, B * L, D)``."""
        embeds_BLD, rows = group.embeddings(), group.rows
        device = embeds_BLD.device
        starts = [row.block_start for row in rows]
        end = max(starts) + group.block_length
        # Shorter rows are filled up behind their block; block-causal attention keeps the filling out of sight.
        pad = self.model.config.pad_token_id
        prefixes = [row.tokens[:start] + [pad] * (end - start) for row, start in zip(rows, starts, strict=True)]
        embeds_BTD = self.model.embed(torch.tensor(prefixes, device=device))
        rows_B1 = torch.arange(len(rows), device=device)[:, None]
        block_BL = torch.tensor(starts, device=device)[:, None] + torch.arange(group.block_length, device=device)
        embeds_BTD[rows_B1, block_BL] = embeds_BLD
        positions_1T = torch.arange(end, device=device)[None]
        mask_1TT = block_causal_mask(positions_1T, positions_1T, group.block_length)
        hidden_BTD = self.model(embeds_BTD, positions_1T.expand(len(rows), -1), mask_1TT)
        return hidden_BTD[rows_B1, block_BL].flatten(0, 1)[None]
