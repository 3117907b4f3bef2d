"""A server as a process of its own, and pages of a browser that watch for errors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")

MODEL = os.environ.get("DMAX_TEST_MODEL", "nano")
CHROMIUM = os.environ.get("DMAX_TEST_CHROMIUM", "/usr/bin/chromium")
PATIENCE = 120_000  # milliseconds; a busy machine is no reason to fail


@contextmanager
def _served(*options: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dmax", "serve", "--model", MODEL, "--port", str(port), *options]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            deadline = time.monotonic() + 300
            while not _is_ready(address):
                assert process.poll() is None, log.seek(0) or log.read()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield address
        finally:
            process.kill()
            process.wait()


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """Options of ``dmax serve`` -> a context with the address of a server on a free port."""
    return _served


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """A server that most tests share."""
    with _served() as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no browser at {CHROMIUM}; name one in DMAX_TEST_CHROMIUM")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Options of a browser context -> a page in it; the test fails where the page logged an error."""
    contexts, errors = [], []

    def make(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        return page

    yield make
    for context in contexts:
        context.close()
    assert [error for error in errors if "401" not in error] == []
