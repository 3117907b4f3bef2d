"""SDAR (JetLM; 1.7B, 4B, 8B): Qwen3 dense, decoded by blocks of 4; variants of 8, 32 and 64 say nothing of it."""

from __future__ import annotations

from dmax.models.families.base import APART, DENSE, PLAIN, Family

FAMILY = Family(
    model_type="sdar",
    architecture="SDARForCausalLM",
    keys={
        "block_length": ("block_length", "block_size"),
        "use_qkv_bias": ("attention_bias",),
        "use_bias": ("attention_bias",),
    },
    fixed={**DENSE, "use_qk_norm": True, "shift_logits": False},
    defaults={
        "default_decoder": "threshold",
        "head_dim": 128,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 32_768,
        "mask_token_id": 151_669,
        "eos_token_id": 151_645,
    },
    allowed=PLAIN,
    modules=APART,
    block_length=4,
    mask_token="<|MASK|>",
)
