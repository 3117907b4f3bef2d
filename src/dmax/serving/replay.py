"""A decoding as one HTML file that replays it: style, script and data inside, nothing fetched.

A run is what ``dmax generate --trace`` writes (the fields of a :class:`GenerationOutput` with its ``trace``, and
``prompt_ids``), with ``prompt``, its text, and ``pieces``, the text of each token id. The page that ``dmax serve``
shows draws with the same modules, and exports by filling the same template.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dmax.engine import PassRecord
from dmax.models import Tokenizer

WEB = files("dmax.serving") / "web"
"""The front end: hand-written modules, shipped as they are."""

TEMPLATE = "replay-template.html"
_ENTRY = "standalone.js"
_STYLES = ("theme.css", "replay.css", "standalone.css")
_DATA_MARK = "@RUNS@"  # as in web/export.js

_IMPORT = re.compile(r'^import [^;]*? from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function |class |const )", re.MULTILINE)
# What could end the data's script element, or begin something else inside it; JSON strings may hold it escaped.
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}

_ID_LIMIT = 2**31


class _Run(BaseModel):
    """What drawing relies on; a run has more fields."""

    model_config = ConfigDict(extra="allow")

    trace: list[PassRecord] = Field(min_length=1)
    pieces: dict[str, str] = {}
    prompt: str = ""
    prompt_ids: list[int] = []
    token_ids: list[int] = []
    text: str | None = None
    decoder: str = ""
    params: dict[str, Any] = {}
    num_tokens: int = 0
    passes: int = 0
    nfe: int = 0
    tps: float = 0


class ReplayError(ValueError):
    """A record that is no run, or cannot be drawn."""


def replay_html(runs: Sequence[Mapping[str, Any]]) -> str:
    """Write one HTML file that replays ``runs``; those of one prompt stand side by side.

    Raises:
        ReplayError: there is nothing to replay, or one of them is no run.
    """
    if not runs:
        raise ReplayError("there is nothing to replay.")
    data = json.dumps([checked_run(run) for run in runs], separators=(",", ":"), default=str).translate(_ESCAPES)
    head, tail = template().split(_DATA_MARK)
    return f"{head}{data}{tail}"


@cache
def template() -> str:
    """Return the file without its data: what the page fills in by itself."""
    script = _bundle(_ENTRY)
    style = "\n".join(_read(name) for name in _STYLES)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _read(TEMPLATE)
    for mark, text in (("@POLICY@", policy), ("@STYLE@", style), ("@SCRIPT@", script)):
        page = page.replace(mark, text, 1)
    return page


def checked_run(record: Mapping[str, Any]) -> dict[str, Any]:
    """Check a record of unknown origin, and return it as a run.

    Raises:
        ReplayError: it is none; the message says what is wrong.
    """
    try:
        run = _Run.model_validate(dict(record))
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        raise ReplayError(f"{place}: {problem['msg'].lower()}.") from error
    before = 0
    for number, passed in enumerate(run.trace):
        if passed.pass_number not in (before, before + 1) or not passed.pass_number:
            raise ReplayError(
                f"trace[{number}] is of pass {passed.pass_number}; passes are counted from 1, one by one."
            )
        before = passed.pass_number
        _check_record(passed, f"trace[{number}]")
    return {**run.model_dump(exclude_unset=True), "pieces": run.pieces}


def _check_record(record: PassRecord, place: str) -> None:
    length = len(record.tokens)
    offsets = (*record.promoted, *record.revised, *record.active)
    if len(record.confidence) != length or not all(map(math.isfinite, record.confidence)):
        raise ReplayError(f"{place} must have one confidence, a finite number, for each of its tokens.")
    if not all(0 <= token_id < _ID_LIMIT for token_id in record.tokens):
        raise ReplayError(f"{place} must have token ids from 0 to {_ID_LIMIT - 1}.")
    if not record.active or not all(0 <= offset < length for offset in offsets):
        raise ReplayError(f"{place} must have active offsets, all below its {length} tokens.")


def pieces_of(tokenizer: Tokenizer | None, blocks: Iterable[Sequence[int]]) -> dict[str, str]:
    """Return the text of every token id in a trace's blocks; without a tokenizer, ids stand for themselves."""
    if tokenizer is None:
        return {}
    piece = piece_reader(tokenizer)
    return {str(token_id): piece(token_id) for tokens in blocks for token_id in tokens}


def piece_reader(tokenizer: Tokenizer) -> Callable[[int], str]:
    """Return what reads single tokens: special tokens by their name."""

    @cache
    def piece(token_id: int) -> str:
        return tokenizer.decode([token_id]) or tokenizer.pipeline.id_to_token(token_id) or ""

    return piece


def _read(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _bundle(entry: str) -> str:
    """Join an ES module and those that it imports as one script; they share one scope, so names must not clash."""
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        if name in parts:
            return
        source = _read(name)
        for imported in _IMPORT.findall(source):
            add(imported)
        parts[name] = _EXPORT.sub("", _IMPORT.sub("", source))

    add(entry)
    return "\n".join(parts.values())


def _hash(text: str) -> str:
    """Hash an inline script or style as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
