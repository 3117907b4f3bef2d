"""The loop's bookkeeping, with a decoder that does what its script says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from dmax.decoding import BlockState, StepResult
from dmax.engine.loop import DecodeLoop
from dmax.engine.outputs import PassRecord
from dmax.engine.params import GenerationParams
from dmax.engine.runner import CachedRunner
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


def rows_with(prompt_and_gen_lengths: list[tuple[int, int]], trace: bool = False) -> list[Sequence]:
    return [
        Sequence(
            index,
            [9] * prompt_length,
            GenerationParams(gen_length=gen_length, block_length=LENGTH, seed=index, trace=trace),
            StopRule(EOS, gen_length),
        )
        for index, (prompt_length, gen_length) in enumerate(prompt_and_gen_lengths)
    ]


def run(model: LLaDA2, rows: list[Sequence], decoder: CountingDecoder, capacity: int = 8, **options: object) -> None:
    slots = min(capacity, len(rows))
    runner = CachedRunner(model, LENGTH, slots, max(row.furthest_end for row in rows))
    DecodeLoop(model, decoder, runner, LENGTH, slots, **options).run(rows, started=0.0)


def test_rows_are_counted_and_end_by_themselves(tiny_model: LLaDA2) -> None:
    rows = rows_with([(0, 4), (5, 3), (4, 9), (1, 1)])
    decoder = CountingDecoder()
    run(tiny_model, rows, decoder)
    assert [row.passes for row in rows] == [4, 3, 12, 3]
    assert [row.nfe for row in rows] == [4, 4, 13, 3]
    assert decoder.batch_sizes == [4] * 3 + [2] + [1] * 8
    endings = [row.ending for row in rows]
    assert [ending.token_ids for ending in endings if ending] == [
        [20, 21, 22, 23],
        [21, 22, 23],
        [20, 21, 22, 23, 20, 21, 22, 23, 20],
        [21],
    ]


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_waiting_rows_take_the_places_of_those_that_have_ended(tiny_model: LLaDA2, capacity: int) -> None:
    lengths = [(0, 4), (5, 3), (4, 9), (1, 1), (8, 8)]
    together, queued = rows_with(lengths), rows_with(lengths)
    run(tiny_model, together, CountingDecoder())
    decoder = CountingDecoder()
    run(tiny_model, queued, decoder, capacity)
    assert max(decoder.batch_sizes) == capacity
    assert [row.ending for row in queued] == [row.ending for row in together]
    assert [row.passes for row in queued] == [row.passes for row in together]


def test_records_say_what_happened(tiny_model: LLaDA2) -> None:
    row = rows_with([(6, 3)], trace=True)[0]
    heard: list[tuple[int, PassRecord]] = []
    run(tiny_model, [row], CountingDecoder(), on_pass=lambda index, record: heard.append((index, record)))
    assert heard == [(0, record) for record in row.trace]
    assert [(record.block, record.start, record.final) for record in row.trace] == (
        [(1, 4, False), (1, 4, True)] + [(2, 8, False)] * 3 + [(2, 8, True)]
    )
    first, second, third = row.trace[:3]
    assert (first.tokens, first.promoted, first.active) == ([9, 9, 22, 1], [2], [2, 3])
    assert (second.tokens, second.promoted, second.revised) == ([9, 9, 22, 23], [3], [])
    assert (third.tokens, third.active) == ([20, 1, 1, 1], [0, 1, 2, 3])
    assert first.confidence == [0.5] * LENGTH


def test_nothing_is_recorded_unasked(tiny_model: LLaDA2) -> None:
    asking, silent = rows_with([(0, 4)], trace=True)[0], rows_with([(0, 4), (0, 4)])[1]
    run(tiny_model, [asking, silent], CountingDecoder())
    assert len(asking.trace) == 4
    assert silent.trace == []


def test_greedy_decoders_get_no_noise(tiny_model: LLaDA2) -> None:
    decoder = CountingDecoder()
    run(tiny_model, rows_with([(0, 4)]), decoder)
    assert decoder.noises == [None] * 4


def test_noise_is_standard_gumbel_and_each_rows_own(tiny_model: LLaDA2) -> None:
    together, alone = CountingDecoder(temperature=1.0), CountingDecoder(temperature=1.0)
    run(tiny_model, rows_with([(0, 40), (3, 40), (7, 40)]), together)
    run(tiny_model, rows_with([(0, 40), (3, 40)])[1:], alone)
    noise = torch.cat([draw[0].flatten() for draw in together.noises if draw is not None])
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.05)  # Euler's constant
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.1)
    for batched, single in zip(together.noises, alone.noises, strict=False):
        assert batched is not None
        assert single is not None
        torch.testing.assert_close(batched[1], single[0], rtol=0, atol=0)
    assert not torch.equal(together.noises[0][0], together.noises[0][1])
