"""The engine for those who keep it running: requests come and go at any time, and every step serves all of them."""

from __future__ import annotations

import time
from uuid import uuid4

from dmax.engine.backends import Backend
from dmax.engine.core import EngineCore
from dmax.engine.kv_cache import page_bytes
from dmax.engine.outputs import EngineStats, RequestUpdate
from dmax.engine.params import GenerationError, GenerationParams
from dmax.engine.requests import Prompt, RequestReader
from dmax.engine.sequence import Sequence
from dmax.models import LLaDA2, Tokenizer

_DEFAULTS = GenerationParams()


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
        backend: Backend | None = None,
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
            backend=backend,
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
        self.add(self._reader.read(request_id, prompt, params, time.perf_counter()))
        return request_id

    def add(self, sequence: Sequence) -> None:
        """Queue a request that was read before, by a :class:`~dmax.engine.requests.RequestReader` of this model.

        Raises:
            GenerationError: it needs more pages than there are.
        """
        params, request_id = sequence.params, sequence.request_id
        needed, pages = -(-sequence.furthest_end // self.page_length), self._core.pool.pages
        if needed > pages:
            raise GenerationError(
                f"prompt {request_id} has {sequence.prompt_length} tokens, which with gen_length {params.gen_length} "
                f"takes {needed} pages of the key/value pool, and it has {pages}; shorten one of them, or give the "
                "engine more kv_memory."
            )
        self._sequences[request_id] = sequence
        self._core.add(sequence)

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
        updates = self._core.step()
        for update in updates:
            if update.finished:
                del self._sequences[update.request_id]
        return [update for update in updates if update.finished or update.final_ids or update.records]

    def stats(self) -> EngineStats:
        """Where the engine stands now."""
        return self._core.stats()
