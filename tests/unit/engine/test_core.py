"""The engine's bookkeeping, with a decoder that does what its script says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmax.decoding import BlockState, StepResult
from dmax.engine.core import EngineCore
from dmax.engine.group import Update
from dmax.engine.params import GenerationParams
from dmax.engine.reference import UncachedCore
from dmax.engine.sequence import Sequence
from dmax.engine.stopping import StopRule
from dmax.models import LLaDA2

EOS, LENGTH = 2, 4


@dataclass
class CountingDecoder:
    """Promotes one mask a pass, from the left, as the token ``20 + place in the block``."""

    name: str = "counting"
    temperature: float = 0.0
    batch_sizes: list[int] = field(default_factory=list)
    noises: list[Tensor | None] = field(default_factory=list)

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        self.batch_sizes.append(logits.shape[0])
        self.noises.append(noise)
        first = state.masked & (state.masked.cumsum(-1) == 1)
        tokens = torch.where(first, 20 + torch.arange(LENGTH), state.tokens)
        masked = state.masked & ~first
        return StepResult(
            state=replace(state, tokens=tokens, masked=masked, passes=state.passes + 1),
            confidence=torch.full(tokens.shape, 0.5),
            promoted=first,
            revised=torch.zeros_like(first),
            converged=~masked.any(-1),
        )


class BrokenDecoder(CountingDecoder):
    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        if len(self.batch_sizes) == 2:
            raise RuntimeError("out of ideas")
        return super().step(logits, state, noise)


def rows_with(
    prompt_and_gen_lengths: list[tuple[int, int]], decoder: CountingDecoder, trace: bool = False
) -> list[Sequence]:
    return [
        Sequence(
            str(index),
            [9] * prompt_length,
            GenerationParams(gen_length=gen_length, block_length=LENGTH, seed=index, trace=trace),
            StopRule(EOS, gen_length),
            decoder,
        )
        for index, (prompt_length, gen_length) in enumerate(prompt_and_gen_lengths)
    ]


def run(model: LLaDA2, rows: list[Sequence], kind: type[EngineCore] = EngineCore, **settings: Any) -> list[Update]:
    limits = {"pages": 64, "page_length": LENGTH, "max_batch_size": 8, "prefill_tokens": 64, **settings}
    core = kind(model, **limits)
    for row in rows:
        core.add(row)
    updates: list[Update] = []
    while core.busy():
        updates += core.step()
    assert core.pool.held == 0, "pages of ended sequences are free"
    assert core.step() == []
    return updates


def test_rows_are_counted_and_end_by_themselves(tiny_model: LLaDA2) -> None:
    decoder = CountingDecoder()
    rows = rows_with([(0, 4), (5, 3), (4, 9), (1, 1)], decoder)
    run(tiny_model, rows)
    assert [row.passes for row in rows] == [4, 3, 12, 3]
    assert [row.nfe for row in rows] == [4, 4, 13, 3]
    assert [row.blocks for row in rows] == [1, 1, 3, 1]
    assert [row.ending.token_ids for row in rows if row.ending] == [
        [20, 21, 22, 23],
        [21, 22, 23],
        [20, 21, 22, 23, 20, 21, 22, 23, 20],
        [21],
    ]
    # Those without whole blocks decode while the prompts of the others are stored.
    assert decoder.batch_sizes == [2] + [4] * 2 + [3] + [1] * 9


@pytest.mark.parametrize("capacity", [1, 2, 3])
@pytest.mark.parametrize("kind", [EngineCore, UncachedCore])
def test_waiting_rows_take_the_places_of_those_that_have_ended(
    tiny_model: LLaDA2, capacity: int, kind: type[EngineCore]
) -> None:
    lengths = [(0, 4), (5, 3), (4, 9), (1, 1), (8, 8)]
    together, queued = rows_with(lengths, CountingDecoder()), rows_with(lengths, decoder := CountingDecoder())
    run(tiny_model, together)
    run(tiny_model, queued, kind, max_batch_size=capacity)
    assert max(decoder.batch_sizes) == capacity
    assert [row.ending for row in queued] == [row.ending for row in together]
    assert [row.passes for row in queued] == [row.passes for row in together]


def test_updates_tell_what_has_become_final(tiny_model: LLaDA2) -> None:
    [row] = rows_with([(6, 5)], CountingDecoder())
    updates = run(tiny_model, [row])
    assert [update.final_ids for update in updates if update.final_ids] == [[22, 23], [20, 21, 22]]
    assert [update.finished for update in updates] == [False] * 5 + [True]


def test_records_say_what_happened(tiny_model: LLaDA2) -> None:
    [row] = rows_with([(6, 3)], CountingDecoder(), trace=True)
    updates = run(tiny_model, [row])
    assert [record for update in updates for record in update.records] == row.trace
    assert [(record.block, record.start, record.final) for record in row.trace] == (
        [(1, 4, False), (1, 4, True)] + [(2, 8, False)] * 3 + [(2, 8, True)]
    )
    assert [record.pass_number for record in row.trace] == [1, 2, 3, 4, 5, 6]
    first, second, third = row.trace[:3]
    assert (first.tokens, first.promoted, first.active) == ([9, 9, 22, 1], [2], [2, 3])
    assert (second.tokens, second.promoted, second.revised) == ([9, 9, 22, 23], [3], [])
    assert (third.tokens, third.active) == ([20, 1, 1, 1], [0, 1, 2, 3])
    assert first.confidence == [0.5] * LENGTH


def test_nothing_is_recorded_unasked(tiny_model: LLaDA2) -> None:
    decoder = CountingDecoder()
    asking, silent = rows_with([(0, 4)], decoder, trace=True)[0], rows_with([(0, 4)], decoder)[0]
    run(tiny_model, [asking, silent])
    assert len(asking.trace) == 4
    assert silent.trace == []
    [row] = rows_with([(0, 4)], CountingDecoder())
    assert all(len(update.records) == 1 for update in run(tiny_model, [row], record_passes=True))
    assert row.trace == []


def test_a_decoder_that_raises_fails_its_own_requests_only(tiny_model: LLaDA2) -> None:
    [good] = rows_with([(0, 8)], CountingDecoder())
    [bad] = rows_with([(0, 8)], BrokenDecoder())
    bad.params = replace(bad.params, threshold=0.25)
    run(tiny_model, [good, bad])
    assert good.ending is not None
    assert bad.ending is None
    assert str(bad.failure) == "out of ideas"


def test_an_interrupted_row_goes_on_with_the_state_of_its_block(tiny_model: LLaDA2) -> None:
    lengths = [(0, 12), (0, 12), (0, 12)]
    alone, crowded = rows_with(lengths, CountingDecoder()), rows_with(lengths, CountingDecoder())
    run(tiny_model, alone)
    limits = {"pages": 4, "page_length": LENGTH, "max_batch_size": 8, "prefill_tokens": 64}
    core = EngineCore(tiny_model, **limits)
    for row in crowded:
        core.add(row)
    while core.busy():
        core.step()
    assert core.scheduler.interruptions > 0
    assert [row.ending for row in crowded] == [row.ending for row in alone]
    assert [row.nfe for row in crowded] == [row.nfe for row in alone]


def test_greedy_decoders_get_no_noise(tiny_model: LLaDA2) -> None:
    decoder = CountingDecoder()
    run(tiny_model, rows_with([(0, 4)], decoder))
    assert decoder.noises == [None] * 4


def test_noise_is_standard_gumbel_and_each_rows_own(tiny_model: LLaDA2) -> None:
    together, alone = CountingDecoder(temperature=1.0), CountingDecoder(temperature=1.0)
    run(tiny_model, rows_with([(0, 44), (3, 40), (2, 40)], together))
    run(tiny_model, rows_with([(0, 40), (3, 40)], alone)[1:])
    noise = torch.cat([draw[0].flatten() for draw in together.noises if draw is not None])
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.05)  # Euler's constant
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.1)
    for batched, single in zip(together.noises, alone.noises, strict=False):
        assert batched is not None
        assert single is not None
        torch.testing.assert_close(batched[1], single[0], rtol=0, atol=0)
    first = together.noises[0]
    assert first is not None
    assert not torch.equal(first[0], first[1])


@dataclass
class ScriptedDecoder(CountingDecoder):
    """Like its parent, but a follower that does not fall back waits; blocks converge when they are whole."""

    name: str = "scripted"
    multi_block: bool = True

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        result = super().step(logits, state, noise)
        if state.fallback is None:
            return result
        goes_B1 = state.fallback[:, None]
        masked = torch.where(goes_B1, result.state.masked, state.masked)
        tokens = torch.where(goes_B1, result.state.tokens, state.tokens)
        return replace(
            result,
            state=replace(result.state, tokens=tokens, masked=masked),
            promoted=result.promoted & goes_B1,
            converged=~masked.any(-1),
        )


def multi(prompt_length: int, gen_length: int, decoder: CountingDecoder, **rule: Any) -> Sequence:
    params = GenerationParams(gen_length=gen_length, block_length=LENGTH, trace=True, **rule)
    return Sequence("0", [9] * prompt_length, params, StopRule(EOS, gen_length), decoder)


def test_blocks_in_flight_overlap_and_become_final_in_order(tiny_model: LLaDA2) -> None:
    row = multi(0, 12, ScriptedDecoder(), buffer_size=2, add_threshold=0.5, semi_threshold=0.7)
    updates = run(tiny_model, [row])
    # Block 0 has one token a pass; block 1 joins after two and waits until block 0 has more than 0.7 of its tokens.
    assert [(r.pass_number, r.block, len(r.promoted), r.final) for r in row.trace] == [
        (1, 0, 1, False),
        (2, 0, 1, False),
        (3, 0, 1, False), (3, 1, 0, False),
        (4, 0, 1, True), (4, 1, 1, False),
        (5, 1, 1, False),
        (6, 1, 1, False), (6, 2, 0, False),
        (7, 1, 1, True), (7, 2, 1, False),
        (8, 2, 1, False),
        (9, 2, 1, False),
        (10, 2, 1, True),
    ]  # fmt: skip
    assert (row.passes, row.nfe, row.blocks) == (10, 10, 3), "a pass counts once, however many blocks it carries"
    assert [update.final_ids for update in updates if update.final_ids] == [[20, 21, 22, 23]] * 3
    assert row.ending is not None
    assert row.ending.token_ids == [20, 21, 22, 23] * 3


def test_no_block_begins_behind_the_end_of_the_answer(tiny_model: LLaDA2) -> None:
    row = multi(2, 5, ScriptedDecoder(), buffer_size=4, add_threshold=0.0, semi_threshold=0.0)
    run(tiny_model, [row])
    assert {record.block for record in row.trace} == {0, 1}
    assert row.ending is not None
    assert row.ending.token_ids == [22, 23, 20, 21, 22]


@pytest.mark.parametrize("kind", [EngineCore, UncachedCore])
def test_blocks_in_flight_are_interrupted_and_go_on_together(tiny_model: LLaDA2, kind: type[EngineCore]) -> None:
    rule = {"buffer_size": 2, "add_threshold": 0.25, "semi_threshold": 0.2}
    alone, crowded = ([multi(0, 16, ScriptedDecoder(), **rule) for _ in range(3)] for _ in range(2))
    for row in alone:
        run(tiny_model, [row], kind)
    core = kind(tiny_model, pages=5, page_length=LENGTH, max_batch_size=8, prefill_tokens=64)
    for row in crowded:
        core.add(row)
    while core.busy():
        core.step()
    assert core.scheduler.interruptions > 0
    assert [row.trace for row in crowded] == [row.trace for row in alone]
