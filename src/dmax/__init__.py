"""DMax diffusion language models: parallel decoding and on-policy training.

The names below are loaded when they are first used, so that ``import dmax`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmax.decoding import BlockState, Decoder, StepResult, decoder_names, get_decoder
    from dmax.engine import LLM, EngineConfig, GenerationOutput, GenerationParams, LLMEngine, PassRecord, RequestUpdate
    from dmax.models import BlockDiffusionLM, ModelConfig, Tokenizer, load_model, load_tokenizer, save_model

__all__ = [
    "LLM",
    "BlockDiffusionLM",
    "BlockState",
    "Decoder",
    "EngineConfig",
    "GenerationOutput",
    "GenerationParams",
    "LLMEngine",
    "ModelConfig",
    "PassRecord",
    "RequestUpdate",
    "StepResult",
    "Tokenizer",
    "decoder_names",
    "get_decoder",
    "load_model",
    "load_tokenizer",
    "save_model",
]

_HOMES = {
    **dict.fromkeys(
        ("LLM", "EngineConfig", "GenerationOutput", "GenerationParams", "LLMEngine", "PassRecord", "RequestUpdate"),
        "dmax.engine",
    ),
    **dict.fromkeys(("BlockState", "Decoder", "StepResult", "decoder_names", "get_decoder"), "dmax.decoding"),
    **dict.fromkeys(
        ("BlockDiffusionLM", "ModelConfig", "Tokenizer", "load_model", "load_tokenizer", "save_model"), "dmax.models"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
