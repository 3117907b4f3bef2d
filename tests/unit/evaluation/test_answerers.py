"""Servers that answer, stumble or talk nonsense; and models whose prompts fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("httpx")

import httpx

from dmax import LLM, GenerationParams, LLaDA2, ModelConfig
from dmax.evaluation import answerers
from dmax.evaluation.answerers import AnswererError, LocalAnswerer, RemoteAnswerer


def server(handle: Any, **settings: Any) -> RemoteAnswerer:
    answerer = RemoteAnswerer("http://server/v1/", "nano", **settings)
    answerer._client = httpx.Client(transport=httpx.MockTransport(handle))
    return answerer


def completion(text: str, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], **fields}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answerers.time, "sleep", lambda seconds: None)


def test_answers_come_in_order_with_what_the_server_tells_of_their_cost() -> None:
    def handle(request: Any) -> Any:
        body = json.loads(request.content)
        assert request.url == "http://server/v1/chat/completions"
        assert (body["model"], body["max_tokens"], body["threshold"]) == ("nano", 64, 0.5)
        assert "seed" not in body, "a greedy answer draws nothing"
        cost = {"num_tokens": 5, "nfe": 2, "passes": 1, "blocks": 1, "revisions": 0}
        return httpx.Response(200, json=completion(body["messages"][0]["content"].upper(), dmax=cost))

    answers = server(handle, extra={"threshold": 0.5}).answer([f"q{i}" for i in range(20)], range(20), 64)
    assert [answer.text for answer in answers] == [f"Q{i}" for i in range(20)]
    assert (answers[0].num_tokens, answers[0].nfe, answers[0].finish_reason) == (5, 2, "stop")


def test_a_server_that_tells_nothing_leaves_the_counts_open() -> None:
    [answer] = server(lambda request: httpx.Response(200, json=completion("4"))).answer(["2+2"], [0], 64)
    assert (answer.text, answer.num_tokens, answer.nfe, answer.error) == ("4", None, None, None)
    usage = {"completion_tokens": 9}
    [answer] = server(lambda request: httpx.Response(200, json=completion("4", usage=usage))).answer(["2"], [0], 64)
    assert answer.num_tokens == 9


def test_every_drawn_answer_has_its_own_seed() -> None:
    seeds = []

    def handle(request: Any) -> Any:
        seeds.append(json.loads(request.content)["seed"])
        return httpx.Response(200, json=completion("x"))

    server(handle, temperature=0.7).answer(["a", "b", "c"], [7, 8, 9], 64)
    assert sorted(seeds) == [7, 8, 9]


def test_a_busy_server_is_asked_again() -> None:
    replies = [httpx.Response(429), httpx.Response(503), httpx.Response(200, json=completion("done"))]
    [answer] = server(lambda request: replies.pop(0)).answer(["a"], [0], 64)
    assert answer.text == "done"


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        (httpx.Response(400, text="prompt too long"), "HTTP 400: prompt too long"),
        (httpx.Response(200, json={"object": "error"}), "no chat completion"),
        (httpx.Response(200, text="<html>welcome</html>"), "no chat completion: <html>"),
    ],
)
def test_a_failure_is_recorded_not_raised(reply: Any, named: str) -> None:
    [answer] = server(lambda request: reply).answer(["a"], [0], 64)
    assert answer.text is None
    assert answer.error is not None
    assert named in answer.error


def test_a_server_that_stays_away_is_a_recorded_failure_and_a_clear_error_at_the_start() -> None:
    def refuse(request: Any) -> Any:
        raise httpx.ConnectError("connection refused")

    [answer] = server(refuse).answer(["a"], [0], 64)
    assert answer.error == "ConnectError: connection refused"
    with pytest.raises(AnswererError, match="check --base-url"):
        server(refuse).check()
    with pytest.raises(AnswererError, match="check --api-key"):
        server(lambda request: httpx.Response(401)).check()
    with pytest.raises(AnswererError, match="must end in /v1"):
        server(lambda request: httpx.Response(404)).check()


def test_results_state_the_options_that_took_effect(tiny_config: Callable[..., ModelConfig]) -> None:
    """What the checkpoint says of its decoder included."""
    config = tiny_config(moe=False, decoder_defaults={"soft-parallel": {"threshold": 0.8, "acceptance_threshold": 0.7}})
    answerer = LocalAnswerer(LLM(LLaDA2(config)), GenerationParams(acceptance_threshold=0.6), "tiny", "hash")
    params = answerer.describe()["params"]
    assert (params["threshold"], params["acceptance_threshold"]) == (0.8, 0.6)
    [output] = answerer.llm.generate([5, 6], GenerationParams(gen_length=8, block_length=4))
    assert (output.params["threshold"], output.params["acceptance_threshold"]) == (0.8, 0.7)
