"""How an engine is laid out: sizes and switches that hold for all its requests."""

from __future__ import annotations

from dataclasses import dataclass

from dmax.engine.params import GenerationError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes and switches of an :class:`~dmax.engine.LLMEngine`.

    Raises:
        GenerationError: a limit is below 1.
    """

    block_length: int | None = None
    """That most requests have; by default the page length if that is given, else the model's."""
    page_length: int | None = None
    """Positions of a page of the KV cache, by default whole blocks. Requests whose block length divides it share the
    pages of prompts that begin alike."""
    kv_memory: int = 2**30
    """Bytes of the KV cache."""
    pages: int | None = None
    """Its size in pages, where that is known; ``kv_memory`` does not count then."""
    max_batch_size: int = 32
    """Most requests that run together; further ones wait."""
    prefill_tokens: int = 512
    """Most prompt positions that one step carries while answers are decoded."""
    reuse_prefixes: bool = True
    """Whether pages are shared."""
    record_passes: bool = False
    """Whether updates carry a :class:`~dmax.engine.PassRecord` for every pass of every request."""
    capture_graphs: bool = False
    """On a GPU, whether the forwards of every size over blocks of ``block_length`` are captured as CUDA graphs when the
    engine is made. It is ready later, and no request waits for a capture. Elsewhere nothing changes."""
    launch_ahead: bool | None = None
    """Whether passes are launched before the host has seen the last one; by default on a GPU."""

    def __post_init__(self) -> None:
        for name in ("block_length", "page_length", "max_batch_size", "prefill_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise GenerationError(f"{name} is {value}; it must be at least 1.")
