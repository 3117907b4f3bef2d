"""The files of the page: how they are served, and that they ask nobody else for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from dmax.decoding import decoder_names, get_decoder
from dmax.serving.pages import add_pages
from dmax.serving.replay import WEB

NAMES = sorted(entry.name for entry in WEB.iterdir() if entry.is_file())
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    add_pages(app, {})
    return TestClient(app)


def defaults_of(decoder: dict[str, Any]) -> dict[str, Any]:
    return {option["name"]: option["default"] for option in decoder["options"]}


def text_of(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["", *NAMES])
def test_every_file_comes_with_its_type_and_a_strict_policy(client: TestClient, name: str) -> None:
    reply = client.get(f"/web/{name}" if name else "/")
    assert reply.status_code == 200
    assert reply.headers["content-type"].split(";")[0] == TYPES[Path(name or "index.html").suffix]
    assert reply.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}


def test_a_file_that_is_held_already_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/web/app.js")
    assert first.headers["cache-control"] == "no-cache"
    second = client.get("/web/app.js", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (second.status_code, second.content) == (304, b"")
    assert second.headers["etag"] == first.headers["etag"]
    assert client.get("/web/app.js", headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_asks_for_the_headers_only(client: TestClient) -> None:
    reply = client.head("/")
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-length"] == str(len(client.get("/").content))


@pytest.mark.parametrize("name", ["../pages.py", "..%2fpages.py", "%2e%2e%2fpages.py", "nothing.js", "index", "", "."])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/web/{name}").status_code == 404


def test_the_page_knows_the_decoders_there_are(client: TestClient) -> None:
    decoders = client.get("/web/settings.json").json()["decoders"]
    assert [decoder["name"] for decoder in decoders] == decoder_names()
    for decoder in decoders:
        built = get_decoder(decoder["name"])
        assert defaults_of(decoder) == {name: getattr(built, name) for name in defaults_of(decoder)}
    assert {"threshold", "acceptance_threshold", "top_k", "soft"} < defaults_of(decoders[0]).keys()
    assert "temperature" not in defaults_of(decoders[0])


def test_the_page_knows_what_all_decoders_share(client: TestClient) -> None:
    shared = {each["name"]: each for each in client.get("/web/settings.json").json()["shared"]}
    assert {"max_tokens", "block_length", "temperature", "buffer_size", "add_threshold", "seed"} <= shared.keys()
    assert not {"decoder", "stop", "gen_length", "threshold"} & shared.keys()
    assert (shared["temperature"]["maximum"], shared["seed"]["kind"]) == (2, "whole")


def test_the_page_knows_how_the_checkpoint_is_best_decoded() -> None:
    app = FastAPI()
    add_pages(app, {"soft-parallel": {"threshold": 0.8, "soft": True}})
    decoders = {each["name"]: each for each in TestClient(app).get("/web/settings.json").json()["decoders"]}
    assert defaults_of(decoders["soft-parallel"])["threshold"] == 0.8
    assert defaults_of(decoders["soft-parallel"])["acceptance_threshold"] == 0.9
    assert defaults_of(decoders["threshold"])["threshold"] == 0.95


def test_the_template_is_served_filled_but_for_its_data(client: TestClient) -> None:
    page = client.get("/web/replay-template.html").text
    assert "class Replay" in page
    assert "@RUNS@" in page
    assert "@SCRIPT@" not in page


@pytest.mark.parametrize("name", NAMES)
def test_no_file_names_an_address_elsewhere(name: str) -> None:
    text = text_of(name).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(?:https?:)?//[\w-]+\.[\w-]+|@import|\burl\(", text)


def test_every_file_that_is_asked_for_is_there() -> None:
    for name in NAMES:
        asked = re.findall(r'(?:href|src)="web/([^"]+)"|from "\./([^"]+)"|fetch\("web/([^"]+)"', text_of(name))
        for target in map("".join, asked):
            assert target in (*NAMES, "settings.json"), f"{name} asks for {target}"


def test_every_element_that_is_looked_up_is_there() -> None:
    wanted = re.findall(r'byId\("([\w-]+)"\)', text_of("app.js"))
    assert wanted
    assert set(wanted) <= set(re.findall(r'id="([\w-]+)"', text_of("index.html")))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js")])
def test_every_module_parses(name: str) -> None:
    command = ["node", "--input-type=module", "--check"]
    checked = subprocess.run(command, input=text_of(name), capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
