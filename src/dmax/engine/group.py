"""Sequences that share a decoder and a block length, and the state of their current blocks.

Shape suffixes: B rows, L block positions, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from dmax.decoding import BlockState, Decoder, StepResult, input_embeddings
from dmax.engine.outputs import PassRecord
from dmax.engine.sequence import Sequence
from dmax.engine.states import join_rows, select_rows
from dmax.models.llada2 import LLaDA2


@dataclass(frozen=True)
class Update:
    """What a pass did to one sequence."""

    sequence: Sequence
    final_ids: list[int]
    """Answer tokens that became final; they are never revised."""
    record: PassRecord | None
    """The pass, where somebody asked for records."""
    finished: bool
    """Whether the answer has ended, or was given up."""


class DecodeGroup:
    """Rows that step together. What a row is given never depends on the others.

    Args:
        model: in eval mode.
        decoder: the rule; it is given all rows at once.
        block_length: of all rows.
    """

    def __init__(self, model: LLaDA2, decoder: Decoder, block_length: int) -> None:
        self.decoder = decoder
        self.block_length = block_length
        self.rows: list[Sequence] = []
        self._model = model
        self._state: BlockState | None = None

    def add(self, row: Sequence) -> None:
        """Begin a sequence's current block, or go on with it where it was interrupted."""
        fresh = self._fresh(row) if row.paused is None else row.paused
        row.paused = None
        if self.decoder.temperature > 0 and row.generator is None:
            row.generator = torch.Generator(self._model.device).manual_seed(row.params.seed)
        self._state = fresh if self._state is None else join_rows(self._state, fresh)
        self.rows.append(row)

    def _fresh(self, row: Sequence) -> BlockState:
        length, mask = self.block_length, self._model.config.mask_token_id
        block = row.tokens[row.block_start :] + [mask] * (length - row.first_active)
        active = [offset >= row.first_active for offset in range(length)]
        device = self._model.device
        return BlockState.start(torch.tensor([block], device=device), torch.tensor([active], device=device), mask)

    def remove(self, rows: Rows[Sequence], *, pause: bool = False) -> None:
        """Let rows go; ``pause`` leaves each the state of its block, so that it can be added again."""
        leaving = set(map(id, rows))
        kept = [place for place, row in enumerate(self.rows) if id(row) not in leaving]
        if len(kept) == len(self.rows):
            return
        assert self._state is not None
        if pause:
            for place, row in enumerate(self.rows):
                if id(row) in leaving:
                    row.paused = select_rows(self._state, self._places([place]))
        self.rows = [self.rows[place] for place in kept]
        self._state = select_rows(self._state, self._places(kept)) if kept else None

    def _places(self, places: list[int]) -> Tensor:
        return torch.tensor(places, dtype=torch.int64, device=self._model.device)

    def embeddings(self) -> Tensor:
        """``(B, L, D)``, what the next pass reads at the rows' current blocks."""
        assert self._state is not None
        return input_embeddings(self._state, self._model.model.word_embeddings.weight)

    def step(self, hidden_BLD: Tensor) -> tuple[StepResult, Tensor]:
        """Apply the decoder to hidden states of the current blocks.

        Returns:
            The result, and ``(B, 2 + L)`` int64 with what the host needs of it: whether the row has converged, how many
            tokens were revised, and the tokens.
        """
        assert self._state is not None
        logits_BLV = self._model.head(hidden_BLD)
        noise_BLV = self._gumbel_noise(logits_BLV) if self.decoder.temperature > 0 else None
        result = self.decoder.step(logits_BLV, self._state, noise_BLV)
        revisions_B1 = result.revised.sum(1, keepdim=True)
        return result, torch.cat([result.converged[:, None], revisions_B1, result.state.tokens], 1)

    def _gumbel_noise(self, logits_BLV: Tensor) -> Tensor:
        """Standard Gumbel noise, every row from its own generator, so that no row's draws depend on the others."""
        noise_BLV = torch.empty_like(logits_BLV, dtype=torch.float32)
        for row, noise_LV in zip(self.rows, noise_BLV, strict=True):
            noise_LV.exponential_(generator=row.generator)
        return noise_BLV.log_().neg_()

    def take(self, result: StepResult, host_rows: list[list[int]], record_all: bool) -> list[Update]:
        """Bring sequences and state up to date with a pass.

        Args:
            result: of :meth:`step`.
            host_rows: the tensor that :meth:`step` gave beside it, as lists.
            record_all: whether every row's pass is recorded, or only those whose params ask for it.
        """
        records = self._records(result, host_rows, record_all)
        taken = []
        for row, record, (converged, revisions, *tokens) in zip(self.rows, records, host_rows, strict=True):
            row.passes += 1
            row.revisions += revisions
            if record is not None and row.params.trace:
                row.trace.append(record)
            final_ids = row.close_block(tokens) if converged else []
            taken.append(Update(row, final_ids, record, row.ending is not None))
        self._state = result.state
        if any(converged for converged, *_ in host_rows):
            # A row whose block has converged goes on with a block of masks; after the first, a block is all answer.
            answer_BL = torch.ones_like(result.state.active)
            self._state = result.state.restart(result.converged, result.state.tokens, answer_BL)
        return taken

    def _records(self, result: StepResult, host_rows: list[list[int]], record_all: bool) -> list[PassRecord | None]:
        """The records that somebody asked for; where nobody did, this costs nothing."""
        wanted = [record_all or row.params.trace for row in self.rows]
        if not any(wanted):
            return [None] * len(wanted)
        confidence, promoted, revised = (t.tolist() for t in (result.confidence, result.promoted, result.revised))
        return [
            PassRecord(
                block=row.block_start // self.block_length,
                start=row.block_start,
                tokens=host_rows[place][2:],
                confidence=confidence[place],
                promoted=_offsets(promoted[place]),
                revised=_offsets(revised[place]),
                active=list(range(row.first_active, self.block_length)),
                final=bool(host_rows[place][0]),
            )
            if asked
            else None
            for place, (row, asked) in enumerate(zip(self.rows, wanted, strict=True))
        ]


def _offsets(flags: list[bool]) -> list[int]:
    return [offset for offset, flag in enumerate(flags) if flag]
