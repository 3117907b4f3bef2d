"""Requests answered through the engine: whole, streamed, or pass by pass."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import SystemRandom
from typing import Any, TypeVar
from uuid import uuid4

from dmax.decoding import DecoderError
from dmax.engine import GenerationError, GenerationOutput, GenerationParams, PassRecord, RequestUpdate
from dmax.engine.requests import Prompt, RequestReader
from dmax.models import Tokenizer
from dmax.serving.client import Answer, EngineClient
from dmax.serving.errors import ApiError, bad_request, internal, timed_out, unexpected
from dmax.serving.metrics import ServerMetrics
from dmax.serving.protocol import ChatRequest, CompletionRequest, Sampling, request_models
from dmax.serving.replay import piece_reader
from dmax.serving.settings import ServerSettings
from dmax.serving.streaming import ContradictionError, TextStream

T = TypeVar("T")
_RANDOM = SystemRandom()
logger = logging.getLogger("dmax.serving")


class EventStream:
    """The events of an answer, for one reader.

    Args:
        events: to be read.
        streams: where they come from.
    """

    def __init__(self, events: AsyncIterator[str], streams: Sequence[Answer]) -> None:
        self._events = events
        self._streams = streams

    def __aiter__(self) -> AsyncIterator[str]:
        return self._events

    def close(self) -> None:
        """Give up what has not been read, also where nothing ever was; harmless once all of it has been."""
        for stream in self._streams:
            stream.close()


class Answering:
    """Turns requests into answers.

    Args:
        engine: does the work.
        reader: of prompts.
        tokenizer: of the engine's model.
        settings: what the model is called, and what one request may ask for.
        metrics: counts what was done.
    """

    def __init__(
        self,
        engine: EngineClient,
        reader: RequestReader,
        tokenizer: Tokenizer,
        settings: ServerSettings,
        metrics: ServerMetrics,
    ) -> None:
        self.engine = engine
        self.reader = reader
        self.tokenizer = tokenizer
        self.settings = settings
        self.metrics = metrics
        self.bodies = request_models()
        """What requests look like."""
        self._encoding = asyncio.Lock()

    async def chat(self, request: ChatRequest) -> dict[str, Any] | EventStream:
        """A chat completion: the body, or the events of a stream."""
        messages = [message.as_turn() for message in request.messages]
        return await self._complete(request, [messages], _ChatShape(self.settings.model_name, request))

    async def completion(self, request: CompletionRequest) -> dict[str, Any] | EventStream:
        """A text completion: the body, or the events of a stream."""
        return await self._complete(request, request.prompts(), _TextShape(self.settings.model_name, request))

    async def _complete(
        self, request: Sampling, prompts: Sequence[Prompt], shape: _Shape
    ) -> dict[str, Any] | EventStream:
        params = self._params(request)
        streams: list[Answer] = []
        prompt_tokens = 0
        try:
            for index, prompt in enumerate(prompts):
                token_ids = await self._encode(index, prompt)
                prompt_tokens += len(token_ids)
                for _ in range(request.n):
                    own = replace(params, seed=params.seed + len(streams))
                    streams.append(await self._submit(token_ids, own))
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        if request.stream:
            usage = request.stream_options is not None and request.stream_options.include_usage
            return EventStream(self._events(streams, params, prompt_tokens, shape, usage), streams)
        with _closing(streams):
            try:
                async with asyncio.timeout(self.settings.timeout):
                    outputs = await asyncio.gather(*(self._whole(stream) for stream in streams))
            except TimeoutError as error:
                raise timed_out(self.settings.timeout) from error
        return shape.body(outputs, prompt_tokens)

    def _params(self, request: Sampling) -> GenerationParams:
        self.check_model(request)
        limit = self.settings.max_gen_length
        if (request.limit() or 0) > limit:
            raise bad_request(
                f"max_tokens is {request.limit()}; this server gives answers of up to {limit} tokens.", "max_tokens"
            )
        try:
            params = request.params(
                self.settings.default_gen_length, self.settings.block_length, _RANDOM.randrange(2**31)
            )
        except GenerationError as error:
            raise bad_request(str(error)) from error
        self._check_in_flight(params)
        return params

    def _check_in_flight(self, params: GenerationParams) -> None:
        """Refuse a request whose logits alone, in every pass, would take memory that others need."""
        positions, limit = params.block_length * params.buffer_size, self.settings.max_positions_in_flight
        if positions > limit:
            raise bad_request(
                f"block_length {params.block_length} with buffer_size {params.buffer_size} is {positions} positions in "
                f"flight; this server takes up to {limit}: lower one of the two.",
                "block_length" if params.block_length > limit else "buffer_size",
            )

    def check_model(self, request: Sampling) -> None:
        """Refuse a model that is not the one served."""
        if request.model not in (None, self.settings.model_name):
            raise ApiError(
                404,
                f"there is no model {request.model!r} here; this server has {self.settings.model_name!r}.",
                param="model",
                code="model_not_found",
            )

    async def _encode(self, index: int, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, found in a thread: a long prompt takes long, and the event loop is for everybody.

        One prompt at a time, so that requests reach the engine in the order in which they came.
        """
        try:
            async with self._encoding:
                return await asyncio.to_thread(self.reader.encode, str(index), prompt)
        except GenerationError as error:
            raise bad_request(str(error)) from error

    async def _submit(self, token_ids: list[int], params: GenerationParams) -> Answer:
        try:
            return await self.engine.submit(token_ids, params)
        except (GenerationError, DecoderError) as error:
            code = "context_length_exceeded" if "exceeds this model's limit" in str(error) else None
            raise bad_request(str(error), code=code) from error

    async def _in_time(self, items: AsyncIterator[T]) -> AsyncIterator[T]:
        """The items that come before time is over.

        The clock stands over the waiting alone: an ``asyncio.timeout`` around a ``yield`` would cancel whoever takes
        the items, in the middle of sending one.
        """
        deadline = asyncio.get_running_loop().time() + self.settings.timeout
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    item = await anext(items)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise timed_out(self.settings.timeout) from error
            yield item

    async def _whole(self, stream: Answer) -> GenerationOutput:
        async for update in self._counted(stream):
            if update.output is not None:
                return update.output
        raise AssertionError("an answer stream ends with an output or an error")

    async def _counted(self, stream: Answer) -> AsyncIterator[RequestUpdate]:
        started, first = time.perf_counter(), True
        async for update in stream:
            if update.final_ids and first:
                self.metrics.first_block.observe(time.perf_counter() - started)
                first = False
            if update.output is not None:
                self.metrics.answered(update.output)
            yield update

    async def _events(
        self, streams: list[Answer], params: GenerationParams, prompt_tokens: int, shape: _Shape, usage: bool
    ) -> AsyncIterator[str]:
        """Server-sent events of all choices as they come; an error ends the stream with an event of its own."""
        texts = [TextStream(self.tokenizer.decode, params.stop) for _ in streams]
        outputs: list[GenerationOutput] = []
        try:
            with _closing(streams):
                for index in range(len(streams)):
                    for event in shape.opening(index):
                        yield _event(event)
                async for index, update in self._in_time(self._merged(streams)):
                    if update.output is None:
                        text = texts[index].add(update.final_ids)
                    else:
                        text = texts[index].finish(update.output.text or "")
                    if text:
                        yield _event(shape.piece(index, text))
                    if update.output is not None:
                        outputs.append(update.output)
                        yield _event(shape.ending(index, update.output))
            if usage:
                yield _event(shape.usage(outputs, prompt_tokens))
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body())
        except ContradictionError:
            text = "a replica was lost, and another one gave an answer that begins otherwise; ask again."
            yield _event(internal(text).body())
        except Exception:
            logger.exception("a stream failed")
            yield _event(unexpected().body())

    async def _merged(self, streams: list[Answer]) -> AsyncIterator[tuple[int, RequestUpdate]]:
        """The updates of several requests as they come."""
        arrived: asyncio.Queue[tuple[int, RequestUpdate | Exception | None]] = asyncio.Queue()

        async def forward(index: int, stream: Answer) -> None:
            try:
                async for update in self._counted(stream):
                    await arrived.put((index, update))
                await arrived.put((index, None))
            except Exception as error:
                await arrived.put((index, error))

        tasks = [asyncio.create_task(forward(index, stream)) for index, stream in enumerate(streams)]
        try:
            open_streams = len(streams)
            while open_streams:
                index, update = await arrived.get()
                if isinstance(update, Exception):
                    raise update
                if update is None:
                    open_streams -= 1
                else:
                    yield index, update
        finally:
            for task in tasks:
                task.cancel()

    async def trace(self, request: ChatRequest) -> AsyncGenerator[dict[str, Any]]:
        """Every pass of one answer, then the answer."""
        if request.n != 1:
            raise bad_request(f"n is {request.n}; a trace shows one answer.", "n")
        params = replace(self._params(request), trace=True)
        token_ids = await self._encode(0, [message.as_turn() for message in request.messages])
        stream = await self._submit(token_ids, params)
        piece = piece_reader(self.tokenizer)
        with _closing([stream]):
            yield {
                "type": "start",
                "prompt_ids": token_ids,
                "prompt_pieces": await asyncio.to_thread(lambda: list(map(piece, token_ids))),
                "block_length": params.block_length,
                "eos_token_id": self.tokenizer.special_id("eos_token"),
                "mask_token_id": self.tokenizer.special_id("mask_token"),
            }
            async for update in self._in_time(self._counted(stream)):
                for record in map(PassRecord.to_dict, update.records):
                    yield {"type": "pass", **record, "pieces": [piece(token_id) for token_id in record["tokens"]]}
                if update.output is not None:
                    output = update.output.to_dict()
                    output.pop("trace")
                    yield {"type": "end", **output}


@contextmanager
def _closing(streams: Sequence[Answer]) -> Iterator[None]:
    """Give requests up that are not over, be it that time is over, or that whoever asked is gone."""
    try:
        yield
    finally:
        for stream in streams:
            stream.close()


class _Shape(ABC):
    """How answers are told to the client."""

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, model_name: str, request: Sampling) -> None:
        self._head = {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": model_name}

    def body(self, outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
        """The whole reply."""
        choices = [
            {"index": index, **self._whole(output.text or ""), "logprobs": None, "finish_reason": output.finish_reason}
            for index, output in enumerate(outputs)
        ]
        return {**self._head, "object": self.kind, "choices": choices, **_usage(outputs, prompt_tokens)}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Events before the text of a choice."""
        return []

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """Some text of a choice."""
        return self._chunk([{"index": index, **self._part(text), "logprobs": None, "finish_reason": None}])

    def ending(self, index: int, output: GenerationOutput) -> dict[str, Any]:
        """The end of a choice, and what it cost."""
        end = {"index": index, **self._part(""), "logprobs": None, "finish_reason": output.finish_reason}
        return {**self._chunk([end]), "dmax": _cost(output)}

    def usage(self, outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
        """The event without choices that a client asks for with ``include_usage``."""
        return {**self._chunk([]), **_usage(outputs, prompt_tokens)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.chunk_kind, "choices": choices}

    @abstractmethod
    def _whole(self, text: str) -> dict[str, Any]:
        """The text of a choice in the whole reply."""

    @abstractmethod
    def _part(self, text: str) -> dict[str, Any]:
        """Some text of a choice in a stream."""


class _ChatShape(_Shape):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])]

    def _whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}


class _TextShape(_Shape):
    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def _whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    _part = _whole


def _usage(outputs: Sequence[GenerationOutput], prompt_tokens: int) -> dict[str, Any]:
    completion_tokens = sum(output.num_tokens for output in outputs)
    return {
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "dmax": _cost(*outputs),
    }


def _cost(*outputs: GenerationOutput) -> dict[str, Any]:
    """What the answers cost: of several, the sums, and the ratios of the sums."""
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
