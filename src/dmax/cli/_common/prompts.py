"""Prompts: where they come from, and their way to token ids."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from dmax.cli._common.errors import CommandError
from dmax.cli._common.options import InputOptions

if TYPE_CHECKING:
    from dmax.cli._common.session import Rule
    from dmax.engine import LLM, GenerationParams

Prompt = str | list[int] | list[dict[str, Any]]
"""Text, token ids, or the messages of a conversation."""

_KINDS = ("prompt", "messages", "prompt_ids")


def single_prompt(options: InputOptions) -> Prompt:
    """Read the prompt of a command that answers one: ``--prompt-ids``, PROMPT, or stdin.

    An empty text is refused, since it is nearly always a mistake; ``--prompt-ids "[]"`` asks for it.
    """
    if options.prompt_ids is not None:
        return _token_ids(_parse(options.prompt_ids, "--prompt-ids"), "--prompt-ids")
    if options.prompt is not None:
        return _text(options.prompt, "the prompt")
    if sys.stdin.isatty():
        print("Type the prompt, then Ctrl-D:", file=sys.stderr)
    try:
        return _text(sys.stdin.read().rstrip("\r\n"), "the prompt")
    except UnicodeDecodeError as error:
        raise CommandError("the prompt on stdin is not UTF-8 text.") from error


def prompt_of_line(line: bytes) -> Prompt:
    """Read the prompt in one line of a batch; keys other than the three that may hold it are the user's own.

    Raises:
        CommandError: the line is not a JSON object with exactly one of ``prompt``, ``messages`` and ``prompt_ids``.
    """
    try:
        values = _parse(line.decode("utf-8"), "it")
    except UnicodeDecodeError as error:
        raise CommandError("it is not UTF-8 text.") from error
    if not isinstance(values, dict):
        raise CommandError(f"it must be a JSON object with {' or '.join(_KINDS)}, not a JSON {_json_type(values)}.")
    found = [kind for kind in _KINDS if kind in values]
    if len(found) != 1:
        raise CommandError(f"it must have one of {', '.join(_KINDS)}; it has {' and '.join(found) or 'none'}.")
    value = values[found[0]]
    if found[0] == "prompt":
        return _text(value, "prompt")
    return _messages(value) if found[0] == "messages" else _token_ids(value, "prompt_ids")


def encode(llm: LLM, prompt: Prompt, gen_length: int) -> list[int]:
    """Encode a prompt. Text becomes a user's turn where the model has a chat template.

    Raises:
        CommandError: the model has no tokenizer for it, does not know a token, or has no room for it.
    """
    from dmax.engine.requests import problem_with_ids

    limit = llm.model.config.max_position_embeddings
    token_ids = _encode(llm, prompt)
    problem = problem_with_ids(token_ids, llm.model.config)
    if problem is not None:
        raise CommandError(f"the prompt {problem}.")
    has = f"the prompt has {len(token_ids)} token{'' if len(token_ids) == 1 else 's'}"
    if len(token_ids) >= limit:
        raise CommandError(f"{has}, which leaves no room for an answer in this model's context of {limit}; shorten it.")
    if len(token_ids) + gen_length > limit:
        raise CommandError(
            f"{has}, which with --gen-length {gen_length} exceeds this model's context of {limit}; shorten the prompt "
            "or lower --gen-length."
        )
    return token_ids


def encode_in_room(llm: LLM, prompt: Prompt, rule: Rule) -> tuple[list[int], GenerationParams]:
    """Encode a prompt as :func:`encode` does; an answer whose length was not asked for may have the room there is.

    Raises:
        CommandError: as :func:`encode`.
    """
    params = rule.params
    token_ids = encode(llm, prompt, params.gen_length if rule.length_asked_for else 1)
    room = llm.model.config.max_position_embeddings - len(token_ids)
    return token_ids, replace(params, gen_length=min(params.gen_length, room), min_tokens=min(params.min_tokens, room))


def _encode(llm: LLM, prompt: Prompt) -> list[int]:
    if isinstance(prompt, list) and not any(isinstance(part, dict) for part in prompt):
        return cast(list[int], prompt)
    if llm.tokenizer is None:
        raise CommandError("this model has no tokenizer, so it takes token ids only; give prompt ids instead of text.")
    if isinstance(prompt, str):
        if llm.tokenizer.chat_template is None:
            return llm.tokenizer.encode(prompt)
        prompt = llm.chat_prompt(prompt)
    try:
        return llm.tokenizer.apply_chat_template(cast(list[dict[str, Any]], prompt))
    except ValueError as error:
        raise CommandError(str(error)) from error


def _parse(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise CommandError(f"{what} is not valid JSON{where}.") from error


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise CommandError(f"{what} must be text, not a JSON {_json_type(value)}.")
    if not value.strip():
        raise CommandError(f"{what} is empty; to generate from nothing, give an empty list as prompt ids.")
    return _unicode(value, what)


def _unicode(text: str, what: str) -> str:
    """Check ``text``, which half a surrogate pair (from a JSON escape, or from bytes in an argument) would spoil."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CommandError(f"{what} holds characters that are not valid Unicode.") from error
    return text


def _token_ids(value: object, what: str) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(part, int) and not isinstance(part, bool) for part in value):
        raise CommandError(f"{what} must be a JSON list of whole numbers, such as [1, 2, 3].")
    return value


def _messages(value: object) -> list[dict[str, Any]]:
    from dmax.models.tokenizer import text_of

    if not isinstance(value, list) or not value or not all(_is_message(part) for part in value):
        raise CommandError('messages must be a list of at least one {"role": text, "content": text or text parts}.')
    for message in value:
        try:
            _unicode(text_of(message["content"]), "a message")
        except ValueError as error:
            raise CommandError(str(error)) from error
    return value


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str | list)
    )


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
