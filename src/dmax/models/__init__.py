"""The LLaDA2 model and its checkpoints."""

from dmax.models.checkpoint import CheckpointError, load_config, load_model, load_tokenizer, resolve, save_model
from dmax.models.config import ConfigError, ModelConfig
from dmax.models.llada2 import LLaDA2
from dmax.models.tokenizer import Tokenizer

__all__ = [
    "CheckpointError",
    "ConfigError",
    "LLaDA2",
    "ModelConfig",
    "Tokenizer",
    "load_config",
    "load_model",
    "load_tokenizer",
    "resolve",
    "save_model",
]
