"""Generation: prompts in, answers with their cost out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmax.engine.outputs import GenerationOutput, PassRecord
from dmax.engine.params import GenerationError, GenerationParams

if TYPE_CHECKING:
    from dmax.engine.llm import LLM

__all__ = ["LLM", "GenerationError", "GenerationOutput", "GenerationParams", "PassRecord"]


def __getattr__(name: str) -> Any:
    # What a command line needs to parse its arguments must not wait for torch.
    if name == "LLM":
        from dmax.engine.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
