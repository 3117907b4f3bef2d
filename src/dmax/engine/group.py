"""Sequences that share a decoder and a block length, and the state of their blocks in flight.

Every block in flight is one row of the state; the rows of a sequence are neighbours, in the order of its blocks.

Shape suffixes: B rows, L block positions, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby, islice

import torch
from torch import Tensor

from dmax.decoding import BlockState, Decoder, SlotView, StepResult, input_embeddings
from dmax.decoding.contract import ContractError, check_result, tokens_or_none
from dmax.decoding.registry import is_built_in
from dmax.engine.outputs import PassRecord
from dmax.engine.readout import Readout
from dmax.engine.sequence import Sequence
from dmax.engine.states import join_rows, select_rows
from dmax.models.llada2 import LLaDA2

_FRESH = -1
"""Stands for a block that begins, among the numbers of rows that go on."""


@dataclass(frozen=True)
class Update:
    """What a pass did to one sequence."""

    sequence: Sequence
    final_ids: list[int]
    """Answer tokens that became final; they are never revised."""
    records: list[PassRecord]
    """The pass as every block in flight saw it, where somebody asked for it."""
    finished: bool
    """Whether the answer has ended, or was given up."""


def give_up(row: Sequence, error: Exception) -> Update:
    """Note that a sequence cannot go on, because of its decoder."""
    row.failure, row.ending = error, None
    return Update(row, [], [], finished=True)


@dataclass(slots=True)
class _Lane:
    """A block in flight, on the host."""

    sequence: Sequence
    start: int
    """Position of the block's first token."""
    first_active: int
    masks: int
    """Positions that are still masks."""

    @property
    def active(self) -> int:
        """Answer positions of the block."""
        return self.sequence.params.block_length - self.first_active

    @property
    def decoded(self) -> float:
        """Share of the answer positions that are no masks any more."""
        return 1 - self.masks / self.active


class DecodeGroup:
    """Sequences that step together. What one is given never depends on the others.

    Args:
        model: in eval mode.
        decoder: the rule; it is given all blocks at once.
        block_length: of all sequences.
        readout: head and rule at once; None where there is none for this decoder.
    """

    def __init__(self, model: LLaDA2, decoder: Decoder, block_length: int, readout: Readout | None = None) -> None:
        self.decoder = decoder
        self.block_length = block_length
        self.rows: list[Sequence] = []
        self._model = model
        self._checked = not is_built_in(decoder)
        self._recorded: list[bool] = []
        self._lanes: list[_Lane] = []
        self._state: BlockState | None = None
        self._readout = readout
        self._known: tuple[BlockState, Tensor] | None = None

    @property
    def positions(self) -> int:
        """Positions of all blocks in flight."""
        return len(self._lanes) * self.block_length

    def add(self, rows: list[Sequence]) -> None:
        """Begin sequences' current blocks, or go on with their blocks where they were interrupted."""
        states = [] if self._state is None else [self._state]
        for interrupted, run in groupby(rows, key=lambda row: row.paused is not None):
            neighbours = list(run)
            states += map(self._resume, neighbours) if interrupted else [self._begin(neighbours)]
        self._state = reduce(join_rows, states)
        self.rows += rows

    def _begin(self, rows: list[Sequence]) -> BlockState:
        """The current blocks of sequences that come for the first time."""
        for row in rows:
            if self.decoder.temperature > 0 and row.generator is None:
                row.generator = torch.Generator(self._model.device).manual_seed(row.params.seed)
        self._lanes += [self._lane(row, 0) for row in rows]
        length, mask, device = self.block_length, self._model.config.mask_token_id, self._model.device
        blocks = [row.tokens[row.block_start :] + [mask] * (length - row.first_active) for row in rows]
        active = [[offset >= row.first_active for offset in range(length)] for row in rows]
        return BlockState.start(torch.tensor(blocks, device=device), torch.tensor(active, device=device), mask)

    def _resume(self, row: Sequence) -> BlockState:
        """The blocks of a sequence that was interrupted, which gives them back."""
        state, row.paused = row.paused, None
        assert state is not None
        self._lanes += [self._lane(row, index, masks) for index, masks in enumerate(state.masked.sum(1).tolist())]
        return state

    def _lane(self, row: Sequence, index: int, masks: int | None = None) -> _Lane:
        """The ``index``-th block in flight of a sequence; by default all its answer positions are masks."""
        first_active = 0 if index else row.first_active
        fresh = self.block_length - first_active
        return _Lane(row, row.block_start + index * self.block_length, first_active, fresh if masks is None else masks)

    def remove(self, rows: Collection[Sequence], *, pause: bool = False) -> None:
        """Let those sequences go that are here; ``pause`` leaves them their blocks, so that they can be added again."""
        own: dict[Sequence, list[int]] = {row: [] for row in rows}
        kept: list[int] = []
        for place, lane in enumerate(self._lanes):
            own.get(lane.sequence, kept).append(place)
        if len(kept) == len(self._lanes):
            return
        assert self._state is not None
        if pause:
            for row, places in own.items():
                if places:
                    row.paused = select_rows(self._state, self._places(places))
        self.rows = [row for row in self.rows if row not in own]
        self._lanes = [self._lanes[place] for place in kept]
        self._state = select_rows(self._state, self._places(kept)) if kept else None

    def _places(self, places: list[int]) -> Tensor:
        return torch.tensor(places, dtype=torch.int64, device=self._model.device)

    def embeddings(self) -> Tensor:
        """``(B, L, D)``, what the next pass reads at the blocks in flight."""
        assert self._state is not None
        if self._known is not None and self._known[0] is self._state:
            return self._known[1]
        return input_embeddings(self._state, self._model.model.word_embeddings.weight)

    def will_go_on(self) -> bool:
        """Whether no block is likely to end in the pass that is under way, by what is known of the one before it.

        Half of a block's positions are still masks then. Nothing may depend on how often a pass is computed, as drawn
        tokens do.
        """
        plain = self.decoder.temperature == 0 and not self._checked and not any(self._recorded)
        return plain and all(
            lane.sequence.params.buffer_size == 1 and 2 * lane.masks > lane.active for lane in self._lanes
        )

    def assume(self, result: StepResult) -> None:
        """Stand where a pass has led to if all blocks go on, until :meth:`take` tells where they do stand."""
        self._state = result.state

    def stands_at(self, result: StepResult) -> bool:
        """Whether all blocks have gone on after a pass that was taken."""
        return self._state is result.state

    def step(self, hidden_BLD: Tensor, record_all: bool) -> tuple[StepResult, Tensor]:
        """Apply the decoder to hidden states of the blocks in flight.

        Args:
            hidden_BLD: of the model, after the final norm.
            record_all: whether every sequence's pass is recorded, or only those whose params ask for it.

        Returns:
            The result, and ``(B, W)`` int64 with what the host needs of it: the tokens, which of them were revised, and
            whether the block has converged; where passes are recorded, which tokens were promoted and the bits of the
            confidences, too, so that the host waits once for all of it.

        Raises:
            ContractError: the result is none; a decoder of somebody's own may raise anything else, too.
        """
        assert self._state is not None
        result, for_host_BW = self._decide(hidden_BLD, _with_fallback(self._state, self._fallback()))
        if self._checked:
            check_result(result, self._state, self.decoder.name)
            tokens_BL = tokens_or_none(result.state, self._model.config.vocab_size)
        else:
            tokens_BL = result.state.tokens
        parts = [tokens_BL, result.revised, result.converged[:, None]] if for_host_BW is None else [for_host_BW]
        self._recorded = [record_all or lane.sequence.params.trace for lane in self._lanes]
        if any(self._recorded):
            parts += [result.promoted, result.confidence.view(torch.int32)]
        return result, parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _decide(self, hidden_BLD: Tensor, state: BlockState) -> tuple[StepResult, Tensor | None]:
        """The pass, and what the host needs of every pass where that is together already."""
        found = None if self._readout is None else self._readout(hidden_BLD, state)
        if found is not None:
            self._known = found.result.state, found.embeds_BLD
            return found.result, found.for_host_BW
        logits_BLV = self._model.head(hidden_BLD)
        noise_BLV = self._gumbel_noise(logits_BLV) if self.decoder.temperature > 0 else None
        return self.decoder.step(logits_BLV, state, noise_BLV), None

    def _fallback(self) -> Tensor | None:
        """Which blocks promote even what is not confident; None where all do, as with one block a sequence."""
        if len(self._lanes) == len(self.rows):
            return None
        lanes = iter(self._lanes)
        falls_back: list[bool] = []
        for row in self.rows:
            decoded = [lane.decoded for lane in islice(lanes, row.open_blocks)]
            falls_back += row.blocks_rule.may_fall_back(decoded)
        return torch.tensor(falls_back, device=self._model.device)

    def _gumbel_noise(self, logits_BLV: Tensor) -> Tensor:
        """Standard Gumbel noise, every sequence from its own generator, so that no draws depend on the others."""
        noise_BLV = torch.empty_like(logits_BLV, dtype=torch.float32)
        for lane, noise_LV in zip(self._lanes, noise_BLV, strict=True):
            noise_LV.exponential_(generator=lane.sequence.generator)
        noise_BLV.log_().neg_()
        for lane, noise_LV, logits_LV in zip(self._lanes, noise_BLV, logits_BLV, strict=True):
            nucleus = lane.sequence.params.nucleus()
            if not nucleus.is_everything:
                nucleus.shut_out(noise_LV, logits_LV, self.decoder.temperature, self._model.config.mask_token_id)
        return noise_BLV

    def take(self, result: StepResult, on_host_BW: Tensor) -> list[Update]:
        """Bring sequences and state up to date with a pass.

        Args:
            result: of :meth:`step`.
            on_host_BW: the tensor that :meth:`step` gave beside it, on the CPU.
        """
        for row in self.rows:
            row.passes += 1
        records = self._records(on_host_BW)
        host_rows = on_host_BW[:, : 2 * self.block_length + 1].tolist()
        updates: list[Update] = []
        lanes: list[_Lane] = []
        sources: list[int] = []
        at = 0
        for row in self.rows:
            own = slice(at, at + row.open_blocks)
            at = own.stop
            if self._checked and any(host_row[0] < 0 for host_row in host_rows[own]):
                updates.append(give_up(row, self._outside_vocabulary()))
                lanes += self._lanes[own]
                sources += range(own.start, own.stop)
                continue
            if records[own.start] is None and self._stays(row, self._lanes[own.start], host_rows[own.start]):
                updates.append(Update(row, [], [], finished=False))
                lanes.append(self._lanes[own.start])
                sources.append(own.start)
                continue
            update, after = self._take_one(row, self._lanes[own], host_rows[own], records[own])
            updates.append(update)
            for lane, place in after:
                lanes.append(lane)
                sources.append(_FRESH if place == _FRESH else own.start + place)
        self._rearrange(_with_fallback(result.state, None), lanes, sources)
        return updates

    def _outside_vocabulary(self) -> ContractError:
        size = self._model.config.vocab_size
        return ContractError(f"decoder {self.decoder.name!r} gave token ids that are not below {size}, the vocabulary.")

    def _stays(self, row: Sequence, lane: _Lane, host_row: list[int]) -> bool:
        """Take a pass after which a sequence's only block goes on, as after most passes; False where there is more."""
        length = self.block_length
        if host_row[-1] or row.blocks_rule.buffer_size > 1:
            return False
        row.revisions += sum(host_row[length:-1])
        lane.masks = host_row[lane.first_active : length].count(self._model.config.mask_token_id)
        return True

    def _take_one(
        self, row: Sequence, lanes: list[_Lane], host_rows: list[list[int]], records: list[PassRecord | None]
    ) -> tuple[Update, list[tuple[_Lane, int]]]:
        """One sequence's part: what became final, and which of its blocks go on, with their rows (or begin)."""
        config, length = self._model.config, self.block_length
        slots: list[SlotView] = []
        moved: list[_Lane] = []
        for lane, host_row in zip(lanes, host_rows, strict=True):
            answer, revisions = host_row[lane.first_active : length], sum(host_row[length:-1])
            masks = answer.count(config.mask_token_id)
            before = lane.active - lane.masks
            stability = 1 - revisions / before if before else 1.0
            slots.append(
                SlotView(1 - masks / lane.active, stability, config.eos_token_id in answer, bool(host_row[-1]))
            )
            moved.append(replace(lane, masks=masks))
            row.revisions += revisions
        final = row.blocks_rule.final(slots)
        made = [replace(record, final=index < final) for index, record in enumerate(records) if record is not None]
        if row.params.trace:
            row.trace += made
        final_ids: list[int] = []
        for host_row in host_rows[:final]:
            if row.ending is None:
                final_ids += row.close_block(host_row[:length])
        after = list(zip(moved, range(len(moved)), strict=True))[final:]
        end = row.block_start + len(after) * self.block_length
        if not after or (row.blocks_rule.may_start_next(slots[final:]) and end < row.furthest_end):
            after.append((self._lane(row, len(after)), _FRESH))
        row.open_blocks = len(after)
        return Update(row, final_ids, made, row.ending is not None), after

    def _rearrange(self, state: BlockState, lanes: list[_Lane], sources: list[int]) -> None:
        """Take the rows that go on, and fresh blocks of masks where blocks begin; those are all answer."""
        self._lanes = lanes
        rows = state.tokens.shape[0]
        begins = [source == _FRESH for source in sources]
        if len(sources) == rows and all(
            new or source == place for place, (new, source) in enumerate(zip(begins, sources, strict=True))
        ):
            if any(begins):
                begins_B = torch.tensor(begins, device=state.tokens.device)
                state = state.restart(begins_B, state.tokens, torch.ones_like(state.active))
            self._state = state
            return
        fresh = BlockState.start(state.tokens[:1], torch.ones_like(state.active[:1]), state.mask_token_id)
        order = [rows if source == _FRESH else source for source in sources]
        self._state = select_rows(join_rows(state, fresh), self._places(order))

    def _records(self, on_host_BW: Tensor) -> list[PassRecord | None]:
        """The records that somebody asked for; where nobody did, this costs nothing."""
        length, wanted = self.block_length, self._recorded
        if not any(wanted):
            return [None] * len(wanted)
        tokens_BL, revised_BL, _, promoted_BL, bits_BL = on_host_BW.split([length, length, 1, length, length], 1)
        confidence_BL = bits_BL.to(torch.int32).view(torch.float32)
        tokens, revised, promoted, confidence = (
            part.tolist() for part in (tokens_BL, revised_BL, promoted_BL, confidence_BL)
        )
        return [
            PassRecord(
                pass_number=lane.sequence.passes,
                block=lane.start // length,
                start=lane.start,
                tokens=tokens[place],
                confidence=confidence[place],
                promoted=_offsets(promoted[place]),
                revised=_offsets(revised[place]),
                active=list(range(lane.first_active, length)),
                final=False,
            )
            if asked
            else None
            for place, (lane, asked) in enumerate(zip(self._lanes, wanted, strict=True))
        ]


def _with_fallback(state: BlockState, fallback: Tensor | None) -> BlockState:
    return state if state.fallback is fallback else replace(state, fallback=fallback)


def _offsets(flags: list[int]) -> list[int]:
    return [offset for offset, flag in enumerate(flags) if flag]
