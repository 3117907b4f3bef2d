"""Prompts to token ids, out of the event loop: each refused as early as can be, the long ones apart."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dmax.engine import GenerationError, GenerationParams
from dmax.engine.requests import ContextOverflow, Prompt, RequestReader
from dmax.models import ModelConfig
from dmax.serving.errors import bad_request
from dmax.serving.messages import ChatMessage
from dmax.serving.protocol import Sampling

LONG_PROMPT = 20_000
"""Characters from which a prompt does not hold up others while it becomes tokens."""


class Encoder:
    """Encodes the prompts of requests.

    Args:
        reader: of requests for the model.
    """

    def __init__(self, reader: RequestReader) -> None:
        self._reader = reader
        self._short, self._long = asyncio.Lock(), asyncio.Lock()

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self._reader.config

    @property
    def positions(self) -> int:
        """Most tokens of a prompt with its answer."""
        return self.config.max_position_embeddings

    def turns(self, messages: Sequence[ChatMessage | None], field: str) -> list[dict[str, Any]]:
        """Read messages for the chat template, where it can tell what they are."""
        for index, message in enumerate(messages):
            if message is not None and message.is_of_a_tool and not self._knows_tools:
                text = f"{field}.{index} is a tool's, and this model's chat template knows no tools; leave it out."
                raise bad_request(text, f"{field}.{index}.role", "unsupported_value")
        return [message.as_turn() for message in messages if message is not None]

    async def encode(self, prompt: Prompt, field: str, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Encode a prompt in a thread: a long prompt takes long, and the event loop is for everybody.

        One prompt at a time, so that requests reach the engine in the order in which they came; but nobody waits for
        prompts that are long, which wait for one another.

        Args:
            prompt: text, token ids or turns.
            field: of the request, which holds it.
            tools: told by the chat template, if it knows tools.
        """
        is_long = isinstance(prompt, str) and len(prompt) > LONG_PROMPT
        is_long = is_long or sum(len(part["content"]) for part in prompt if isinstance(part, dict)) > LONG_PROMPT
        known = tools if self._knows_tools else ()
        try:
            async with self._long if is_long else self._short:
                return await asyncio.to_thread(self._reader.encode, prompt, tools=known)
        except GenerationError as error:
            raise bad_request(str(error), field, _code(error)) from error

    def fitting(self, params: GenerationParams, request: Sampling, prompt_tokens: int, field: str) -> GenerationParams:
        """Return the params with the length that the context leaves, where the request does not say one.

        Raises:
            ApiError: it does not leave what is asked for.
        """
        room = self.positions - prompt_tokens
        if request.limit() is None and room > 0:
            return replace(params, gen_length=min(params.gen_length, room), min_tokens=min(params.min_tokens, room))
        try:
            self._reader.check_room(prompt_tokens, params.gen_length, "the prompt", request.length_field)
        except ContextOverflow as error:
            raise bad_request(str(error), request.length_field if room > 0 else field, _code(error)) from error
        return params

    @property
    def _knows_tools(self) -> bool:
        tokenizer = self._reader.tokenizer
        return tokenizer is not None and "tool" in (tokenizer.chat_template or "")


def _code(error: GenerationError) -> str | None:
    return "context_length_exceeded" if isinstance(error, ContextOverflow) else None
