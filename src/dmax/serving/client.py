"""What the API asks of an engine, wherever the engine runs: in a thread of this process, or in replicas elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from dmax.engine import EngineStats, GenerationParams, RequestUpdate


class Answer(Protocol):
    """The updates of one request, in order; the last of them carries the whole output."""

    def __aiter__(self) -> AsyncIterator[RequestUpdate]:
        """Iterate over the updates.

        Raises:
            ApiError: the request failed, or the server stops.
        """

    def close(self) -> None:
        """Give the request up, if it is not over."""


class EngineClient(Protocol):
    """An engine for any number of clients."""

    @property
    def alive(self) -> bool:
        """Whether the engine works."""

    async def is_ready(self) -> bool:
        """Tell whether requests are taken."""

    def start(self) -> None:
        """Begin to work; called once, in the process that serves."""

    def stop(self) -> None:
        """End; requests that are not finished are given up. May block."""

    async def submit(self, prompt: list[int], params: GenerationParams) -> Answer:
        """Queue a request.

        Raises:
            ApiError: too many wait, or the server is stopping.
            GenerationError: the request cannot be run.
            DecoderError: there is no such decoder or option.
        """

    async def stats(self) -> EngineStats:
        """Return where the engine stands."""
