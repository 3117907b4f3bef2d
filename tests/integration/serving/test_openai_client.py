"""OpenAI's own client, unchanged, against the server: what it sends is taken, what it reads is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmax import LLM, GenerationOutput, GenerationParams

openai = pytest.importorskip("openai")

PROMPTS = ["w7 w8", "w9"]
MESSAGES = [{"role": "user", "content": "w7 w8"}]
Connect = Callable[..., Any]


def offline(llm: LLM, prompt: Any, **params: Any) -> GenerationOutput:
    return llm.generate([prompt], GenerationParams(**{"gen_length": 24, "block_length": 8, **params}))[0]


@pytest.fixture
def connect(serve: Any) -> Iterator[Connect]:
    """API key -> OpenAI's client of a server that knows the key ``secret``."""
    with serve(api_keys=("secret",)) as http:
        yield lambda key="secret": openai.OpenAI(
            base_url="http://testserver/v1", api_key=key, http_client=http, max_retries=0
        )


def test_chat(connect: Connect, llm: LLM) -> None:
    reply = connect().chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"threshold": 0.2})
    expected = offline(llm, MESSAGES, threshold=0.2)
    assert reply.choices[0].message.content == expected.text
    assert reply.choices[0].finish_reason == expected.finish_reason
    assert reply.dmax["nfe"] == expected.nfe


def test_chat_as_a_stream(connect: Connect, llm: LLM) -> None:
    usage = {"include_usage": True}
    stream = connect().chat.completions.create(model="tiny", messages=MESSAGES, stream=True, stream_options=usage)
    chunks = list(stream)
    expected = offline(llm, MESSAGES)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert chunks[-1].usage.completion_tokens == expected.num_tokens


@pytest.mark.parametrize("prompts", [PROMPTS, [[7, 8], [9]]])
def test_text_completions(connect: Connect, llm: LLM, prompts: Any) -> None:
    reply = connect().completions.create(model="tiny", prompt=prompts, max_tokens=16)
    expected = [offline(llm, prompt, gen_length=16) for prompt in PROMPTS]
    assert reply.object == "text_completion"
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert [choice.text for choice in reply.choices] == [output.text for output in expected]
    assert [choice.finish_reason for choice in reply.choices] == [output.finish_reason for output in expected]
    assert reply.usage.prompt_tokens == 3
    assert reply.usage.completion_tokens == sum(output.num_tokens for output in expected)


def test_text_completions_as_a_stream(connect: Connect, llm: LLM) -> None:
    stream = connect().completions.create(
        model="tiny", prompt=PROMPTS, max_tokens=60, stream=True, stream_options={"include_usage": True}
    )
    texts, reasons = ["", ""], {}
    for chunk in stream:
        assert chunk.object == "text_completion"
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    expected = [offline(llm, prompt, gen_length=60) for prompt in PROMPTS]
    assert texts == [output.text for output in expected]
    assert reasons == {index: output.finish_reason for index, output in enumerate(expected)}
    assert chunk.usage.completion_tokens == sum(output.num_tokens for output in expected)


def test_models(connect: Connect) -> None:
    [model] = connect().models.list()
    assert (model.id, model.object, model.owned_by, model.max_model_len) == ("tiny", "model", "dmax", 512)
    assert connect().models.retrieve("tiny") == model


def test_refusals_are_the_exceptions_that_its_users_catch(connect: Connect) -> None:
    client = connect()
    with pytest.raises(openai.BadRequestError, match="soft-parallel"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"decoder": "soft"})
    with pytest.raises(openai.BadRequestError, match="up to 400 tokens") as refusal:
        client.completions.create(model="tiny", prompt="w7", max_tokens=401, stream=True)
    assert (refusal.value.param, refusal.value.type) == ("max_tokens", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="w7", temperature=9)
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="other", prompt="w7")
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("other")
    with pytest.raises(openai.AuthenticationError, match="API key"):
        connect("wrong").models.list()


def test_responses(connect: Connect) -> None:
    client = connect()
    whole = client.responses.create(model="tiny", input=MESSAGES, max_output_tokens=16)
    told = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=16)
    assert whole.output_text == told.choices[0].message.content
    stream = list(client.responses.create(model="tiny", input=MESSAGES, max_output_tokens=16, stream=True))
    assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == whole.output_text
    assert stream[-1].response.output_text == whole.output_text


def test_a_prompt_beyond_the_context_is_known_by_its_code(connect: Connect) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens") as refusal:
        connect().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "w7 " * 600}])
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "messages")
