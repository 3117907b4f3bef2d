"""A tokenizer whose text is bytes and whose chat form is short, so that token ids can be told by hand; a small MoE."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from dmax.models import BlockDiffusionLM, ModelConfig, Tokenizer
from dmax.models.transformer import initialize
from dmax.training.data import generator_for

SPECIAL = ("<pad>", "<mask>", "<eos>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '>' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_CONFIG = ModelConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, mask_token_id=1, eos_token_id=2, pad_token_id=0, num_experts=4,
    num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=8, first_k_dense_replace=1,
    initializer_range=0.3,
)  # fmt: skip


@pytest.fixture
def model() -> BlockDiffusionLM:
    return initialize(BlockDiffusionLM(_CONFIG), generator_for(1))


@pytest.fixture
def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pipeline = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *alphabet])}, merges=[])
    )
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_special_tokens(list(SPECIAL))
    return Tokenizer(pipeline, {"eos_token": "<eos>", "mask_token": "<mask>"}, TEMPLATE)
