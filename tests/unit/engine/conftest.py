"""A model small enough to run hundreds of passes a second, and a tokenizer to go with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tokenizers
import torch

from dmax.models import LLaDA2, ModelConfig, Tokenizer
from dmax.models.llada2 import initialize

MASK, EOS, PAD = 1, 2, 0


@pytest.fixture(scope="session")
def tiny_model() -> LLaDA2:
    """Random weights, wide enough apart for confident predictions: 48 tokens, experts, grouped queries."""
    config = ModelConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        partial_rotary_factor=0.5,
        num_experts=4,
        num_experts_per_tok=2,
        num_shared_experts=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_group=2,
        topk_group=1,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=PAD,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return initialize(LLaDA2(config), torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def word_tokenizer() -> Callable[[str | None], Tokenizer]:
    """Chat template -> a tokenizer whose tokens 3..47 are the words ``w3`` .. ``w47``, joined by spaces."""

    def build(chat_template: str | None = None) -> Tokenizer:
        words = {f"w{token_id}": token_id for token_id in range(3, 48)}
        vocabulary = {"<pad>": PAD, "<mask>": MASK, "<eos>": EOS, **words}
        pipeline = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
        pipeline.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        pipeline.add_special_tokens(["<pad>", "<mask>", "<eos>"])
        return Tokenizer(pipeline, {"eos_token": "<eos>", "mask_token": "<mask>"}, chat_template)

    return build
