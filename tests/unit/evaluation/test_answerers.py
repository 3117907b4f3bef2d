"""Servers that answer, stumble or talk nonsense; and models whose prompts fail."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("httpx")

import httpx
import torch

from dmax import LLM, BlockDiffusionLM, GenerationParams, ModelConfig, Tokenizer
from dmax.evaluation import remote
from dmax.evaluation.answerers import AnswererError, LocalAnswerer
from dmax.evaluation.remote import RemoteAnswerer
from dmax.models.transformer import initialize


def server(handle: Any, **settings: Any) -> RemoteAnswerer:
    return RemoteAnswerer("http://server/v1/", "nano", transport=httpx.MockTransport(handle), **settings)


def completion(text: str, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], **fields}


def pauses_are(monkeypatch: pytest.MonkeyPatch, kept: list[float]) -> None:
    """Keep the seconds of pauses in place of waiting."""

    async def pause(seconds: float) -> None:
        kept.append(seconds)

    monkeypatch.setattr(remote, "_pause", pause)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_are(monkeypatch, [])


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
    model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(0))
    answerer = LocalAnswerer(LLM(model), GenerationParams(acceptance_threshold=0.6), "tiny", "hash")
    params = answerer.describe()["params"]
    assert (params["threshold"], params["acceptance_threshold"]) == (0.8, 0.6)
    [output] = answerer.llm.generate([5, 6], GenerationParams(gen_length=8, block_length=4))
    assert (output.params["threshold"], output.params["acceptance_threshold"]) == (0.8, 0.7)


def test_a_prompt_whose_logits_are_nan_is_a_failed_row_among_others(
    tiny_config: Callable[..., ModelConfig], word_tokenizer: Callable[..., Tokenizer], chat_template: str
) -> None:
    model = initialize(BlockDiffusionLM(tiny_config(moe=False)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.model.word_embeddings.weight[40] = float("inf")
        model.lm_head.weight[40] = 0
    answerer = LocalAnswerer(
        LLM(model, word_tokenizer(chat_template)), GenerationParams(block_length=8), "tiny", "hash"
    )
    answers = answerer.answer(["w7", "w40", "w8"], [0, 1, 2], 8)
    assert [answer.text is None for answer in answers] == [False, True, False]
    assert "NumericalError: the model's logits were NaN" in (answers[1].error or "")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (completion("x", usage={"completion_tokens": "three"}), "'completion_tokens' is no count but 'three'"),
        (completion("x", usage={"completion_tokens": 3.5}), "no count"),
        (completion("x", usage={"completion_tokens": True}), "no count"),
        (completion("x", usage={"completion_tokens": -1}), "no count"),
        (completion("x", usage=[1]), "'usage' is no object"),
        (completion("x", dmax="fast"), "'dmax' is no object"),
        (completion("x", dmax={"nfe": [2]}), "'nfe' is no count"),
        (completion("half \ud83d"), "half a character"),
        ({"choices": [{"message": {"content": ["x"]}}]}, "content is no text"),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": 3}]}, "finish_reason is no text"),
        ({"choices": []}, "no chat completion"),
        ({"choices": [{"message": None}]}, "no chat completion"),
        ([], "no chat completion"),
    ],
)
def test_a_malformed_reply_is_a_recorded_failure(body: Any, named: str) -> None:
    text = json.dumps(body)
    [answer] = server(lambda request: httpx.Response(200, text=text)).answer(["a"], [0], 64)
    assert answer.text is None
    assert named in (answer.error or "")
    assert answer.error and answer.error.encode()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, {}),
        (403, {}),
        (404, {"message": "no model", "param": "model", "code": "model_not_found"}),
        (400, {"message": "no decoder 'fast'", "param": "decoder"}),
        (422, {"message": "threshold is 7", "param": "decoder_options.threshold"}),
    ],
)
def test_a_configuration_error_ends_a_run_before_its_first_row(status: int, error: dict[str, Any]) -> None:
    def handle(request: Any) -> Any:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "nano"}]})
        return httpx.Response(status, json={"error": error})

    answerer = server(handle, extra={"decoder": "fast", "decoder_options": {}})
    with pytest.raises(AnswererError, match=r"check --(api-key|model)"):
        answerer.check()
    with pytest.raises(AnswererError):
        answerer.answer(["a"], [0], 64)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": None}, ""),
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"content": "x", "refusal": None}, "x"),
        ({"content": None, "reasoning_content": "hm"}, ""),
    ],
)
def test_content_may_be_missing_refused_or_in_parts(message: dict[str, Any], text: str) -> None:
    body = {"choices": [{"message": message, "finish_reason": "content_filter"}]}
    [answer] = server(lambda request: httpx.Response(200, json=body)).answer(["a"], [0], 64)
    assert (answer.text, answer.finish_reason, answer.error) == (text, "content_filter", None)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/html; charset=iso-8859-1", "application/octet-stream", ""]
)
def test_json_is_read_whatever_its_content_type(content_type: str) -> None:
    body = json.dumps(completion("zwölf €"), ensure_ascii=False).encode("utf-8-sig")
    reply = httpx.Response(200, content=body, headers={"Content-Type": content_type})
    [answer] = server(lambda request: reply).answer(["a"], [0], 64)
    assert answer.text == "zwölf €"


@pytest.mark.parametrize(
    "body",
    [
        "<!DOCTYPE html>\n<html><body>Welcome</body></html>",
        'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: {"choi',
        '{"choices": [{"message": {"content": "x',
        '{"error": {"message": "overloaded"}}',
        "",
    ],
)
def test_what_is_no_completion_fails_a_row_and_the_check_of_a_server(body: str) -> None:
    answerer = server(lambda request: httpx.Response(200, text=body))
    [answer] = answerer.answer(["a"], [0], 64)
    assert answer.text is None
    assert "no chat completion" in (answer.error or "")
    assert "\n" not in (answer.error or "")
    with pytest.raises(AnswererError, match=r"is no chat API: .*check --base-url"):
        answerer.check()


def test_two_choices_are_no_answer() -> None:
    body = {"choices": [*completion("x")["choices"], *completion("y")["choices"]]}
    [answer] = server(lambda request: httpx.Response(200, json=body)).answer(["a"], [0], 64)
    assert "no chat completion" in (answer.error or "")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_told_and_not_followed(status: int) -> None:
    def handle(request: Any) -> Any:
        assert request.url.host == "server"
        return httpx.Response(status, headers={"Location": "https://elsewhere/v1/models"})

    with pytest.raises(AnswererError, match="redirects to https://elsewhere/v1/models; give --base-url"):
        server(handle).check()
    with pytest.raises(AnswererError, match="redirects to"):
        server(handle).answer(["a"], [0], 64)


def test_a_page_of_an_error_is_told_in_one_line_once_it_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    pauses_are(monkeypatch, pauses)
    for status in (429, 502):  # without Retry-After
        page = httpx.Response(status, text="<html>\n<h1>Busy</h1>\n</html>")
        [answer] = server(lambda request, page=page: page).answer(["a"], [0], 64)
        assert answer.error == f"HTTP {status}: <html> <h1>Busy</h1> </html>"
    assert pauses == [2.0, 4.0, 8.0, 16.0] * 2


def test_a_server_is_asked_again_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    pauses_are(monkeypatch, pauses)
    busy = httpx.Response(429, headers={"Retry-After": "7"})
    past = httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    replies = [
        busy,
        past,
        httpx.Response(503, headers={"Retry-After": "soon"}),
        httpx.Response(200, json=completion("x")),
    ]
    [answer] = server(lambda request: replies.pop(0)).answer(["a"], [0], 64)
    assert answer.text == "x"
    assert pauses == [7.0, 0.0, 8.0]


def test_a_server_that_wants_hours_of_peace_fails_the_row() -> None:
    [answer] = server(lambda request: httpx.Response(429, headers={"Retry-After": "7200"})).answer(["a"], [0], 64)
    assert "asks to wait 7200 s" in (answer.error or "")


def test_a_server_that_never_answers_is_asked_once() -> None:
    asked = []

    def handle(request: Any) -> Any:
        asked.append(request)
        raise httpx.ReadTimeout("slow")

    [answer] = server(handle, timeout=5).answer(["a"], [0], 64)
    assert len(asked) == 1
    assert "no answer within --timeout, 5 s" in (answer.error or "")


def test_waits_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    replies = [httpx.Response(503, headers={"Retry-After": "0.1"}), httpx.Response(200, json=completion("x"))]
    answerer = server(lambda request: replies.pop(0))
    [answer] = answerer.answer(["a"], [0], 64)
    assert 0.09 < answerer.waited < 5
    assert answer.seconds < 0.09


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, '{"detail": [{"loc": ["body", "decoder"], "msg": "Extra inputs are not permitted"}]}'),
        (400, '{"object": "error", "message": "decoder unknown", "param": "decoder", "code": 400}'),
        (400, "Bad Request: unknown field decoder"),
        (402, '{"error": {"message": "no credit"}}'),
        (500, "Internal Server Error"),
        (302, ""),
    ],
)
def test_a_server_that_refuses_a_greeting_is_an_error_before_the_run(status: int, body: str) -> None:
    """Whatever the form of the refusal: the question is as plain as any can be."""

    def handle(request: Any) -> Any:
        listed = request.url.path.endswith("/models")
        return httpx.Response(200, json={"data": [{"id": "a"}]}) if listed else httpx.Response(status, text=body)

    with pytest.raises(AnswererError, match=f"answers no question \\(HTTP {status}.*--model .*it serves a"):
        server(handle).check()


def test_a_server_whose_list_of_models_fails_is_asked_all_the_same() -> None:
    def handle(request: Any) -> Any:
        asked.append(request.url.path.rpartition("/v1/")[2])
        return httpx.Response(503) if asked[-1] == "models" else httpx.Response(200, json=completion("x"))

    asked: list[str] = []
    server(handle).check()
    assert asked == ["models", "chat/completions"]


def test_every_successful_status_is_an_answer() -> None:
    [answer] = server(lambda request: httpx.Response(201, json=completion("x"))).answer(["a"], [0], 64)
    assert answer.text == "x"


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_the_time_for_an_answer_ends_though_it_trickles_in(head: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.sendall(head or b"HTTP/1.1 200 OK\r\n")
                while not ended.wait(0.05):
                    connection.sendall(b" " if head else b"X-A: 1\r\n")

        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        [answer] = RemoteAnswerer(url, "nano", timeout=1).answer(["a"], [0], 64)
        ended.set()
        thread.join()
    assert answer.error == "no answer within --timeout, 1 s"


def test_a_reply_without_an_end_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LONGEST_REPLY", 2**20)
    [answer] = server(lambda request: httpx.Response(200, text=" " * 2**21)).answer(["a"], [0], 64)
    assert answer.error == "the reply is longer than 1 MiB"


@pytest.mark.parametrize("url", ["localhost:8000/v1", "", "http://", "ftp://a/v1", "http://[::1", "http://a:99999/v1"])
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(AnswererError, match="no address of a server; give one such as http://"):
        RemoteAnswerer(url, "nano")


def test_a_key_that_cannot_be_sent_is_said_and_an_empty_one_is_none() -> None:
    for key in ("schlüssel", "a\nb"):
        with pytest.raises(AnswererError, match="--api-key holds characters"):
            RemoteAnswerer("http://server/v1", "nano", api_key=key)

    def handle(request: Any) -> Any:
        assert "Authorization" not in request.headers
        return httpx.Response(200, json=completion("x"))

    assert server(handle, api_key="").answer(["a"], [0], 64)[0].text == "x"
