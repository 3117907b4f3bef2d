"""The pictures of the page in the docs: an answer in the middle of its decoding, and two decoders side by side.

Both are of the comparison that the page offers, at the settings that it offers. Needs the ``browser`` extra, a Chromium
and the font Inter.

    python benchmarks/page_pictures.py [--chromium FILE] [--output docs/assets]
"""

from __future__ import annotations

import argparse
import json
import re
from importlib.resources import files
from pathlib import Path

from playwright.sync_api import Browser, Page, WebSocketRoute, sync_playwright
from served import server

WIDTH, SHARE = 1100, 0.55
"""Of a picture in CSS pixels, two of the picture's each; and of the first decoder's passes, those that are over."""
QUESTION, PAIR = json.loads((files("dmax.serving") / "web" / "examples.json").read_text())["comparison"].values()


def open_page(browser: Browser, url: str, height: int, scheme: str, settings: dict[str, str], held_after: int) -> Page:
    """Open the page, remembering settings as strings, and hearing no pass beyond ``held_after``."""
    page = browser.new_page(
        viewport={"width": WIDTH, "height": height}, device_scale_factor=2, color_scheme=scheme, reduced_motion="reduce"
    )

    def hold(socket: WebSocketRoute) -> None:
        behind = socket.connect_to_server()

        def pass_on(text: str) -> None:
            message = json.loads(text)
            if message["type"] == "start" or message.get("pass_number", held_after + 1) <= held_after:
                socket.send(text)

        behind.on_message(pass_on)

    if held_after:
        page.route_web_socket(re.compile("/v1/trace"), hold)
    page.goto(url)
    page.evaluate("settings => localStorage.setItem('dmax.settings', settings)", json.dumps(settings))
    page.reload()
    page.wait_for_selector("#examples li")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--output", type=Path, default=Path("docs/assets"))
    arguments = parser.parse_args()
    with server("nano") as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        page = open_page(browser, served.url, 860, "dark", {}, 0)
        page.locator("#examples button").last.click()
        page.wait_for_selector(".replay.finished")
        for text in page.locator(".pane").all_inner_texts():
            print(*text.split("\n"), sep=" | ")
        shown = round(SHARE * int(page.locator(".cost dd").first.inner_text()))
        page.locator(".scrubber").evaluate(
            "(scrubber, pass) => { scrubber.value = pass; scrubber.dispatchEvent(new Event('input')); }",
            shown,
        )
        page.screenshot(path=arguments.output / "replay.png")

        first = {name: str(value) for name, value in PAIR[0].items()}
        page = open_page(browser, served.url, 480, "light", first, shown)
        page.fill("#prompt", QUESTION)
        page.keyboard.press("Enter")
        page.locator(".cost dd", has_text=str(shown)).first.wait_for()
        page.screenshot(path=arguments.output / "page.png")
        browser.close()


if __name__ == "__main__":
    main()
