"""What goes wrong for one request, or for a moment, stays there."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from dmax import LLM, LLMEngine
from dmax.decoding import SoftParallelDecoder
from dmax.engine.requests import RequestReader
from dmax.serving.app import create_app_over
from dmax.serving.settings import ServerSettings

SLOW = {"decoder": "fixed-steps", "max_tokens": 300}


class FailingDecoder(SoftParallelDecoder):
    """A third-party decoder that raises."""

    def step(self, *arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("on purpose")


class MisshapenDecoder(SoftParallelDecoder):
    """One that gives too many rows."""

    def step(self, *arguments: Any, **keywords: Any) -> Any:
        result = super().step(*arguments, **keywords)
        return replace(result, state=replace(result.state, tokens=result.state.tokens.repeat(3, 1)))


@dataclass(frozen=True, kw_only=True)
class LockedDecoder(SoftParallelDecoder):
    """One whose settings cannot be told."""

    lock: Any = field(default_factory=threading.Lock, init=False)


FOREIGN = {"failing": FailingDecoder, "misshapen": MisshapenDecoder, "locked": LockedDecoder}


def ask(client: Any, content: str = "w7 w8", **fields: Any) -> Any:
    return client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **fields})


def wait_for(client: Any, gauge: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while gauge not in client.get("/metrics").text:
        assert time.monotonic() < deadline, gauge
        time.sleep(0.01)


@pytest.fixture
def foreign_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package registers the decoders of ``FOREIGN``."""
    package = tmp_path / "foreign_decoders-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-decoders\nVersion: 1\n")
    entries = [f"{name} = foreign_decoders:{kind.__name__}\n" for name, kind in FOREIGN.items()]
    (package / "entry_points.txt").write_text("[dmax.decoders]\n" + "".join(entries))
    names = ", ".join(kind.__name__ for kind in FOREIGN.values())
    (tmp_path / "foreign_decoders.py").write_text(f"from {__name__} import {names}\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("foreign_decoders")
@pytest.mark.parametrize(
    ("decoder", "named"), [("failing", "on purpose"), ("misshapen", "shape (3, 8)"), ("locked", "lock")]
)
def test_a_decoder_that_is_broken_fails_its_own_requests_only(serve: Any, decoder: str, named: str) -> None:
    prompts = [f"w{7 + i}" for i in range(4)]
    with serve() as client, ThreadPoolExecutor(4) as pool:
        alone = [ask(client, prompt, **SLOW).json()["choices"] for prompt in prompts]
        others = [pool.submit(ask, client, prompt, **SLOW) for prompt in prompts]
        wait_for(client, "dmax_running 4.0")
        failed = ask(client, decoder=decoder)
        assert failed.status_code == 500
        assert named in failed.json()["error"]["message"]
        stream = ask(client, decoder=decoder, stream=True)
        assert named in stream.text
        assert "[DONE]" not in stream.text
        assert [reply.result().json()["choices"] for reply in others] == alone
        wait_for(client, "dmax_pages_held 0.0")


def test_a_model_without_numbers_fails_the_requests_that_meet_it(serve: Any, llm: LLM) -> None:
    table = llm.model.model.word_embeddings.weight
    kept = table[40].clone()
    try:
        with torch.no_grad():
            table[40] = float("inf")
        with serve() as client, ThreadPoolExecutor(2) as pool:
            alone = [ask(client, prompt, **SLOW).json()["choices"] for prompt in ("w7", "w8")]
            others = [pool.submit(ask, client, prompt, **SLOW) for prompt in ("w7", "w8")]
            wait_for(client, "dmax_running 2.0")
            failed = ask(client, "w40")
            assert failed.status_code == 500
            assert "logits were NaN in pass 1" in failed.json()["error"]["message"]
            stream = ask(client, "w40", stream=True)
            assert "logits were NaN" in stream.text
            assert "[DONE]" not in stream.text
            assert [reply.result().json()["choices"] for reply in others] == alone
            wait_for(client, "dmax_pages_held 0.0")
    finally:
        with torch.no_grad():
            table[40] = kept


def test_a_step_that_raises_is_told_and_the_next_request_is_answered(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as client:
        expected = ask(client).json()["choices"]
        with monkeypatch.context() as patch:
            patch.setattr(LLMEngine, "step", lambda _: 1 / 0)
            failed = ask(client)
        assert failed.status_code == 500
        assert failed.json()["error"]["type"] == "server_error"
        assert ask(client).json()["choices"] == expected
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/trace"])
def test_what_nobody_thought_of_is_a_500_without_internals(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr(RequestReader, "encode", fail)
    with serve() as client:
        if path == "/v1/trace":
            with client.websocket_connect(path) as socket:
                socket.send_json({"messages": [{"role": "user", "content": "w7"}]})
                error = socket.receive_json()["error"]
        else:
            reply = ask(client)
            assert reply.status_code == 500
            assert reply.headers["x-request-id"]
            error = reply.json()["error"]
        assert f'dmax_requests_total{{path="{path}",status="500"}} 1.0' in client.get("/metrics").text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "internal_error"
    assert "secret" not in error["message"]
    assert "secret detail" in caplog.text


def test_an_engine_that_cannot_go_on_is_not_healthy(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as client:
        monkeypatch.setattr(LLMEngine, "step", lambda _: 1 / 0)
        assert ask(client).status_code == 500
        assert client.get("/health").status_code == 200, "the next step may work"
        monkeypatch.setattr(LLMEngine, "abort", lambda *_: 1 / 0)
        assert ask(client).status_code == 503
        assert client.get("/health").status_code == 503
        assert client.get("/ready").status_code == 503


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
def test_readiness_is_what_an_engine_elsewhere_says(llm: LLM, ready: bool, status: int) -> None:
    class Elsewhere:
        alive = True

        async def is_ready(self) -> bool:
            return ready

        def start(self) -> None:
            pass

        stop = start

    assert llm.tokenizer is not None
    app = create_app_over(Elsewhere(), llm.model.config, llm.tokenizer, ServerSettings("tiny"))
    with TestClient(app) as client:
        assert client.get("/ready").status_code == status
        assert client.get("/health").status_code == 200


def test_the_event_loop_never_waits_for_the_model(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on, step = threading.Event(), threading.Event(), LLMEngine.step

    def held_step(engine: LLMEngine) -> Any:
        entered.set()
        assert go_on.wait(30)
        return step(engine)

    monkeypatch.setattr(LLMEngine, "step", held_step)
    with serve() as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, client)
        try:
            assert entered.wait(30)
            assert client.get("/health").status_code == 200
            assert client.get("/v1/models").status_code == 200
            assert ask(client, treshold=1).status_code == 400
            assert not answer.done()
        finally:
            go_on.set()
        assert answer.result().status_code == 200


def test_a_watcher_that_leaves_frees_its_row(serve: Any) -> None:
    with serve() as client:
        for _ in range(3):
            with client.websocket_connect("/v1/trace") as socket:
                socket.send_json({"messages": [{"role": "user", "content": "w7"}], **SLOW})
                assert socket.receive_json()["type"] == "start"
                assert socket.receive_json()["type"] == "pass"
        wait_for(client, "dmax_running 0.0")
        wait_for(client, "dmax_pages_held 0.0")


def test_a_watcher_that_leaves_while_it_waits_frees_its_place(serve: Any) -> None:
    with serve({"max_batch_size": 1}) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, client, **SLOW)
        wait_for(client, "dmax_running 1.0")
        with client.websocket_connect("/v1/trace") as socket:
            socket.send_json({"messages": [{"role": "user", "content": "w7"}], **SLOW})
            assert socket.receive_json()["type"] == "start"
            wait_for(client, "dmax_queue 1.0")
        wait_for(client, "dmax_queue 0.0")
        assert not running.done(), "or its place was not freed, but its turn came"
        assert running.result().status_code == 200
        assert 'dmax_requests_total{path="/v1/trace",status="499"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_log_has_prompts_only_where_asked_and_no_page_files(
    serve: Any, caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    with caplog.at_level(logging.INFO, logger="dmax.serving.access"), serve(log_prompts=log_prompts) as client:
        assert ask(client, "w7 w8").status_code == 200
        assert client.get("/web/app.js").status_code == 200
        assert client.get("/web/nothing.js").status_code == 404
        with client.websocket_connect("/v1/trace") as socket:
            socket.send_json({"messages": [{"role": "user", "content": "w7 w8"}]})
            while socket.receive_json()["type"] != "end":
                pass
            socket.send_text("{")
            assert "error" in socket.receive_json()
    lines = [json.loads(record.message) for record in caplog.records if record.name == "dmax.serving.access"]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/chat/completions", 200),
        ("/web/nothing.js", 404),
        ("/v1/trace", 200),
        ("/v1/trace", 400),
    ]
    assert ("w7 w8" in json.dumps(lines)) is log_prompts
    assert lines[0]["tpf"] == lines[2]["tpf"] > 0
