"""Turns of a conversation as clients send them, and as a chat template takes them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from dmax.serving.body import check_values

_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Where the text of a part is, by its type."""


def text_of_parts(content: Any) -> Any:
    """Read a message's content: text, or parts of text, whose further keys (``cache_control``) do not matter.

    Raises:
        PydanticCustomError: a part is no text, or the content is neither.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise PydanticCustomError("content_type", "it must be text, or a list of parts of text")
    texts = []
    for number, part in enumerate(content, 1):
        if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
            raise PydanticCustomError(
                "content_type", "part {number} must be an object with a type, such as text", {"number": number}
            )
        if kind not in _TEXTS:
            raise PydanticCustomError(
                "content_type", "part {number} is {kind}; only text is taken", {"number": number, "kind": kind}
            )
        if not isinstance(text := part.get(_TEXTS[kind]), str):
            raise PydanticCustomError("content_type", "part {number} has no text", {"number": number})
        texts.append(text)
    return "".join(texts)


Content = Annotated[str, BeforeValidator(text_of_parts)]


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = ""
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None

    @property
    def is_of_a_tool(self) -> bool:
        """Whether a template has to know tools to tell what this is."""
        return self.role in ("tool", "function")

    def as_turn(self) -> dict[str, Any]:
        """Return the message for the chat template."""
        calls = [_with_read_arguments(call) for call in self.tool_calls or ()]
        further = {"name": self.name, "tool_calls": calls, "tool_call_id": self.tool_call_id}
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content,
            **{name: value for name, value in further.items() if value},
        }


def _with_read_arguments(call: Any) -> Any:
    """Read the arguments of a tool's call into an object, as templates want them, where they are one in JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    try:
        arguments = json.loads(function["arguments"])
        check_values({"arguments": arguments})
    except (KeyError, TypeError, ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def messages_of_items(items: Any) -> Any:
    """Read the turns that a response's input stands for: messages, calls of functions and what came of them.

    Items keep their places, by which errors name them; one that tells a model nothing is None.

    Raises:
        PydanticCustomError: an item is of another kind.
    """
    if not isinstance(items, list):
        return items
    turns = [None if _kind(item) == "reasoning" else _message(number, item) for number, item in enumerate(items)]
    return turns if any(turn is not None for turn in turns) else []


def _kind(item: Any) -> str:
    return str(item.get("type") or "message") if isinstance(item, dict) else "message"


def _message(number: int, item: Any) -> Any:
    kind = _kind(item)
    if kind == "message":
        return item
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    raise PydanticCustomError(
        "item_type",
        "item {number} is {kind}; messages, function_call and function_call_output are taken",
        {"number": number, "kind": kind},
    )
