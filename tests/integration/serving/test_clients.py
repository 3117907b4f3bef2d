"""What clients send by default is answered, or refused with a 400 that names the field; kind by kind."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dmax import LLM

SENT = json.loads((Path(__file__).parents[2] / "data" / "client_requests.json").read_text(encoding="utf-8"))
MESSAGES = [{"role": "user", "content": "w7 w8"}]


@pytest.fixture(scope="module")
def client(serve_module: Any) -> Iterator[TestClient]:
    with serve_module() as running:
        yield running


def chat(client: Any, **fields: Any) -> Any:
    return client.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})


@pytest.fixture(scope="module")
def byte_client(serve_module: Any, byte_llm: LLM) -> Iterator[TestClient]:
    with serve_module(of=byte_llm, max_gen_length=1024) as running:
        yield running


@pytest.mark.parametrize("case", SENT["cases"], ids=lambda case: f"{case['client']}: {case['case']}")
def test_what_clients_send_by_default(byte_client: TestClient, case: dict[str, Any]) -> None:
    reply = byte_client.post(case["path"], json=case["body"], headers=SENT["clients"][case["client"]]["headers"])
    if refused := case.get("refused"):
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["param"] == refused
    else:
        assert reply.status_code == 200, reply.text
        assert '"error":{' not in reply.text.replace(" ", "")
    assert (reply.headers["content-type"] == "text/event-stream; charset=utf-8") == (
        not refused and bool(case["body"].get("stream"))
    )


def test_every_client_says_where_its_requests_come_from() -> None:
    assert {case["client"] for case in SENT["cases"]} == SENT["clients"].keys()
    recorded = {name for name, client in SENT["clients"].items() if client["source"] == "recorded"}
    assert {"openai", "langchain-openai", "litellm", "llm", "guidellm", "aider-chat"} <= recorded
    assert {"Vercel AI SDK", "LangChain.js"} <= recorded
    assert all(any(char.isdigit() for char in SENT["clients"][name]["version"]) for name in recorded)


def test_null_is_absent_for_every_optional_field(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = set(schemas["ChatRequest"]["properties"]) - {"messages"}
    assert {"threshold", "steps", "ignore_eos", "temperature", "n", "stream"} <= fields
    assert chat(client, **dict.fromkeys(fields)).status_code == 200
    for path, model, own in (
        ("/v1/completions", "CompletionRequest", "prompt"),
        ("/v1/responses", "ResponsesRequest", "input"),
        ("/tokenize", "TokenizeRequest", "prompt"),
    ):
        others = dict.fromkeys(set(schemas[model]["properties"]) - {own})
        assert client.post(path, json={own: "w7", **others}).status_code == 200
    for nested in (
        {"stream": True, "stream_options": {"include_usage": None}},
        {"stream": True, "stream_options": None},
        {"decoder_options": {"steps": None}},
        {"tools": [{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}]},
        {"response_format": {"type": "text", "json_schema": None}},
        {"response_format": {"type": None}},
        {"what_nobody_knows": None},
        {"messages": [{"role": "assistant", "content": None, "name": None, "tool_calls": None}, *MESSAGES]},
    ):
        assert chat(client, **nested).status_code == 200, nested


NEUTRAL = [
    {"top_p": 0.9, "temperature": 0}, {"top_k": -1}, {"top_k": 0}, {"top_k": 40}, {"min_p": 0}, {"min_tokens": 0},
    {"presence_penalty": -0.0, "frequency_penalty": 0.0, "repetition_penalty": 1, "length_penalty": 1.0},
    {"use_beam_search": False, "early_stopping": False, "best_of": 1, "echo": False, "suffix": ""},
    {"stop_token_ids": [], "include_stop_str_in_output": False, "bad_words": [], "logit_bias": {}},
    {"skip_special_tokens": True, "spaces_between_special_tokens": True, "add_special_tokens": False},
    {"add_generation_prompt": True, "continue_final_message": False, "chat_template_kwargs": {}, "documents": []},
    {"functions": [], "function_call": "auto", "modalities": ["text"], "priority": 0, "typical_p": 1.0},
    {"tools": [], "tool_choice": "none"}, {"response_format": {"type": "text"}}, {"logprobs": False}, {"stop": []},
    {"reasoning_effort": "none", "verbosity": "low", "store": True, "user": 5, "metadata": {"a": None}},
    {"max_tokens": -1}, {"max_completion_tokens": -1.0, "seed": -1},
    {"prediction": {"type": "content", "content": "w7"}, "reasoning": {"effort": "low"}, "keep_alive": "5m"},
    {"repeat_penalty": 1, "mirostat": 0, "tfs_z": 1.0, "typ_p": 1, "dry_multiplier": 0, "xtc_probability": 0.0},
    {"return_token_ids": False, "detokenize": True, "allowed_token_ids": [], "cache_prompt": True},
    {"top_a": 0, "no_repeat_ngram_size": 0, "num_beams": 1, "guidance_scale": 1.0, "min_length": 0, "n_probs": 0},
    {"enable_thinking": False, "thinking": {"type": "disabled"}, "request_id": "5", "include_reasoning": True},
    {"chat_template_kwargs": {"enable_thinking": False}},
]  # fmt: skip


@pytest.mark.parametrize("fields", NEUTRAL, ids=lambda fields: next(iter(fields)))
def test_what_asks_for_nothing_changes_nothing(client: TestClient, fields: dict[str, Any]) -> None:
    assert chat(client, **fields).json().get("choices") == chat(client).json()["choices"]


def test_an_answer_has_by_default_the_room_that_is_left(client: TestClient) -> None:
    prompt = [7] * 500
    reply = client.post("/v1/completions", json={"prompt": prompt, "ignore_eos": True}).json()
    assert reply["usage"]["completion_tokens"] == 12
    error = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 24}).json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert "500, which leaves 12; max_tokens asks for 24" in error["message"]


@pytest.mark.parametrize(
    ("path", "field", "prompt"),
    [
        ("/v1/completions", "prompt", [7] * 512),
        ("/v1/chat/completions", "messages", [{"role": "user", "content": "w7 " * 600}]),
        ("/v1/responses", "input", "w7 " * 600),
    ],
)
def test_a_prompt_beyond_the_context_is_told_in_openais_words(
    client: TestClient, path: str, field: str, prompt: Any
) -> None:
    for length in ({}, {"max_output_tokens" if field == "input" else "max_tokens": 8}):
        reply = client.post(path, json={field: prompt, **length})
        error = reply.json()["error"]
        assert reply.status_code == 400
        assert error["message"].startswith("This model's maximum context length is 512 tokens, and ")
        assert (error["param"], error["code"]) == (field, "context_length_exceeded")
        assert "the prompt is too long" in error["message"]  # by which LangChain knows
        assert "gen_length" not in error["message"]
        assert "position" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "code", "hint"),
    [
        ({"treshold": 0.5}, "treshold", "unknown_parameter", "did you mean threshold?"),
        ({"reasonig": 1}, "reasonig", "unknown_parameter", "there is no field 'reasonig'."),
        ({"top_z": 1}, "top_z", "unknown_parameter", "there is no field 'top_z'."),
        ({"max_prompt_tokens": 1}, "max_prompt_tokens", "unknown_parameter", "'max_prompt_tokens'."),
        ({"max_new_tokens": 1}, "max_new_tokens", "unknown_parameter", "did you mean max_tokens?"),
        ({"gen_length": 1}, "gen_length", "unknown_parameter", "did you mean max_tokens?"),
        ({"draw_top_k": 1}, "draw_top_k", "unknown_parameter", "did you mean top_k?"),
        ({"n": 300, "max_tokens": 401}, "n", "less_than_equal", "16"),
        ({"max_tokens": 401}, "max_tokens", "invalid_value", "up to 400"),
        ({"response_format": {"schema": {}}}, "response_format", "invalid_value", "type is 'missing'"),
        ({"presence_penalty": 1}, "presence_penalty", "unsupported_parameter", "not supported"),
        ({"top_p": 1.1, "temperature": 1}, "top_p", "less_than_equal", "top_p"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter", "not supported"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter", "not supported"),
        ({"max_tokens": 12.5}, "max_tokens", "int_type", "max_tokens"),
        ({"stop": 5}, "stop", "string_type", "stop"),
        ({"seed": -2}, "seed", "greater_than_equal", "seed"),
        ({"stop": ["a", None]}, "stop.1", "string_type", "stop.1"),
        ({"n": 17}, "n", "less_than_equal", "16"),
        ({"presence_penalty": False}, "presence_penalty", "unsupported_parameter", "not supported"),
        ({"best_of": 2}, "best_of", "unsupported_parameter", "not supported"),
        ({"chat_template_kwargs": {"thinking": 1}}, "chat_template_kwargs", "unsupported_parameter", "not supported"),
        ({"x" * 10**5: 1}, "x" * 64, "unknown_parameter", "there is no field"),
    ],
)
def test_what_is_refused_is_named(client: TestClient, fields: Any, param: str, code: str, hint: str) -> None:
    reply = chat(client, **fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
    assert hint in error["message"]


def test_benchmarks_get_the_length_they_ask_for(client: TestClient) -> None:
    for prompt in ("w7", "w9 w8", "w11"):
        body = {"prompt": prompt, "max_tokens": 30, "ignore_eos": True}
        assert client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 30
        body = {"prompt": prompt, "max_tokens": 30, "min_tokens": 20}
        assert 20 <= client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] <= 30
    reply = client.post("/v1/completions", json={"prompt": "w7", "max_tokens": 3, "min_tokens": 4})
    assert (reply.status_code, "min_tokens is 4" in reply.text) == (400, True)
    error = client.post("/v1/completions", json={"prompt": "w7", "min_tokens": 500}).json()["error"]
    assert error["param"] == "min_tokens"


def test_many_prompts_at_a_time_and_no_more_than_could_ever_be_queued(client: TestClient, serve: Any) -> None:
    reply = client.post("/v1/completions", json={"prompt": ["w7", "w8"] * 64, "max_tokens": 8})
    assert len(reply.json()["choices"]) == 128
    with serve(max_queue=2) as small:
        error = chat(small, n=8).json()["error"]
        assert (error["param"], "queues up to 2" in error["message"]) == ("n", True)
        reply = small.post("/v1/completions", json={"prompt": ["w7"] * 3})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")


def test_numbers_are_numbers_however_they_are_written(client: TestClient) -> None:
    whole, written = chat(client, max_tokens=16).json(), chat(client, max_tokens=16.0, n=1.0, buffer_size=1.0).json()
    assert written["choices"] == whole["choices"]
    drawn = {chat(client, temperature=1.5, seed=-1.0).json()["dmax"]["params"]["seed"] for _ in range(3)}
    assert len(drawn) == 3
    text = client.post("/v1/completions", json={"prompt": [7, 8]}).json()["choices"]
    for prompt in ([7.0, 8.0], [[7.0, 8.0]]):
        assert client.post("/v1/completions", json={"prompt": prompt}).json()["choices"] == text
    steps = chat(client, decoder="threshold", decoder_options={"steps": 4.0})
    assert steps.json()["choices"] == chat(client, decoder="threshold", steps=4).json()["choices"]
    assert client.post("/v1/completions", json={"prompt": [7, 8], "logprobs": False}).json()["choices"] == text
    assert client.post("/v1/completions", json={"prompt": [7, 8], "logprobs": 0}).json()["choices"][0]["logprobs"]
    assert client.post("/v1/responses", json={"input": "w7", "max_output_tokens": -1}).status_code == 200
    for prompt, place in (([7, 8.5], "prompt.1"), ([7, True], "prompt.1"), (["w7", 5], "prompt.1"), (5, "prompt")):
        assert client.post("/v1/completions", json={"prompt": prompt}).json()["error"]["param"] == place


def test_bodies_in_chunks_and_questions_without_a_body(client: TestClient) -> None:
    body = json.dumps({"messages": MESSAGES}).encode()
    headers = {"Content-Type": "application/json"}
    reply = client.post("/v1/chat/completions", content=iter([body[:9], body[9:]]), headers=headers)
    assert reply.json()["choices"] == chat(client).json()["choices"]


def test_head_is_get_without_the_body(client: TestClient) -> None:
    routes = [route for route in client.app.routes if "GET" in getattr(route, "methods", ())]  # type: ignore[attr-defined]
    paths = {route.path.replace("{name:path}", "tiny").replace("{name}", "theme.css") for route in routes}
    assert {"/health", "/ready", "/metrics", "/version", "/v1/models/tiny", "/", "/web/theme.css"} <= paths
    for path in (*paths, "/none", "/v1/models/none", "/v1/chat/completions"):
        asked, told = client.head(path), client.get(path)
        assert (asked.status_code, asked.content) == (told.status_code, b"")
        assert asked.headers["content-type"] == told.headers["content-type"]


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[1]", b"{", b"\xff", b'{"a":' * 10**5, b'{"messages":' + b"[" * 10**5]
)
def test_a_body_that_is_no_object_is_refused_as_such(client: TestClient, body: bytes) -> None:
    reply = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("header", "status"), [("bearer k", 200), ("BEARER k", 200), ("Bearer k", 200), ("k", 401), ("Basic k", 401)]
)
def test_the_scheme_of_a_key_is_required_in_any_case(serve: Any, header: str, status: int) -> None:
    with serve(api_keys=("k",)) as guarded:
        assert guarded.get("/v1/models", headers={"Authorization": header}).status_code == status
        body = {"prompt": "w7"}
        assert guarded.post("/tokenize", json=body, headers={"Authorization": header}).status_code == status


def test_a_part_that_is_no_text_is_told_by_its_number(client: TestClient) -> None:
    parts = [{"type": "text", "text": "w7", "cache_control": {}}, {"type": "image_url", "image_url": {"url": "x"}}]
    error = chat(client, messages=[{"role": "user", "content": parts}]).json()["error"]
    assert error["message"] == "messages.0.content: part 2 is image_url; only text is taken."


def test_what_a_model_refused_to_say_is_text_of_the_history(client: TestClient) -> None:
    parts = [{"type": "text", "text": "w9 "}, {"type": "refusal", "refusal": "w10"}]
    told, same = (
        chat(client, messages=[*MESSAGES, {"role": "assistant", "content": content}, *MESSAGES]).json()
        for content in (parts, "w9 w10")
    )
    assert told["choices"] == same["choices"]


def test_an_item_is_named_by_its_own_place(client: TestClient) -> None:
    before = [{"role": "user", "content": "w7"}, {"type": "reasoning", "summary": []}]
    for item, place in (({"type": "function_call_output", "output": "5"}, "input.2"), ({"role": "x"}, "input.2")):
        body = {"instructions": "w9", "input": [*before, item]}
        assert client.post("/v1/responses", json=body).json()["error"]["param"] == f"{place}.role"
    nothing = client.post("/v1/responses", json={"input": before[1:]}).json()["error"]
    assert (nothing["param"], nothing["code"]) == ("input", "too_short")


def test_the_log_says_why_a_request_was_refused_and_what_a_stream_cost(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="dmax.serving.access"):
        chat(client, treshold=1)
        chat(client, decoder="soft")
        assert chat(client, stream=True).text.endswith("[DONE]\n\n")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "dmax.serving.access"]
    assert [line["status"] for line in lines] == [400, 400, 200]
    assert (lines[0]["error_code"], lines[0]["param"]) == ("unknown_parameter", "treshold")
    assert "soft-parallel" in lines[1]["error"]
    assert lines[2]["nfe"] > 0
    assert "w7" not in caplog.text


def test_a_stream_that_waits_is_kept_alive(serve: Any) -> None:
    slow = {"decoder": "fixed-steps", "max_tokens": 300, "ignore_eos": True}
    with serve(ping_seconds=0.001) as client:
        text = chat(client, stream=True, **slow).text
        assert ": ping\n\n" in text
        events = [part for part in text.split("\n\n") if part and part != ": ping"]
        assert all(part.startswith("data: ") for part in events)
        pieces = [json.loads(part.removeprefix("data: ")) for part in events[:-1]]
        whole = chat(client, **slow).json()["choices"][0]["message"]["content"]
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == whole


def test_a_response_is_the_chat_answer(client: TestClient, llm: LLM) -> None:
    told = chat(client, max_tokens=16, messages=[{"role": "system", "content": "w9"}, *MESSAGES]).json()
    body = {"input": "w7 w8", "instructions": "w9", "max_output_tokens": 16}
    reply = client.post("/v1/responses", json=body).json()
    [item] = reply["output"]
    assert item["content"][0]["text"] == told["choices"][0]["message"]["content"]
    assert reply["status"] == ("incomplete" if told["choices"][0]["finish_reason"] == "length" else "completed")
    assert reply["usage"]["output_tokens"] == told["usage"]["completion_tokens"]
    text = client.post("/v1/responses", json={**body, "stream": True}).text
    events = [json.loads(part.partition("data: ")[2]) for part in text.split("\n\n") if part]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == item["content"][0]["text"]
    last = events[-1]
    assert last["type"] == f"response.{reply['status']}"
    assert last["response"]["output"][0]["content"] == item["content"]


def test_a_draw_from_one_token_is_greedy_and_neighbours_draw_as_alone(client: TestClient) -> None:
    greedy = chat(client).json()["choices"][0]["message"]["content"]
    for narrow in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1}):
        assert chat(client, temperature=2, **narrow).json()["choices"][0]["message"]["content"] == greedy
    wide = chat(client, temperature=2, seed=3).json()["choices"]
    assert chat(client, temperature=2, seed=3, top_p=1, top_k=-1, min_p=0).json()["choices"] == wide


def test_tokens_and_version(client: TestClient, llm: LLM) -> None:
    assert llm.tokenizer is not None
    reply = client.post("/tokenize", json={"model": "tiny", "prompt": "w7 w8", "return_token_strs": True}).json()
    expected = llm.tokenizer.encode("w7 w8")
    assert (reply["count"], reply["tokens"], reply["max_model_len"]) == (2, expected, 512)
    assert len(reply["token_strs"]) == 2
    told = client.post("/tokenize", json={"messages": MESSAGES}).json()
    assert told["count"] == chat(client).json()["usage"]["prompt_tokens"]
    assert client.post("/tokenize", json={"prompt": "w7", "messages": MESSAGES}).status_code == 400
    error = client.post("/tokenize", json={"messages": MESSAGES, "add_generation_prompt": False}).json()["error"]
    assert error["param"] == "add_generation_prompt"
    same = client.post("/tokenize", json={"messages": MESSAGES, "continue_final_message": False}).json()
    assert same == told
    assert client.get("/version").json()["version"]


def test_tokens_become_text_again(client: TestClient, llm: LLM) -> None:
    for asked in ({"prompt": "w7 w8"}, {"prompt": ""}, {"messages": MESSAGES}):
        tokens = client.post("/tokenize", json=asked).json()["tokens"]
        text = client.post("/detokenize", json={"tokens": list(map(float, tokens))}).json()["prompt"]
        assert client.post("/tokenize", json={"prompt": text}).json()["tokens"] == tokens
    for tokens in ([-1], [llm.model.config.vocab_size], [10**30], "w7", None):
        error = client.post("/detokenize", json={"tokens": tokens}).json()["error"]
        assert error["param"] == "tokens"
