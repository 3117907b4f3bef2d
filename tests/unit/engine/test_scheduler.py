"""Admission, chunks and preemption, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dmax.decoding import get_decoder
from dmax.engine.page_allocator import PagePool, page_keys
from dmax.engine.params import GenerationParams
from dmax.engine.scheduler import Scheduler
from dmax.engine.sequence import Sequence
from dmax.engine.stopping import StopRule

LENGTH = 4


def sequence(name: str, prompt_length: int, gen_length: int = 8, first_token: int = 9) -> Sequence:
    params = GenerationParams(gen_length=gen_length, block_length=LENGTH)
    tokens = [first_token] * prompt_length
    return Sequence(name, tokens, params, StopRule((2,), gen_length), get_decoder("threshold"))


def scheduler(pages: int, max_batch_size: int = 8, prefill_tokens: int = 8, reuse: bool = False) -> Scheduler:
    return Scheduler(PagePool(pages), LENGTH, max_batch_size, prefill_tokens, reuse)


def run_chunks(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    scheduled = scheduler.schedule()
    for chunk in scheduled.chunks:
        scheduler.stored(chunk.sequence, chunk.end)
    return [(chunk.sequence.request_id, chunk.start, chunk.end) for chunk in scheduled.chunks]


def test_a_prompt_inside_its_first_block_decodes_at_once() -> None:
    queue = scheduler(pages=4)
    row = sequence("a", 3)
    queue.add(row)
    scheduled = queue.schedule()
    assert (scheduled.starting, scheduled.chunks) == ([row], [])
    assert len(row.pages) == 1


def test_prompts_are_stored_in_chunks_of_whole_blocks_and_the_oldest_goes_first() -> None:
    queue = scheduler(pages=64, prefill_tokens=10)
    busy, long, short = sequence("busy", 2), sequence("long", 21), sequence("short", 9)
    queue.add(busy)
    queue.schedule()
    for row in (long, short):
        queue.add(row)
    assert run_chunks(queue) == [("long", 0, 8)]
    assert run_chunks(queue) == [("long", 8, 16)]
    assert run_chunks(queue) == [("long", 16, 20), ("short", 0, 4)]
    scheduled = queue.schedule()
    assert scheduled.starting == [long]
    assert [(chunk.start, chunk.end) for chunk in scheduled.chunks] == [(4, 8)]


def test_a_budget_below_a_block_still_lets_prompts_through() -> None:
    queue = scheduler(pages=64, prefill_tokens=1)
    queue.add(sequence("busy", 0))
    queue.schedule()
    queue.add(sequence("next", 8))
    assert run_chunks(queue) == [("next", 0, 4)]


def test_while_nobody_decodes_prompts_have_the_whole_step() -> None:
    queue = scheduler(pages=64, prefill_tokens=4)
    queue.add(sequence("a", 20))
    queue.add(sequence("b", 8))
    assert run_chunks(queue) == [("a", 0, 20), ("b", 0, 8)]


def test_who_finds_no_pages_or_no_place_waits() -> None:
    queue = scheduler(pages=3, max_batch_size=2)
    rows = [sequence(name, 0, gen_length=4) for name in "abc"]
    for row in rows:
        queue.add(row)
    assert queue.schedule().starting == rows[:2]
    queue.remove(rows[0])
    assert queue.schedule().starting == rows[2:]
    big = sequence("big", 8, gen_length=4)
    queue.add(big)
    queue.remove(rows[1])
    assert queue.schedule().chunks == [], "three pages are needed and two are free"
    queue.remove(rows[2])
    assert [chunk.sequence for chunk in queue.schedule().chunks] == [big]


def test_admission_leaves_a_page_to_those_that_still_grow() -> None:
    queue = scheduler(pages=3)
    growing, other = sequence("growing", 0, gen_length=8), sequence("other", 7, gen_length=1)
    queue.add(growing)
    queue.schedule()
    queue.add(other)
    assert queue.schedule().chunks == []
    growing.close_block([5] * LENGTH)
    queue.schedule()
    assert len(growing.pages) == 2
    queue.remove(growing)
    assert [chunk.sequence for chunk in queue.schedule().chunks] == [other]


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    queue = scheduler(pages=4)
    old, young, late = (sequence(name, 0, gen_length=12) for name in ("old", "young", "late"))
    queue.add(old)
    queue.add(young)
    assert queue.schedule().starting == [old, young]
    queue.add(late)
    for row in (old, young):
        row.close_block([5] * LENGTH)
        queue.stored(row, LENGTH)
    assert queue.schedule().preempted == []
    old.close_block([6] * LENGTH)
    scheduled = queue.schedule()
    assert scheduled.preempted == [young]
    assert (young.pages, young.stored, queue.preemptions) == ([], 0, 1)
    assert list(queue.waiting) == [young, late]
    queue.remove(old)
    scheduled = queue.schedule()
    assert [(chunk.sequence, chunk.start, chunk.end) for chunk in scheduled.chunks] == [(young, 0, LENGTH)], (
        "its tokens so far are stored again"
    )


def test_prompts_that_begin_alike_share_pages() -> None:
    queue = scheduler(pages=16, reuse=True)
    first, second, other = sequence("a", 11), sequence("b", 14), sequence("c", 11, first_token=8)
    queue.add(first)
    assert run_chunks(queue) == [("a", 0, 8)]
    queue.add(second)
    queue.add(other)
    assert run_chunks(queue) == [("b", 8, 12), ("c", 0, 4)]
    assert second.pages[:2] == first.pages[:2]
    assert not set(other.pages) & set(first.pages)


def test_an_admission_is_counted_once_and_a_prompt_that_waits_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counting(tokens: list[int], *arguments: Any) -> Iterator[bytes]:
        hashed.append(len(tokens))
        return page_keys(tokens, *arguments)

    pool = PagePool(6)
    queue = Scheduler(pool, LENGTH, max_batch_size=8, prefill_tokens=64, reuse_prefixes=True)
    first, second = sequence("a", 11), sequence("b", 15, first_token=8)
    queue.add(first)
    run_chunks(queue)
    queue.add(second)
    monkeypatch.setattr("dmax.engine.scheduler.page_keys", counting)
    for _ in range(5):
        assert run_chunks(queue) == [], "six pages do not hold both"
    assert hashed == [12]
    assert (pool.queries, pool.hits) == (2, 0)
    queue.remove(first)
    again = sequence("c", 11)
    queue.add(again)
    assert run_chunks(queue) == [("b", 0, 12)]
    queue.remove(second)
    queue.schedule()
    assert (pool.queries, pool.hits) == (7, 2)


def test_an_answers_blocks_serve_the_next_turn() -> None:
    queue = scheduler(pages=16, reuse=True)
    row = sequence("a", 6, gen_length=8)
    queue.add(row)
    run_chunks(queue)
    queue.schedule()
    row.close_block([9, 9, 5, 6])
    queue.stored(row, 8)
    row.close_block([7, 7, 7, 2])
    queue.remove(row)
    turn = sequence("b", 13)
    turn.tokens[:13] = [*row.tokens, 9]
    queue.add(turn)
    queue.schedule()
    assert turn.stored == 8, "the last block was never stored, so it is not there"


@pytest.mark.parametrize("block_length", [8, 3])
def test_pages_that_blocks_do_not_fill_evenly_are_not_shared(block_length: int) -> None:
    queue = scheduler(pages=16, reuse=True)
    for name in "ab":
        row = sequence(name, 16)
        row.params = GenerationParams(gen_length=8, block_length=block_length)
        queue.add(row)
        queue.schedule()
        queue.stored(row, row.block_start)
        assert row.keys == []
