"""Generation: prompts in, answers with their cost out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dmax.engine.config import EngineConfig
from dmax.engine.outputs import EngineStats, GenerationOutput, NumericalError, PassRecord, RequestUpdate
from dmax.engine.params import GenerationError, GenerationParams

if TYPE_CHECKING:
    from dmax.engine.engine import LLMEngine
    from dmax.engine.llm import LLM

__all__ = [
    "LLM",
    "EngineConfig",
    "EngineStats",
    "GenerationError",
    "GenerationOutput",
    "GenerationParams",
    "LLMEngine",
    "NumericalError",
    "PassRecord",
    "RequestUpdate",
]

# What a command line needs to parse its arguments must not wait for torch.
_HOMES = {"LLM": "llm", "LLMEngine": "engine"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dmax.engine.{_HOMES[name]}"), name)
