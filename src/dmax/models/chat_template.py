"""Chat templates: a checkpoint's Jinja source, run in a sandbox where it can format text and nothing else.

What a template may use is what transformers gives it
(https://huggingface.co/docs/transformers/main/chat_templating_writing).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]
"""One chat turn: ``role`` and ``content``, as the chat template expects them."""


class ChatTemplate:
    """A template, compiled when it is first used: ids can be decoded whatever it looks like.

    Args:
        source: Jinja.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        names: Mapping[str, str | None],
        tools: Sequence[Any] = (),
    ) -> str:
        """Return a conversation as text.

        Args:
            messages: the turns, oldest first.
            add_generation_prompt: whether the text ends where the assistant's next turn begins.
            names: texts of the special tokens by their roles, such as ``eos_token``.
            tools: which the model may call.

        Raises:
            ValueError: the template is not valid Jinja, or refuses these messages.
        """
        template = self._compiled
        known = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": tools or None,
            "documents": None,
        }
        try:
            return template.render(**known, **names)
        except Exception as error:  # a template is a program of the checkpoint's: it can fail in any way
            raise ValueError(f"The chat template does not take these messages: {error}.") from error

    @cached_property
    def _compiled(self) -> Template:
        extensions: list[str | type[Extension]] = [loopcontrols, _Generation]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            return environment.from_string(self.source)
        except TemplateError as error:
            raise ValueError(f"The chat template is not valid Jinja: {error}.") from error


class _Generation(Extension):
    """``{% generation %}`` marks an assistant's words for training elsewhere; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
