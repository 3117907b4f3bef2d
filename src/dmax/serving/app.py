"""The HTTP application: routes, keys, limits, errors and logs around :class:`~dmax.serving.answering.Answering`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from dmax.engine import LLMEngine
from dmax.engine.requests import RequestReader
from dmax.models import ModelConfig, Tokenizer
from dmax.serving.access import Gate, cost_facts, error_facts, prompt_facts
from dmax.serving.answering import Answering, EventStream
from dmax.serving.async_engine import AsyncEngine
from dmax.serving.client import EngineClient
from dmax.serving.errors import ApiError, client_gone, malformed
from dmax.serving.metrics import ServerMetrics
from dmax.serving.pages import add_pages
from dmax.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from dmax.serving.settings import ServerSettings
from dmax.serving.streaming import with_pings
from dmax.serving.trace import Traces

_HINT = " The API is under /v1: chat/completions, completions, responses, models."


def create_app(engine: LLMEngine, tokenizer: Tokenizer, settings: ServerSettings) -> FastAPI:
    """Make the application over an engine, which it owns from now on.

    Args:
        engine: not running yet.
        tokenizer: of its model, with a chat template if chat is to work.
        settings: see :class:`ServerSettings`.
    """
    client = AsyncEngine(engine, settings.max_queue)
    return create_app_over(client, engine.model.config, tokenizer, settings)


def create_app_over(
    engine: EngineClient, config: ModelConfig, tokenizer: Tokenizer, settings: ServerSettings
) -> FastAPI:
    """Make the application over an engine that runs elsewhere.

    Args:
        engine: started and stopped with the application.
        config: of its model.
        tokenizer: of its model, with a chat template if chat is to work.
        settings: see :class:`ServerSettings`.
    """
    metrics = ServerMetrics()
    answering = Answering(engine, RequestReader(config, tokenizer), tokenizer, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(title="dmax", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.engine, app.state.traces = engine, Traces(answering)
    _add_error_handlers(app)
    _add_api(app, answering, settings)
    _add_models(app, settings, config.max_position_embeddings)
    _add_state(app, engine, metrics)
    app.state.traces.add_to(app)
    add_pages(app, config.decoder_defaults, config.default_decoder)
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _add_api(app: FastAPI, answering: Answering, settings: ServerSettings) -> None:
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        _note(request, prompt_facts(settings, [message.as_turn() for message in body.messages]))
        return _reply(request, await _unless_gone(request, answering.chat(body)), settings)

    async def completions(request: Request, body: CompletionRequest) -> Response:
        _note(request, prompt_facts(settings, body.prompt))
        return _reply(request, await _unless_gone(request, answering.completion(body)), settings)

    async def responses(request: Request, body: ResponsesRequest) -> Response:
        _note(request, prompt_facts(settings, [message.as_turn() for message in body.messages()]))
        return _reply(request, await _unless_gone(request, answering.responses(body)), settings)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        return await answering.tokenize(body)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        return await answering.detokenize(body)

    # What a body looks like is known only once the decoders are.
    routes: dict[str, Callable[..., Awaitable[Response]]] = {
        "chat/completions": chat_completions,
        "completions": completions,
        "responses": responses,
    }
    for (path, answer), body in zip(routes.items(), answering.bodies, strict=True):
        answer.__annotations__["body"] = body
        app.post(f"/v1/{path}", response_model=None)(answer)


def _add_models(app: FastAPI, settings: ServerSettings, positions: int) -> None:
    card = {
        "id": settings.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "dmax",
        "max_model_len": positions,
        "block_length": settings.block_length,
        "default_gen_length": settings.default_gen_length,
        "max_gen_length": settings.max_gen_length,
        "max_positions_in_flight": settings.max_positions_in_flight,
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != settings.model_name:
            raise ApiError(404, f"there is no model {name!r} here.", param="model", code="model_not_found")
        return card


def _add_state(app: FastAPI, engine: EngineClient, metrics: ServerMetrics) -> None:
    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": own_version()}

    @app.get("/health")
    async def health() -> Response:
        alive = engine.alive
        return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)

    @app.get("/ready")
    async def ready() -> Response:
        is_ready = await engine.is_ready()
        return JSONResponse({"status": "ready" if is_ready else "not taking requests"}, 200 if is_ready else 503)

    @app.get("/metrics", response_model=None)
    async def prometheus() -> Response:
        return PlainTextResponse(metrics.exposition(await engine.stats()), media_type="text/plain; version=0.0.4")


def own_version() -> str:
    """Return the version of dmax; "unknown" where it runs without being installed."""
    try:
        return version_of("dmax-llm")
    except PackageNotFoundError:
        return "unknown"


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """Return the result of ``work``, which is given up as soon as the client is gone."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise client_gone()
    finally:
        for pending in (task, watch):
            pending.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Events(StreamingResponse):
    """Server-sent events; a client that leaves gives up what it has not read, even before the first of them."""

    def __init__(self, events: EventStream, ping_seconds: float) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(with_pings(aiter(events), ping_seconds), media_type="text/event-stream", headers=headers)
        self._stream = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()
            state = scope["state"]
            state["log"] = {**state.get("log", {}), **self._stream.facts}
            if not self._stream.facts:
                state["status"] = client_gone().status
                state["log"] |= error_facts(client_gone())


def _reply(request: Request, result: dict[str, Any] | EventStream, settings: ServerSettings) -> Response:
    if isinstance(result, dict):
        _note(request, cost_facts(result["dmax"]))
        return JSONResponse(result)
    return _Events(result, settings.ping_seconds)


def _note(request: Request, facts: dict[str, Any]) -> None:
    """Put something into the line that the log gets about this request."""
    request.state.log = {**getattr(request.state, "log", {}), **facts}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        _note(request, error_facts(error))
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> Response:
        refusal = malformed(error.errors())
        _note(request, error_facts(refusal))
        return JSONResponse(refusal.body(), refusal.status)

    @app.exception_handler(HTTPException)
    async def unknown_route(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # a body that is nested too deeply to be read
            refusal = malformed([{"loc": (), "type": "json_invalid"}])
        else:
            text = f"{request.method} {request.scope['path']}: {str(error.detail).lower()}."
            refusal = ApiError(error.status_code, text + (_HINT if error.status_code == 404 else ""))
        _note(request, error_facts(refusal))
        return JSONResponse(refusal.body(), error.status_code, error.headers)
