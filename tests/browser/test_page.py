"""The page in a real browser, over a real server: ask, watch, replay, compare, export, stop.

Needs the ``browser`` extra and a Chromium; run with ``pytest -m browser``. ``DMAX_TEST_MODEL`` names the model,
``DMAX_TEST_CHROMIUM`` the browser, and ``DMAX_TEST_SCREENSHOTS`` a folder that gets a picture of each state.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
api = pytest.importorskip("playwright.sync_api")
httpx = pytest.importorskip("httpx")

SCREENSHOTS = os.environ.get("DMAX_TEST_SCREENSHOTS")
EXAMPLES = json.loads((files("dmax.serving") / "web" / "examples.json").read_text(encoding="utf-8"))
PROMPT = next(each["question"] for each in EXAMPLES["questions"] if each.get("page") and "known_wrong" not in each)

# What the page shows over time: states of tiles, counts of passes, and what a screen reader is told.
WATCH = """() => {
  const seen = window.seen = { states: [], passes: [], told: [] };
  const note = (list, value) => { if (value && !list.includes(value)) list.push(value); };
  new MutationObserver(() => {
    for (const tile of document.querySelectorAll("#turns .tile")) {
      note(seen.states, tile.dataset.state);
      if (tile.classList.contains("promoted")) note(seen.states, "promoted");
    }
    note(seen.passes, document.querySelector("#turns .cost dd")?.textContent);
    note(seen.told, document.querySelector("#announcer").textContent);
  }).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
}"""


@pytest.fixture
def page(new_page: Callable[..., Any], address: str) -> Any:
    page = new_page()
    open_page(page, address)
    return page


def open_page(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#examples li")


def ask(page: Any, prompt: str = PROMPT) -> Any:
    """Ask by keyboard and wait for the end; gives the newest turn."""
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")
    return finished(page)


def finished(page: Any) -> Any:
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector("#turns .turn:last-child .replay.finished")
    return page.locator("#turns .turn").last


def asked_of_the_api(address: str, *earlier: dict[str, str], **options: Any) -> str:
    messages = [*earlier, {"role": "user", "content": PROMPT}]
    reply = httpx.post(f"{address}/v1/chat/completions", json={"messages": messages, **options}, timeout=120)
    return reply.json()["choices"][0]["message"]["content"]


def picture(page: Any, name: str) -> None:
    if SCREENSHOTS:
        page.wait_for_timeout(400)  # until what fades has faded
        page.screenshot(path=str(Path(SCREENSHOTS) / f"{name}.png"))


def seek(page: Any, share: float) -> int:
    """Move the scrubber by keyboard to a share of the passes; gives the pass."""
    scrubber = page.locator(".turn").last.locator(".scrubber")
    scrubber.focus()
    passes = int(scrubber.get_attribute("max"))
    page.keyboard.press("Home")
    for _ in range(round(passes * share)):
        page.keyboard.press("ArrowRight")
    return round(passes * share)


def hold_back(page: Any, address: str, passes: int, then: Callable[[Any], None] = lambda socket: None) -> None:
    """Let only some passes of the first answer through; further connections are as they are."""
    held: list[Any] = []

    def route(socket: Any) -> None:
        server = socket.connect_to_server()
        if held:
            return
        held.append(socket)
        socket.on_message(server.send)

        def pass_on(message: str) -> None:
            record = json.loads(message)
            if record["type"] == "start" or (record["type"] == "pass" and record["pass_number"] <= passes):
                socket.send(message)
            elif record["type"] == "pass" and record["pass_number"] == passes + 1:
                then(socket)

        server.on_message(pass_on)

    page.route_web_socket(re.compile(r"/v1/trace"), route)
    open_page(page, address)


def test_an_answer_is_drawn_pass_by_pass_and_is_that_of_the_api(page: Any, address: str) -> None:
    picture(page, "empty")
    page.evaluate(WATCH)
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    page.wait_for_selector("#turns .tile[data-state=soft]")
    picture(page, "decoding")
    turn = finished(page)
    picture(page, "answered")
    expected = asked_of_the_api(address)
    assert turn.locator(".answer").inner_text() == expected.rstrip("\n")
    seen = page.evaluate("window.seen")
    assert {"mask", "soft", "promoted"} <= set(seen["states"])
    assert len(seen["passes"]) > 3
    *progress, whole = seen["told"]
    assert expected in whole
    assert all(re.fullmatch(r"Waiting for the first pass\.|Pass \d+, \d+ tokens? so far\.", told) for told in progress)
    names, values = (turn.locator(f".cost {tag}").all_inner_texts() for tag in ("dt", "dd"))
    cost = dict(zip(names, values, strict=True))
    assert float(cost["TPF"]) > 0
    assert float(cost["TPS"]) > 0
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_earlier_turns_go_along(page: Any, address: str) -> None:
    first = ask(page).locator(".answer").inner_text()
    assert ask(page).locator(".answer").inner_text() == asked_of_the_api(
        address, {"role": "user", "content": PROMPT}, {"role": "assistant", "content": first}
    )
    page.click("#fresh")
    page.get_by_role("button", name="Forget it").click()
    api.expect(page.locator(".turn")).to_have_count(0)
    assert ask(page).locator(".answer").inner_text() == first


def test_passes_are_replayed_by_keyboard(page: Any) -> None:
    turn = ask(page)
    answer = turn.locator(".answer").inner_text()
    scrubber = turn.locator(".scrubber")
    passes = int(scrubber.get_attribute("max"))
    scrubber.focus()
    page.keyboard.press("Home")
    states = "tiles => tiles.map((tile) => tile.dataset.state)"
    assert set(turn.locator(".tile").evaluate_all(states)) == {"mask"}
    page.keyboard.press("ArrowRight")
    assert scrubber.get_attribute("aria-valuetext").startswith(f"Pass 1 of {passes}: ")
    assert turn.locator(".tile.promoted").count() > 0
    seek(page, 0.5)
    picture(page, "replay")
    page.keyboard.press("End")
    assert turn.locator(".answer").inner_text() == answer
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    turn.get_by_role("button", name="Play").press("Enter")
    api.expect(turn.locator(".counter")).to_have_text(f"pass {passes} / {passes}")
    api.expect(turn.get_by_role("button", name="Play")).to_be_visible()


def test_the_heat_map_tells_its_cells_and_sets_the_pass(page: Any) -> None:
    turn = ask(page)
    turn.locator("canvas").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    readout = turn.locator(".readout").inner_text()
    assert re.match(r"Pass \d+, position \d+: .+", readout)
    page.keyboard.press("Enter")
    assert turn.locator(".counter").inner_text().startswith(f"pass {re.findall(r'[0-9]+', readout)[0]} /")
    turn.locator("canvas").hover(position={"x": 4, "y": 2})
    assert turn.locator(".readout").inner_text().startswith("Pass 1, position ")
    assert "Block 1: " in turn.locator("figcaption ul").text_content()
    turn.get_by_role("button", name="Heat map").click()
    assert turn.locator("canvas").is_hidden()


def test_two_decoders_side_by_side(page: Any, address: str) -> None:
    page.get_by_role("checkbox", name="Compare").press(" ")
    page.get_by_label("Second decoder", exact=True).select_option("threshold")
    page.get_by_label("Threshold of the second decoder").fill("0.8")
    turn = ask(page)
    assert turn.locator(".pane h3").all_inner_texts()[1].startswith("threshold threshold 0.8")
    assert turn.locator(".answer").all_inner_texts() == [
        asked_of_the_api(address, **EXAMPLES["comparison"]["settings"][0]).rstrip("\n"),
        asked_of_the_api(address, decoder="threshold", threshold=0.8).rstrip("\n"),
    ]
    shown = seek(page, 0.3)
    assert turn.locator(".counter").inner_text().startswith(f"pass {shown} /")
    assert turn.locator(".tiles:visible").count() >= 1
    picture(page, "compare")


def test_an_exported_replay_needs_no_network(page: Any, new_page: Callable[..., Any], tmp_path: Path) -> None:
    page.get_by_role("checkbox", name="Compare").press(" ")
    turn = ask(page)
    with page.expect_download() as download:
        turn.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename == "dmax-soft-parallel-vs-threshold.html"
    file = tmp_path / "replay.html"
    download.value.save_as(file)
    alone = new_page(offline=True)
    requests: list[str] = []
    alone.on("request", lambda request: requests.append(request.url))
    alone.goto(file.as_uri())
    assert alone.locator("h2").inner_text() == PROMPT
    assert alone.locator(".answer").all_inner_texts() == turn.locator(".answer").all_inner_texts()
    assert alone.locator(".cost").all_inner_texts() == turn.locator(".cost").all_inner_texts()
    seek(alone, 0)
    assert alone.locator(".tile[data-state=mask]").count() > 0
    seek(alone, 0.5)
    assert alone.locator("canvas:visible").count() == 2
    picture(alone, "exported")
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_a_refusal_shows_the_sentence_of_the_server_and_can_be_mended(page: Any, address: str) -> None:
    request = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 900_000}
    sentence = httpx.post(f"{address}/v1/chat/completions", json=request).json()["error"]["message"]
    page.click("#open-settings")
    page.fill("#set-max_tokens", "900000")
    page.get_by_role("button", name="Done").click()
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    api.expect(page.get_by_role("alert").filter(has_text=sentence)).to_be_visible()
    picture(page, "refused")
    page.click("#rule")
    page.get_by_role("button", name="Back to defaults").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Edit question").click()
    page.keyboard.press("Enter")
    assert finished(page).locator(".answer").inner_text()
    assert page.locator(".turn").count() == 1


def test_settings_out_of_range_are_named_and_not_sent(page: Any) -> None:
    page.click("#open-settings")
    page.get_by_label("Decoder", exact=True).select_option("threshold")
    assert page.locator("#set-acceptance_threshold").is_hidden()
    page.fill("#set-threshold", "1.5")
    api.expect(page.locator("#hint-threshold")).to_have_text("Threshold must be a number from 0 to 1.")
    picture(page, "settings")
    page.get_by_role("button", name="Done").click()
    assert page.evaluate("document.activeElement.id") == "set-threshold"
    page.keyboard.press("Escape")
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    api.expect(page.locator("#problem")).to_have_text("Threshold must be a number from 0 to 1.")
    assert page.locator(".turn").count() == 0
    page.fill("#set-threshold", "0.9")
    page.keyboard.press("Escape")
    assert page.locator("#rule").inner_text() == "threshold · 0.9"
    page.reload()
    api.expect(page.locator("#rule")).to_have_text("threshold · 0.9")


def test_stop_hangs_up_and_the_server_gives_the_answer_up(new_page: Callable[..., Any], address: str) -> None:
    page = new_page()
    hold_back(page, address, passes=2)
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    page.wait_for_selector("#turns .tile[data-state=soft]")
    page.click("#stop")
    turn = finished(page)
    assert turn.locator(".note").inner_text() == "Stopped after 2 passes."
    assert turn.locator(".answer").is_hidden()
    picture(page, "stopped")
    deadline = time.monotonic() + 60
    while "dmax_running 0.0" not in httpx.get(f"{address}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ask(page).locator(".answer").inner_text() == asked_of_the_api(address)


def test_a_broken_connection_is_told_and_made_again(new_page: Callable[..., Any], address: str) -> None:
    page = new_page()
    hold_back(page, address, passes=2, then=lambda socket: socket.close())
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    api.expect(page.get_by_role("alert").filter(has_text="connection broke")).to_be_visible()
    api.expect(page.locator("#state")).to_be_empty()
    page.get_by_role("button", name="Try again").click()
    assert finished(page).locator(".answer").inner_text() == asked_of_the_api(address)


def test_a_key_is_asked_for_and_kept_in_the_tab(new_page: Callable[..., Any], serve: Callable[..., Any]) -> None:
    with serve("--api-key", "right") as address:
        page = new_page()
        page.goto(address)
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        api.expect(page.locator("#key-note")).to_contain_text("not accepted")
        picture(page, "key")
        page.get_by_label("API key").fill("right")
        page.keyboard.press("Enter")
        page.wait_for_selector("#examples li")  # before, there is nobody to hear a question
        assert ask(page).locator(".answer").inner_text()
        assert page.evaluate("[sessionStorage.length, JSON.stringify(localStorage).includes('right')]") == [1, False]
        page.reload()
        page.wait_for_selector("#examples li")


def test_light_and_dark(new_page: Callable[..., Any], address: str) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page = new_page(color_scheme=scheme)
        open_page(page, address)
        ask(page)
        seek(page, 0.5)
        picture(page, f"replay-{scheme}")
        style = page.evaluate(
            "(({ backgroundColor, color }) => [backgroundColor, color])(getComputedStyle(document.body))"
        )
        colours.append([sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in style])
    (light_paper, light_ink), (dark_paper, dark_ink) = colours
    assert light_paper > 600 > 200 > light_ink
    assert dark_paper < 200 < 600 < dark_ink


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_a_phone_never_scrolls_sideways(new_page: Callable[..., Any], address: str, motion: str) -> None:
    page = new_page(viewport={"width": 360, "height": 740}, reduced_motion=motion, has_touch=True)
    open_page(page, address)
    page.evaluate("localStorage.setItem('dmax.settings', JSON.stringify({ max_tokens: '32' }))")  # nonsense has no end
    open_page(page, address)
    width = "document.documentElement.scrollWidth"
    picture(page, f"phone-{motion}")
    assert page.evaluate(width) == 360
    page.get_by_role("checkbox", name="Compare").press(" ")
    turn = ask(page, f"{PROMPT} {'x' * 200}")
    assert page.evaluate(width) == 360
    seek(page, 0.4)
    picture(page, f"phone-compare-{motion}")
    assert page.evaluate(width) == 360
    animated = turn.locator(".tile").evaluate_all("tiles => tiles.flatMap((tile) => tile.getAnimations()).length")
    assert motion != "reduce" or animated == 0
    page.click("#open-settings")
    assert page.evaluate(width) == 360
