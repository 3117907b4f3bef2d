"""Prompts become tokens aside and in order, and an answer that nobody waits for is given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from dmax import LLM, RequestUpdate, Tokenizer
from dmax.engine.requests import RequestReader
from dmax.serving.answering import Answering
from dmax.serving.metrics import ServerMetrics
from dmax.serving.protocol import CompletionRequest
from dmax.serving.settings import ServerSettings


def ask(client: Any, content: str = "w7 w8", **fields: Any) -> Any:
    return client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **fields})


class Stalled:
    """An answer of one block that goes on for ever."""

    def __init__(self) -> None:
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[RequestUpdate]:
        yield RequestUpdate("request", [7, 8], [], None, None)
        await asyncio.sleep(60)

    def close(self) -> None:
        self.closed = True


def answering_with(answer: Stalled, llm: LLM, submitted: list[list[int]] | None = None, **settings: Any) -> Answering:
    """Answers everything alike, and notes the prompts that it is asked."""

    class Engine:
        async def submit(self, prompt: list[int], *_: Any) -> Stalled:
            if submitted is not None:
                submitted.append(prompt)
            return answer

    assert llm.tokenizer is not None
    reader = RequestReader(llm.model.config, llm.tokenizer)
    return Answering(Engine(), reader, llm.tokenizer, ServerSettings("tiny", **settings), ServerMetrics())


@dataclass
class Held:
    """The first prompt that is read waits until it may go on."""

    entered: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held, encode = Held(), RequestReader.encode

    def wait_and_encode(*arguments: Any, **named: Any) -> list[int]:
        if not held.entered.is_set():
            held.entered.set()
            assert held.go_on.wait(30)
        return encode(*arguments, **named)

    monkeypatch.setattr(RequestReader, "encode", wait_and_encode)
    return held


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/trace"])
def test_the_event_loop_never_waits_for_a_long_prompt(serve: Any, held: Held, path: str) -> None:
    prompt = "w7 " * 33_334

    def refusal(client: Any) -> dict[str, Any]:
        if path != "/v1/trace":
            return ask(client, prompt).json()["error"]
        with client.websocket_connect(path) as socket:
            socket.send_json({"messages": [{"role": "user", "content": prompt}]})
            return socket.receive_json()["error"]

    with serve() as client, ThreadPoolExecutor(1) as pool:
        refused = pool.submit(refusal, client)
        try:
            assert held.entered.wait(30)
            for _ in range(3):
                assert client.get("/health").status_code == 200
            assert not refused.done()
        finally:
            held.go_on.set()
        assert refused.result()["code"] == "context_length_exceeded"


def test_long_prompts_wait_for_one_another_and_nobody_else_for_them(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    encode = Tokenizer.encode

    def encode_when_told(self: Tokenizer, text: str) -> list[int]:
        if len(text) > 10**5:
            begun.release()
            assert go_on.wait(30)
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", encode_when_told)
    long = "w7 " * (10**6 // 3)
    with serve() as client, ThreadPoolExecutor(4) as pool:
        refused = [pool.submit(ask, client, long) for _ in range(4)]
        try:
            assert begun.acquire(timeout=30)
            for _ in range(3):
                assert ask(client, max_tokens=1).status_code == 200
            assert not begun.acquire(timeout=0.1), "two long prompts are encoded at a time"
            assert not any(one.done() for one in refused)
        finally:
            go_on.set()
        assert {one.result().json()["error"]["code"] for one in refused} == {"context_length_exceeded"}


def test_requests_reach_the_engine_in_the_order_in_which_they_came(llm: LLM, held: Held) -> None:
    submitted: list[list[int]] = []

    async def ask_twice() -> None:
        answering = answering_with(Stalled(), llm, submitted)
        requests = [CompletionRequest(prompt=prompt, stream=True) for prompt in ("w7 w8 w9", "w10")]
        asked = [asyncio.create_task(answering.completion(request)) for request in requests]
        assert await asyncio.to_thread(held.entered.wait, 30)
        await asyncio.sleep(0.05)  # time for the second to overtake, if it could
        held.go_on.set()
        await asyncio.gather(*asked)

    asyncio.run(ask_twice())
    assert submitted == [[7, 8, 9], [10]]


def test_who_leaves_while_the_prompt_is_read_asks_the_engine_nothing(llm: LLM, held: Held) -> None:
    submitted: list[list[int]] = []

    async def leave() -> None:
        answering = answering_with(Stalled(), llm, submitted)
        asked = asyncio.create_task(answering.completion(CompletionRequest(prompt="w7", stream=True)))
        assert await asyncio.to_thread(held.entered.wait, 30)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        held.go_on.set()
        await answering.completion(CompletionRequest(prompt="w9", stream=True))

    asyncio.run(leave())
    assert submitted == [[9]]


def test_a_stream_that_was_never_begun_can_be_given_up(llm: LLM) -> None:
    async def leave() -> None:
        events = await answering_with(stalled, llm).completion(CompletionRequest(prompt="w7", stream=True))
        events.close()

    stalled = Stalled()
    asyncio.run(leave())
    assert stalled.closed


def test_time_that_runs_out_while_a_piece_is_being_sent_is_told_in_the_stream(llm: LLM) -> None:
    async def taken_slowly(answering: Answering) -> list[str]:
        events = await answering.completion(CompletionRequest(prompt="w7", stream=True))
        taken = []
        async for event in events:
            taken.append(event)
            await asyncio.sleep(0.1)  # a client that reads slowly; time is over meanwhile
        return taken

    stalled = Stalled()
    text, error = asyncio.run(taken_slowly(answering_with(stalled, llm, timeout=0.02)))
    assert "w7 w8" in text
    assert '"code": "timeout"' in error
    assert stalled.closed
