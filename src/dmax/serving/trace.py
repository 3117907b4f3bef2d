"""``/v1/trace``: chat requests as messages of a WebSocket, and every pass of their answers as messages back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import Message

from dmax.serving.access import bearer_key, cost_facts, error_facts, log_request, may_ask, prompt_facts, refused_key
from dmax.serving.answering import Answering
from dmax.serving.errors import ApiError, bad_request, client_gone, malformed, unexpected
from dmax.serving.protocol import ChatRequest

PATH = "/v1/trace"
MAX_AHEAD = 16
"""Requests that a client may send before the answers to those before them are whole."""
_POLICY_VIOLATION = 1008
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
logger = logging.getLogger("dmax.serving")


class _GoneError(Exception):
    """Nobody is there to hear the answer."""


class Traces:
    """The WebSocket route, and how many answers it is giving.

    Args:
        answering: does the work; its settings say who may ask.
    """

    def __init__(self, answering: Answering) -> None:
        self.running = 0
        """Requests that are being answered."""
        self._answering = answering
        self._settings = answering.settings

    def add_to(self, app: FastAPI) -> None:
        """Add the route."""

        @app.websocket(PATH)
        async def trace(socket: WebSocket) -> None:
            """Serve chat requests, one message each: every pass, then the answer, as messages back; and so on."""
            if not may_connect(socket.headers, self._settings.cors_origins):
                self._note(403, 0, {})
                await socket.close(_POLICY_VIOLATION)
                return
            await socket.accept()
            with suppress(_GoneError):
                if self._has_key(socket):
                    await self._converse(socket)
                else:
                    self._note(401, 0, {})
                    await _send(socket, refused_key().body())
                    await _close(socket)

    def _has_key(self, socket: WebSocket) -> bool:
        key = bearer_key(socket.headers.get("authorization", "")) or socket.query_params.get("api_key", "")
        return may_ask(key, self._settings)

    async def _converse(self, socket: WebSocket) -> None:
        """Answer one request after another; whoever leaves gives up what he waits for, and so does who sends too many.

        The socket is read while an answer is under way, since that is how a client is seen to leave.
        """
        ahead: asyncio.Queue[Message] = asyncio.Queue(MAX_AHEAD)
        reading = asyncio.create_task(_read(socket, ahead))
        answering = asyncio.create_task(self._answer_all(socket, ahead))
        try:
            await asyncio.wait({reading, answering}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            answering.cancel()
            await asyncio.wait({reading, answering})
        if not reading.cancelled() and isinstance(reading.exception(), asyncio.QueueFull):
            await _close(socket, f"more than {MAX_AHEAD} requests at a time")

    async def _answer_all(self, socket: WebSocket, ahead: asyncio.Queue[Message]) -> None:
        with suppress(_GoneError):
            while True:
                message = await ahead.get()
                self.running += 1
                try:
                    await self._answer(socket, message.get("text"))
                finally:
                    self.running -= 1

    async def _answer(self, socket: WebSocket, text: str | None) -> None:
        """Answer one request, log it and count it."""
        started, status = time.perf_counter(), client_gone().status
        facts: dict[str, Any] = {}
        try:
            refusal = await self._tell(socket, text, facts)
            if refusal is not None:
                facts |= error_facts(refusal)
                await _send(socket, refusal.body())
            status = 200 if refusal is None else refusal.status
        finally:
            self._note(status, time.perf_counter() - started, facts)

    async def _tell(self, socket: WebSocket, text: str | None, facts: dict[str, Any]) -> ApiError | None:
        """Send an answer, and put into ``facts`` what the log is to say of it; gives what stands in the way, if any."""
        try:
            request = self._read_request(text)
            facts |= prompt_facts(self._settings, [message.as_turn() for message in request.messages])
            async with aclosing(self._answering.trace(request)) as messages:
                async for message in messages:
                    await _send(socket, message)
            facts |= cost_facts(message)
        except _GoneError:
            raise
        except Exception as error:
            return _refusal(error)
        return None

    def _note(self, status: int, seconds: float, facts: dict[str, Any]) -> None:
        """Count a request and log it, as those over HTTP are."""
        self._answering.metrics.requests.labels(PATH, str(status)).inc()
        log_request("WS", PATH, status, seconds, uuid4().hex, facts)

    def _read_request(self, text: str | None) -> ChatRequest:
        if text is None:
            raise bad_request("send the request as text, not as binary data.", code="invalid_json")
        if len(text.encode()) > self._settings.max_body_bytes:
            raise ApiError(413, f"a message may have {self._settings.max_body_bytes} bytes.", code="too_large")
        return self._answering.bodies.chat.model_validate_json(text)


def _refusal(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return malformed(error.errors())
    logger.exception("a trace failed")
    return unexpected()


async def _send(socket: WebSocket, value: dict[str, Any]) -> None:
    try:
        await socket.send_json(value)
    except (WebSocketDisconnect, RuntimeError) as error:
        raise _GoneError from error


async def _close(socket: WebSocket, reason: str | None = None) -> None:
    try:
        await socket.close(_POLICY_VIOLATION, reason)
    except (WebSocketDisconnect, RuntimeError) as error:
        raise _GoneError from error


async def _read(socket: WebSocket, ahead: asyncio.Queue[Message]) -> None:
    """Put messages into the queue until the client leaves.

    Raises:
        asyncio.QueueFull: it sends more than it gets answers to.
    """
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        ahead.put_nowait(message)


def may_connect(headers: Headers | Mapping[str, str], allowed: tuple[str, ...]) -> bool:
    """Tell whether a WebSocket may be opened: by a page of this server, of an allowed origin, or no page at all.

    A browser lets any website open a WebSocket to any server, so the server itself has to look at the origin.

    Args:
        headers: of the handshake.
        allowed: the origins that CORS lets in.
    """
    origin = headers.get("origin")
    if origin is None or origin in allowed or "*" in allowed:
        return True
    scheme, _, host = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme, "")
    return bool(host) and host.removesuffix(port) == headers.get("host", "").lower().removesuffix(port)
