"""Requests answered through the engine: whole, streamed, or pass by pass."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import SystemRandom
from typing import Any, TypeVar

from dmax.decoding import DecoderError
from dmax.engine import GenerationError, GenerationOutput, GenerationParams, PassRecord, RequestUpdate
from dmax.engine.json_schema import SchemaError
from dmax.engine.requests import Prompt, RequestReader
from dmax.models import Tokenizer
from dmax.serving.access import cost_facts, error_facts
from dmax.serving.client import Answer, EngineClient
from dmax.serving.encoding import Encoder
from dmax.serving.errors import ApiError, bad_request, internal, timed_out, unexpected
from dmax.serving.metrics import ServerMetrics
from dmax.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    Sampling,
    TokenizeRequest,
    request_models,
)
from dmax.serving.replay import piece_reader
from dmax.serving.responses import ResponsesShape
from dmax.serving.settings import ServerSettings
from dmax.serving.shapes import ChatShape, Shape, Telling, TextShape, cost
from dmax.serving.streaming import ContradictionError, TextStream

T = TypeVar("T")
_RANDOM = SystemRandom()
logger = logging.getLogger("dmax.serving")


class EventStream:
    """The events of an answer, for one reader.

    Args:
        events: to be read.
        streams: where they come from.
        facts: for the log: what the answer cost, or why there is none; empty while the stream is not over.
    """

    def __init__(self, events: AsyncIterator[str], streams: Sequence[Answer], facts: dict[str, Any]) -> None:
        self.facts = facts
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
        self.tokenizer = tokenizer
        self.settings = settings
        self.metrics = metrics
        self.bodies = request_models()
        """What requests look like."""
        self._encoder = Encoder(reader)
        self._piece = piece_reader(tokenizer)

    async def chat(self, request: ChatRequest) -> dict[str, Any] | EventStream:
        """Answer with a chat completion: the body, or the events of a stream."""
        messages = self._encoder.turns(request.messages, "messages")
        return await self._complete(request, [messages], ChatShape(self._telling(request)), "messages")

    async def completion(self, request: CompletionRequest) -> dict[str, Any] | EventStream:
        """Answer with a text completion: the body, or the events of a stream."""
        return await self._complete(request, request.prompts(), TextShape(self._telling(request)), "prompt")

    async def responses(self, request: ResponsesRequest) -> dict[str, Any] | EventStream:
        """Answer with a response: the body, or the events of a stream."""
        opening = [message.as_turn() for message in request.opening()]
        messages = [*opening, *self._encoder.turns(request.items(), "input")]
        return await self._complete(request, [messages], ResponsesShape(self._telling(request), request), "input")

    async def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        """Return the token ids of a prompt, as an answer to it would begin with."""
        self.check_model(request.model)
        if (request.prompt is None) == (request.messages is None):
            raise bad_request("give either prompt or messages.", "prompt")
        prompt: Prompt = request.prompt or ""
        if request.messages is not None:
            prompt = self._encoder.turns(request.messages, "messages")
        token_ids = await self._encoder.encode(prompt, "prompt" if request.messages is None else "messages")
        pieces = {"token_strs": list(map(self._piece, token_ids))} if request.return_token_strs else {}
        return {"count": len(token_ids), "max_model_len": self._encoder.positions, "tokens": token_ids, **pieces}

    async def detokenize(self, request: DetokenizeRequest) -> dict[str, Any]:
        """Return the text of token ids, special tokens by their names."""
        self.check_model(request.model)
        size = self._encoder.config.vocab_size
        if not all(0 <= token_id < size for token_id in request.tokens):
            raise bad_request(f"tokens must be token ids of this model, which are 0 to {size - 1}.", "tokens")
        decode = self.tokenizer.pipeline.decode
        return {"prompt": await asyncio.to_thread(decode, request.tokens, skip_special_tokens=False)}

    def _telling(self, request: Sampling) -> Telling:
        structure = request.structure()
        is_call = structure is not None and structure.is_call
        return Telling(self.settings.model_name, self._piece, is_call, request.wanted_logprobs() is not None)

    async def _complete(
        self, request: Sampling, prompts: Sequence[Prompt], shape: Shape, field: str
    ) -> dict[str, Any] | EventStream:
        params = self._params(request)
        self._check_number(len(prompts), request.choices)
        streams: list[Answer] = []
        prompt_tokens = 0
        try:
            for prompt in prompts:
                token_ids = await self._encoder.encode(prompt, field, request.told_tools())
                prompt_tokens += len(token_ids)
                fitting = self._encoder.fitting(params, request, len(token_ids), field)
                for _ in range(request.choices):
                    own = replace(fitting, seed=params.seed + len(streams))
                    streams.append(await self._submit(token_ids, own, request))
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        if request.stream:
            facts: dict[str, Any] = {}
            return EventStream(self._events(request, streams, params, prompt_tokens, shape, facts), streams, facts)
        with _closing(streams), _naming_fields(request):
            try:
                async with asyncio.timeout(self.settings.timeout):
                    outputs = await asyncio.gather(*(self._whole(stream) for stream in streams))
            except TimeoutError as error:
                raise timed_out(self.settings.timeout) from error
        return shape.body(outputs, prompt_tokens)

    def _params(self, request: Sampling) -> GenerationParams:
        self.check_model(request.model)
        limit, name = self.settings.max_gen_length, request.length_field
        if (request.limit() or 0) > limit:
            raise bad_request(f"{name} is {request.limit()}; this server gives answers of up to {limit} tokens.", name)
        try:
            params = request.params(
                self.settings.default_gen_length, self.settings.block_length, _RANDOM.randrange(2**31)
            )
        except GenerationError as error:
            raise bad_request(str(error), _field(error.option, request)) from error
        if params.min_tokens > limit:
            text = f"min_tokens is {params.min_tokens}; this server gives answers of up to {limit} tokens."
            raise bad_request(text, "min_tokens")
        self._check_in_flight(params)
        return params

    def _check_number(self, prompts: int, choices: int) -> None:
        """Refuse a request that could not be queued as a whole, however long its client tries."""
        limit = self.settings.max_queue
        if prompts * choices > limit:
            given = f"n is {choices}" if prompts == 1 else f"there are {prompts} prompts with n {choices}"
            raise bad_request(
                f"{given}, and this server queues up to {limit} answers; ask for fewer at a time.",
                "n" if prompts == 1 else "prompt",
            )

    def _check_in_flight(self, params: GenerationParams) -> None:
        """Refuse a request whose logits alone, in every pass, would take memory that others need."""
        length = params.block_length or self.settings.block_length
        positions, limit = length * params.buffer_size, self.settings.max_positions_in_flight
        if positions > limit:
            raise bad_request(
                f"block_length {length} with buffer_size {params.buffer_size} is {positions} positions in "
                f"flight; this server takes up to {limit}: lower one of the two.",
                "block_length" if length > limit else "buffer_size",
            )

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not the one served."""
        if name not in (None, self.settings.model_name):
            raise ApiError(
                404,
                f"there is no model {name!r} here; this server has {self.settings.model_name!r}.",
                param="model",
                code="model_not_found",
            )

    async def _submit(self, token_ids: list[int], params: GenerationParams, request: Sampling) -> Answer:
        try:
            return await self.engine.submit(token_ids, params)
        except (GenerationError, DecoderError) as error:
            code = "invalid_schema" if isinstance(error, SchemaError) else None
            raise bad_request(str(error), _field(error.option, request), code) from error

    async def _in_time(self, items: AsyncIterator[T]) -> AsyncIterator[T]:
        """Yield the items that come before time is over.

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
        self,
        request: Sampling,
        streams: list[Answer],
        params: GenerationParams,
        prompt_tokens: int,
        shape: Shape,
        facts: dict[str, Any],
    ) -> AsyncIterator[str]:
        """Yield server-sent events of all choices as they come; an error ends the stream with an event of its own."""
        texts = [TextStream(self.tokenizer.decode, params.stop) for _ in streams]
        usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        outputs: list[GenerationOutput] = []
        try:
            with _closing(streams), _naming_fields(request):
                for index in range(len(streams)):
                    if begun := shape.opening(index):
                        yield begun
                async for index, update in self._in_time(self._merged(streams)):
                    text, tokens = texts[index].take(update)
                    if text or tokens:
                        yield shape.piece(index, text, tokens)
                    if update.output is not None:
                        outputs.append(update.output)
                        yield shape.ending(index, update.output, prompt_tokens)
            facts.update(cost_facts(cost(*outputs)))
            if end := shape.closing(outputs, prompt_tokens, usage):
                yield end
        except Exception as error:
            refusal = _refusal(error)
            facts.update(error_facts(refusal))
            yield shape.failure(refusal)

    async def _merged(self, streams: list[Answer]) -> AsyncIterator[tuple[int, RequestUpdate]]:
        """Yield the updates of several requests as they come."""
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
        """Yield every pass of one answer, then the answer."""
        if request.n != 1:
            raise bad_request(f"n is {request.n}; a trace shows one answer.", "n")
        params = replace(self._params(request), trace=True)
        turns, piece = self._encoder.turns(request.messages, "messages"), self._piece
        token_ids = await self._encoder.encode(turns, "messages", request.told_tools())
        fitting = self._encoder.fitting(params, request, len(token_ids), "messages")
        stream = await self._submit(token_ids, fitting, request)
        with _closing([stream]), _naming_fields(request):
            yield {
                "type": "start",
                "prompt_ids": token_ids,
                "prompt_pieces": await asyncio.to_thread(lambda: list(map(piece, token_ids))),
                "block_length": params.block_length,
                "eos_token_ids": self._encoder.config.eos_token_ids,
                "mask_token_id": self.tokenizer.special_id("mask_token"),
            }
            async for update in self._in_time(self._counted(stream)):
                for record in map(PassRecord.to_dict, update.records):
                    yield {"type": "pass", **record, "pieces": [piece(token_id) for token_id in record["tokens"]]}
                if update.output is not None:
                    output = update.output.to_dict()
                    output.pop("trace")
                    yield {"type": "end", **output}


def _field(setting: str | None, request: Sampling) -> str | None:
    """Return the field by which a request gave a setting of the decode."""
    if setting == "json_schema" and (structure := request.structure()) is not None:
        return structure.field
    return "decoder_options" if setting in (request.decoder_options or {}) else setting


@contextmanager
def _naming_fields(request: Sampling) -> Iterator[None]:
    """Name the fields of a request in what is told of its failure."""
    try:
        yield
    except ApiError as error:
        error.param = _field(error.param, request)
        raise


def _refusal(error: Exception) -> ApiError:
    """Return what a client is told whose stream breaks off."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContradictionError):
        return internal("a replica was lost, and another one gave an answer that begins otherwise; ask again.")
    logger.error("a stream failed", exc_info=error)
    return unexpected()


@contextmanager
def _closing(streams: Sequence[Answer]) -> Iterator[None]:
    """Give requests up that are not over, be it that time is over, or that whoever asked is gone."""
    try:
        yield
    finally:
        for stream in streams:
            stream.close()
