"""Requests are read once: what cannot be used is refused in one wording, and by its size before it is encoded."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dmax import GenerationParams, Tokenizer, load_tokenizer
from dmax.engine.requests import ContextOverflow, RequestReader
from dmax.models import load_config


@pytest.fixture(scope="module")
def reader() -> RequestReader:
    return RequestReader(load_config("nano"), load_tokenizer("nano"))


@pytest.mark.parametrize("prompt", ["a" * 10**6, [{"role": "user", "content": "b " * 10**5}], [5] * 2048])
def test_what_is_too_long_by_its_size_is_not_encoded(
    reader: RequestReader, monkeypatch: pytest.MonkeyPatch, prompt: Any
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("encoded")

    monkeypatch.setattr(Tokenizer, "encode", fail)
    with pytest.raises(
        ContextOverflow, match=r"maximum context length is 2048 tokens, and the prompt is too long: it has .*; shorten"
    ):
        reader.encode(prompt)


def test_the_longest_prompt_and_the_longest_answer(reader: RequestReader) -> None:
    assert len(reader.encode([5] * 2047)) == 2047
    reader.check_room(2047, 1, "the prompt")
    with pytest.raises(
        ContextOverflow,
        match="the prompt is too long for the answer: it has 2047, which leaves 1; max_tokens asks for 2",
    ):
        reader.check_room(2047, 2, "the prompt", "max_tokens")


def test_sequences_of_one_prompt_do_not_share_its_tokens(reader: RequestReader) -> None:
    token_ids = [5, 6, 7]
    first, second = (reader.sequence(name, token_ids, GenerationParams(), time.perf_counter()) for name in "ab")
    first.close_block([5, 6, 7, *[8] * 29])
    assert (second.tokens, token_ids) == ([5, 6, 7], [5, 6, 7])
