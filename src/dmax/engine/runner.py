"""One forward of the running sequences: embeddings of their current blocks in, hidden states of these blocks out.

Both runners give the same hidden states up to rounding. Shape suffixes: B rows, E cache entries, L block positions,
T positions, D hidden.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dmax.engine.kv_cache import KVCache, Window
from dmax.engine.sequence import Sequence
from dmax.models.llada2 import LLaDA2
from dmax.models.masks import block_causal_mask

PREFILL_TOKENS = 4096
"""Most positions in one forward of a prefill, all rows together; bounds the memory that a long prompt takes."""


class Runner(Protocol):
    """Runs the model for the rows of a batch, row i being the i-th sequence of every call."""

    def admit(self, rows: list[Sequence], count: int) -> None:
        """Take in the last ``count`` rows, which are new."""
        ...

    def hidden(self, rows: list[Sequence], embeds_BLD: Tensor) -> Tensor:
        """Hidden states ``(B, L, D)`` of every row's current block, one forward for all."""
        ...

    def replace(self, row: int, last: int) -> None:
        """The sequence of row ``last`` takes the place of row ``row``, which has ended."""
        ...


class CachedRunner:
    """Reads earlier blocks from the key/value cache.

    A block that has converged is stored by the forward that decodes its successor: that forward carries one more
    entry of L positions for each row that has such a block, and none for the others. So there is one forward a pass
    whatever the rows are up to, no row pays for another's commit, and a single row runs L or 2L positions.
    """

    def __init__(self, model: LLaDA2, block_length: int, slots: int, slot_length: int) -> None:
        self._model = model
        self._block_length = block_length
        self._cache = KVCache(model.config, slots, slot_length, device=model.device, dtype=model.dtype)
        self._stored = [0] * slots
        self._window: Window | None = None
        self._window_key: tuple[list[int], list[int]] = ([], [])

    def admit(self, rows: list[Sequence], count: int) -> None:
        """Store the whole blocks of the new rows' prompts, all rows together, in chunks."""
        new = range(len(rows) - count, len(rows))
        for slot in new:
            self._stored[slot] = 0
        pending = [slot for slot in new if rows[slot].prompt_blocks_end]
        while pending:
            self._prefill_chunk(rows, pending)
            pending = [slot for slot in pending if self._stored[slot] < rows[slot].prompt_blocks_end]

    def _prefill_chunk(self, rows: list[Sequence], slots: list[int]) -> None:
        """Run the next positions of these rows, which all stand at the same position.

        Rows that end inside the chunk are filled up. What lies behind the whole blocks of a prompt, its tail or the
        filling, is stored like the rest: no earlier block sees it, and decoding overwrites it before it reads there.
        """
        length = self._block_length
        start = self._stored[slots[0]]
        longest = max(rows[slot].prompt_blocks_end for slot in slots)
        width = min(max(PREFILL_TOKENS // len(slots) // length, 1) * length, longest - start)
        pad = self._model.config.pad_token_id
        chunks = [rows[slot].tokens[start : start + width] for slot in slots]
        token_ids = torch.tensor([chunk + [pad] * (width - len(chunk)) for chunk in chunks], device=self._model.device)
        window = self._cache.window(slots, [start] * len(slots), width)
        keys_1S = torch.arange(start + width, device=self._model.device)[None]
        mask_1TS = block_causal_mask(keys_1S[:, start:], keys_1S, length)
        self._model(self._model.embed(token_ids), window.position_ids, mask_1TS, window.store)
        for slot in slots:
            self._stored[slot] = min(start + width, rows[slot].prompt_blocks_end)

    def hidden(self, rows: list[Sequence], embeds_BLD: Tensor) -> Tensor:
        length = self._block_length
        starts = [row.block_start for row in rows]
        behind = [slot for slot, start in enumerate(starts) if self._stored[slot] < start]
        if behind:
            finished = [rows[slot].tokens[starts[slot] - length : starts[slot]] for slot in behind]
            finished_ids = torch.tensor(finished, device=embeds_BLD.device)
            embeds_BLD = torch.cat([self._model.embed(finished_ids), embeds_BLD])
        entry_slots = [*behind, *range(len(rows))]
        entry_starts = [starts[slot] - length for slot in behind] + starts
        window = self._open(entry_slots, entry_starts)
        hidden_ELD = self._model(embeds_BLD, window.position_ids, window.mask, window.store)
        for slot in behind:
            self._stored[slot] = starts[slot]
        return hidden_ELD[len(behind) :]

    def _open(self, slots: list[int], starts: list[int]) -> Window:
        """The window of these entries; passes that refine the same blocks share one."""
        if self._window is None or self._window_key != (slots, starts):
            self._window = self._cache.window(slots, starts, self._block_length)
            self._window_key = (slots, starts)
        return self._window

    def replace(self, row: int, last: int) -> None:
        self._cache.move(last, row, self._stored[last])
        self._stored[row] = self._stored[last]


class RecomputeRunner:
    """Runs everything before the current block again in every pass: the reference that the cache is held against."""

    def __init__(self, model: LLaDA2, block_length: int) -> None:
        self._model = model
        self._block_length = block_length

    def admit(self, rows: list[Sequence], count: int) -> None:
        """Nothing is kept, so there is nothing to prepare."""

    def hidden(self, rows: list[Sequence], embeds_BLD: Tensor) -> Tensor:
        device = embeds_BLD.device
        starts = [row.block_start for row in rows]
        end = max(starts) + self._block_length
        # Shorter rows are filled up behind their block; block-causal attention keeps the filling out of sight.
        pad = self._model.config.pad_token_id
        prefixes = [row.tokens[:start] + [pad] * (end - start) for row, start in zip(rows, starts, strict=True)]
        embeds_BTD = self._model.embed(torch.tensor(prefixes, device=device))
        rows_B1 = torch.arange(len(rows), device=device)[:, None]
        block_BL = torch.tensor(starts, device=device)[:, None] + torch.arange(self._block_length, device=device)
        embeds_BTD[rows_B1, block_BL] = embeds_BLD
        positions_1T = torch.arange(end, device=device)[None]
        mask_1TT = block_causal_mask(positions_1T, positions_1T, self._block_length)
        hidden_BTD = self._model(embeds_BTD, positions_1T.expand(len(rows), -1), mask_1TT)
        return hidden_BTD[rows_B1, block_BL]

    def replace(self, row: int, last: int) -> None:
        """Nothing is kept, so there is nothing to move."""
