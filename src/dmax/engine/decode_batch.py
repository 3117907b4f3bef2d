"""Sequences that share a decoder and a block length, and the state of their blocks in flight.

Every block in flight is one row of the state; the rows of a sequence are neighbours, in the order of its blocks.

Shape suffixes: B rows, L block positions, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import groupby, islice

import torch
from torch import Tensor

from dmax.decoding import BlockState, BlockView, Decoder, StepResult
from dmax.decoding.contract import ContractError, tokens_or_none
from dmax.decoding.registry import is_built_in
from dmax.engine.backends import Backend, Decided, PassInput
from dmax.engine.block_states import join_rows, select_rows
from dmax.engine.outputs import PassRecord, RequestUpdate, nan_logits
from dmax.engine.progress import close_blocks, pass_record, rule_for, shut_out
from dmax.engine.sequence import Sequence
from dmax.models.transformer import BlockDiffusionLM

_INFINITY, _ALL_BUT_SIGN = 0x7F800000, 0x7FFFFFFF
"""Bits of float32; those of NaN, the sign apart, are above those of infinity."""
_FRESH = -1
"""Stands for a block that begins, among the numbers of rows that go on."""


@dataclass(slots=True)
class _OpenBlock:
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
        return self.sequence.block_length - self.first_active

    @property
    def decoded(self) -> float:
        """Share of the answer positions that are no masks any more."""
        return 1 - self.masks / self.active


class DecodeBatch:
    """Sequences that step together. What one is given never depends on the others.

    Args:
        model: in eval mode.
        backend: computes the passes.
        decoder: the rule; it is given all blocks at once.
        block_length: of all sequences.
    """

    def __init__(self, model: BlockDiffusionLM, backend: Backend, decoder: Decoder, block_length: int) -> None:
        self.decoder = decoder
        self.block_length = block_length
        self.sequences: list[Sequence] = []
        self._model = model
        self._checked = not is_built_in(decoder)
        self._recorded: list[bool] = []
        self._open: list[_OpenBlock] = []
        self._backend = backend
        self._blocks: PassInput | None = None
        self._hidden_BLD: Tensor | None = None

    @property
    def positions(self) -> int:
        """Positions of all blocks in flight."""
        return len(self._open) * self.block_length

    def add(self, sequences: list[Sequence]) -> None:
        """Begin sequences' current blocks, or go on with their blocks where they were preempted."""
        states = [] if self._blocks is None else [self._blocks.state]
        for preempted, run in groupby(sequences, key=lambda sequence: sequence.paused is not None):
            neighbours = list(run)
            states += map(self._resume, neighbours) if preempted else [self._begin(neighbours)]
        self._blocks = PassInput(reduce(join_rows, states))
        self.sequences += sequences

    def _begin(self, sequences: list[Sequence]) -> BlockState:
        """Make the current blocks of sequences that come for the first time."""
        for sequence in sequences:
            if self.decoder.temperature > 0:
                sequence.seed_generator(self._model.device)
        self._open += [self._open_block(sequence, 0) for sequence in sequences]
        length, mask, device = self.block_length, self._model.config.mask_token_id, self._model.device
        blocks = [
            sequence.tokens[sequence.block_start :] + [mask] * (length - sequence.first_active)
            for sequence in sequences
        ]
        active = [[offset >= sequence.first_active for offset in range(length)] for sequence in sequences]
        return BlockState.start(torch.tensor(blocks, device=device), torch.tensor(active, device=device), mask)

    def _resume(self, sequence: Sequence) -> BlockState:
        """Take back the blocks of a sequence that was preempted."""
        state = sequence.resume()
        self._open += [
            self._open_block(sequence, index, masks) for index, masks in enumerate(state.masked.sum(1).tolist())
        ]
        return state

    def _open_block(self, sequence: Sequence, index: int, masks: int | None = None) -> _OpenBlock:
        """Make the ``index``-th block in flight of a sequence; by default all its answer positions are masks."""
        first_active = 0 if index else sequence.first_active
        fresh = self.block_length - first_active
        return _OpenBlock(
            sequence, sequence.block_start + index * self.block_length, first_active, fresh if masks is None else masks
        )

    def remove(self, sequences: Collection[Sequence], *, pause: bool = False) -> None:
        """Let those sequences go that are here; ``pause`` leaves them their blocks, so that they can be added again."""
        own: dict[Sequence, list[int]] = {sequence: [] for sequence in sequences}
        kept: list[int] = []
        for place, block in enumerate(self._open):
            own.get(block.sequence, kept).append(place)
        if len(kept) == len(self._open):
            return
        state = self._current().state
        if pause:
            for sequence, places in own.items():
                if places:
                    sequence.pause(select_rows(state, self._places(places)))
        self.sequences = [sequence for sequence in self.sequences if sequence not in own]
        self._open = [self._open[place] for place in kept]
        self._blocks = PassInput(select_rows(state, self._places(kept))) if kept else None

    def _places(self, places: list[int]) -> Tensor:
        return torch.tensor(places, dtype=torch.int64, device=self._model.device)

    def embeddings(self) -> Tensor:
        """Return ``(B, L, D)``, what the next pass reads at the blocks in flight."""
        blocks = self._current()
        return self._backend.embed(blocks.state) if blocks.embeds_BLD is None else blocks.embeds_BLD

    def _current(self) -> PassInput:
        assert self._blocks is not None
        return self._blocks

    def will_go_on(self) -> bool:
        """Tell whether no block is likely to end in the pass that is under way, by what is known of the one before.

        Half of a block's positions are still masks then. Nothing may depend on how often a pass is computed, as drawn
        tokens do.
        """
        plain = self.decoder.temperature == 0 and not self._checked and not any(self._recorded)
        return plain and all(
            block.sequence.params.buffer_size == 1
            and block.sequence.constraint is None
            and block.sequence.params.logprobs is None
            and 2 * block.masks > block.active
            for block in self._open
        )

    def assume(self, decided: Decided) -> None:
        """Stand where a pass has led to if all blocks go on, until :meth:`take` tells where they do stand."""
        self._blocks = decided.after

    def stands_at(self, decided: Decided) -> bool:
        """Tell whether all blocks have gone on after a pass that was taken."""
        return self._blocks is decided.after

    def step(self, hidden_BLD: Tensor, record_all: bool) -> tuple[Decided, Tensor]:
        """Apply the decoder to hidden states of the blocks in flight.

        Args:
            hidden_BLD: of the model, after the final norm.
            record_all: whether every sequence's pass is recorded, or only those whose params ask for it.

        Returns:
            The decision, and ``(B, W)`` int64 with what the host needs of it: :attr:`Decided.for_host_BW`; where passes
            are recorded, which tokens were promoted and the bits of the confidences, too, so that the host waits once
            for all of it.

        Raises:
            ContractError: the decoder gave no result of a pass; a third-party one may raise anything, too.
        """
        blocks = self._current().with_fallback(self._fallback())
        rule = rule_for(self.decoder, [block.sequence for block in self._open])
        decided = self._backend.decide(rule, hidden_BLD, blocks, self._gumbel_noise)
        self._hidden_BLD = hidden_BLD
        result = decided.result
        parts = [decided.for_host_BW] if decided.for_host_BW is not None else self._for_host(result)
        self._recorded = [record_all or block.sequence.params.trace for block in self._open]
        if any(self._recorded):
            parts += [result.promoted, result.confidence.view(torch.int32)]
        return decided, parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _for_host(self, result: StepResult) -> list[Tensor]:
        vocab_size = self._model.config.vocab_size
        tokens_BL = tokens_or_none(result.state, vocab_size) if self._checked else result.state.tokens
        confidence_B1 = result.confidence.sum(-1, keepdim=True)
        return [tokens_BL, result.revised, result.converged[:, None], confidence_B1.view(torch.int32)]

    def _fallback(self) -> Tensor | None:
        """Tell which blocks promote even what is not confident; None where all do, as with one block a sequence."""
        if len(self._open) == len(self.sequences):
            return None
        opened = iter(self._open)
        falls_back: list[bool] = []
        for sequence in self.sequences:
            decoded = [block.decoded for block in islice(opened, sequence.open_blocks)]
            falls_back += sequence.blocks_rule.may_fall_back(decoded)
        return torch.tensor(falls_back, device=self._model.device)

    def _gumbel_noise(self, logits_BLV: Tensor) -> Tensor:
        """Draw standard Gumbel noise, every sequence from its own generator, so that no draws depend on the others."""
        noise_BLV = torch.empty_like(logits_BLV, dtype=torch.float32)
        for block, noise_LV in zip(self._open, noise_BLV, strict=True):
            noise_LV.exponential_(generator=block.sequence.generator)
        noise_BLV.log_().neg_()
        for block, noise_LV, logits_LV in zip(self._open, noise_BLV, logits_BLV, strict=True):
            shut_out(block.sequence, noise_LV, logits_LV, self._model.config.mask_token_id)
        return noise_BLV

    def take(self, decided: Decided, on_host_BW: Tensor) -> list[RequestUpdate]:
        """Bring sequences and state up to date with a pass.

        Args:
            decided: of :meth:`step`.
            on_host_BW: the tensor that :meth:`step` gave beside it, on the CPU.
        """
        for sequence in self.sequences:
            sequence.begin_pass()
        records = self._records(on_host_BW)
        host_rows = on_host_BW[:, : 2 * self.block_length + 2].tolist()
        updates: list[RequestUpdate] = []
        opened: list[_OpenBlock] = []
        sources: list[int] = []
        at = 0
        for sequence in self.sequences:
            own = slice(at, at + sequence.open_blocks)
            at = own.stop
            failed = self._failed(sequence, host_rows[own])
            if failed is not None:
                updates.append(failed)
                opened += self._open[own]
                sources += range(own.start, own.stop)
                continue
            if records[own.start] is None and self._stays(sequence, self._open[own.start], host_rows[own.start]):
                updates.append(sequence.update([], []))
                opened.append(self._open[own.start])
                sources.append(own.start)
                continue
            update, after = self._take_one(sequence, own, host_rows[own], records[own])
            updates.append(update)
            for block, place in after:
                opened.append(block)
                sources.append(_FRESH if place == _FRESH else own.start + place)
        self._rearrange(decided.after.with_fallback(None), opened, sources)
        return updates

    def _failed(self, sequence: Sequence, host_rows: list[list[int]]) -> RequestUpdate | None:
        """Give a sequence up whose blocks cannot go on."""
        if any(host_row[-1] & _ALL_BUT_SIGN > _INFINITY for host_row in host_rows):
            return sequence.fail(nan_logits(sequence.passes, self._model.dtype))
        if self._checked and any(host_row[0] < 0 for host_row in host_rows):
            return sequence.fail(ContractError.of_tokens(self.decoder.name, self._model.config.vocab_size))
        obstacle = sequence.obstacle
        return None if obstacle is None else sequence.fail(obstacle)

    def _stays(self, sequence: Sequence, block: _OpenBlock, host_row: list[int]) -> bool:
        """Take a pass after which a sequence's only block goes on, as after most passes; False where there is more."""
        length = self.block_length
        if host_row[-2] or sequence.blocks_rule.buffer_size > 1:
            return False
        sequence.revise(sum(host_row[length:-2]))
        block.masks = host_row[block.first_active : length].count(self._model.config.mask_token_id)
        return True

    def _take_one(
        self, sequence: Sequence, own: slice, host_rows: list[list[int]], records: list[PassRecord | None]
    ) -> tuple[RequestUpdate, list[tuple[_OpenBlock, int]]]:
        """Take one sequence's part: what became final, and which of its blocks go on, with their rows (or begin)."""
        config, length, opened = self._model.config, self.block_length, self._open[own]
        ends = sequence.stop_rule.certain_ends
        views: list[BlockView] = []
        moved: list[_OpenBlock] = []
        for block, host_row in zip(opened, host_rows, strict=True):
            answer, revisions = host_row[block.first_active : length], sum(host_row[length:-2])
            masks = answer.count(config.mask_token_id)
            before = block.active - block.masks
            stability = 1 - revisions / before if before else 1.0
            ended = any(token_id in answer for token_id in ends)
            views.append(BlockView(1 - masks / block.active, stability, ended, bool(host_row[-2])))
            moved.append(replace(block, masks=masks))
            sequence.revise(revisions)
        final = sequence.blocks_rule.final(views)
        made = [replace(record, final=index < final) for index, record in enumerate(records) if record is not None]
        tokens = [host_row[:length] for host_row in host_rows[:final]]
        answer_logits = partial(self._answer_logits, own.start)
        final_ids, logprobs = close_blocks(sequence, tokens, answer_logits, config.mask_token_id)
        after = list(zip(moved, range(len(moved)), strict=True))[final:]
        end = sequence.block_start + len(after) * self.block_length
        if not after or (sequence.blocks_rule.may_start_next(views[final:]) and end < sequence.furthest_end):
            after.append((self._open_block(sequence, len(after)), _FRESH))
        sequence.open(len(after))
        return sequence.update(final_ids, made, logprobs), after

    def _answer_logits(self, first: int, place: int, count: int) -> Tensor:
        """Compute those of the last ``count`` positions of a block: ``(count, V)``.

        Args:
            first: row of the first block in flight of its sequence.
            place: of the block among them.
            count: of positions.
        """
        assert self._hidden_BLD is not None
        # Block by block, so that nothing depends on the others.
        row = first + place
        return self._backend.modules.head(self._hidden_BLD[row : row + 1])[0, -count:]

    def _rearrange(self, blocks: PassInput, opened: list[_OpenBlock], sources: list[int]) -> None:
        """Take the rows that go on, and fresh blocks of masks where blocks begin; those are all answer."""
        self._open = opened
        state = blocks.state
        rows = state.tokens.shape[0]
        begins = [source == _FRESH for source in sources]
        if len(sources) == rows and all(
            new or source == place for place, (new, source) in enumerate(zip(begins, sources, strict=True))
        ):
            if any(begins):
                begins_B = torch.tensor(begins, device=state.tokens.device)
                blocks = PassInput(state.restart(begins_B, state.tokens, torch.ones_like(state.active)))
            self._blocks = blocks
            return
        fresh = BlockState.start(state.tokens[:1], torch.ones_like(state.active[:1]), state.mask_token_id)
        order = [rows if source == _FRESH else source for source in sources]
        self._blocks = PassInput(select_rows(join_rows(state, fresh), self._places(order)))

    def _records(self, on_host_BW: Tensor) -> list[PassRecord | None]:
        """Make the records that were asked for; where there are none, this costs nothing."""
        length, wanted = self.block_length, self._recorded
        if not any(wanted):
            return [None] * len(wanted)
        tokens_BL, revised_BL, _, promoted_BL, bits_BL = on_host_BW.split([length, length, 2, length, length], 1)
        confidence_BL = bits_BL.to(torch.int32).view(torch.float32)
        tokens, revised, promoted, confidence = (
            part.tolist() for part in (tokens_BL, revised_BL, promoted_BL, confidence_BL)
        )
        return [
            pass_record(block.sequence, block.start, tokens[place], confidence[place], promoted[place], revised[place])
            if asked
            else None
            for place, (block, asked) in enumerate(zip(self._open, wanted, strict=True))
        ]
