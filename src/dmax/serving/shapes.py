"""The forms in which answers are told: chat completions and text completions; whole, or event by event."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from uuid import uuid4

from dmax.engine import GenerationOutput
from dmax.engine.outputs import TokenLogprob
from dmax.serving.errors import ApiError
from dmax.serving.structure import CallText

Piece = Callable[[int], str]
"""The text of one token."""


@dataclass(frozen=True)
class Telling:
    """What all forms have to know of an answer."""

    model_name: str
    piece: Piece
    is_call: bool = False
    """Whether it is the call of a tool."""
    logprobs: bool = False
    """Whether log-probabilities are told."""


class Shape(ABC):
    """How an answer is told to the client. What a stream sends comes as text, ready to be sent."""

    @abstractmethod
    def body(self, outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
        """Return the whole reply."""

    @abstractmethod
    def opening(self, index: int) -> str:
        """Return the events before the text of a choice."""

    @abstractmethod
    def piece(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> str:
        """Return the event of some text of a choice, and of the tokens whose log-probabilities are told with it."""

    @abstractmethod
    def ending(self, index: int, output: GenerationOutput, prompt_tokens: int) -> str:
        """Return the events at the end of a choice."""

    @abstractmethod
    def closing(self, outputs: Sequence[GenerationOutput], prompt_tokens: int, usage: bool) -> str:
        """Return the events at the end of the stream; with ``usage``, what all choices cost is asked for."""

    @abstractmethod
    def failure(self, error: ApiError) -> str:
        """Return the event that ends a stream that cannot go on."""


class _Completion(Shape):
    """What chat and text completions have in common."""

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, telling: Telling) -> None:
        self._telling = telling
        self._head = {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": telling.model_name}

    def body(self, outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                **self._whole(output.text or ""),
                "logprobs": self._logprobs(index, words_of(output)) if self._telling.logprobs else None,
                "finish_reason": self._reason(output),
            }
            for index, output in enumerate(outputs)
        ]
        return {**self._head, "object": self.kind, "choices": choices, **_usage(outputs, prompt_tokens)}

    def opening(self, index: int) -> str:
        return ""

    def piece(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> str:
        logprobs = self._logprobs(index, tokens) if tokens else None
        return self._choice(index, self._part(text), logprobs)

    def ending(self, index: int, output: GenerationOutput, prompt_tokens: int) -> str:
        return self._choice(index, self._part(""), None, self._reason(output), dmax=cost(output))

    def closing(self, outputs: Sequence[GenerationOutput], prompt_tokens: int, usage: bool) -> str:
        return (self._chunk([], **_usage(outputs, prompt_tokens)) if usage else "") + "data: [DONE]\n\n"

    def failure(self, error: ApiError) -> str:
        return event(error.body())

    def _choice(
        self, index: int, part: dict[str, Any], logprobs: Any = None, reason: str | None = None, **further: Any
    ) -> str:
        return self._chunk([{"index": index, **part, "logprobs": logprobs, "finish_reason": reason}], **further)

    def _chunk(self, choices: list[dict[str, Any]], **further: Any) -> str:
        return event({**self._head, "object": self.chunk_kind, "choices": choices, **further})

    def _reason(self, output: GenerationOutput) -> str:
        return output.finish_reason

    @abstractmethod
    def _whole(self, text: str) -> dict[str, Any]:
        """Return the text of a choice in the whole reply."""

    @abstractmethod
    def _part(self, text: str) -> dict[str, Any]:
        """Return some text of a choice in a stream."""

    @abstractmethod
    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the log-probabilities of the next tokens of a choice."""


class ChatShape(_Completion):
    """``chat.completion``."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, telling: Telling) -> None:
        super().__init__(telling)
        self._calls: dict[int, _Call] = {}

    def opening(self, index: int) -> str:
        content = None if self._telling.is_call else ""
        return self._choice(index, {"delta": {"role": "assistant", "content": content}})

    def piece(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> str:
        if not self._telling.is_call:
            return super().piece(index, text, tokens)
        call = self._calls.setdefault(index, _Call())
        delta = call.delta(call.text.add(text))
        logprobs = self._logprobs(index, tokens) if tokens else None
        return self._choice(index, {"delta": delta}, logprobs) if delta or logprobs else ""

    def ending(self, index: int, output: GenerationOutput, prompt_tokens: int) -> str:
        end = super().ending(index, output, prompt_tokens)
        call = self._calls.get(index)
        delta = call.delta(call.text.finish()) if call else {}
        return (self._choice(index, {"delta": delta}) if delta else "") + end

    def _reason(self, output: GenerationOutput) -> str:
        return "tool_calls" if self._telling.is_call and output.finish_reason == "stop" else output.finish_reason

    def _whole(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        if not self._telling.is_call:
            return {"message": message}
        call = _Call()
        arguments = call.text.add(text) + call.text.finish()
        calls = [] if call.text.name is None else [call.whole(arguments)]
        return {"message": {**message, "content": None, **({"tool_calls": calls} if calls else {})}}

    def _part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"content": token_logprobs(tokens, self._telling.piece), "refusal": None}


class _Call:
    """The call of a tool in one choice of a chat."""

    def __init__(self) -> None:
        self.text = CallText()
        self._id = f"call_{uuid4().hex}"
        self._begun = False

    def whole(self, arguments: str) -> dict[str, Any]:
        """Tell of the call as part of a message."""
        return {"id": self._id, "type": "function", "function": {"name": self.text.name, "arguments": arguments}}

    def delta(self, arguments: str) -> dict[str, Any]:
        """Tell of further arguments as part of a stream: first with the call's name, and of nothing before it."""
        if self.text.name is None or (self._begun and not arguments):
            return {}
        part = {"function": {"arguments": arguments}} if self._begun else self.whole(arguments)
        self._begun = True
        return {"tool_calls": [{"index": 0, **part}]}


class TextShape(_Completion):
    """``text_completion``."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, telling: Telling) -> None:
        super().__init__(telling)
        self._offsets: dict[int, int] = {}

    def _whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    _part = _whole

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        piece = self._telling.piece
        texts = [piece(token.token_id) for token in tokens]
        *offsets, end = accumulate(map(len, texts), initial=self._offsets.get(index, 0))
        self._offsets[index] = end
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {text: token.logprob, **{piece(token_id): value for token_id, value in token.top}}
                for text, token in zip(texts, tokens, strict=True)
            ],
            "text_offset": offsets,
        }


def words_of(output: GenerationOutput) -> Sequence[TokenLogprob]:
    """Return the log-probabilities of an answer's tokens, that of EOS left out."""
    return (output.logprobs or [])[: output.num_tokens]


def token_logprobs(tokens: Sequence[TokenLogprob], piece: Piece) -> list[dict[str, Any]]:
    """Return the log-probabilities of tokens as chats and responses tell them."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        text = piece(token_id)
        whole = "\N{REPLACEMENT CHARACTER}" not in text  # part of a character has no text, so its bytes are not known
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    return [
        {**one(token.token_id, token.logprob), "top_logprobs": [one(*each) for each in token.top]} for token in tokens
    ]


def _usage(outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
    completion_tokens = sum(output.num_tokens for output in outputs)
    return {
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "dmax": cost(*outputs),
    }


def cost(*outputs: GenerationOutput) -> dict[str, Any]:
    """Return what the answers cost: of several, the sums, and the ratios of the sums."""
    names = ("num_tokens", "nfe", "passes", "blocks", "revisions")
    sums = {name: sum(getattr(output, name) for output in outputs) for name in names}
    seconds = max(output.seconds for output in outputs)
    return {
        **sums,
        "tpf": sums["num_tokens"] / sums["nfe"],
        "tps": sums["num_tokens"] / seconds,
        "seconds": seconds,
        "decoder": outputs[0].decoder,
        "params": outputs[0].params,
    }


def event(value: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
