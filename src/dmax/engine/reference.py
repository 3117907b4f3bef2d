"""The engine without a cache: everything is run again in every pass. Slow; what the cache is held against.

Shape suffixes: R sequences, B their blocks in flight, L block positions, T positions, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmax.engine.core import EngineCore
from dmax.engine.group import DecodeGroup
from dmax.engine.scheduler import Chunk
from dmax.models.masks import block_causal_mask


class UncachedCore(EngineCore):
    """Gives the hidden states that :class:`EngineCore` gives, up to rounding, from the tokens alone."""

    def _forward(self, chunks: list[Chunk], blocks: dict[DecodeGroup, Tensor]) -> Tensor:
        parts = [self._blocks(group, embeds_BLD) for group, embeds_BLD in blocks.items()]
        for row in (row for group in blocks for row in group.rows):
            self.scheduler.stored(row, row.block_start)
        return torch.cat(parts, 1) if parts else torch.empty(1, 0, self.model.config.hidden_size)

    def _blocks(self, group: DecodeGroup, embeds_BLD: Tensor) -> Tensor:
        """Hidden states of a group's blocks in flight, ``(1, B * L, D)``."""
        rows, length = group.rows, group.block_length
        device = embeds_BLD.device
        end = max(row.block_end for row in rows)
        # Shorter rows are filled up behind their blocks; block-causal attention keeps the filling out of sight.
        pad = self.model.config.pad_token_id
        prefixes = [row.tokens[: row.block_start] + [pad] * (end - row.block_start) for row in rows]
        embeds_RTD = self.model.embed(torch.tensor(prefixes, device=device))
        blocks = [
            (index, row.block_start + i * length) for index, row in enumerate(rows) for i in range(row.open_blocks)
        ]
        rows_B1, starts_B1 = torch.tensor(blocks, device=device).T[..., None]
        places_BL = starts_B1 + torch.arange(length, device=device)
        embeds_RTD[rows_B1, places_BL] = embeds_BLD
        positions_1T = torch.arange(end, device=device)[None]
        mask_1TT = block_causal_mask(positions_1T, positions_1T, length)
        hidden_RTD = self.model(embeds_RTD, positions_1T.expand(len(rows), -1), mask_1TT)
        return hidden_RTD[rows_B1, places_BL].flatten(0, 1)[None]
