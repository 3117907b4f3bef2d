"""``/v1/responses``: an answer as one item, a message of one text or the call of a function."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from dmax.engine import GenerationOutput
from dmax.engine.outputs import TokenLogprob
from dmax.serving.errors import ApiError
from dmax.serving.protocol import ResponsesRequest
from dmax.serving.shapes import Shape, Telling, cost, event, token_logprobs, words_of
from dmax.serving.structure import CallText


class ResponsesShape(Shape):
    """``response``."""

    def __init__(self, telling: Telling, request: ResponsesRequest) -> None:
        self._telling = telling
        self._item_id = f"{'fc' if telling.is_call else 'msg'}_{uuid4().hex}"
        self._call_id = f"call_{uuid4().hex}"
        self._call = CallText()
        self._sent = ""
        self._tokens: list[TokenLogprob] = []
        self._number = 0
        self._begun = False
        place = {"item_id": self._item_id, "output_index": 0}
        self._place = place if telling.is_call else {**place, "content_index": 0}
        asked = request.model_dump(exclude_unset=True, include={"tool_choice", "tools"})
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": telling.model_name,
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
            "text": {"format": {"type": "text"}, **(request.text or {})},
            "tool_choice": "auto",
            "tools": [],
            "top_p": getattr(request, "top_p", None) or 1.0,
            "truncation": "disabled",
            "user": None,
            **{name: value for name, value in asked.items() if value},
        }

    def body(self, outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
        [output] = outputs
        if self._telling.is_call:
            call = CallText()
            arguments = call.add(output.text or "") + call.finish()
            self._call = call
            return self._whole(output, prompt_tokens, arguments, ())
        return self._whole(output, prompt_tokens, output.text or "", words_of(output))

    def opening(self, index: int) -> str:
        begun = {**self._head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        events = [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]
        return "".join(events) + ("" if self._telling.is_call else self._opening_of_item())

    def piece(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> str:
        if self._telling.is_call:
            return self._arguments(self._call.add(text))
        self._sent += text
        self._tokens += tokens
        logprobs = token_logprobs(tokens, self._telling.piece)
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=logprobs)

    def ending(self, index: int, output: GenerationOutput, prompt_tokens: int) -> str:
        rest = self._arguments(self._call.finish()) if self._telling.is_call else ""
        whole = self._whole(output, prompt_tokens, self._sent, self._tokens)
        return rest + self._closing_of_item(whole) + self._event(f"response.{whole['status']}", response=whole)

    def closing(self, outputs: Sequence[GenerationOutput], prompt_tokens: int, usage: bool) -> str:
        return ""

    def failure(self, error: ApiError) -> str:
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _arguments(self, told: str) -> str:
        """Tell of further arguments of a call, which begins once its name is known."""
        if self._call.name is None:
            return ""
        opening = "" if self._begun else self._opening_of_item()
        self._sent += told
        delta = self._event("response.function_call_arguments.delta", **self._place, delta=told) if told else ""
        return opening + delta

    def _opening_of_item(self) -> str:
        self._begun = True
        if self._telling.is_call:
            return self._event("response.output_item.added", output_index=0, item=self._item("", (), "in_progress"))
        item = {"id": self._item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        added = self._event("response.output_item.added", output_index=0, item=item)
        return added + self._event("response.content_part.added", **self._place, part=self._text_part("", ()))

    def _closing_of_item(self, whole: dict[str, Any]) -> str:
        if not self._begun:
            return ""
        if self._telling.is_call:
            done = self._event("response.function_call_arguments.done", **self._place, arguments=self._sent)
        else:
            part = self._text_part(self._sent, self._tokens)
            done = self._event(
                "response.output_text.done", **self._place, text=self._sent, logprobs=part["logprobs"]
            ) + self._event("response.content_part.done", **self._place, part=part)
        return done + self._event("response.output_item.done", output_index=0, item=whole["output"][0])

    def _whole(
        self, output: GenerationOutput, prompt_tokens: int, text: str, tokens: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        cut = output.finish_reason == "length"
        item = self._item(text, tokens, "incomplete" if cut else "completed")
        return {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [item] if not self._telling.is_call or self._call.name is not None else [],
            "usage": {
                "input_tokens": prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": output.num_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt_tokens + output.num_tokens,
            },
            "dmax": cost(output),
        }

    def _item(self, text: str, tokens: Sequence[TokenLogprob], status: str) -> dict[str, Any]:
        if self._telling.is_call:
            call = {"call_id": self._call_id, "name": self._call.name, "arguments": text}
            return {"id": self._item_id, "type": "function_call", "status": status, **call}
        item = {"id": self._item_id, "type": "message", "status": status, "role": "assistant"}
        return {**item, "content": [self._text_part(text, tokens)]}

    def _text_part(self, text: str, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        logprobs = token_logprobs(tokens, self._telling.piece)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _event(self, kind: str, **fields: Any) -> str:
        told = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\n{event(told)}"
