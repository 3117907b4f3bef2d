"""An engine in replicas elsewhere: what one replica began and could not finish, another one goes on with.

A request is its prompt's token ids and its params, the seed among them; what the answer is depends on nothing else. So
a request whose replica is lost can always be asked again, also where part of the answer has been streamed: the next
replica decodes it from the start, and what was handed on already is compared and left out. Where the two disagree (in
low precision a rounding can turn a close decision) nothing further is handed on before the whole output, and whoever
has sent text that contradicts it tells the client.

Nothing here knows how replicas are reached; ``ray_app`` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Protocol

from dmax.engine import GenerationParams, RequestUpdate
from dmax.serving.errors import timed_out, unavailable

MAX_LOSSES = 2
"""Replicas that a request may lose; one that takes down replica after replica must not go on for ever."""

READY_SECONDS = 5.0
"""How long replicas have to say whether they take requests; who probes a server does not wait much longer."""

Reply = RequestUpdate | Exception | None
"""What a replica sends: first None if it takes the request, then updates; an exception is the end."""


class ReplicaLost(Exception):
    """A replica is gone, and the answers that it was decoding with it."""


class Replies(Protocol):
    """What one replica sends about one request."""

    def __aiter__(self) -> AsyncIterator[Reply]:
        """Iterate over the replies.

        Raises:
            ReplicaLost: there will be no more.
        """

    def cancel(self) -> None:
        """Give the request up; harmless once it is over."""


Ask = Callable[[list[int], GenerationParams], Replies]
"""Ask any replica that has room."""


class ResumableAnswer:
    """The updates of one request, from as many replicas as it takes; see :class:`~dmax.serving.client.Answer`."""

    def __init__(self, ask: Ask, prompt: list[int], params: GenerationParams) -> None:
        self._ask = partial(ask, prompt, params)
        self._started = time.perf_counter()
        self._losses = 0
        self._over = False
        self._handed_on: list[int] = []
        self._records_handed_on = 0

    async def begin(self) -> None:
        """Wait until a replica takes the request.

        Raises:
            Exception: what the replica refuses it with.
            ApiError: too many replicas were lost.
        """
        while True:
            self._tokens_seen, self._records_seen, self._agrees = 0, 0, True
            self._replies = self._ask()
            self._incoming = aiter(self._replies)
            try:
                refusal = await anext(self._incoming)
            except ReplicaLost as error:
                self._count(error)
            except BaseException:
                self.close()
                raise
            else:
                if isinstance(refusal, Exception):
                    self._over = True
                    raise refusal
                return

    async def __aiter__(self) -> AsyncIterator[RequestUpdate]:
        try:
            while not self._over:
                try:
                    reply = await anext(self._incoming)
                except ReplicaLost as error:
                    self._count(error)
                    await self.begin()
                    continue
                if isinstance(reply, Exception):
                    self._over = True
                    raise reply
                if reply is not None:
                    self._over = reply.output is not None
                    yield self._fresh(reply)
        finally:
            self.close()

    def close(self) -> None:
        """Give the request up, if it is not over."""
        if not self._over:
            self._over = True
            self._replies.cancel()

    def _count(self, loss: ReplicaLost) -> None:
        self._losses += 1
        if self._losses > MAX_LOSSES:
            self._over = True
            raise unavailable(f"{self._losses} replicas were lost while they answered this; ask again later.") from loss

    def _fresh(self, update: RequestUpdate) -> RequestUpdate:
        """Return what of an update has not been handed on yet, with the time that the whole request took."""
        known = self._handed_on[self._tokens_seen :]
        repeated = update.final_ids[: len(known)]
        self._tokens_seen += len(update.final_ids)
        self._agrees = self._agrees and repeated == known[: len(repeated)]
        final_ids = update.final_ids[len(repeated) :] if self._agrees else []
        self._handed_on += final_ids
        logprobs = update.logprobs[len(repeated) :] if self._agrees else []
        records = update.records[max(0, self._records_handed_on - self._records_seen) :]
        self._records_seen += len(update.records)
        self._records_handed_on += len(records)
        output = update.output
        if output is not None:
            seconds = time.perf_counter() - self._started
            output = replace(output, seconds=seconds, tps=output.num_tokens / seconds)
        return replace(update, final_ids=final_ids, logprobs=logprobs, records=records, output=output)


async def ask_in_time(ask: Ask, prompt: list[int], params: GenerationParams, seconds: float) -> ResumableAnswer:
    """Return an answer that a replica has begun to work on.

    Raises:
        ApiError: no replica had room within ``seconds``, or too many were lost.
        Exception: what a replica refuses the request with.
    """
    answer = ResumableAnswer(ask, prompt, params)
    try:
        async with asyncio.timeout(seconds):
            await answer.begin()
    except TimeoutError as error:
        raise timed_out(seconds) from error
    return answer


async def any_ready(replies: Awaitable[Iterable[object]], seconds: float = READY_SECONDS) -> bool:
    """Tell whether at least one replica says that it takes requests.

    Args:
        replies: of all replicas: whether they do, or why they cannot say.
        seconds: silence for so long is a no.
    """
    try:
        async with asyncio.timeout(seconds):
            return any(reply is True for reply in await replies)
    except Exception:  # nobody could be asked
        return False
