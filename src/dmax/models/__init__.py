"""The one model definition, and its checkpoints."""

from dmax.models.checkpoint import CheckpointError, load_config, load_model, load_tokenizer, resolve, save_model
from dmax.models.config import ConfigError, ModelConfig
from dmax.models.tokenizer import Tokenizer
from dmax.models.transformer import BlockDiffusionLM

__all__ = [
    "BlockDiffusionLM",
    "CheckpointError",
    "ConfigError",
    "ModelConfig",
    "Tokenizer",
    "load_config",
    "load_model",
    "load_tokenizer",
    "resolve",
    "save_model",
]
