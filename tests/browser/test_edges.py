"""What the page says where there is no answer, what it asks before it drops one, and how it looks where little shows.

Run as ``test_page.py`` says. Most answers are played by the test itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

pytestmark = pytest.mark.browser
api = pytest.importorskip("playwright.sync_api")

EXAMPLES = json.loads((files("dmax.serving") / "web" / "examples.json").read_text(encoding="utf-8"))
LONG = "\n".join(f"Line {number} of a question that fills several screens." for number in range(300))
IN_SIGHT = """element => {
  const { top, bottom } = element.getBoundingClientRect();
  const from = document.querySelector(".bar").getBoundingClientRect().bottom;
  const to = document.querySelector(".composer .box").getBoundingClientRect().top;
  return from <= top && bottom <= to;
}"""


def test_an_empty_answer_says_so_and_is_not_sent_along(server: Any) -> None:
    turn = server.answer("First.", " ")
    api.expect(turn.locator(".answer")).to_have_text("The answer is empty: the model ended it at once.")
    assert turn.locator(".note").is_hidden()
    assert server.page.get_by_role("button", name="Copy").count() == 0
    assert server.page.locator("#announcer").inner_text().startswith("The answer is empty: ")
    server.answer("Second.", "Two.")
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "Second."}]
    turn = server.answer("Third.", "")
    api.expect(turn.locator(".note")).to_contain_text("a new conversation begins without them")
    assert len(server.asked[-1]["messages"]) == 3


@pytest.mark.parametrize("viewport", [{"width": 1280, "height": 720}, {"width": 320, "height": 568}])
def test_an_error_after_a_long_question_is_in_sight(played: Callable[..., Any], viewport: dict[str, int]) -> None:
    server = played(viewport=viewport)
    server.answer("First.", "One.")
    server.ask(LONG)
    server.refuse(message="This model's maximum context length is 8.", code="context_length_exceeded")
    note = server.page.get_by_role("alert").filter(has_text="maximum context length")
    api.expect(note).to_contain_text("a new conversation begins without them")
    assert note.evaluate(IN_SIGHT)
    assert server.page.get_by_role("button", name="Edit question").evaluate(IN_SIGHT)
    assert server.page.locator(".turn .prompt").evaluate_all("all => all.map((each) => each.tabIndex)") == [-1, 0]
    assert server.page.get_by_role("form", name="Ask").count() == 1


def test_what_was_refused_can_be_edited_and_not_tried_again(server: Any) -> None:
    server.ask("Too much.")
    server.refuse()
    assert server.page.get_by_role("button", name="Try again").count() == 0
    server.page.fill("#prompt", "typed meanwhile")
    server.page.get_by_role("button", name="Edit question").click()
    assert server.page.locator("#prompt").input_value() == "Too much.\ntyped meanwhile"
    assert server.page.locator(".turn").count() == 0
    assert server.page.locator("#examples").is_visible()


@pytest.mark.parametrize("error", [{"type": "rate_limit_error", "code": "queue_full"}, {"type": "server_error"}])
def test_what_failed_by_chance_can_be_tried_again(server: Any, error: dict[str, str]) -> None:
    server.ask("Count.")
    server.refuse(**error)
    server.page.get_by_role("button", name="Try again").click()
    server.until(lambda: len(server.asked) == 2)
    assert server.asked[0] == server.asked[1]


def test_settings_tell_the_length_that_is_not_given(server: Any) -> None:
    facts = server.page.evaluate("fetch('v1/models').then((reply) => reply.json())")["data"][0]
    placeholder = server.page.locator("#set-max_tokens").get_attribute("placeholder")
    assert placeholder == f"{facts['default_gen_length']}, or what room is left"
    assert str(facts["max_model_len"]) in server.page.locator("#hint-max_tokens").text_content()


def test_comparing_takes_the_pair_that_is_worth_it_until_something_else_is_chosen(server: Any) -> None:
    (first, second), rule = EXAMPLES["comparison"]["settings"], server.page.locator("#rule")
    alone = rule.inner_text()
    server.page.locator("#examples button").last.click()
    server.until(lambda: len(server.asked) == 2)
    sent = [{name: request[name] for name in ("decoder", "threshold")} for request in server.asked]
    assert sent == [first, second]
    assert server.asked[0]["messages"][0]["content"] == EXAMPLES["comparison"]["question"]
    assert rule.inner_text() == f"{first['decoder']} · {first['threshold']}"
    assert server.page.locator("#second-threshold").get_attribute("placeholder") == str(second["threshold"])
    server.page.get_by_label("Second decoder", exact=True).select_option("hierarchical")
    assert server.page.locator("#second-threshold").get_attribute("placeholder") != str(second["threshold"])
    server.page.get_by_role("checkbox", name="Compare").press(" ")
    assert rule.inner_text() == alone


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_an_answer_is_copied(played: Callable[..., Any], has_clipboard: bool) -> None:
    server = played(permissions=["clipboard-read", "clipboard-write"])
    server.answer("First.", "One\ntwo.")
    read = "navigator.clipboard.readText()"
    if not has_clipboard:  # as where the page comes over plain HTTP
        server.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
        read = "delete navigator.clipboard; navigator.clipboard.readText()"
    server.page.get_by_role("button", name="Copy").click()
    api.expect(server.page.get_by_role("button", name="Copied")).to_be_focused()
    server.page.clock.run_for(3000)
    api.expect(server.page.get_by_role("button", name="Copy", exact=True)).to_be_visible()
    assert server.page.evaluate(read) == "One\ntwo."


def test_a_conversation_is_dropped_only_where_that_is_meant(server: Any) -> None:
    turns, page = server.page.locator(".turn"), server.page
    server.answer("First.", "One.")
    page.click("#fresh")
    page.keyboard.press("Enter")  # the harmless choice has the focus
    api.expect(page.locator("#forget")).to_be_hidden()
    page.click("#fresh")
    page.keyboard.press("Escape")
    with page.expect_event("dialog") as asked:
        page.evaluate("() => { setTimeout(() => location.reload()) }")
        page.clock.run_for(1)
    assert asked.value.type == "beforeunload"
    asked.value.dismiss()
    assert turns.count() == 1
    page.click("#fresh")
    page.get_by_role("button", name="Forget it").click()
    api.expect(turns).to_have_count(0)
    page.reload()  # nothing is lost now, and nobody is asked
    page.wait_for_selector("#examples li")
    server.ask("Too much.")
    server.refuse()
    page.click("#fresh")  # nor for a question that has no answer
    api.expect(turns).to_have_count(0)


def test_a_server_that_comes_back_with_another_model_says_so(server: Any) -> None:
    server.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "other"}]}))
    server.hang_up()
    server.until(lambda: "other" in server.page.locator("#state").inner_text())


def test_a_server_that_comes_back_with_a_key_is_asked_with_it(server: Any) -> None:
    page, state = server.page, server.page.locator("#state")

    def tell(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "No.", "code": "invalid_api_key"}})

    page.route("**/v1/models", tell)
    server.hang_up()
    server.until(lambda: page.locator("#key-dialog").is_visible())
    server.send({"error": {"message": "No.", "code": "invalid_api_key"}})
    server.hang_up()
    server.until(lambda: "key" in state.inner_text())
    page.fill("#key", "right")
    page.keyboard.press("Enter")
    server.until(lambda: not state.inner_text())


def test_text_from_right_to_left_begins_at_the_right(server: Any) -> None:
    turn = server.answer("كم عدد الكتب؟", "٢٤ كتابا")
    for element in (turn.locator(".prompt"), turn.locator(".answer")):
        assert element.evaluate("element => getComputedStyle(element).direction") == "rtl"


def test_chosen_colours_leave_the_borders_of_what_can_be_pressed(played: Callable[..., Any]) -> None:
    server = played(forced_colors="active")
    server.answer("First.", "One.")
    page = server.page
    for element in page.locator("button:visible, .switch i").all():
        assert element.evaluate("element => parseFloat(getComputedStyle(element).borderTopWidth)") >= 1
    page.get_by_role("checkbox", name="Compare").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert page.locator(".switch i").evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    page.locator(".scrubber").press("Home")
    masks = page.locator("#turns .tile[data-state=mask]")
    assert masks.first.evaluate("element => parseFloat(getComputedStyle(element).borderTopWidth)") >= 1


def test_everything_that_the_keyboard_reaches_shows_where_it_is(server: Any) -> None:
    server.answer("First.", "One.")
    page, seen = server.page, []
    page.locator("#prompt").focus()
    for _ in range(14):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            continue  # the browser's own bar
        name, outline = page.evaluate(
            """() => {
              const held = document.activeElement;
              const shown = held.id === "compare" ? held.nextElementSibling : held;
              return [held.id || held.ariaLabel || held.textContent, getComputedStyle(shown).outlineStyle];
            }"""
        )
        assert name == "prompt" or outline != "none", f"{name} has the focus, and nothing shows it"
        seen.append(name)
    assert {"fresh", "open-settings", "Copy", "Pass", "rule", "compare", "send"} <= set(seen)


@pytest.mark.parametrize("width", [320, 360])
def test_on_a_phone_send_stands_beside_the_text(played: Callable[..., Any], width: int) -> None:
    page = played(viewport={"width": width, "height": 740}, has_touch=True).page
    text, send = (page.locator(element).bounding_box() for element in ("#prompt", "#send"))
    assert text["x"] + text["width"] <= send["x"]
    assert text["y"] <= send["y"] + send["height"] / 2 <= text["y"] + text["height"]
    page.get_by_role("checkbox", name="Compare").press(" ")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_without_a_script_there_is_text_and_nothing_that_does_not_work(
    new_page: Callable[..., Any], address: str
) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(address)
    api.expect(page.get_by_role("heading", level=2)).to_have_text("Watch an answer come into focus.")
    assert page.locator("noscript").bounding_box()["height"] > 10
    assert page.locator("button:visible, textarea:visible").count() == 0


def test_the_first_picture_has_its_text_before_any_script_has_run(new_page: Callable[..., Any], address: str) -> None:
    page = new_page()
    page.route(re.compile(r"\.js$"), lambda route: None)  # under way for ever
    page.goto(address, wait_until="commit")
    api.expect(page.get_by_text("Watch an answer come into focus.")).to_be_visible()
    assert (
        page.locator("button:visible").evaluate_all("buttons => buttons.filter((each) => !each.innerText).length") == 0
    )
