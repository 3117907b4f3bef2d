"""What all bodies of requests have in common: values that can be repeated, null as absent, unknown fields refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

MAX_DEPTH = 150
"""Most levels of objects and lists in a body; whoever reads deeper ones has to call himself too often."""
_SHOWN = 64
"""Most characters of an unknown field's name that are told."""
_ELSEWHERE = {
    "gen_length": ("max_tokens", "max_output_tokens"),
    "draw_top_k": ("top_k",),
    "json_schema": ("response_format", "text"),
}
"""Options of the library and the command line, and the fields that stand for them."""
_NEAR = 0.82
"""How alike a field's name must be to be suggested: a hint that is wrong is worse than none."""


def whole(value: Any) -> Any:
    """Read 12.0 as 12: JSON has one kind of number, and some clients write all of them as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def wholes(values: Any) -> Any:
    """Read a list as :func:`whole` reads each of it, without asking of each where there is no such number."""
    if isinstance(values, list) and any(isinstance(value, float) for value in values):
        return list(map(whole, values))
    return values


Whole = Annotated[int, BeforeValidator(whole)]


class Body(BaseModel):
    """What all bodies have in common: null is absent, and an unknown field is refused by its name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    hints: ClassVar[frozenset[str]] = frozenset(
        {
            "cache_prompt", "cache_salt", "client_metadata", "include_reasoning", "keep_alive", "metadata",
            "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
            "reasoning", "reasoning_effort", "request_id", "safety_identifier", "separate_reasoning", "service_tier",
            "store", "stream_reasoning", "user", "verbosity",
        }
    )  # fmt: skip
    """Fields of OpenAI's API, and of other servers, that change nothing of what an answer may be, whatever their
    value."""
    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Fields that this server does not act on, of OpenAI's API and of other servers, with the values that ask for
    nothing. They are taken, and others refused; so a client's defaults pass, and nobody believes that they had an
    effect."""

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_meant(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        check_values(given)
        given = cls.normalized(given)
        for name, value in given.items():
            if name in cls.model_fields or name in cls.hints:
                continue
            if name in cls.neutral:
                if not any(type(value) in (type(one), float) and value == one for one in cls.neutral[name]):
                    raise PydanticCustomError(
                        "unsupported_parameter", "{param} is not supported; leave it out", {"param": name}
                    )
                continue
            here = [field for field in _ELSEWHERE.get(str(name), ()) if field in cls.model_fields]
            nearest = here or get_close_matches(str(name), cls.model_fields, n=1, cutoff=_NEAR)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise PydanticCustomError(
                "unknown_parameter", "there is no field '{param}'{hint}", {"param": _shown(name), "hint": hint}
            )
        return {name: value for name, value in given.items() if name in cls.model_fields}

    @classmethod
    def normalized(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values, none of which is null, without those that stand for nothing given."""
        return values


def _shown(name: object) -> str:
    # Pydantic takes no half of a surrogate pair, and a log no name of any length.
    return str(name)[:_SHOWN].encode(errors="backslashreplace").decode()


def check_values(fields: Mapping[str, Any]) -> None:
    """Refuse what Python reads as JSON and nobody could repeat, in an answer or in the log.

    Raises:
        PydanticCustomError: a field holds such a value; it is named.
    """
    level = list(fields.items())
    for _ in range(MAX_DEPTH):
        inner: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, str) and not _is_unicode(value):
                raise _refused(name, "holds half of a surrogate pair, which is not valid Unicode")
            if isinstance(value, float) and not math.isfinite(value):
                raise _refused(name, "holds a number that is not finite")
            if isinstance(value, dict):
                inner += ((name, part) for part in (*value, *value.values()))
            elif isinstance(value, list):
                inner += ((name, part) for part in value if not isinstance(part, int))
        if not inner:
            return
        level = inner
    raise _refused(level[0][0], f"is nested more than {MAX_DEPTH} levels deep")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(name: str, why: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_value", "{param} {why}", {"param": _shown(name), "why": why})
