"""Refusals, in the shape that OpenAI's clients understand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

_WORDS = (
    (r"^(Input|List|Value|String) should ", "it must "),
    (r"^Field required$", "it is missing"),
    (r"a valid dictionary( or object to extract fields from| or instance of \w+)?", "an object"),
    (r" after validation(?=,)|, unable to parse raw data as a unicode string$", ""),
    (r"^Value error, ", ""),
)
"""Pydantic's ways of saying things, and ours."""
_BRANCH = re.compile(r"str|int|float|bool|StreamOptions|(list|dict|function-[a-z]+)\[.*\]?")
"""What pydantic adds to a place in a body to tell which of several types it means."""


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status code.
        message: one sentence: what was wrong, what is allowed, how to mend it.
        kind: OpenAI's ``type``, such as ``invalid_request_error``.
        param: the field at fault, if there is one.
        code: a short name of the problem, for programs.
        headers: sent along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with keyword arguments, which an exception's own way forgets; errors cross process borders."""
        rebuild = partial(ApiError, kind=self.kind, param=self.param, code=self.code, headers=self.headers)
        return rebuild, (self.status, self.message)

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Make the error of a request that cannot be run as asked."""
    return ApiError(400, message, param=param, code=code or "invalid_value")


def queue_full(waiting: int) -> ApiError:
    """Say that too many requests wait already."""
    return ApiError(
        429,
        f"{waiting} requests are waiting already; try again in a moment.",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": "1"},
    )


def timed_out(seconds: float) -> ApiError:
    """Say that the answer took too long."""
    return ApiError(
        504,
        f"the answer was not finished after {seconds:g} seconds; ask for fewer tokens, or try again later.",
        kind="timeout_error",
        code="timeout",
    )


def unavailable(reason: str) -> ApiError:
    """Say that the server cannot take requests now."""
    return ApiError(503, reason, kind="server_error", code="unavailable", headers={"Retry-After": "5"})


def malformed(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """Say what is wrong with a body: pydantic's first problem with it, named by its field.

    Of a field that may be of several kinds there is a problem for each; the kind that fits furthest is the one meant.
    """
    first, meant = problems[0]["loc"][:2], dict[str, Mapping[str, Any]]()
    for problem in problems:
        if problem["loc"][:2] == first:
            kind = str(problem["loc"][2]) if len(problem["loc"]) > 2 else ""
            meant.setdefault(kind if _BRANCH.fullmatch(kind) else "", problem)
    problem = max(meant.values(), key=_inside)
    place = ".".join(str(part) for part in problem["loc"] if part != "body" and not _BRANCH.fullmatch(str(part)))
    param = place or problem.get("ctx", {}).get("param")
    if param is None or problem["type"] == "json_invalid":
        text = "the body must be a JSON object, sent with Content-Type: application/json."
        return bad_request(text, code="invalid_json")
    alike = [_words(each) for each in meant.values() if _inside(each) == _inside(problem)]
    text = " or ".join([alike[0], *(each.removeprefix("it must be ") for each in dict.fromkeys(alike[1:]))])
    text += "" if text.endswith("?") else "."
    return bad_request(f"{place}: {text}" if place else text, param, str(problem["type"]))


def _inside(problem: Mapping[str, Any]) -> list[int]:
    """Return how far into lists a problem is."""
    return [part for part in problem["loc"] if isinstance(part, int)]


def _words(problem: Mapping[str, Any]) -> str:
    text = str(problem["msg"])
    for theirs, ours in _WORDS:
        text = re.sub(theirs, ours, text)
    return text


def client_gone() -> ApiError:
    """Make the error of a client that does not wait for the answer; it is for the log alone."""
    return ApiError(499, "the client closed the connection.", kind="client_error", code="client_closed")


def unexpected() -> ApiError:
    """Say that something of ours failed in a way that was not foreseen; what it was is for the log alone."""
    return internal("something went wrong in the server; its log says what.")


def internal(reason: str) -> ApiError:
    """Say that something of ours failed."""
    return ApiError(500, reason, kind="server_error", code="internal_error")
