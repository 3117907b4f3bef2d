"""What sends a question, what stops an answer, and what neither may lose.

Run as ``test_page.py`` says. All answers are played by the test itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.browser
api = pytest.importorskip("playwright.sync_api")

BY_CHANCE = {"type": "server_error", "code": "engine_failed"}


def test_a_double_click_on_send_is_no_click_on_stop(server: Any) -> None:
    server.page.fill("#prompt", "Count.")
    server.page.dblclick("#send")
    server.until(lambda: server.asked)
    server.page.clock.run_for(1000)
    assert server.page.locator("#stop").is_visible()
    assert server.page.locator(".note").is_hidden()
    server.page.wait_for_timeout(600)  # what comes later is a click of its own
    server.page.click("#stop")
    api.expect(server.page.locator(".note")).to_have_text("Stopped after 0 passes.")


def test_trying_again_waits_for_the_answer_under_way(server: Any) -> None:
    server.ask("First.")
    server.refuse(**BY_CHANCE)
    again = server.page.get_by_role("button", name="Try again")
    server.ask("Second.")
    api.expect(again).to_be_disabled()
    server.send_pass(1, [10, 11, 14, 2], [0, 1, 2, 3], [])
    server.send_end("Two.")
    server.page.fill("#prompt", "typed meanwhile")
    again.click()
    server.until(lambda: len(server.asked) == 3)
    assert [message["content"] for message in server.asked[-1]["messages"]] == ["Second.", "Two.", "First."]
    assert server.page.locator("#prompt").input_value() == "typed meanwhile"


def test_a_question_stays_where_a_setting_keeps_it_from_being_asked_again(server: Any) -> None:
    server.ask("First.")
    server.refuse(**BY_CHANCE)
    server.page.click("#open-settings")
    server.page.fill("#set-threshold", "7")
    server.page.keyboard.press("Escape")
    for _ in range(2):
        server.page.get_by_role("button", name="Try again").click()
        api.expect(server.page.locator("#problem")).to_contain_text("from 0 to 1")
        server.page.keyboard.press("Escape")
    assert server.page.locator(".turn .prompt").all_inner_texts() == ["First."]


@pytest.mark.parametrize("place", ["#examples button", ".turn .again"])
def test_by_keyboard_the_focus_goes_on_where_a_button_vanishes(server: Any, place: str) -> None:
    if place == ".turn .again":
        server.ask("First.")
        server.refuse(**BY_CHANCE)
    server.page.locator(place).first.press("Enter")
    api.expect(server.page.locator("#stop")).to_be_focused()
    server.until(lambda: server.asked)
    server.send({"error": {"message": "It cannot be.", **BY_CHANCE}})
    server.until(lambda: server.page.locator(".replay.finished").count())
    api.expect(server.page.locator("#prompt")).to_be_focused()


def test_the_answer_of_the_second_decoder_is_not_dropped_without_asking(server: Any) -> None:
    page = server.page
    server.compare()
    server.refuse(of=0)
    server.send_end("Two.")
    assert page.locator(".turn .again").count() == 0
    page.click("#fresh")
    api.expect(page.locator("#forget")).to_be_visible()


def test_both_decoders_say_that_earlier_turns_count(server: Any) -> None:
    server.answer("First.", "One.")
    server.compare("Second.")
    for of in (0, -1):
        server.refuse(of=of, message="Too long.", code="context_length_exceeded")
    notes = server.page.locator(".turn").last.locator(".note")
    assert [note.endswith("begins without them.") for note in notes.all_inner_texts()] == [True, True]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("Promise.resolve(new Response('<html>'))", "does not tell its model (status 200)"),  # a page of a proxy
        ("Promise.reject(new TypeError('Failed to fetch'))", "cannot be reached; reload"),
    ],
)
def test_a_page_that_cannot_start_says_why(new_page: Callable[..., Any], address: str, answer: str, told: str) -> None:
    page = new_page()
    page.add_init_script(f"window.fetch = () => {answer};")
    page.goto(address)
    api.expect(page.locator("#problem")).to_contain_text(f"This page cannot start: the server {told}")
