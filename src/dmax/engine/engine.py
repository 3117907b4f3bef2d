"""The engine: requests come and go at any time, and every step is one forward for all that run.

A step carries the blocks in flight of every running sequence (with those before them that have just become final) and,
within a budget, chunks of the prompts of sequences that wait to run.
"""

from __future__ import annotations

import time
from dataclasses import replace
from uuid import uuid4

import torch

from dmax.engine.backends import Backend, choose_backend
from dmax.engine.config import EngineConfig
from dmax.engine.kv_cache import page_bytes, page_length_for
from dmax.engine.model_runner import ModelRunner
from dmax.engine.outputs import EngineStats, RequestUpdate
from dmax.engine.page_allocator import PagePool
from dmax.engine.params import GenerationError, GenerationParams
from dmax.engine.requests import Prompt, RequestReader, output_of
from dmax.engine.scheduler import Scheduler
from dmax.engine.sequence import Sequence
from dmax.engine.span import Span
from dmax.models import BlockDiffusionLM, Tokenizer

_DEFAULTS = GenerationParams()
_CONFIG = EngineConfig()


class LLMEngine:
    """Continuous batching of requests over one model and one KV cache.

    Not thread-safe: one thread calls all methods.

    Args:
        model: put into eval mode and otherwise used as it is.
        tokenizer: for prompts and answers in text.
        config: sizes and switches.
        backend: computes the passes; no other engine uses it meanwhile. Chosen for the model by default.
        reader: of requests for this model, which others may use, too; one of its own by default.

    Raises:
        GenerationError: the memory does not suffice for a single page.
    """

    def __init__(
        self,
        model: BlockDiffusionLM,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig = _CONFIG,
        *,
        backend: Backend | None = None,
        reader: RequestReader | None = None,
    ) -> None:
        block_length = config.block_length or config.page_length or model.config.usual_block_length
        page_length = config.page_length or page_length_for(block_length)
        pages = config.pages
        if pages is None:
            size = page_bytes(model.config, page_length, model.dtype)
            pages = config.kv_memory // size
            if not pages:
                raise GenerationError(f"kv_memory is {config.kv_memory} bytes; one page of this model takes {size}.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.page_length = page_length
        self._pool = PagePool(pages)
        self._scheduler = Scheduler(
            self._pool,
            page_length,
            config.max_batch_size,
            config.prefill_tokens,
            config.reuse_prefixes,
            model.config.shift_logits,
        )
        self._backend = backend or choose_backend(model)
        self._backend.open(pages, page_length, config.max_batch_size)
        self._counters = EngineStats(backend=self._backend.name, pages=pages)
        self._runner = ModelRunner(
            model, self._backend, page_length, record_passes=config.record_passes, counters=self._counters
        )
        on_gpu = model.device.type == "cuda"
        self._launches_ahead = on_gpu if config.launch_ahead is None else config.launch_ahead
        self.reader = RequestReader(model.config, tokenizer) if reader is None else reader
        self._sequences: dict[str, Sequence] = {}
        if config.capture_graphs:
            self._backend.warm_up(block_length)

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
        self.add(self.reader.read(request_id, prompt, params, time.perf_counter()))
        return request_id

    def add(self, sequence: Sequence) -> None:
        """Queue a request that was read before, by a :class:`~dmax.engine.requests.RequestReader` of this model.

        Raises:
            GenerationError: it needs more pages than there are.
        """
        params, request_id = sequence.params, sequence.request_id
        needed, pages = self._scheduler.pages_for(sequence.furthest_end), self._pool.pages
        if needed > pages:
            raise GenerationError(
                f"prompt {request_id} has {sequence.prompt_length} tokens, which with gen_length {params.gen_length} "
                f"takes {needed} pages of the KV cache, and it has {pages}; shorten one of them, or give the "
                "engine more kv_memory."
            )
        self._sequences[request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> bool:
        """Give a request up; its pages are free at once. False where no unfinished request has this id."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        self._runner.discard()
        self._runner.remove([sequence])
        self._scheduler.remove(sequence)
        return True

    def has_requests(self) -> bool:
        """Tell whether any request is unfinished."""
        return bool(self._sequences)

    @torch.inference_mode()
    def step(self) -> list[RequestUpdate]:
        """Run one forward. Requests of which there is nothing to tell get no update."""
        chunks: list[Span] = []
        if not self._runner.is_launched:
            scheduled = self._scheduler.schedule()
            chunks = scheduled.chunks
            self._runner.remove(scheduled.preempted, pause=True)
            self._runner.add(scheduled.starting)
            for span in self._runner.launch(chunks):
                if span.start < span.blocks_start:
                    self._scheduler.stored(span.sequence, span.blocks_start)
        launch_next = self._launches_ahead and not chunks and self._scheduler.settled()
        landed = self._runner.land(launch_next=launch_next)
        self._end([sequence for sequence, _ in landed if sequence.ended])
        updates = [_with_output(sequence, update) for sequence, update in landed]
        return [update for update in updates if update.finished or update.final_ids or update.records]

    def stats(self) -> EngineStats:
        """Return where the engine stands now."""
        return replace(
            self._counters,
            waiting=len(self._scheduler.waiting),
            running=len(self._scheduler.admitted),
            pages_held=self._pool.held,
            pages_cached=self._pool.cached,
            prefix_queries=self._pool.queries,
            prefix_hits=self._pool.hits,
            preemptions=self._scheduler.preemptions,
        )

    def _end(self, sequences: list[Sequence]) -> None:
        now = time.perf_counter()
        self._runner.remove(sequences)
        for sequence in sequences:
            sequence.end(now)
            self._scheduler.remove(sequence)
            del self._sequences[sequence.request_id]


def _with_output(sequence: Sequence, update: RequestUpdate) -> RequestUpdate:
    """Put the answer of a sequence that has one into its last update."""
    if sequence.ending is None:
        return update
    try:
        return replace(update, output=output_of(sequence))
    except Exception as error:  # a third-party decoder may have settings that cannot be copied
        return replace(update, failure=error)
