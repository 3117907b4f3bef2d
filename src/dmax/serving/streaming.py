"""Text of an answer as it becomes final: whole characters only, and nothing that a stop string may still take back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from dmax.engine import RequestUpdate
from dmax.engine.outputs import TokenLogprob

PING = ": ping\n\n"
"""A comment of a stream of events, which clients skip."""
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""How a tokenizer shows bytes that are no whole character yet."""


class ContradictionError(Exception):
    """The whole answer is not what its beginning, which was sent, said it would be."""


class TextStream:
    """Turns final tokens into text that never has to be taken back.

    Args:
        decode: token ids to text.
        stop: strings that end the answer; what may be the beginning of one is held back.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._sent = ""
        self._told = 0

    def take(self, update: RequestUpdate) -> tuple[str, list[TokenLogprob]]:
        """Let go the text that an update allows, and log-probabilities of further tokens where they are asked for.

        A stop string takes tokens back, so with one those are let go at the end.

        Raises:
            ContradictionError: as :meth:`finish`.
        """
        output = update.output
        text = self.add(update.final_ids) if output is None else self.finish(output.text or "")
        known = [] if self._stop else update.logprobs
        if output is not None and output.logprobs is not None:
            known = output.logprobs[self._told : output.num_tokens]
        self._told += len(known)
        return text, known

    def add(self, final_ids: Sequence[int]) -> str:
        """Return the text that further final tokens let go."""
        self._ids += final_ids
        text = self._decode(self._ids)
        kept = len(text.rstrip(_UNFINISHED))
        for stop in self._stop:
            kept = min(kept, _beginning_of(stop, text[:kept]))
        return self._advance(text[:kept])

    def finish(self, text: str) -> str:
        """Return what is left of the whole answer, once it is known.

        Raises:
            ContradictionError: it does not begin with what was let go before.
        """
        if not text.startswith(self._sent):
            raise ContradictionError
        return self._advance(text)

    def _advance(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        fresh = text[len(self._sent) :]
        self._sent = text
        return fresh


async def with_pings(events: AsyncIterator[str], seconds: float) -> AsyncIterator[str]:
    """Give the events on, and a comment whenever none has come for so many seconds."""
    pending: asyncio.Future[str | None] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait({pending}, timeout=seconds)
            if not done:
                yield PING
                continue
            event, pending = pending.result(), None
            if event is None:
                return
            yield event
    finally:
        if pending is not None:
            pending.cancel()


def _beginning_of(stop: str, text: str) -> int:
    """Find where the longest end of ``text`` begins that could grow into ``stop``; its length where there is none."""
    for start in range(max(0, len(text) - len(stop) + 1), len(text)):
        if stop.startswith(text[start:]):
            return start
    return len(text)
