"""Who may open a WebSocket."""

from __future__ import annotations

import pytest

from dmax.serving.trace import may_connect


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "localhost:8000"),
        ("http://localhost:8000", "localhost:8000"),
        ("https://Chat.example", "chat.example"),
        ("https://chat.example", "chat.example:443"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_programs_and_the_servers_own_pages_may(origin: str | None, host: str) -> None:
    assert may_connect({"host": host} | ({} if origin is None else {"origin": origin}), ())


@pytest.mark.parametrize(
    "origin",
    [
        "http://elsewhere",
        "http://localhost:9000",
        "http://localhost",
        "null",
        "",
        "http://[",
        "http://localhost:8000.evil",
    ],
)
def test_other_websites_may_only_where_cors_lets_them_in(origin: str) -> None:
    headers = {"host": "localhost:8000", "origin": origin}
    assert not may_connect(headers, ())
    assert not may_connect(headers, ("http://third",))
    assert may_connect(headers, ("http://third", origin))
    assert may_connect(headers, ("*",))
