"""Whatever the body, the field or the path: an answer, or a refusal that names what is wrong; never a failure."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dmax import LLM
from dmax.serving.body import MAX_DEPTH, Body
from dmax.serving.protocol import ResponsesRequest, Sampling

MESSAGES = [{"role": "user", "content": "w7 w8"}]
LEAST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/completions": {"prompt": "w7", "max_tokens": 1},
    "/v1/responses": {"input": "w7", "max_output_tokens": 1},
    "/tokenize": {"prompt": "w7"},
}
MODELS = ("ChatRequest", "CompletionRequest", "ResponsesRequest", "TokenizeRequest")
ANYTHING: list[Any] = [5, True, "x", [], [{}], [None], {}, {"type": "x"}]


@pytest.fixture(scope="module")
def client(serve_module: Any, byte_llm: LLM) -> Iterator[TestClient]:
    with serve_module(of=byte_llm, max_gen_length=1024) as running:
        yield running


def post(client: TestClient, path: str, **fields: Any) -> Any:
    """Post what Python's encoder takes for JSON: NaN and halves of surrogate pairs, too."""
    body = json.dumps({**LEAST[path], **fields})
    return client.post(path, content=body, headers={"Content-Type": "application/json"})


def fields_of(client: TestClient, path: str) -> set[str]:
    model = dict(zip(LEAST, MODELS, strict=True))[path]
    properties = client.get("/openapi.json").json()["components"]["schemas"][model]["properties"]
    return {*properties, *Body.hints, *Sampling.neutral, *ResponsesRequest.neutral}


@pytest.mark.parametrize("path", LEAST)
def test_any_value_of_any_field_is_taken_or_refused_by_its_name(client: TestClient, path: str) -> None:
    for field in sorted(fields_of(client, path)):
        for value in ANYTHING:
            reply = post(client, path, **{field: value})
            assert reply.status_code in (200, 400, 404), (field, value, reply.text)
            if reply.status_code != 200:
                error = reply.json()["error"]
                assert error["message"].endswith((".", "?"))
                assert "Input should" not in error["message"]
                # Of two prompts, and of options that do not go together, the other one may be meant.
                assert error["param"].partition(".")[0] in (field.partition(".")[0], "text", *LEAST[path], "n"), (
                    field,
                    value,
                    error,
                )


@pytest.mark.parametrize("path", LEAST)
@pytest.mark.parametrize("value", ["\ud800", float("nan"), float("-inf")], ids=["surrogate", "NaN", "infinity"])
def test_what_could_not_be_repeated_is_refused_wherever_it_stands(client: TestClient, path: str, value: Any) -> None:
    for field in sorted(fields_of(client, path)):
        for held in (value, [value], {"a": [{"b": value}]}):
            error = post(client, path, **{field: held}).json()["error"]
            assert (error["param"], error["code"]) == (field, "invalid_value"), held
    if isinstance(value, str):
        assert post(client, path, **{value: 1}).json()["error"]["param"] == "\\ud800"
        assert post(client, path, metadata={value: 1}).json()["error"]["param"] == "metadata"


@pytest.mark.parametrize("path", LEAST)
def test_nesting_has_an_end(client: TestClient, path: str) -> None:
    def nested(levels: int) -> Any:
        value: Any = []
        for level in range(levels - 1):
            value = [value] if level % 2 else {"a": value}
        return value

    for field in ("metadata", "tools", "nobody knows this"):
        error = post(client, path, **{field: nested(MAX_DEPTH + 1)}).json()["error"]
        assert (error["param"], error["code"]) == (field, "invalid_value")
    assert post(client, path, metadata=nested(MAX_DEPTH - 1)).status_code == 200


@pytest.mark.parametrize("arguments", ["[" * 900 + "]" * 900, "[" * 10**5, '{"city": "\\ud800"}', "NaN", "5", "{", ""])
def test_arguments_of_a_call_in_a_history_are_text_where_they_are_no_object(client: TestClient, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "book", "arguments": arguments}}
    history = [{"role": "assistant", "content": None, "tool_calls": [call]}, *MESSAGES]
    assert post(client, "/v1/chat/completions", messages=history).status_code == 200
    item = {"type": "function_call", "call_id": "1", "name": "book", "arguments": arguments}
    assert post(client, "/v1/responses", input=[item, *MESSAGES]).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"min_tokens": 2}, "min_tokens", "min_tokens is 2, more than max_tokens, which is 1"),
        ({"decoder": "soft"}, "decoder", "choose from soft-parallel"),
        ({"steps": 4}, "steps", "'soft-parallel' has no option 'steps'"),
        ({"decoder_options": {"x": 4}}, "decoder_options", "no option 'x'"),
        ({"decoder_options": {"threshold": 0.5}}, "decoder_options", "give it as the field of that name"),
        ({"decoder": "threshold", "decoder_options": {"steps": 0}}, "decoder_options", "steps is 0"),
        ({"decoder": "hierarchical", "buffer_size": 2}, "buffer_size", "one block at a time"),
        ({"messages": [{"role": "user", "content": [{"text": "w7"}]}]}, "messages.0.content", "an object with a type"),
        ({"messages": ["w7"]}, "messages.0", "messages.0: it must be an object."),
        ({"stop": 5}, "stop", "stop: it must be a valid string or a valid list."),
        ({"messages": []}, "messages", "messages: it must have at least 1 item, not 0."),
    ],
)
def test_what_is_wrong_is_told_by_its_field_and_in_plain_words(
    client: TestClient, fields: dict[str, Any], param: str, told: str
) -> None:
    reply = post(client, "/v1/chat/completions", **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert told in reply.json()["error"]["message"]


def test_more_than_the_vocabulary_is_all_of_it(client: TestClient) -> None:
    drawn = {"temperature": 1, "seed": 3, "max_tokens": 8}
    everything = post(client, "/v1/chat/completions", **drawn).json()["choices"]
    for top_k in (10**6, 10**12, 1e25):
        assert post(client, "/v1/chat/completions", **drawn, top_k=top_k).json()["choices"] == everything


def test_a_compressed_body_is_refused_as_such(client: TestClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps(LEAST["/v1/completions"]).encode())
    reply = client.post("/v1/completions", content=body, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_encoding")
    headers["Content-Encoding"] = "identity"
    assert client.post("/v1/completions", content=gzip.decompress(body), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions/", "/v1//completions", "//v1/completions//"])
def test_slashes_of_a_base_url_do_no_harm(client: TestClient, serve: Any, path: str) -> None:
    url = f"http://testserver{path}"
    reply = client.post(url, json=LEAST["/v1/completions"], follow_redirects=False)
    assert reply.status_code == 200
    with serve(api_keys=("k",)) as guarded:
        assert guarded.post(url, json=LEAST["/v1/completions"]).status_code == 401


def test_a_path_that_is_none_is_told_where_the_api_is(client: TestClient) -> None:
    error = client.post("/chat/completions", json=LEAST["/v1/chat/completions"]).json()["error"]
    assert error["message"].startswith("POST /chat/completions: not found. The API is under /v1")
