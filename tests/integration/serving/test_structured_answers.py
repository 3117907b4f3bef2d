"""Answers that have to look like something, over HTTP: JSON, JSON by a schema, calls of tools; and log-probabilities.

The model is random, so whatever it says under a schema it was held to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema_rs
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dmax import LLM, GenerationParams
from dmax.decoding.registry import BUILT_IN

MESSAGES = [{"role": "user", "content": "hi"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Łódź"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "trip", "schema": CITY, "strict": True}}
TOOLS = [
    {"type": "function", "function": {"name": "book", "description": "Book a trip.", "parameters": CITY}},
    {"type": "function", "function": {"name": "stop"}},
]
RESPONSE_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def client(serve_module: Callable[..., Any], byte_llm: LLM) -> Iterator[TestClient]:
    with serve_module(of=byte_llm, default_gen_length=120) as running:
        yield running


def chat(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})


def events(client: TestClient, path: str, **fields: Any) -> list[Any]:
    text = client.post(path, json={"stream": True, **fields}).text
    told = [part.partition("data: ")[2] for part in text.split("\n\n") if "data: " in part]
    return [json.loads(part) for part in told if part != "[DONE]"]


def choice_of(client: TestClient, **fields: Any) -> Any:
    reply = chat(client, **fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def is_trip(text: str) -> bool:
    jsonschema_rs.validator_for(CITY).validate(json.loads(text))
    return True


@pytest.mark.parametrize("decoder", BUILT_IN)
def test_an_answer_by_a_schema_whole_and_streamed(client: TestClient, byte_llm: LLM, decoder: str) -> None:
    choice = choice_of(client, response_format=FORMAT, decoder=decoder)
    text = choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert is_trip(text)
    params = GenerationParams(decoder=decoder, gen_length=120, block_length=8, json_schema=CITY)
    assert byte_llm.generate(MESSAGES, params)[0].text == text  # type: ignore[arg-type]
    chunks = events(client, "/v1/chat/completions", messages=MESSAGES, response_format=FORMAT, decoder=decoder)
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == text
    assert len([delta for delta in deltas if delta]) > 1
    texts = client.post("/v1/completions", json={"prompt": "x", "response_format": FORMAT, "decoder": decoder}).json()
    assert is_trip(texts["choices"][0]["text"])


def test_drawn_answers_differ_and_all_are_by_the_schema(client: TestClient) -> None:
    choices = chat(client, response_format=FORMAT, temperature=2, top_p=0.9, seed=1, n=8).json()["choices"]
    assert all(choice["finish_reason"] == "stop" and is_trip(choice["message"]["content"]) for choice in choices)
    assert len({choice["message"]["content"] for choice in choices}) > 1


def test_any_object_and_no_more_than_the_length(client: TestClient) -> None:
    choice = choice_of(client, response_format={"type": "json_object"}, temperature=1, seed=3)
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert choice_of(client, response_format=FORMAT, max_tokens=9)["finish_reason"] == "length"
    assert choice_of(client, response_format={"type": "text"}) == choice_of(client)


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "schema": CITY},
        {"type": "json_object", "schema": CITY},
        {"type": "json_object", "json_schema": {"schema": CITY}},
        {"type": "json_schema", "json_schema": None, "schema": CITY},
    ],
)
def test_a_schema_is_held_to_wherever_other_apis_have_it(client: TestClient, form: dict[str, Any]) -> None:
    assert is_trip(choice_of(client, response_format=form)["message"]["content"])


def test_numbers_of_a_schema_are_numbers_however_they_are_written(client: TestClient) -> None:
    schema = {"type": "array", "items": {"const": 1.0}, "minItems": 2.0, "maxItems": 2.0}
    form = {"type": "json_schema", "schema": schema}
    assert json.loads(choice_of(client, response_format=form)["message"]["content"]) == [1, 1]
    parameters = {"type": None, "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    [call] = choice_of(client, tools=[tool], tool_choice="required")["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"a": [1, 1]}


def test_a_schema_without_an_end_is_refused_by_its_field(client: TestClient) -> None:
    chain = {"type": "object", "properties": {"next": {"$ref": "#/$defs/chain"}}, "required": ["next"]}
    endless = {"$ref": "#/$defs/chain", "$defs": {"chain": chain}}
    asked = {"response_format": {"type": "json_schema", "json_schema": {"schema": endless}}, "max_tokens": 400}
    error = chat(client, **asked).json()["error"]
    assert (error["param"], "no value by it ends" in error["message"]) == ("response_format", True)
    [*_, told] = events(client, "/v1/chat/completions", messages=MESSAGES, **asked)
    assert told["error"] == error
    tool = {"type": "function", "function": {"name": "f", "parameters": {**endless, "type": "object"}}}
    error = chat(client, tools=[tool], tool_choice="required", max_tokens=400).json()["error"]
    assert error["param"] == "tools"


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "'xml'; take text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "the schema of response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, "response_format", "schema"),
        ({"response_format": FORMAT, "stop": "x"}, "stop", "leave one out"),
        ({"response_format": FORMAT, "buffer_size": 2}, "buffer_size", "one block in flight"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "name"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "none, auto, required"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": "book"}}, "tool_choice", "with a name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "book, stop"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": TOOLS, "tool_choice": "required", "stop": "x"}, "stop", "tools"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"top_logprobs": 1}, "top_logprobs", "needs logprobs"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_its_field(
    client: TestClient, fields: dict[str, Any], param: str, named: str
) -> None:
    reply = chat(client, **fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert named in error["message"]


def test_a_schema_beyond_what_can_be_held_to_is_refused_by_its_part(client: TestClient) -> None:
    beyond = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    asked = {"type": "json_schema", "json_schema": {"name": "a", "schema": beyond}}
    reply = chat(client, response_format=asked)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "response_format", "invalid_schema")
    assert "uniqueItems" in error["message"]
    tool = {"type": "function", "function": {"name": "f", "parameters": beyond}}
    error = chat(client, tools=[tool], tool_choice="required", stream=True).json()["error"]
    assert error["param"] == "tools"
    scalar = {"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}
    assert "must be of type object" in chat(client, tools=[scalar], tool_choice="required").json()["error"]["message"]
    error = client.post("/v1/responses", json={"input": "x", "text": {"format": {**asked, "schema": beyond}}}).json()
    assert error["error"]["param"] == "text.format"


NAMED = {"type": "function", "function": {"name": "book"}}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_is_called_whole_and_streamed(client: TestClient, choice: Any) -> None:
    asked = {"tools": TOOLS, "tool_choice": choice, "temperature": 1, "seed": 2}
    told = choice_of(client, **asked)
    assert (told["finish_reason"], told["message"]["content"]) == ("tool_calls", None)
    [call] = told["message"]["tool_calls"]
    function = call["function"]
    assert (call["type"], call["id"][:5]) == ("function", "call_")
    assert function["name"] == "book" if choice is NAMED else function["name"] in ("book", "stop")
    assert is_trip(function["arguments"]) if function["name"] == "book" else function["arguments"] == "{}"
    chunks = events(client, "/v1/chat/completions", messages=MESSAGES, **asked)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": None}
    parts = [part for delta in deltas for part in delta.get("tool_calls", [])]
    assert (parts[0]["function"]["name"], parts[0]["index"], parts[0]["type"]) == (function["name"], 0, "function")
    assert all("id" not in part and "name" not in part["function"] for part in parts[1:])
    assert "".join(part["function"]["arguments"] for part in parts) == function["arguments"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "tool_calls"


def test_both_tools_come_up_and_a_cut_call_says_so(client: TestClient) -> None:
    asked = {"tools": TOOLS, "tool_choice": "required", "temperature": 2, "seed": 0, "n": 12}
    choices = chat(client, **asked).json()["choices"]
    assert {choice["message"]["tool_calls"][0]["function"]["name"] for choice in choices} == {"book", "stop"}
    for length in (3, 17, 40, 50, 60):
        cut = choice_of(client, tools=TOOLS, tool_choice=NAMED, max_tokens=length)
        calls = cut["message"].get("tool_calls", [])
        whole = choice_of(client, tools=TOOLS, tool_choice=NAMED)["message"]["tool_calls"][0]["function"]["arguments"]
        assert cut["finish_reason"] == "length"
        assert all(whole.startswith(call["function"]["arguments"]) for call in calls)
        assert bool(calls) == (length > 30)
        chunks = events(
            client, "/v1/chat/completions", messages=MESSAGES, tools=TOOLS, tool_choice=NAMED, max_tokens=length
        )
        parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
        told = "".join(part["function"]["arguments"] for part in parts)
        assert told == "".join(call["function"]["arguments"] for call in calls)


def test_a_model_need_not_call_and_knows_of_the_tools_if_its_template_does(client: TestClient, byte_llm: LLM) -> None:
    assert byte_llm.tokenizer is not None
    count = len(byte_llm.tokenizer.encode("user: hi\n"))
    for choice, tokens in (("auto", count + len("<book><stop>")), ("none", count), (None, count + 12)):
        told = chat(client, tools=TOOLS, tool_choice=choice).json()
        assert told["choices"][0]["finish_reason"] in ("stop", "length")
        assert "tool_calls" not in told["choices"][0]["message"]
        assert told["usage"]["prompt_tokens"] == tokens
    # With a free answer, a format still holds; a call that is asked for comes before it.
    assert is_trip(choice_of(client, tools=TOOLS, response_format=FORMAT)["message"]["content"])
    both = choice_of(client, tools=TOOLS, tool_choice=NAMED, response_format={"type": "json_object"})
    assert both["finish_reason"] == "tool_calls"


def test_what_came_of_a_call_goes_back_to_the_model(client: TestClient, byte_llm: LLM) -> None:
    call = choice_of(client, tools=TOOLS, tool_choice=NAMED)["message"]
    city = json.loads(call["tool_calls"][0]["function"]["arguments"])["city"]
    history = [*MESSAGES, call, {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "ok"}]
    reply = chat(client, messages=history, tools=TOOLS)
    assert reply.status_code == 200, reply.text
    assert byte_llm.tokenizer is not None
    rendered = f"<book><stop>user: hi\nassistant: {city}\ntool: ok\n"
    assert reply.json()["usage"]["prompt_tokens"] == len(byte_llm.tokenizer.encode(rendered))
    items = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "book", "arguments": json.dumps({"city": city})},
        {"type": "function_call_output", "call_id": "c", "output": "ok"},
    ]
    same = client.post("/v1/responses", json={"input": items, "tools": RESPONSE_TOOLS})
    assert same.json()["usage"]["input_tokens"] == reply.json()["usage"]["prompt_tokens"]
    refused = client.post("/v1/responses", json={"input": [{"type": "computer_call"}]}).json()["error"]
    assert (refused["param"], "item 0 is computer_call" in refused["message"]) == ("input", True)


def test_a_response_by_a_schema_and_one_that_calls(client: TestClient) -> None:
    form = {"type": "json_schema", "name": "trip", "schema": CITY, "strict": True}
    reply = client.post("/v1/responses", json={"input": "hi", "text": {"format": form}}).json()
    assert is_trip(reply["output"][0]["content"][0]["text"])
    assert reply["text"]["format"]["type"] == "json_schema"
    asked = {"input": "hi", "tools": RESPONSE_TOOLS, "tool_choice": {"type": "function", "name": "book"}}
    [item] = client.post("/v1/responses", json=asked).json()["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "book", "completed")
    assert is_trip(item["arguments"])
    told = events(client, "/v1/responses", **asked)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    kinds = [event["type"] for event in told]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]
    assert set(kinds[3:-3]) == {"response.function_call_arguments.delta"}
    assert told[2]["item"]["name"] == "book"
    assert "".join(event["delta"] for event in told[3:-3]) == item["arguments"] == told[-3]["arguments"]
    cut = client.post("/v1/responses", json={**asked, "max_output_tokens": 4}).json()
    assert (cut["status"], cut["output"]) == ("incomplete", [])
    assert [event["type"] for event in events(client, "/v1/responses", **asked, max_output_tokens=4)][2:] == [
        "response.incomplete"
    ]


def test_log_probabilities_are_those_of_the_pass_that_made_a_block_final(client: TestClient, byte_llm: LLM) -> None:
    plain, asked = choice_of(client), choice_of(client, logprobs=True, top_logprobs=3)
    assert asked["message"] == plain["message"], "asking changes no answer"
    assert plain["logprobs"] is None
    told = asked["logprobs"]["content"]
    [output] = byte_llm.generate(MESSAGES, GenerationParams(gen_length=120, block_length=8, logprobs=3))  # type: ignore[arg-type]
    assert output.logprobs is not None
    assert [one["logprob"] for one in told] == [one.logprob for one in output.logprobs][: output.num_tokens]
    assert [one.token_id for one in output.logprobs] == output.token_ids
    for one in told:
        best = [each["logprob"] for each in one["top_logprobs"]]
        assert best == sorted(best, reverse=True)
        assert best[0] >= one["logprob"] or best[0] == pytest.approx(one["logprob"])
        assert len(best) == 3
        assert one["bytes"] is None or bytes(one["bytes"]).decode() == one["token"]
    chunks = events(client, "/v1/chat/completions", messages=MESSAGES, logprobs=True, top_logprobs=3)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [one for part in parts if part for one in part["content"]] == told
    assert len([part for part in parts if part]) > 1
    held = events(client, "/v1/chat/completions", messages=MESSAGES, logprobs=True, top_logprobs=3, stop="\x00\x01")
    assert [one for chunk in held for one in (chunk["choices"][0]["logprobs"] or {}).get("content", [])] == told


def test_log_probabilities_of_text_and_responses(client: TestClient, byte_llm: LLM) -> None:
    body = {"prompt": "user: hi\n", "logprobs": 2}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    told = choice["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["text_offset"]) == len(told["top_logprobs"])
    assert told["text_offset"][:2] == [0, len(told["tokens"][0])]
    assert all(one in top for one, top in zip(told["tokens"], told["top_logprobs"], strict=True))
    chunks = events(client, "/v1/completions", **body)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [offset for part in parts for offset in part["text_offset"]] == told["text_offset"]
    assert [one for part in parts for one in part["token_logprobs"]] == told["token_logprobs"]
    none = client.post("/v1/completions", json={**body, "logprobs": 0}).json()["choices"][0]["logprobs"]
    assert none["token_logprobs"] == told["token_logprobs"]
    response = {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    [part] = client.post("/v1/responses", json=response).json()["output"][0]["content"]
    assert len(part["logprobs"]) > 1
    assert len(part["logprobs"][0]["top_logprobs"]) == 1
    streamed = [one for event in events(client, "/v1/responses", **response) for one in event.get("logprobs", [])]
    assert streamed[: len(part["logprobs"])] == part["logprobs"]
    error = client.post("/v1/responses", json={"input": "hi", "top_logprobs": 1}).json()["error"]
    assert error["param"] == "top_logprobs"


def test_log_probabilities_are_those_of_the_last_pass_in_all_loops(byte_llm: LLM) -> None:
    # This decoder's last pass reads the final tokens, but for the mask that it turns into the last of them.
    params = GenerationParams(decoder="fixed-steps", gen_length=8, block_length=8, logprobs=0, trace=True)
    for one in (params, replace(params, use_cache=False)):
        [output] = byte_llm.generate([[]], one)
        assert output.trace is not None
        assert output.logprobs is not None
        [last] = output.trace[-1].promoted
        read = torch.tensor([output.token_ids])
        read[0, last] = byte_llm.model.config.mask_token_id
        with torch.inference_mode():
            expected = torch.log_softmax(byte_llm.model.logits(read)[0], -1).gather(
                -1, torch.tensor([output.token_ids]).T
            )
        assert [one.logprob for one in output.logprobs] == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


def test_the_example_of_the_guide_runs(
    serve_module: Callable[..., Any], byte_llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    openai = pytest.importorskip("openai")
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "serving.md").read_text(encoding="utf-8")
    example = guide.partition("### Structured output")[2].partition("```python")[2].partition("```")[0]
    with serve_module(of=byte_llm, default_gen_length=120, model_name="nano") as http:
        exec(example, {"client": openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http)})
    answer, call = capsys.readouterr().out.splitlines()
    assert answer.startswith("{'city': ")
    assert call.startswith("book {'city': ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)
SCHEMA_WORDS = (
    "type", "properties", "items", "enum", "const", "anyOf", "allOf", "required", "minProperties", "pattern", "$ref",
    "additionalProperties", "prefixItems", "minLength", "maximum", "format", "$defs", "x-guidance", "$schema", "$id",
)  # fmt: skip
schemas = st.recursive(
    json_values,
    lambda values: st.dictionaries(st.sampled_from(SCHEMA_WORDS), values | st.lists(values, max_size=2), max_size=3),
    max_leaves=8,
)


@given(schemas, st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_whatever_is_given_as_a_schema_is_answered_or_refused(client: TestClient, schema: Any, as_tool: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    tool = {"type": "function", "function": {"name": "a", "parameters": schema}}
    fields = {"tools": [tool], "tool_choice": "required"} if as_tool else {"response_format": form}
    body = json.dumps({"messages": MESSAGES, "max_tokens": 16, **fields})
    reply = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in (200, 400), reply.text
    if reply.status_code == 200 and reply.json()["choices"][0]["finish_reason"] == "stop":
        json.loads(reply.json()["choices"][0]["message"]["content"])


class Trip(BaseModel):
    city: Literal["Rome", "Łódź"]
    days: Annotated[int, Field(ge=1, le=9)]


def test_openais_client_parses_answers_and_calls(client: TestClient) -> None:
    openai = pytest.importorskip("openai")
    asking = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)
    parsed = asking.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Trip)
    assert isinstance(parsed.choices[0].message.parsed, Trip)
    with asking.chat.completions.stream(model="tiny", messages=MESSAGES, response_format=Trip) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed
    assert isinstance(asking.responses.parse(model="tiny", input="hi", text_format=Trip).output_parsed, Trip)
    tool = openai.pydantic_function_tool(Trip, name="book")
    asked = {"model": "tiny", "messages": MESSAGES, "tools": [tool], "tool_choice": "required"}
    [call] = asking.chat.completions.parse(**asked).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Trip)
    with asking.chat.completions.stream(**asked) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.parsed_arguments == call.function.parsed_arguments
    with asking.responses.stream(
        model="tiny", input="hi", tools=[openai.pydantic_function_tool(Trip)["function"] | {"type": "function"}],
        tool_choice="required",
    ) as events:  # fmt: skip
        [item] = events.get_final_response().output
    assert isinstance(Trip(**json.loads(item.arguments)), Trip)
