"""What tests of several kinds need: the shape of a tiny model, and a tokenizer to go with it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Of several processes on a machine each has one core; more threads would wait for one another. Before torch.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import tokenizers
import torch

from dmax.models import ModelConfig, Tokenizer

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which any test before the kernels' may bring about.
    os.environ["TRITON_INTERPRET"] = "1"

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="dmax-tests-")  # steps compiled for the user are not tested

PAD, MASK, EOS = 0, 1, 2
VOCABULARY = {"<pad>": PAD, "<mask>": MASK, "<eos>": EOS, **{f"w{token_id}": token_id for token_id in range(3, 48)}}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """Whether there are experts, and changes -> a configuration small enough for hundreds of passes a second.

    Its random weights are wide enough apart for confident predictions.
    """
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    }

    def build(*, moe: bool, **changes: Any) -> ModelConfig:
        settings: dict[str, Any] = {
            "vocab_size": len(VOCABULARY),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "mask_token_id": MASK,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "initializer_range": 0.3,
        }
        return ModelConfig(**{**settings, **(experts if moe else {}), **changes})

    return build


@pytest.fixture(scope="session")
def word_tokenizer() -> Callable[[str | None], Tokenizer]:
    """Chat template -> a tokenizer whose tokens 3..47 are the words ``w3`` .. ``w47``, joined by spaces."""

    def build(chat_template: str | None = None) -> Tokenizer:
        pipeline = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="<pad>"))
        pipeline.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        pipeline.add_special_tokens(["<pad>", "<mask>", "<eos>"])
        return Tokenizer(pipeline, {"eos_token": "<eos>", "mask_token": "<mask>"}, chat_template)

    return build


@pytest.fixture(scope="session")
def chat_template() -> str:
    """For :func:`word_tokenizer`: ``w3`` opens a user's turn, ``w4`` any other, ``w5`` the answer."""
    return "{% for m in messages %}{{ 'w3' if m.role == 'user' else 'w4' }} {{ m.content }} {% endfor %}w5"
