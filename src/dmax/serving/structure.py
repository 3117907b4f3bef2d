"""What a request says its answer has to look like: JSON, JSON by a schema, or the call of a tool."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from dmax.serving.errors import bad_request


@dataclass(frozen=True)
class Structure:
    """A form that an answer is held to."""

    schema: Mapping[str, Any] | bool
    field: str
    """Of the request, which asks for it."""
    is_call: bool = False
    """Whether the answer is the call of a tool: an object of its ``name`` and ``arguments``."""


class Function(BaseModel):
    """A function that a model may call."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None

    def as_tool(self) -> dict[str, Any]:
        """Return the tool for the chat template."""
        return {"type": "function", "function": self.model_dump(include={"name", "description", "parameters"})}


class ChatTool(BaseModel):
    """A tool of a chat request."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["function"]
    function: Function


class _OfFunctions(BaseModel):
    type: Literal["function"]


class ResponseTool(Function, _OfFunctions):
    """A tool of a response's request, which has the function's fields in its own."""


def of_format(given: Any, field: str) -> Structure | None:
    """Return what a format asks for; None where it is text.

    A schema may stand in the format itself, also in one of ``json_object``, or in its ``json_schema``: APIs differ.

    Args:
        given: an object with a ``type``, if anything.
        field: of the request, which holds it.

    Raises:
        ApiError: it is no format.
    """
    if isinstance(given, dict):
        given = {name: value for name, value in given.items() if value is not None}
    given = given or {"type": "text"}
    kind = given.get("type", "missing") if isinstance(given, dict) else given
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise bad_request(f"{field}.type is {kind!r}; take text, json_object or json_schema.", field)
    holders = [holder for holder in (given.get("json_schema"), given) if isinstance(holder, dict)]
    schema = next((holder["schema"] for holder in holders if holder.get("schema") is not None), None)
    if schema is None and kind == "json_object":
        return Structure({"type": "object"}, field)
    if not isinstance(schema, dict | bool):
        raise bad_request(f"the schema of {field} must be a JSON Schema.", field)
    return Structure(schema, field)


def of_tools(functions: Sequence[Function], choice: Any) -> Structure | None:
    """Return the call that a request asks for; None where an answer need not be one.

    Args:
        functions: those that there are.
        choice: none, auto, required, or an object that names one of them.

    Raises:
        ApiError: the choice is none of these, or what it chooses is not there.
    """
    if choice in (None, "none", "auto"):
        return None
    name = None if choice == "required" else _named(choice)
    chosen = [function for function in functions if name in (None, function.name)]
    if not chosen:
        names = ", ".join(function.name for function in functions)
        there = f"the tools are {names}" if names else "there are no tools"
        raise bad_request(f"tool_choice asks for {name or 'a tool'}; {there}.", "tool_choice")
    return Structure({"anyOf": [_call_of(function) for function in chosen]}, "tools", is_call=True)


def _named(choice: Any) -> str:
    if isinstance(choice, dict) and choice.get("type") == "function":
        holder = choice.get("function", choice)
        if isinstance(holder, dict) and isinstance(holder.get("name"), str):
            return holder["name"]
    raise bad_request('tool_choice takes none, auto, required, or {"type": "function"} with a name.', "tool_choice")


def _call_of(function: Function) -> dict[str, Any]:
    none: dict[str, Any] = {"properties": {}, "additionalProperties": False}
    parameters = none if function.parameters is None else function.parameters
    if parameters.get("type") not in (None, "object"):
        raise bad_request(f"the parameters of {function.name} must be of type object.", "tools")
    # By an id of its own, its references mean places in itself.
    arguments = {"$id": f"tool:{function.name}", **parameters, "type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


_HEAD = re.compile(r'\{"name": "([^"]*)", "arguments": ')


class CallText:
    """Reads the text of a tool's call as it comes."""

    def __init__(self) -> None:
        self.name: str | None = None
        """Of the tool, once it is known."""
        self._text = ""
        self._given = 0

    def add(self, text: str) -> str:
        """Return what further text tells of the arguments; what may close the call itself is held back."""
        self._text += text
        return self._until(len(self._text.rstrip("}")))

    def finish(self) -> str:
        """Return the rest of the arguments, which may have been cut."""
        try:
            json.loads(self._text)
        except ValueError:
            return self._until(len(self._text))
        return self._until(len(self._text) - 1)

    def _until(self, end: int) -> str:
        if self.name is None:
            head = _HEAD.match(self._text)
            if head is None:
                return ""
            self.name, self._given = head[1], head.end()
        told = self._text[self._given : end]
        self._given = max(self._given, end)
        return told
