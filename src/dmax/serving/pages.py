"""The page at ``/`` and the files it is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response

from dmax.decoding.options import Option
from dmax.decoding.registry import about, described_options, sound_decoders
from dmax.engine.params import DEFAULT_DECODER, PARAMS
from dmax.serving.protocol import request_settings
from dmax.serving.replay import TEMPLATE, WEB, template

_INDEX = "index.html"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A browser keeps the files and asks each time whether they still hold; so an upgrade shows at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    headers: dict[str, str]


def add_pages(
    app: FastAPI, decoder_defaults: Mapping[str, Mapping[str, Any]], default_decoder: str = DEFAULT_DECODER
) -> None:
    """Serve the page at ``/`` and its files under ``/web/``.

    Args:
        app: gets the routes.
        decoder_defaults: of the model, by decoder.
        default_decoder: of the model; the page offers it first.
    """
    served = {name: _file(name, content) for name, content in _contents(decoder_defaults, default_decoder).items()}

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return _reply(request, served[_INDEX])

    @app.api_route("/web/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        if name not in served:
            raise HTTPException(404)
        return _reply(request, served[name])


def _contents(decoder_defaults: Mapping[str, Mapping[str, Any]], first: str) -> dict[str, bytes]:
    """Read every file by name: those of the package, and the two that are made from it."""
    shipped = {entry.name: entry.read_bytes() for entry in WEB.iterdir() if entry.is_file()}
    return {
        **shipped,
        TEMPLATE: template().encode(),
        "settings.json": json.dumps(_settings(decoder_defaults, first)).encode(),
    }


def _settings(decoder_defaults: Mapping[str, Mapping[str, Any]], first: str) -> dict[str, Any]:
    """Return what the page lets people set: for all decoders, and for each."""
    fields = request_settings()
    shared = [option for name, option in PARAMS.items() if name in fields and not option.of_decoder]
    shared = [option for option in shared if option.name != "decoder"]
    decoders = [
        {
            "name": name,
            "about": about(name),
            "options": [
                _control(replace(option, default=decoder_defaults.get(name, {}).get(option.name, option.default)))
                | ({} if option.name in fields else {"further": True})
                for option in described_options(name)
                if option.name not in PARAMS or PARAMS[option.name].of_decoder
            ],
        }
        for name in sorted(sound_decoders(), key=lambda name: name != first)
    ]
    length = _control(replace(PARAMS["gen_length"], label=PARAMS["gen_length"].title, name="max_tokens"))
    return {"shared": [length, *map(_control, shared)], "decoders": decoders}


def _control(option: Option) -> dict[str, Any]:
    """Return what a control needs to know of its setting; ``further`` is added where a request has no such field."""
    return {
        "name": option.name,
        "label": option.title,
        "kind": option.kind,
        "minimum": option.minimum,
        "maximum": option.most_served,
        "default": option.default,
        "help": option.help,
    }


def _file(name: str, content: bytes) -> _File:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(content, {**_HEADERS, "Content-Type": _CONTENT_TYPES[PurePath(name).suffix], "ETag": tag})


def _reply(request: Request, file: _File) -> Response:
    held = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.headers["ETag"] in held or "*" in held:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)
