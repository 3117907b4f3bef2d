"""A row's blocks are cut from position 0, whatever of them the prompt fills."""

from __future__ import annotations

import pytest

from dmax.decoding import get_decoder
from dmax.engine.params import GenerationParams
from dmax.engine.sequence import Sequence
from dmax.engine.stopping import StopRule

EOS = 2


def sequence(prompt_length: int, gen_length: int, block_length: int = 4) -> Sequence:
    params = GenerationParams(gen_length=gen_length, block_length=block_length)
    return Sequence("a", [9] * prompt_length, params, StopRule((EOS,), gen_length), get_decoder("threshold"))


@pytest.mark.parametrize(
    ("prompt_length", "block_start", "first_active", "prefilled"),
    [(0, 0, 0, False), (3, 0, 3, False), (4, 4, 0, True), (9, 8, 1, True)],
)
def test_the_first_block_begins_with_the_tail_of_the_prompt(
    prompt_length: int, block_start: int, first_active: int, prefilled: bool
) -> None:
    row = sequence(prompt_length, gen_length=6)
    assert (row.block_start, row.first_active) == (block_start, first_active)
    assert row.prompt_blocks_end == block_start
    row.passes = 5
    assert row.nfe == 5 + prefilled


def test_blocks_follow_one_another_to_the_end() -> None:
    row = sequence(prompt_length=5, gen_length=6)
    row.close_block([9, 10, 11, 12])
    assert (row.block_start, row.first_active, row.ending) == (8, 0, None)
    row.close_block([13, 14, 15, 16])
    assert row.ending is not None
    assert row.ending.token_ids == [10, 11, 12, 13, 14, 15]
    assert row.ending.reason == "length"


def test_an_eos_in_the_prompts_tail_is_not_the_answers() -> None:
    params = GenerationParams(gen_length=8, block_length=4)
    row = Sequence("a", [9, EOS], params, StopRule((EOS,), 8), get_decoder("threshold"))
    row.close_block([9, EOS, 10, 11])
    assert row.ending is None
    row.close_block([12, EOS, EOS, EOS])
    assert row.ending is not None
    assert row.ending.token_ids == [10, 11, 12, EOS]


@pytest.mark.parametrize(("prompt_length", "gen_length", "end"), [(0, 1, 4), (4, 4, 8), (5, 4, 12), (0, 8, 8)])
def test_the_last_block_is_decoded_whole(prompt_length: int, gen_length: int, end: int) -> None:
    assert sequence(prompt_length, gen_length).furthest_end == end
