"""The decode loop of one batch: forward, decoder, bookkeeping, and again, until every row has ended.

Shape suffixes: B rows, L block positions, V vocabulary, D hidden.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dmax.decoding import BlockState, Decoder, StepResult, input_embeddings
from dmax.engine.outputs import PassRecord
from dmax.engine.runner import Runner
from dmax.engine.sequence import Sequence
from dmax.engine.states import join_rows, select_rows
from dmax.models.llada2 import LLaDA2

OnPass = Callable[[int, PassRecord], None]


class DecodeLoop:
    """Decodes sequences that share a decoder and a block length.

    Rows stand at different positions and blocks, and end one by one; a waiting sequence takes the place of one that
    has ended. What a row is given never depends on the others.

    Args:
        model: in eval mode.
        decoder: the rule; it is given every running row at once.
        runner: runs the model for them, with or without a cache.
        block_length: of all sequences.
        capacity: most rows that run together.
        on_pass: called with a sequence's index and a record, after each of its passes.
    """

    def __init__(
        self,
        model: LLaDA2,
        decoder: Decoder,
        runner: Runner,
        block_length: int,
        capacity: int,
        on_pass: OnPass | None = None,
    ) -> None:
        self._model = model
        self._decoder = decoder
        self._runner = runner
        self._block_length = block_length
        self._capacity = capacity
        self._on_pass = on_pass
        self._rows: list[Sequence] = []
        self._state: BlockState | None = None
        self._generators: dict[int, torch.Generator] = {}

    @torch.inference_mode()
    def run(self, sequences: Iterable[Sequence], started: float) -> None:
        """Decode every sequence to its end; ``started`` is the ``time.perf_counter`` its seconds count from."""
        waiting = deque(sequences)
        while waiting or self._rows:
            if waiting and len(self._rows) < self._capacity:
                room = self._capacity - len(self._rows)
                self._admit([waiting.popleft() for _ in range(min(room, len(waiting)))])
            self._decode_pass(started)

    def _admit(self, new: list[Sequence]) -> None:
        self._rows.extend(new)
        self._runner.admit(self._rows, len(new))
        length, mask = self._block_length, self._model.config.mask_token_id
        blocks = [row.tokens[row.block_start :] + [mask] * (length - row.first_active) for row in new]
        active = [[offset >= row.first_active for offset in range(length)] for row in new]
        device = self._model.device
        fresh = BlockState.start(torch.tensor(blocks, device=device), torch.tensor(active, device=device), mask)
        self._state = fresh if self._state is None else join_rows(self._state, fresh)
        if self._decoder.temperature > 0:
            for row in new:
                self._generators[row.index] = torch.Generator(device).manual_seed(row.params.seed)

    def _decode_pass(self, started: float) -> None:
        assert self._state is not None
        embeds_BLD = input_embeddings(self._state, self._model.model.word_embeddings.weight)
        logits_BLV = self._model.head(self._runner.hidden(self._rows, embeds_BLD))
        noise_BLV = self._gumbel_noise(logits_BLV) if self._decoder.temperature > 0 else None
        result = self._decoder.step(logits_BLV, self._state, noise_BLV)
        # The one place of a pass where the host waits for the device.
        revisions_B1 = result.revised.sum(1, keepdim=True)
        host_rows = torch.cat([result.converged[:, None], revisions_B1, result.state.tokens], 1).tolist()
        self._report(result, host_rows)
        for row, (converged, revisions, *tokens) in zip(self._rows, host_rows, strict=True):
            row.passes += 1
            row.revisions += revisions
            if converged:
                row.close_block(tokens)
        self._state = result.state
        if any(converged for converged, *_ in host_rows):
            self._begin_blocks(result)
            self._release_ended(time.perf_counter() - started)

    def _gumbel_noise(self, logits_BLV: Tensor) -> Tensor:
        """Standard Gumbel noise, every row from its own generator, so that no row's draws depend on the others."""
        noise_BLV = torch.empty_like(logits_BLV, dtype=torch.float32)
        for row, noise_LV in zip(self._rows, noise_BLV, strict=True):
            noise_LV.exponential_(generator=self._generators[row.index])
        return noise_BLV.log_().neg_()

    def _report(self, result: StepResult, host_rows: list[list[int]]) -> None:
        """Make the records that somebody asked for; where nobody did, this costs nothing."""
        recorded = [slot for slot, row in enumerate(self._rows) if row.params.trace or self._on_pass is not None]
        if not recorded:
            return
        confidence = result.confidence.tolist()
        promoted = result.promoted.tolist()
        revised = result.revised.tolist()
        for slot in recorded:
            row = self._rows[slot]
            converged, _, *tokens = host_rows[slot]
            record = PassRecord(
                block=row.block_start // self._block_length,
                start=row.block_start,
                tokens=tokens,
                confidence=confidence[slot],
                promoted=_offsets(promoted[slot]),
                revised=_offsets(revised[slot]),
                active=list(range(row.first_active, self._block_length)),
                final=bool(converged),
            )
            if row.params.trace:
                row.trace.append(record)
            if self._on_pass is not None:
                self._on_pass(row.index, record)

    def _begin_blocks(self, result: StepResult) -> None:
        """Give every row whose block has converged a block of masks; after the first, a block is all answer."""
        answer_BL = torch.ones_like(result.state.active)
        self._state = result.state.restart(result.converged, result.state.tokens, answer_BL)

    def _release_ended(self, seconds: float) -> None:
        """Drop the rows that have ended; the last row fills each gap, so that the rows in use stay the first ones."""
        ended = [slot for slot, row in enumerate(self._rows) if row.ending is not None]
        if not ended:
            return
        order = list(range(len(self._rows)))
        for slot in reversed(ended):
            self._rows[slot].seconds = seconds
            last = len(self._rows) - 1
            if slot != last:
                self._runner.replace(slot, last)
                self._rows[slot], order[slot] = self._rows[last], order[last]
            del self._rows[last], order[last]
        assert self._state is not None
        kept = torch.tensor(order, dtype=torch.int64, device=self._model.device)
        self._state = select_rows(self._state, kept) if order else None


def _offsets(flags: list[bool]) -> list[int]:
    return [offset for offset, flag in enumerate(flags) if flag]
