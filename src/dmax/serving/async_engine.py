"""The engine in a thread of its own, asked and heard from an event loop.

The thread owns the engine: nothing else calls it. Requests, aborts and questions reach it through a queue of calls that
it works off between two steps; what a step did goes back to the loop of whoever asked.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar
from uuid import uuid4

from dmax.decoding import DecoderError
from dmax.engine import EngineStats, GenerationError, GenerationParams, LLMEngine, RequestUpdate
from dmax.serving.errors import ApiError, bad_request, internal, queue_full, unavailable

T = TypeVar("T")
logger = logging.getLogger("dmax.serving")


class AnswerStream:
    """The updates of one request, in order; leaving it early gives the request up."""

    def __init__(self, engine: AsyncEngine, request_id: str) -> None:
        self.request_id = request_id
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[RequestUpdate | Exception] = asyncio.Queue()
        self._over = False

    def put(self, update: RequestUpdate | Exception) -> None:
        """Take an update; called by the engine's thread."""
        with suppress(RuntimeError):  # the loop of a client that is gone may be closed
            self._loop.call_soon_threadsafe(self._updates.put_nowait, update)

    async def __aiter__(self) -> AsyncIterator[RequestUpdate]:
        try:
            while not self._over:
                update = await self._updates.get()
                if isinstance(update, Exception):
                    self._over = True
                    raise update
                self._over = update.output is not None or update.failure is not None
                if isinstance(update.failure, DecoderError | GenerationError):
                    raise bad_request(str(update.failure), update.failure.option)
                if update.failure is not None:
                    raise internal(f"decoding failed: {update.failure}")
                yield update
        finally:
            self.close()

    def close(self) -> None:
        """Give the request up, if it is not over."""
        if not self._over:
            self._over = True
            self._engine.abort(self.request_id)


class AsyncEngine:
    """Runs an :class:`LLMEngine` for any number of clients.

    Args:
        engine: owned by this object from now on.
        max_queue: most requests that wait beside those that run.
    """

    def __init__(self, engine: LLMEngine, max_queue: int) -> None:
        self._engine = engine
        self._max_queue = max_queue
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, AnswerStream] = {}
        self._thread = threading.Thread(target=self._run, name="dmax-engine", daemon=True)
        self._draining = False
        self._over = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; requests that are not finished are given up."""
        self._draining = True
        self._calls.put(None)
        self._thread.join()

    def drain(self) -> None:
        """Take no further requests; those that are here go on."""
        self._draining = True

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._over

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.alive and not self._draining

    async def is_ready(self) -> bool:
        """Tell whether requests are taken, for those who may have to ask elsewhere."""
        return self.ready

    async def submit(self, prompt: list[int], params: GenerationParams) -> AnswerStream:
        """Queue a request.

        Args:
            prompt: token ids of the model, with room for the answer.
            params: of this request.

        Raises:
            ApiError: too many wait, or the server is stopping.
            GenerationError: the request cannot be run.
            DecoderError: there is no such decoder or option.
        """
        if not self.ready:
            raise unavailable("the server is stopping; ask another one.")

        def add() -> AnswerStream:
            waiting = self._engine.stats().waiting
            if waiting >= self._max_queue:
                raise queue_full(waiting)
            self._engine.add(sequence)
            self._streams[stream.request_id] = stream
            return stream

        stream = AnswerStream(self, uuid4().hex)
        read = partial(self._engine.reader.sequence, stream.request_id, prompt, params, time.perf_counter())
        # To read a schema takes a while, the first one longer; the event loop is for everybody.
        sequence = read() if params.json_schema is None else await asyncio.to_thread(read)
        try:
            return await self._call(add)
        except asyncio.CancelledError:
            self.abort(stream.request_id)  # the thread may have added it already
            raise

    def abort(self, request_id: str) -> None:
        """Give a request up; at the latest before the next step."""

        def forget() -> None:
            self._streams.pop(request_id, None)
            if not self._over:
                self._engine.abort(request_id)

        self._calls.put(forget)

    async def stats(self) -> EngineStats:
        """Return where the engine stands."""
        return await self._call(self._engine.stats)

    async def _call(self, work: Callable[[], T]) -> T:
        """Run something in the thread and give back what it gave, or raise what it raised."""
        answer: Future[T] = Future()

        def run() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                if self._over:
                    raise _stopped()
                answer.set_result(work())
            except BaseException as error:
                answer.set_exception(error)

        if not self.alive:
            raise _stopped()
        self._calls.put(run)
        if self._over:  # the thread ended meanwhile, and may have looked at the queue for the last time
            self._refuse_calls()
        return await asyncio.wrap_future(answer)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:
            logger.critical("the engine cannot go on; start the server again", exc_info=True)
        finally:
            self._over = True
            self._tell_all(_stopped())
            self._refuse_calls()

    def _serve(self) -> None:
        """Step until told to end. A step that fails ends the requests in it, and the next ones are served."""
        while True:
            try:
                if not self._work_off_calls(wait=not self._engine.has_requests()):
                    return
                for update in self._engine.step():
                    self._pass_on(update)
            except Exception:
                logger.exception("an engine step failed; the requests in it are given up")
                for request_id in self._streams:
                    self._engine.abort(request_id)
                self._tell_all(internal("the engine failed while it answered this; ask again."))

    def _work_off_calls(self, wait: bool) -> bool:
        """Run what has been asked for; False where the thread is to end."""
        while True:
            try:
                call = self._calls.get(block=wait)
            except queue.Empty:
                return True
            if call is None:
                return False
            call()
            wait = wait and not self._engine.has_requests()

    def _pass_on(self, update: RequestUpdate) -> None:
        stream = self._streams.get(update.request_id)
        if stream is not None:
            if update.output is not None or update.failure is not None:
                del self._streams[update.request_id]
            stream.put(update)

    def _tell_all(self, error: ApiError) -> None:
        """Tell every client that its request is over."""
        for stream in self._streams.values():
            stream.put(error)
        self._streams.clear()

    def _refuse_calls(self) -> None:
        """Let go of whoever still waits for the thread, which has ended."""
        with suppress(queue.Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    call()


def _stopped() -> ApiError:
    return unavailable("the engine has stopped; ask another server, or start this one again.")
