"""What the page shows and tells while an answer decodes, pass by pass, from messages that the test itself sends.

Run as ``test_page.py`` says. The clock of the page stands still but where a test moves it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

pytestmark = pytest.mark.browser
api = pytest.importorskip("playwright.sync_api")

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
CALM = 5_000


class Server:
    """The other end of the page's connection."""

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

    def ask(self) -> None:
        """Let the page ask, and begin to answer."""
        self.page.fill("#prompt", "Count.")
        self.page.keyboard.press("Enter")
        self.until(lambda: self.asked)
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

    def send_end(self) -> None:
        output = {
            "type": "end", "text": "one two five", "token_ids": [10, 11, 14, EOS], "num_tokens": 3, "passes": 3,
            "nfe": 4, "blocks": 1, "revisions": 1, "tpf": 0.75, "tps": 30.0, "seconds": 0.1, "finish_reason": "stop",
            "decoder": "soft-parallel", "params": {"gen_length": 4, "threshold": 0.5},
        }  # fmt: skip
        self._sockets[-1].send(json.dumps(output))
        self.until(lambda: self.page.locator("#turns .replay.finished").count())

    def until(self, condition: Callable[[], Any]) -> None:
        """Give messages the time to arrive, and the page's clock some frames to draw them."""
        for _ in range(600):
            if condition():
                return
            self.page.clock.run_for(50)
        raise AssertionError("the page did not get there")

    def cost(self) -> dict[str, str]:
        """What stands under the answer."""
        names, values = (self.page.locator(f"#turns .cost {tag}").all_text_contents() for tag in ("dt", "dd"))
        return dict(zip(names, values, strict=True))


@pytest.fixture
def server(new_page: Callable[..., Any], address: str) -> Server:
    return Server(new_page(), address)


def test_revisions_are_marked_as_they_happen_and_stay_marked(server: Server) -> None:
    tiles = server.page.locator("#turns .tile")
    server.ask()
    server.send_pass(1, [10, 11, 12, MASK], [0, 1, 2], [])
    assert tiles.evaluate_all("tiles => tiles.map((tile) => tile.dataset.state)") == ["soft", "soft", "soft", "mask"]
    assert server.page.locator("#turns .tile[data-revised]").count() == 0
    server.send_pass(2, [10, 11, 14, MASK], [], [2])
    api.expect(server.page.locator("#turns .tile[data-revised]")).to_have_text("five")
    api.expect(server.page.locator("#turns .tile.was-revised")).to_have_text("five")
    assert tiles.nth(2).evaluate("tile => getComputedStyle(tile).animationName") != "none", "it flashes"
    assert server.cost()["revisions"] == "1"
    server.send_pass(3, [10, 11, 14, EOS], [3], [])
    assert server.page.locator("#turns .tile[data-revised]").count() == 0, "in its own pass only"
    api.expect(server.page.locator("#turns .tile.was-revised")).to_have_text("five")
    server.send_end()
    canvas = server.page.locator("#turns canvas")
    canvas.focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowRight"):
        server.page.keyboard.press(key)
    api.expect(server.page.locator("#turns .readout")).to_have_text("Pass 2, position 6: “five”, 80 %, revised")
    assert "1 revisions" in (server.page.locator("#turns figcaption ul").text_content() or "")


def test_tokens_per_forward_and_per_second_are_counted_while_it_runs(server: Server) -> None:
    server.ask()
    assert (server.cost()["TPF"], server.cost()["TPS"]) == ("–", "–")
    server.page.clock.run_for(1000)
    server.send_pass(1, [10, 11, 12, MASK], [0, 1, 2], [])
    assert server.page.locator("#stop").is_visible(), "the answer is under way"
    first = server.cost()
    assert (first["tokens"], first["TPF"]) == ("3", "1.50"), "the prompt fills a block, which is a forward of its own"
    assert 0 < float(first["TPS"]) <= 3.0
    server.page.clock.run_for(4000)
    server.send_pass(2, [10, 11, 14, MASK], [], [2])
    second = server.cost()
    assert (second["tokens"], second["TPF"]) == ("3", "1.00")
    assert 0 < float(second["TPS"]) < float(first["TPS"])
    server.send_pass(3, [10, 11, 14, EOS], [3], [])
    server.send_end()
    assert (server.cost()["TPF"], server.cost()["TPS"]) == ("0.75", "30"), "in the end the engine's own"


def test_a_screen_reader_hears_of_progress_calmly_and_then_the_answer(server: Server) -> None:
    region = server.page.locator("#announcer")
    assert (region.get_attribute("aria-live"), region.get_attribute("aria-atomic")) == ("polite", "true")
    assert region.evaluate("region => getComputedStyle(region).display") != "none", "or nobody would hear it"
    server.ask()
    server.send_pass(1, [10, MASK, MASK, MASK], [0], [])
    server.page.clock.run_for(CALM)
    assert server.told[-1][0] == "Pass 1, 1 token so far."
    known = len(server.told)
    server.page.clock.run_for(3 * CALM)
    assert len(server.told) == known, "what has not changed is not said again"
    server.send_pass(2, [10, 11, 14, MASK], [1, 2], [])
    server.page.clock.run_for(CALM)
    assert [text for text, _ in server.told[known:]] == ["Pass 2, 3 tokens so far."]
    moments = [moment for _, moment in server.told]
    assert all(later - earlier >= CALM for earlier, later in pairwise(moments)), "one sentence is heard before the next"
    server.send_pass(3, [10, 11, 14, EOS], [3], [])
    server.send_end()
    server.page.clock.run_for(3 * CALM)
    texts = [text for text, _ in server.told]
    assert texts[-1] == "one two five 3 tokens in 3 passes."
    assert len([text for text in texts if "one two five" in text]) == 1


def test_a_screen_reader_hears_that_an_answer_was_stopped(server: Server) -> None:
    server.ask()
    server.page.clock.run_for(CALM)
    assert server.told[-1][0] == "Waiting for the first pass."
    server.send_pass(1, [10, MASK, MASK, MASK], [0], [])
    server.page.click("#stop")
    server.until(lambda: server.page.locator("#turns .replay.finished").count())
    server.page.clock.run_for(3 * CALM)
    assert server.told[-1][0] == "Stopped."
