"""Who may ask, how much, and what is written down about it: the outermost layer of the application."""

from __future__ import annotations

import hmac
import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dmax.serving.errors import ApiError, client_gone, unexpected
from dmax.serving.metrics import ServerMetrics
from dmax.serving.settings import ServerSettings

_PAGE_FILES = "/web/"
_GUARDED = ("/v1", "/tokenize", "/detokenize")
"""Paths that need a key, where there are keys."""
_COST = ("num_tokens", "nfe", "tpf", "tps", "decoder")
_SHOWN = 64
"""Most characters of a header that are told."""
logger = logging.getLogger("dmax.serving.access")
_troubles = logging.getLogger("dmax.serving")


class Gate:
    """Checks keys and sizes before a request is read; logs and counts it after, whatever became of it."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: ServerMetrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, request_id, status, method = time.perf_counter(), uuid4().hex, 0, scope["method"]

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        scope.setdefault("state", {})
        scope = {**scope, "path": _tidy(scope["path"])}
        if method == "HEAD":  # what GET would give, without the body
            scope["method"] = "GET"
        refusal = self._refusal(scope)
        try:
            if refusal is None and "transfer-encoding" in Headers(scope=scope):
                receive, refusal = await self._bounded(receive)
            if refusal is None:
                await self._app(scope, receive, send_and_see)
            else:
                scope["state"]["log"] = error_facts(refusal)
                await _reply(refusal)(scope, receive, send_and_see)
        except Exception:
            if status:  # too late for another answer: the connection breaks, which says that this one is not whole
                raise
            _troubles.exception("request %s failed", request_id)
            await _reply(unexpected())(scope, receive, send_and_see)
        finally:
            scope["method"] = method
            self._note(scope, request_id, status or 500, time.perf_counter() - started)

    async def _bounded(self, receive: Receive) -> tuple[Receive, ApiError | None]:
        """Read a body that does not say its length; what gives it again, or why it is not taken."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return receive, client_gone()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._settings.max_body_bytes:
                return receive, _too_large(self._settings.max_body_bytes)
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again, None

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        status = scope["state"].get("status", status)
        self._metrics.requests.labels(getattr(scope.get("route"), "path", "other"), str(status)).inc()
        if status >= 400 or not scope["path"].startswith(_PAGE_FILES):
            facts = scope["state"].get("log", {})
            log_request(scope["method"], scope["path"], status, seconds, request_id, facts)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers, limit = Headers(scope=scope), self._settings.max_body_bytes
        if (coding := headers.get("content-encoding", "identity").lower()) != "identity":
            text = f"the body comes with Content-Encoding: {coding[:_SHOWN]}; send it as it is, without one."
            return ApiError(415, text, code="unsupported_encoding")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            return _too_large(limit)
        key = bearer_key(headers.get("authorization", ""))
        if scope["path"].startswith(_GUARDED) and not may_ask(key, self._settings):
            return refused_key()
        return None


def _tidy(path: str) -> str:
    """Return a path without the slashes that a base URL with one at its end puts into it."""
    return re.sub("/+", "/", path).rstrip("/") or "/"


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes.", code="too_large")


def _reply(refusal: ApiError) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def log_request(method: str, path: str, status: int, seconds: float, request_id: str, facts: Mapping[str, Any]) -> None:
    """Log one JSON object about a request; ``facts`` are what else is to be said of it."""
    line = {
        "request_id": request_id,
        "method": method,
        "path": path,
        "status": status,
        "seconds": round(seconds, 4),
        **facts,
    }
    logger.info(json.dumps(line, ensure_ascii=False, default=str))


def prompt_facts(settings: ServerSettings, prompt: Any) -> dict[str, Any]:
    """Return the prompt for the log, where it is wanted there."""
    return {"prompt": prompt} if settings.log_prompts else {}


def cost_facts(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer cost, for the log."""
    return {name: cost[name] for name in _COST}


def error_facts(error: ApiError) -> dict[str, Any]:
    """Return why there is no answer, for the log."""
    return {"error_code": error.code, "param": error.param, "error": error.message}


def bearer_key(header: str) -> str:
    """Read the key in an ``Authorization`` header; empty where it is of another scheme, or names none."""
    scheme, _, key = header.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def log_to_stderr() -> None:
    """Log one JSON object a request on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    parent = logging.getLogger("dmax.serving")
    parent.addHandler(handler)
    parent.setLevel(logging.INFO)
    parent.propagate = False


def may_ask(key: str, settings: ServerSettings) -> bool:
    """Tell whether a client that sends this key is let in."""
    matches = [hmac.compare_digest(key.encode(), known.encode()) for known in settings.api_keys]
    return any(matches) or not settings.api_keys


def refused_key() -> ApiError:
    """Return what a client without a key is told."""
    return ApiError(
        401,
        "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
