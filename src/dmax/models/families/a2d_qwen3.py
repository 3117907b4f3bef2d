"""Block-diffusion conversions of Qwen3 by dllm (the bd3lm variants), such as Qwen3-0.6B."""

from __future__ import annotations

from dmax.models.families.base import APART, DENSE, PLAIN, Family

FAMILY = Family(
    model_type="a2d-qwen3",
    architecture="A2DQwen3LMHeadModel",
    keys={
        "block_length": ("block_length", "block_size"),
        "use_qkv_bias": ("attention_bias",),
        "use_bias": ("attention_bias",),
    },
    fixed={**DENSE, "use_qk_norm": True},
    defaults={
        "default_decoder": "threshold",
        "head_dim": 128,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 32_768,
    },
    allowed=PLAIN,
    modules=APART,
    adapted_from="qwen3",
    mask_token="<|mask|>",
)
