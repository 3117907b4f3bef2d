"""Requests that no client would write, and streams cut anywhere: no 5xx, no hang, nothing sent that is taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmax import LLM, EngineConfig, LLMEngine
from dmax.decoding.registry import BUILT_IN
from dmax.serving.app import create_app
from dmax.serving.settings import ServerSettings

SECONDS = 20
"""No answer of this model takes as long; a request that does hangs."""
SERVER = ServerSettings("tiny", block_length=8, default_gen_length=8, max_gen_length=24, timeout=SECONDS)
unhurried = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def client(llm: LLM) -> Iterator[TestClient]:
    assert llm.tokenizer is not None
    engine = LLMEngine(llm.model, llm.tokenizer, EngineConfig(page_length=8, kv_memory=2**22))
    with TestClient(create_app(engine, llm.tokenizer, SERVER), raise_server_exceptions=False) as running:
        yield running


def send(client: TestClient, case: Any) -> httpx.Response:
    """What schemathesis would ask, asked of the server that runs here."""
    request = case.as_transport_kwargs(base_url=str(client.base_url))
    if "data" in request:
        request["content"] = request.pop("data")
    return client.request(**request)


@pytest.mark.parametrize("allowed", [True, False])
def test_nothing_that_the_schema_allows_or_forbids_is_a_5xx(client: TestClient, allowed: bool) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    mode = schemathesis.GenerationMode.POSITIVE if allowed else schemathesis.GenerationMode.NEGATIVE
    api = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    operations = [found.ok() for found in api.get_all_operations()]
    paths = {operation.path for operation in operations}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models/{name}", "/metrics"} <= paths
    for operation in operations:
        if not allowed and not operation.body:
            continue  # nothing to get wrong: any name of a model is a name

        @given(operation.as_strategy(generation_mode=mode))
        @settings(unhurried, max_examples=8)
        def answered(case: Any) -> None:
            reply = send(client, case)
            assert reply.status_code < 500, reply.text
            assert b"server_error" not in reply.content, "a stream tells of failures inside"
            assert reply.elapsed.total_seconds() < SECONDS

        answered()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "messages", "model", "max_tokens", "temperature", "seed", "stop", "n", "stream", "stream_options", "user", "top_p",
    "logit_bias", "decoder", "threshold", "block_length", "decoder_options", "buffer_size", "tools", "metadata",
    "tool_choice", "response_format", "logprobs", "top_logprobs", "echo", "presence_penalty", "modalities",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=4))
@settings(unhurried, max_examples=50)
def test_fields_of_any_kind_are_taken_or_refused(client: TestClient, fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "w7"}], **fields}
    reply = client.post("/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: json.dumps(text).encode()))
@settings(unhurried, max_examples=20)
def test_bodies_of_any_bytes_are_refused(client: TestClient, content: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        reply = client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code in (400,), reply.text


words = st.integers(3, 47).map(lambda token_id: f"w{token_id}")
decoding = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**31), "temperature": st.sampled_from([0.0, 1.0]), "max_tokens": st.integers(1, 24)},
    optional={
        "decoder": st.sampled_from(sorted(BUILT_IN)),
        "block_length": st.integers(1, 12),
        "stop": st.lists(words | st.text("w123 ", min_size=1, max_size=4), max_size=3),
        "n": st.integers(1, 3),
    },
)


@given(st.text(max_size=20) | st.lists(words, max_size=8).map(" ".join), decoding)
@settings(unhurried, max_examples=20)
def test_a_stream_adds_up_to_the_whole_answer(client: TestClient, prompt: str, fields: dict[str, Any]) -> None:
    body = {"prompt": prompt, **fields}
    whole = client.post("/v1/completions", json=body)
    streamed = client.post("/v1/completions", json={**body, "stream": True})
    assert whole.status_code == streamed.status_code == 200, whole.text
    *events, end = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert end == "[DONE]"
    texts = [""] * fields.get("n", 1)
    for event in map(json.loads, events):
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole.json()["choices"]]
    assert not any(stop in text for stop in fields.get("stop", ()) for text in texts)
