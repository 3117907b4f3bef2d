"""``dmax serve``: a model behind an OpenAI-compatible API and a page to watch it think."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Annotated

import typer

from dmax.cli._common.errors import CommandError, needs_extra, note, user_errors
from dmax.cli._common.options import ModelOptions
from dmax.cli._common.session import load_llm

_SERVER = "Server"
_ENGINE = "Engine"


def serve(
    model: ModelOptions,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=_SERVER)] = 8000,
    model_name: Annotated[
        str | None, typer.Option(help="What clients call the model; as --model if not given.", rich_help_panel=_SERVER)
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DMAX_API_KEY", help="Accept only requests with this key. Repeatable.", rich_help_panel=_SERVER
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Let pages of this origin ask. Repeatable; none by default.", rich_help_panel=_SERVER),
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; further ones get 429.", rich_help_panel=_SERVER)
    ] = 256,
    max_gen_length: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer.", rich_help_panel=_SERVER)
    ] = 2048,
    max_positions_in_flight: Annotated[
        int,
        typer.Option(min=1, help="Most of block length times blocks in flight of a request.", rich_help_panel=_SERVER),
    ] = 128,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.", rich_help_panel=_SERVER)] = 600.0,
    drain_timeout: Annotated[
        float,
        typer.Option(help="Seconds that answers under way get when the server is to end.", rich_help_panel=_SERVER),
    ] = 60.0,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Put prompts into the log.", rich_help_panel=_SERVER)
    ] = False,
    block_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens denoised together, unless a request says; as in the model's training if not given.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Requests decoded together.", rich_help_panel=_ENGINE)
    ] = 32,
    kv_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory of the KV cache, such as 512M.", rich_help_panel=_ENGINE)
    ] = "1G",
    prefill_tokens: Annotated[
        int, typer.Option(min=1, help="Prompt positions beside a decoding pass.", rich_help_panel=_ENGINE)
    ] = 512,
    capture_graphs: Annotated[
        bool,
        typer.Option(
            "--capture-graphs",
            help="On a GPU, capture all forwards before the first request.",
            rich_help_panel=_ENGINE,
        ),
    ] = False,
) -> None:
    """Serve a model over HTTP: /v1/chat/completions, /v1/completions, /metrics, and a page at /."""
    for name, seconds in (("--timeout", timeout), ("--drain-timeout", drain_timeout)):
        if not seconds > 0:
            raise CommandError(f"{name} is {seconds:g}; it must be more than 0 seconds.")
    with needs_extra("serve", "serving"):
        from dmax.serving.access import log_to_stderr
        from dmax.serving.app import create_app
        from dmax.serving.server import Server
        from dmax.serving.settings import ServerSettings, gen_lengths, parse_keys, parse_kv_memory
    with user_errors():
        memory = parse_kv_memory(kv_memory)
        settings = ServerSettings(
            model_name=model.model if model_name is None else model_name,
            api_keys=parse_keys(api_key or ()),
            max_queue=max_queue,
            block_length=block_length or 1,  # the model's own is known once it is loaded
            max_positions_in_flight=max_positions_in_flight,
            timeout=timeout,
            cors_origins=tuple(cors_origin or ()),
            log_prompts=log_prompts,
        )
    listener = _listen(host, port)
    llm = load_llm(model, sequences=max_batch_size, cache=memory)
    if llm.tokenizer is None:
        raise CommandError(
            f"{model.model} has no tokenizer, so it cannot be served; give a folder with tokenizer.json."
        )
    block_length = block_length or llm.model.config.usual_block_length
    lengths = gen_lengths(max_gen_length, llm.model.config.max_position_embeddings)
    with user_errors():
        from dmax.engine import LLMEngine

        engine = LLMEngine(
            llm.model,
            llm.tokenizer,
            block_length=block_length,
            kv_memory=memory,
            max_batch_size=max_batch_size,
            prefill_tokens=prefill_tokens,
            capture_graphs=capture_graphs,
        )
        settings = replace(
            settings,
            block_length=block_length,
            max_gen_length=lengths["max_gen_length"],
            default_gen_length=lengths["default_gen_length"],
        )
    log_to_stderr()
    port = listener.getsockname()[1]
    note(f"{settings.model_name} at http://{host}:{port}/ (API under /v1); Ctrl-C stops it.")
    Server(create_app(engine, llm.tokenizer, settings), drain_timeout).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before the model is loaded, so that it is known at once if it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or error
        raise CommandError(
            f"cannot listen on {host}:{port} ({reason}); give another --port, or --port 0 for a free one."
        ) from error
