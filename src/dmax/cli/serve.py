"""``dmax serve``: a model behind an OpenAI-compatible API and a page to watch it think."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from dmax.cli._common.errors import CommandError, needs_extra, note, user_errors
from dmax.cli._common.options import ModelOptions, in_panel
from dmax.cli._common.session import load_llm

if TYPE_CHECKING:
    from dmax.engine import LLM, LLMEngine
    from dmax.serving.settings import ServerSettings

_of_server = in_panel("Server")
_of_engine = in_panel("Engine")


@dataclass(frozen=True)
class ServerOptions:
    """Where a server listens, and what it grants its clients."""

    host: Annotated[str, _of_server(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _of_server(min=0, max=65535, help="0 takes a free one.")] = 8000
    model_name: Annotated[str | None, _of_server(help="What clients call the model; as --model if not given.")] = None
    api_key: Annotated[
        list[str] | None,
        _of_server(envvar="DMAX_API_KEY", help="Accept only requests with this key. Repeatable."),
    ] = None
    cors_origin: Annotated[
        list[str] | None, _of_server(help="Let pages of this origin ask. Repeatable; none by default.")
    ] = None
    max_queue: Annotated[int, _of_server(min=1, help="Requests that may wait; further ones get 429.")] = 256
    max_gen_length: Annotated[int, _of_server(min=1, help="Most tokens of an answer.")] = 2048
    max_positions_in_flight: Annotated[
        int, _of_server(min=1, help="Most of block length times blocks in flight of a request.")
    ] = 128
    timeout: Annotated[float, _of_server(help="Seconds that a request may take.")] = 600.0
    drain_timeout: Annotated[
        float, _of_server(help="Seconds that answers under way get when the server is to end.")
    ] = 60.0
    log_prompts: Annotated[bool, _of_server("--log-prompts", help="Put prompts into the log.")] = False

    def __post_init__(self) -> None:
        for name, seconds in (("--timeout", self.timeout), ("--drain-timeout", self.drain_timeout)):
            if not seconds > 0:
                raise CommandError(f"{name} is {seconds:g}; it must be more than 0 seconds.")


@dataclass(frozen=True)
class EngineOptions:
    """How many requests are decoded together, and with what memory."""

    block_length: Annotated[
        int | None,
        _of_engine(
            min=1, help="Tokens denoised together, unless a request says; as in the model's training if not given."
        ),
    ] = None
    max_batch_size: Annotated[int, _of_engine(min=1, help="Requests decoded together.")] = 32
    kv_memory: Annotated[str, _of_engine(metavar="SIZE", help="Memory of the KV cache, such as 512M.")] = "1G"
    prefill_tokens: Annotated[int, _of_engine(min=1, help="Prompt positions beside a decoding pass.")] = 512
    capture_graphs: Annotated[
        bool,
        _of_engine("--capture-graphs", help="On a GPU, capture all forwards before the first request."),
    ] = False


def serve(model: ModelOptions, server: ServerOptions, engine: EngineOptions) -> None:
    """Serve a model over HTTP: /v1/chat/completions, /v1/completions, /metrics, and a page at /."""
    with needs_extra("serve", "serving"):
        from dmax.serving.access import log_to_stderr
        from dmax.serving.app import create_app
        from dmax.serving.server import Server
        from dmax.serving.settings import parse_kv_memory
    with user_errors():
        memory = parse_kv_memory(engine.kv_memory)
        settings = _settings(model, server, engine)
    listener = _listen(server.host, server.port)
    llm = load_llm(model, sequences=engine.max_batch_size, cache=memory)
    if llm.tokenizer is None:
        raise CommandError(
            f"{model.model} has no tokenizer, so it cannot be served; give a folder with tokenizer.json."
        )
    with user_errors():
        running = _engine(llm, engine, memory)
        settings = _suited(settings, llm, engine, server)
    log_to_stderr()
    port = listener.getsockname()[1]
    note(f"{settings.model_name} at http://{server.host}:{port}/ (API under /v1); Ctrl-C stops it.")
    Server(create_app(running, llm.tokenizer, settings), server.drain_timeout).run(sockets=[listener])


def _settings(model: ModelOptions, server: ServerOptions, engine: EngineOptions) -> ServerSettings:
    """Check what can be checked before the model is loaded.

    Raises:
        SettingsError: a key is none, or the block length exceeds the positions in flight.
    """
    from dmax.serving.settings import ServerSettings, parse_keys

    return ServerSettings(
        model_name=model.model if server.model_name is None else server.model_name,
        api_keys=parse_keys(server.api_key or ()),
        max_queue=server.max_queue,
        block_length=engine.block_length or 1,  # the model's own is known once it is loaded
        max_positions_in_flight=server.max_positions_in_flight,
        timeout=server.timeout,
        cors_origins=tuple(server.cors_origin or ()),
        log_prompts=server.log_prompts,
    )


def _suited(settings: ServerSettings, llm: LLM, engine: EngineOptions, server: ServerOptions) -> ServerSettings:
    """Return the settings with the block length and the lengths of answers that suit the loaded model."""
    from dmax.serving.settings import gen_lengths

    config = llm.model.config
    lengths = gen_lengths(server.max_gen_length, config.max_position_embeddings)
    return replace(
        settings,
        block_length=engine.block_length or config.usual_block_length,
        max_gen_length=lengths["max_gen_length"],
        default_gen_length=lengths["default_gen_length"],
    )


def _engine(llm: LLM, options: EngineOptions, memory: int) -> LLMEngine:
    from dmax.engine import EngineConfig, LLMEngine

    config = EngineConfig(
        block_length=options.block_length,
        kv_memory=memory,
        max_batch_size=options.max_batch_size,
        prefill_tokens=options.prefill_tokens,
        capture_graphs=options.capture_graphs,
    )
    return LLMEngine(llm.model, llm.tokenizer, config)


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before the model is loaded, so that it is known at once if it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or error
        raise CommandError(
            f"cannot listen on {host}:{port} ({reason}); give another --port, or --port 0 for a free one."
        ) from error
