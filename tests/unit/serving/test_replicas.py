"""Requests whose replica is lost: another one goes on, and the client notices nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from copy import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmax import GenerationOutput, GenerationParams, PassRecord, RequestUpdate
from dmax.serving.errors import ApiError, queue_full
from dmax.serving.replicas import MAX_LOSSES, ReplicaLost, Reply, ResumableAnswer, any_ready, ask_in_time

IDS = [5, 6, 7, 8, 9, 10]
PARAMS = GenerationParams(seed=3)


def output(ids: Sequence[int]) -> GenerationOutput:
    return GenerationOutput(
        text=" ".join(map(str, ids)), token_ids=list(ids), num_tokens=len(ids), passes=3, nfe=3, blocks=1, revisions=0,
        tpf=2.0, tps=1.0, seconds=1e9, finish_reason="length", decoder="soft-parallel", params={},
    )  # fmt: skip


def record(number: int) -> PassRecord:
    return PassRecord(number, 0, 0, [number], [0.5], [0], [], [0], False)


def script(ids: Sequence[int], sizes: Sequence[int]) -> list[Reply]:
    """What a replica that answers ``ids`` in parts of these sizes sends."""
    replies: list[Reply] = [None]
    rest, number = list(ids), 0
    for size in sizes:
        number += 1
        replies.append(RequestUpdate("r", rest[:size], [record(number)], None, None))
        del rest[:size]
    return [*replies, RequestUpdate("r", rest, [record(number + 1)], output(ids), None)]


class Replica:
    """Sends its script, and is lost before the reply of this number."""

    def __init__(self, replies: Sequence[Reply], lost_at: int | None = None) -> None:
        self.replies = replies if lost_at is None else replies[:lost_at]
        self.is_lost = len(self.replies) < len(replies)
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[Reply]:
        for reply in self.replies:
            await asyncio.sleep(0)
            yield reply
        if self.is_lost:
            raise ReplicaLost

    def cancel(self) -> None:
        self.cancelled = True


def updates_of(replicas: Sequence[Replica]) -> list[RequestUpdate]:
    """What a client sees that meets these replicas one after another."""
    waiting = iter(replicas)

    async def collect() -> list[RequestUpdate]:
        answer = await ask_in_time(lambda *_: next(waiting), [1, 2], PARAMS, 10)
        return [update async for update in answer]

    return asyncio.run(collect())


sizes = st.lists(st.integers(0, 3), max_size=4)


@given(st.lists(st.tuples(sizes, st.integers(0, 4)), max_size=MAX_LOSSES), sizes)
def test_tokens_and_passes_come_once_and_in_order(losses: list[tuple[list[int], int]], last: list[int]) -> None:
    lost = [Replica(script(IDS, parts), lost_at) for parts, lost_at in losses]
    seen = updates_of([*lost, Replica(script(IDS, last))])
    assert [token_id for update in seen for token_id in update.final_ids] == IDS
    numbers = [passed.pass_number for update in seen for passed in update.records]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [update.output for update in seen[:-1]] == [None] * (len(seen) - 1)
    assert seen[-1].output is not None
    assert seen[-1].output.token_ids == IDS
    assert seen[-1].output.seconds < 1e6, "the time of the whole request, not the last replica's"


def test_after_a_different_beginning_only_the_output_is_handed_on() -> None:
    other = [5, 99, 7, 8, 9, 10]
    seen = updates_of([Replica(script(IDS, [2, 2]), lost_at=2), Replica(script(other, [1, 3]))])
    assert [update.final_ids for update in seen] == [[5, 6], [], [], []]
    assert seen[-1].output is not None
    assert seen[-1].output.token_ids == other


@pytest.mark.parametrize("lost_at", [0, 1, 2])
def test_a_request_that_takes_down_every_replica_is_given_up(lost_at: int) -> None:
    replicas = [Replica(script(IDS, [2]), lost_at) for _ in range(MAX_LOSSES + 2)]
    with pytest.raises(ApiError) as refusal:
        updates_of(replicas)
    assert refusal.value.status == 503
    assert refusal.value.headers["Retry-After"]


@pytest.mark.parametrize("place", [0, 2])
def test_what_a_replica_refuses_is_not_asked_again(place: int) -> None:
    replies = [*script(IDS, [2, 2])[:place], queue_full(4)]
    with pytest.raises(ApiError) as refusal:
        updates_of([Replica(replies)])
    assert refusal.value.status == 429


def test_leaving_early_gives_the_request_up() -> None:
    replica = Replica(script(IDS, [2, 2]))

    async def leave() -> None:
        answer = ResumableAnswer(lambda *_: replica, [1], PARAMS)
        await answer.begin()
        async for _ in answer:
            break
        answer.close()

    asyncio.run(leave())
    assert replica.cancelled


def test_waiting_for_room_has_an_end() -> None:
    class Busy(Replica):
        async def __aiter__(self) -> AsyncIterator[Reply]:
            await asyncio.sleep(60)
            yield None

    busy = Busy([])
    with pytest.raises(ApiError) as refusal:
        asyncio.run(ask_in_time(lambda *_: busy, [1], PARAMS, 0.01))
    assert refusal.value.status == 504
    assert busy.cancelled


def test_refusals_cross_process_borders_whole() -> None:
    sent = queue_full(7)
    received = copy(sent)  # by the protocol that pickling has too
    assert (received.status, received.body(), received.headers) == (429, sent.body(), sent.headers)


@pytest.mark.parametrize(
    ("replies", "ready"),
    [
        ([True, True], True),
        ([False, RuntimeError("gone"), True], True),
        ([False, RuntimeError("gone")], False),
        ([], False),
        (RuntimeError("nobody can be asked"), False),
        (None, False),
    ],
)
def test_one_replica_that_takes_requests_is_enough(replies: Sequence[object] | Exception | None, ready: bool) -> None:
    async def asked() -> Sequence[object]:
        if isinstance(replies, Exception):
            raise replies
        if replies is None:
            await asyncio.sleep(60)
        return replies or []

    assert asyncio.run(any_ready(asked(), seconds=0.2)) is ready
