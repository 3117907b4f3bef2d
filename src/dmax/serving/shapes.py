"""The forms in which answers are told: chat completions, text completions, responses; whole, or event by event."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from dmax.engine import GenerationOutput
from dmax.serving.errors import ApiError
from dmax.serving.protocol import ResponsesRequest


class Shape(ABC):
    """How an answer is told to the client. What a stream sends comes as text, ready to be sent."""

    @abstractmethod
    def body(self, outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
        """Return the whole reply."""

    @abstractmethod
    def opening(self, index: int) -> str:
        """Return the events before the text of a choice."""

    @abstractmethod
    def piece(self, index: int, text: str) -> str:
        """Return the event of some text of a choice."""

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

    def __init__(self, model_name: str) -> None:
        self._head = {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": model_name}

    def body(self, outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
        choices = [
            {"index": index, **self._whole(output.text or ""), "logprobs": None, "finish_reason": output.finish_reason}
            for index, output in enumerate(outputs)
        ]
        return {**self._head, "object": self.kind, "choices": choices, **_usage(outputs, prompt_tokens)}

    def opening(self, index: int) -> str:
        return ""

    def piece(self, index: int, text: str) -> str:
        return self._chunk([{"index": index, **self._part(text), "logprobs": None, "finish_reason": None}])

    def ending(self, index: int, output: GenerationOutput, prompt_tokens: int) -> str:
        end = {"index": index, **self._part(""), "logprobs": None, "finish_reason": output.finish_reason}
        return self._chunk([end], dmax=cost(output))

    def closing(self, outputs: Sequence[GenerationOutput], prompt_tokens: int, usage: bool) -> str:
        return (self._chunk([], **_usage(outputs, prompt_tokens)) if usage else "") + "data: [DONE]\n\n"

    def failure(self, error: ApiError) -> str:
        return _event(error.body())

    def _chunk(self, choices: list[dict[str, Any]], **further: Any) -> str:
        return _event({**self._head, "object": self.chunk_kind, "choices": choices, **further})

    @abstractmethod
    def _whole(self, text: str) -> dict[str, Any]:
        """Return the text of a choice in the whole reply."""

    @abstractmethod
    def _part(self, text: str) -> dict[str, Any]:
        """Return some text of a choice in a stream."""


class ChatShape(_Completion):
    """``chat.completion``."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, index: int) -> str:
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}


class TextShape(_Completion):
    """``text_completion``."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def _whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    _part = _whole


class ResponsesShape(Shape):
    """``response``, of one message of one text."""

    def __init__(self, model_name: str, request: ResponsesRequest) -> None:
        self._item_id = f"msg_{uuid4().hex}"
        self._sent = ""
        self._number = 0
        self._place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model_name,
            "background": False,
            "error": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": getattr(request, "temperature", None) or 0.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": getattr(request, "top_p", None) or 1.0,
            "truncation": "disabled",
            "user": None,
        }

    def body(self, outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
        [output] = outputs
        cut = output.finish_reason == "length"
        return {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._item(output.text or "", "incomplete" if cut else "completed")],
            "usage": {
                "input_tokens": prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": output.num_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt_tokens + output.num_tokens,
            },
            "dmax": cost(output),
        }

    def opening(self, index: int) -> str:
        begun = {**self._head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        item = {"id": self._item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        return "".join(
            (
                self._event("response.created", response=begun),
                self._event("response.in_progress", response=begun),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **self._place, part=_text_part("")),
            )
        )

    def piece(self, index: int, text: str) -> str:
        self._sent += text
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def ending(self, index: int, output: GenerationOutput, prompt_tokens: int) -> str:
        whole = self.body([output], prompt_tokens)
        return "".join(
            (
                self._event("response.output_text.done", **self._place, text=self._sent, logprobs=[]),
                self._event("response.content_part.done", **self._place, part=_text_part(self._sent)),
                self._event("response.output_item.done", output_index=0, item=whole["output"][0]),
                self._event(f"response.{whole['status']}", response=whole),
            )
        )

    def closing(self, outputs: Sequence[GenerationOutput], prompt_tokens: int, usage: bool) -> str:
        return ""

    def failure(self, error: ApiError) -> str:
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _item(self, text: str, status: str) -> dict[str, Any]:
        item = {"id": self._item_id, "type": "message", "status": status, "role": "assistant"}
        return {**item, "content": [_text_part(text)]}

    def _event(self, kind: str, **fields: Any) -> str:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\n{_event(event)}"


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


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


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
