"""What servers that speak the OpenAI protocol answer: completions, errors, and how long to wait."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from dmax.models.tokenizer import text_of

_NOT_ALLOWED = frozenset({401, 403, 404, 405})
"""Whatever the row, the next one will hear the same."""


class MalformedReply(ValueError):
    """A reply that is no chat completion; the message says what is wrong with it."""


@dataclass(frozen=True)
class Completion:
    """One choice of a chat completion, with its cost where the server tells it."""

    text: str
    finish_reason: str | None
    num_tokens: int | None
    passes: int | None
    nfe: int | None
    blocks: int | None
    revisions: int | None


def read_completion(reply: str) -> Completion:
    """Return the only choice of a reply.

    Raises:
        MalformedReply: the reply is something else, or holds what no samples file can.
    """
    try:
        body = json.loads(reply)
        [choice] = body["choices"]
        message = choice["message"]
        text = message["content"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MalformedReply(f"the reply is no chat completion: {' '.join(reply[:200].split())}") from error
    if isinstance(text, list):
        try:
            text = text_of(text)
        except ValueError as error:
            raise MalformedReply(f"the reply's content is no text but {str(text)[:80]!r}") from error
    text = _text(text, "content") or _text(message.get("refusal"), "refusal") or ""
    usage, cost = _object(body, "usage"), _object(body, "dmax")
    tokens = _count(cost, "num_tokens") if "num_tokens" in cost else _count(usage, "completion_tokens")
    counts = {key: _count(cost, key) for key in ("passes", "nfe", "blocks", "revisions")}
    return Completion(text, _text(choice.get("finish_reason"), "finish_reason"), tokens, **counts)


def is_configuration_error(status: int, reply: str, fields: set[str]) -> bool:
    """Return whether an error is about what every request has: the key, the address, the model, a decoding option.

    Args:
        status: HTTP status code.
        reply: the body.
        fields: names of the request's fields that are the same in all requests.
    """
    if status in _NOT_ALLOWED:
        return True
    if status not in (400, 422):
        return False
    try:
        error = json.loads(reply)["error"]
        field = str(error.get("param") or "").partition(".")[0].partition("[")[0]
        return field in fields or error.get("code") in ("model_not_found", "invalid_api_key")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return False


def seconds_to_wait(header: str | None) -> float | None:
    """Return what a ``Retry-After`` asks for, in seconds or as a date; None where there is none that can be read."""
    if header is None:
        return None
    try:
        return max(0.0, float(header)) if float(header) < 1e9 else None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _text(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise MalformedReply(f"the reply's {name} is no text but {str(value)[:80]!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedReply(
            f"the reply's {name} holds half a character: {value[error.start : error.end]!a}"
        ) from error
    return value


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedReply(f"the reply's {name!r} is no object but {str(value)[:80]!r}")
    return value


def _count(part: dict[str, Any], name: str) -> int | None:
    value = part.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise MalformedReply(f"the reply's {name!r} is no count but {str(value)[:80]!r}")
    return value
