"""What clients send: defaults pass, settings without effect are refused, dmax's own fields arrive."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dmax.serving.errors import ApiError
from dmax.serving.protocol import ChatRequest, request_models

BODIES = request_models()
MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatRequest:
    return BODIES.chat.model_validate({"messages": MESSAGES, **fields})


def test_requests_without_settings_take_the_servers() -> None:
    params = chat().params(default_length=64, default_block_length=16, seed=5)
    assert (params.gen_length, params.block_length, params.seed, params.temperature) == (64, 16, 5, 0.0)
    assert params.decoder is None, "the model's"
    assert params.threshold is None


def test_settings_arrive() -> None:
    request = chat(
        max_completion_tokens=9, decoder="threshold", threshold=0.8, block_length=4, seed=3, temperature=0.5, stop="x"
    )
    params = request.params(64, 16, 5)
    assert (params.gen_length, params.block_length, params.seed, params.temperature) == (9, 4, 3, 0.5)
    assert (params.decoder, params.threshold, params.stop) == ("threshold", 0.8, ("x",))


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 1.0, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False},
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "user": "me", "metadata": {"a": "b"}},
    ],
)
def test_a_clients_defaults_pass(fields: dict[str, Any]) -> None:
    assert chat(**fields).params(64, 16, 5) == chat().params(64, 16, 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "grammar"}),
        ("top_logprobs", 2),
        ("stop", [""]),
        ("stop", ["a"] * 9),
    ],
)
def test_what_would_have_no_effect_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ApiError) as refusal:
        chat(**{field: value}).params(64, 16, 5)
    assert refusal.value.status == 400
    assert refusal.value.param == field


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"functions": [{"name": "f"}]}, "functions is not supported"),
        ({"treshold": 0.5}, "did you mean threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": "12"}, "max_tokens"),
        ({"max_tokens": 12.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "include_usage"),
        ({"threshold": True}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"temperature": 10**400}, "temperature"),
        ({"n": 99}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "content"),
    ],
)
def test_malformed_requests_name_the_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        chat(**fields)


def test_whole_numbers_stand_for_fractions() -> None:
    request = chat(threshold=1, temperature=0, top_p=1, logit_bias={})
    assert (request.threshold, request.temperature) == (1.0, 0.0)


def test_token_ids_are_whole_numbers() -> None:
    with pytest.raises(ValidationError):
        BODIES.completion.model_validate({"prompt": [True, 5]})


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [7, "a", [3]] * 1000},
        {"prompt": "a", "stop": [5] * 1000},
        {"messages": [{"role": "x", "content": 5}] * 1000},
        {"messages": [{"role": "user", "content": ""}], "tools": ["x"] * 1000},
    ],
)
def test_lists_are_read_up_to_the_first_thing_wrong(fields: dict[str, Any]) -> None:
    body = BODIES.completion if "prompt" in fields else BODIES.chat
    with pytest.raises(ValidationError) as refusal:
        body.model_validate(fields)
    assert refusal.value.error_count() <= 4


def test_messages_in_parts_become_text() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    request = BODIES.chat.model_validate({"messages": [{"role": "developer", "content": parts}]})
    assert request.messages[0].as_turn() == {"role": "system", "content": "one two"}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]])],
)
def test_completions_take_text_and_tokens_one_or_many(prompt: Any, prompts: list[Any]) -> None:
    assert BODIES.completion.model_validate({"prompt": prompt}).prompts() == prompts
