"""Replays in a file of their own: nothing fetched, nothing that a model or a person wrote taken for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from dmax.serving import replay
from dmax.serving.replay import ReplayError, checked_run, pieces_of, replay_html, template

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> & \u2028 \"'@RUNS@ \ud800"


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside = tag
        if tag in ("script", "style"):
            self.raw.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            tag, text = self.raw[-1]
            self.raw[-1] = (tag, text + data)

    def policy(self) -> str:
        metas = [attributes for tag, attributes in self.elements if tag == "meta"]
        return next(meta["content"] or "" for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")

    def runs(self) -> Any:
        [text] = [text for tag, text in self.raw if tag == "script" and text.startswith("[{")]
        return json.loads(text)


def record(**changes: Any) -> dict[str, Any]:
    values = {
        "pass_number": 1,
        "block": 0,
        "start": 0,
        "tokens": [7, 1, 1],
        "confidence": [0.25, 0.5, 1.0],
        "promoted": [0],
        "revised": [],
        "active": [0, 1, 2],
        "final": False,
    }
    return {**values, **changes}


def run(*trace: dict[str, Any], **changes: Any) -> dict[str, Any]:
    values = {
        "model": "tiny",
        "prompt": "How many?",
        "decoder": "soft-parallel",
        "params": {"threshold": 0.5, "gen_length": 3},
        "text": "seven",
        "token_ids": [7],
        "trace": list(trace) or [record(), record(pass_number=2, tokens=[7, 2, 1], promoted=[1], final=True)],
        "pieces": {"1": "<mask>", "2": "<eos>", "7": "seven"},
    }
    return {**values, **changes}


def test_a_replay_holds_its_runs_as_they_were_given() -> None:
    runs = [run(), run(decoder="threshold", prompt="Größer als 3 < 4?")]
    assert Page(replay_html(runs)).runs() == runs


def test_nothing_is_fetched() -> None:
    page = Page(replay_html([run()]))
    addresses = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses == ["data:,"]
    code = "\n".join(text for _, text in page.raw)
    assert not re.search(r"https?://|\burl\(|@import|\bimport\b|\bfetch\(|WebSocket|XMLHttpRequest", code)


def test_the_policy_allows_this_script_and_this_style_only() -> None:
    page = Page(replay_html([run()]))
    hashes = [f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}" for _, text in page.raw]
    style, data, script = hashes
    assert page.policy().startswith(f"default-src 'none'; script-src '{script}'; style-src '{style}'; ")
    assert data not in page.policy()
    assert "unsafe" not in page.policy()


def test_hostile_text_stays_text() -> None:
    hostile = run(prompt=HOSTILE, text=HOSTILE, model=HOSTILE, decoder=HOSTILE, pieces={"7": HOSTILE})
    html = replay_html([hostile])
    page = Page(html)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in Page(replay_html([run()])).elements]
    assert page.runs() == [hostile]
    assert html.isascii() or "\u2028" not in html
    assert html.encode()


def test_hostile_keys_stay_text() -> None:
    key = HOSTILE.rstrip("\ud800")
    hostile = run(**{key: 1}, params={key: HOSTILE})
    page = Page(replay_html([hostile]))
    assert len(page.raw) == 3
    assert page.runs() == [hostile]


def test_the_template_has_one_place_for_the_data() -> None:
    assert template().count("@RUNS@") == 1
    assert not re.search(r"@[A-Z]+@", template().replace("@RUNS@", ""))


def test_the_modules_of_a_replay_share_one_scope() -> None:
    script = replay._bundle("standalone.js")
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script, re.MULTILINE)
    assert "Replay" in names
    assert len(names) == len(set(names))
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"trace": []}, "trace"),
        ({"trace": None}, "trace"),
        ({"trace": [{"block": 0}]}, r"trace\[0\]\.pass_number"),
        ({"trace": [record(tokens="abc")]}, r"trace\[0\]\.tokens"),
        ({"trace": [record(confidence=[0.5])]}, "one confidence"),
        ({"trace": [record(confidence=[0.5, 0.5, float("nan")])]}, "finite"),
        ({"trace": [record(active=[])]}, "active"),
        ({"trace": [record(promoted=[3])]}, "below its 3 tokens"),
        ({"trace": [record(revised=[-1])]}, "below its 3 tokens"),
        ({"trace": [record(tokens=[7, -1, 1])]}, "token ids"),
        ({"trace": [record(pass_number=0)]}, "from 1"),
        ({"trace": [record(), record(pass_number=3)]}, "one by one"),
        ({"pieces": {"7": 7}}, "pieces"),
        ({"prompt": ["How"]}, "prompt"),
    ],
)
def test_what_is_no_run_is_refused(broken: dict[str, Any], reason: str) -> None:
    with pytest.raises(ReplayError, match=reason):
        replay_html([run(), run(**broken)])


def test_nothing_to_replay_is_refused() -> None:
    with pytest.raises(ReplayError, match="nothing"):
        replay_html([])


def test_blocks_in_flight_share_a_pass() -> None:
    both = [record(), record(block=1, start=3), record(pass_number=2, final=True)]
    assert checked_run(run(*both))["trace"] == both


def test_without_a_tokenizer_ids_have_no_text() -> None:
    assert pieces_of(None, [[1, 2]]) == {}
    assert "pieces" in checked_run({"trace": [record()]})
