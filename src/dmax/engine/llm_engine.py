"""The engine for those who keep it running: requests come and go at any time, and every step serves all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import uuid4

from dmax.engine.core import EngineCore
from dmax.engine.kv_cache import page_bytes
from dmax.engine.outputs import GenerationOutput, PassRecord
from dmax.engine.params import GenerationError, GenerationParams
from dmax.engine.requests import Prompt, RequestReader, output_of
from dmax.engine.sequence import Sequence
from dmax.models import LLaDA2, Tokenizer

_DEFAULTS = GenerationParams()


@dataclass(frozen=True)
class RequestUpdate:
    """What a step did to one request."""

    request_id: str
    final_ids: list[int]
    """Answer tokens that became final in this step; they are never revised."""
    records: list[PassRecord]
    """The pass as every block in flight saw it, where the engine or the request's params ask for records."""
    output: GenerationOutput | None
    """The whole answer, once it has ended."""
    failure: Exception | None
    """Why the request was given up; None where it was not."""


@dataclass(frozen=True)
class EngineStats:
    """Where an engine stands. Counts of events are since it was made."""

    waiting: int
    """Requests that hold no pages yet."""
    running: int
    """Requests whose prompt is being stored or whose answer is being decoded."""
    pages: int
    pages_held: int
    """By running requests."""
    pages_cached: int
    """Pages whose contents are known and can be reused, held ones included."""
    prefix_queries: int
    """Whole prompt pages looked up."""
    prefix_hits: int
    """Those that were there."""
    interruptions: int
    """Requests that lost their pages and were taken up again."""
    steps: int
    """Forwards."""
    positions: int
    """Positions of all forwards."""
    prefilled: int
    """Prompt positions among them."""
    decoded: int
    """Positions of blocks in flight among them, the only ones that have logits."""
    attended: int
    """Positions that each of them attended to, itself included, summed."""


class LLMEngine:
    """Continuous batching: every step is one forward for all requests that can use it.

    Not thread-safe: one thread calls all methods.

    Args:
        model: put into eval mode and otherwise used as it is.
        tokenizer: for prompts and answers in text.
        page_length: positions of a page of the key/value pool. Requests whose block length divides it share the pages
            of prompts that begin alike.
        kv_memory: bytes of the pool.
        max_batch_size: most requests that run together; further ones wait.
        prefill_tokens: most prompt positions that one step carries while answers are decoded.
        reuse_prefixes: whether pages are shared.
        record_passes: whether updates carry a :class:`PassRecord` for every pass of every request.
        capture_graphs: on a GPU, whether the forwards of every size over blocks of ``page_length`` are captured as CUDA
            graphs now. The engine is ready later, and no request waits for a capture. Elsewhere it changes nothing.

    Raises:
        GenerationError: the memory does not suffice for a single page, or a limit is below 1.
    """

    def __init__(
        self,
        model: LLaDA2,
        tokenizer: Tokenizer | None = None,
        *,
        page_length: int = 32,
        kv_memory: int = 2**30,
        max_batch_size: int = 32,
        prefill_tokens: int = 512,
        reuse_prefixes: bool = True,
        record_passes: bool = False,
        capture_graphs: bool = False,
    ) -> None:
        limits = {"page_length": page_length, "max_batch_size": max_batch_size, "prefill_tokens": prefill_tokens}
        for name, value in limits.items():
            if value < 1:
                raise GenerationError(f"{name} is {value}; it must be at least 1.")
        size = page_bytes(model.config, page_length, model.dtype)
        if kv_memory < size:
            raise GenerationError(f"kv_memory is {kv_memory} bytes; one page of this model takes {size}.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.page_length = page_length
        self._reader = RequestReader(model.config, tokenizer)
        self._core = EngineCore(
            self.model,
            pages=kv_memory // size,
            page_length=page_length,
            max_batch_size=max_batch_size,
            prefill_tokens=prefill_tokens,
            reuse_prefixes=reuse_prefixes,
            record_passes=record_passes,
        )
        if capture_graphs:
            self._core.prepare(page_length)
        self._sequences: dict[str, Sequence] = {}

    def add_request(self, prompt: Prompt, params: GenerationParams = _DEFAULTS, request_id: str | None = None) -> str:
        """Queue a request.

        Args:
            prompt: text, token ids or messages.
            params: ``use_cache=False`` is refused.
            request_id: any name no unfinished request has; a fresh one by default.

        Returns:
            The id, which updates carry.

        Raises:
            GenerationError: the request cannot be run; the message says why.
            DecoderError: there is no such decoder or option.
        """
        request_id = uuid4().hex if request_id is None else request_id
        if request_id in self._sequences:
            raise GenerationError(f"request {request_id!r} is not finished; give another id.")
        if not params.use_cache:
            raise GenerationError("use_cache is false; this engine always uses its cache, LLM.generate can do without.")
        sequence = self._reader.read(request_id, prompt, params, time.perf_counter())
        needed, pages = -(-sequence.furthest_end // self.page_length), self._core.pool.pages
        if needed > pages:
            raise GenerationError(
                f"prompt {request_id} has {sequence.prompt_length} tokens, which with gen_length {params.gen_length} "
                f"takes {needed} pages of the key/value pool, and it has {pages}; shorten one of them, or give the "
                "engine more kv_memory."
            )
        self._sequences[request_id] = sequence
        self._core.add(sequence)
        return request_id

    def abort(self, request_id: str) -> bool:
        """Give a request up; its pages are free at once. False where no unfinished request has this id."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        self._core.abort(sequence)
        return True

    def has_requests(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._sequences)

    def step(self) -> list[RequestUpdate]:
        """One forward. Requests of which there is nothing to tell get no update."""
        updates = []
        for update in self._core.step():
            row = update.sequence
            if update.finished:
                del self._sequences[row.request_id]
            if update.finished or update.final_ids or update.records:
                output, failure = _ended(row)
                updates.append(RequestUpdate(row.request_id, update.final_ids, update.records, output, failure))
        return updates

    def stats(self) -> EngineStats:
        """Where the engine stands now."""
        core, scheduler, pool = self._core, self._core.scheduler, self._core.pool
        return EngineStats(
            waiting=len(scheduler.waiting),
            running=len(scheduler.admitted),
            pages=pool.pages,
            pages_held=pool.held,
            pages_cached=pool.cached,
            prefix_queries=pool.counters.queries,
            prefix_hits=pool.counters.hits,
            interruptions=scheduler.interruptions,
            steps=core.counters.steps,
            positions=core.counters.positions,
            prefilled=core.counters.prefilled,
            decoded=core.counters.decoded,
            attended=core.counters.attended,
        )


def _ended(row: Sequence) -> tuple[GenerationOutput | None, Exception | None]:
    """The answer of a sequence that has one, and why there will be none."""
    if row.ending is None:
        return None, row.failure
    try:
        return output_of(row), None
    except Exception as error:  # a decoder of somebody's own, whose settings cannot be copied
        return None, error
