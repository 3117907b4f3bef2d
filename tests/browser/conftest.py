"""A server as a process of its own, and pages of a browser that watch for errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")

MODEL = os.environ.get("DMAX_TEST_MODEL", "nano")
INSTALLED = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = os.environ.get("DMAX_TEST_CHROMIUM") or next(filter(None, INSTALLED), None)
MASK, EOS = 1, 2
PIECES = {MASK: "<mask>", EOS: "<eos>", 10: "one", 11: " two", 12: " three", 13: " four", 14: " five"}
START = {
    "type": "start",
    "prompt_ids": [20, 21, 22, 23],
    "prompt_pieces": ["a", " b", " c", " d"],
    "block_length": 4,
    "eos_token_ids": [EOS],
    "mask_token_id": MASK,
}
PATIENCE = 120_000  # milliseconds; a busy machine is no reason to fail


class Server:
    """The other end of the page's connections. The clock of the page stands still but where a test moves it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.asked: list[dict[str, Any]] = []
        self.told: list[tuple[str, int]] = []
        """What a screen reader was told, and when by the page's clock, in milliseconds."""
        self._sockets: list[Any] = []
        page.clock.install()
        page.route_web_socket(re.compile(r"/v1/trace"), self._connect)
        page.expose_function("tell", self._hear)
        page.goto(address)
        page.wait_for_selector("#examples li")
        page.clock.pause_at(page.evaluate("Date.now()") + 1000)
        page.evaluate(
            """() => {
              const region = document.querySelector("#announcer");
              const told = { childList: true, characterData: true, subtree: true };
              new MutationObserver(() => window.tell(region.textContent, Date.now())).observe(region, told);
            }"""
        )

    def _connect(self, socket: Any) -> None:
        self._sockets.append(socket)
        socket.on_message(lambda message: self.asked.append(json.loads(message)))

    def _hear(self, text: str, moment: int) -> None:
        self.told.append((text, moment))

    def ask(self, question: str = "Count.") -> None:
        """Let the page ask, and begin to answer."""
        known = len(self.asked)
        self.page.fill("#prompt", question)
        self.page.keyboard.press("Enter")
        self.until(lambda: len(self.asked) > known)
        self._sockets[-1].send(json.dumps(START))

    def send_pass(self, number: int, tokens: list[int], promoted: list[int], revised: list[int]) -> None:
        """Tell of a pass over the one block there is, and let the page draw it."""
        record = {
            "type": "pass", "pass_number": number, "block": 1, "start": 4, "tokens": tokens,
            "confidence": [0.6, 0.7, 0.8, 0.9], "promoted": promoted, "revised": revised, "active": [0, 1, 2, 3],
            "final": False, "pieces": [PIECES[token_id] for token_id in tokens],
        }  # fmt: skip
        self._sockets[-1].send(json.dumps(record))
        self.until(lambda: self.cost()["passes"] == str(number))

    def send_end(self, text: str = "one two five") -> None:
        """End an answer."""
        output = {
            "type": "end", "text": text, "token_ids": [10, 11, 14, EOS], "num_tokens": 3, "passes": 3,
            "nfe": 4, "blocks": 1, "revisions": 1, "tpf": 0.75, "tps": 30.0, "seconds": 0.1, "finish_reason": "stop",
            "decoder": "soft-parallel", "params": {"gen_length": 4, "threshold": 0.5},
        }  # fmt: skip
        self.send(output)
        self._until_finished()

    def refuse(self, *, of: int = -1, **error: Any) -> None:
        """End an answer with an error; of several that are compared, that of one connection."""
        self.send({"error": {"message": "It cannot be.", "type": "invalid_request_error", **error}}, of)
        if of == -1:
            self._until_finished()

    def answer(self, question: str, text: str) -> Any:
        """Let the page ask, and answer in one pass; gives the turn."""
        self.ask(question)
        self.send_pass(1, [10, 11, 14, EOS], [0, 1, 2, 3], [])
        self.send_end(text)
        return self.page.locator(".turn").last

    def compare(self, question: str = "Count.") -> None:
        """Let the page ask two decoders."""
        known = len(self.asked)
        self.page.get_by_role("checkbox", name="Compare").check(force=True)
        self.page.fill("#prompt", question)
        self.page.keyboard.press("Enter")
        self.until(lambda: len(self.asked) == known + 2)

    def send(self, message: dict[str, Any], of: int = -1) -> None:
        """Send a message over one of the connections."""
        self._sockets[of].send(json.dumps(message))

    def hang_up(self) -> None:
        """Break the connection."""
        self._sockets[-1].close()

    def _until_finished(self) -> None:
        self.until(lambda: self.page.locator("#turns .turn:last-child .replay.finished").count())

    def until(self, condition: Callable[[], Any]) -> None:
        """Give messages the time to arrive, and the page's clock some frames to draw them."""
        for _ in range(600):
            if condition():
                return
            self.page.clock.run_for(50)
        raise AssertionError("the page did not get there")

    def cost(self) -> dict[str, str]:
        """What stands under the answer."""
        names, values = (self.page.locator(f".turn:last-child .cost {tag}").all_text_contents() for tag in ("dt", "dd"))
        return dict(zip(names, values, strict=True))


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
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; name one in DMAX_TEST_CHROMIUM")
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


@pytest.fixture
def played(new_page: Callable[..., Any], address: str) -> Callable[..., Server]:
    """Options of a browser context -> a page in it whose answers the test itself plays."""
    return lambda **options: Server(new_page(**options), address)


@pytest.fixture
def server(played: Callable[..., Server]) -> Server:
    return played()
