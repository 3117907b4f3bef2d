"""What the page shows and tells while an answer decodes, pass by pass, from messages that the test itself sends.

Run as ``test_page.py`` says. The clock of the page stands still but where a test moves it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

pytestmark = pytest.mark.browser
api = pytest.importorskip("playwright.sync_api")

MASK, EOS = 1, 2
CALM = 5_000


def test_revisions_are_marked_as_they_happen_and_stay_marked(server: Any) -> None:
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
    assert "1 revision." in (server.page.locator("#turns figcaption ul").text_content() or "")


def test_tokens_per_forward_and_per_second_are_counted_while_it_runs(server: Any) -> None:
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


def test_a_screen_reader_hears_of_progress_calmly_and_then_the_answer(server: Any) -> None:
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


def test_a_screen_reader_hears_that_an_answer_was_stopped(server: Any) -> None:
    server.ask()
    server.page.clock.run_for(CALM)
    assert server.told[-1][0] == "Waiting for the first pass."
    server.send_pass(1, [10, MASK, MASK, MASK], [0], [])
    server.page.click("#stop")
    server.until(lambda: server.page.locator("#turns .replay.finished").count())
    server.page.clock.run_for(3 * CALM)
    assert server.told[-1][0] == "Stopped."
