"""Block-diffusion conversions of Qwen2 and Qwen2.5 by dllm (the bd3lm variants), such as Qwen2.5-0.5B."""

from __future__ import annotations

from dmax.models.families.base import APART, DENSE, PLAIN, Family

FAMILY = Family(
    model_type="a2d-qwen2",
    architecture="A2DQwen2LMHeadModel",
    keys={"block_length": ("block_length", "block_size")},
    fixed={**DENSE, "use_qkv_bias": True, "use_bias": False, "use_qk_norm": False},
    defaults={"default_decoder": "threshold", "rope_theta": 10_000.0, "max_position_embeddings": 32_768},
    allowed=PLAIN,
    modules=APART,
    adapted_from="qwen2",
    mask_token="<|mask|>",
)
