"""Block-diffusion conversions of Llama by dllm (the bd3lm variants)."""

from __future__ import annotations

from dmax.models.families.base import APART, DENSE, PLAIN, Family

FAMILY = Family(
    model_type="a2d-llama",
    architecture="A2DLlamaLMHeadModel",
    keys={
        "block_length": ("block_length", "block_size"),
        "use_qkv_bias": ("attention_bias",),
        "use_bias": ("attention_bias",),
    },
    fixed={**DENSE, "use_qk_norm": False},
    defaults={"default_decoder": "threshold", "rope_theta": 10_000.0, "max_position_embeddings": 2048},
    allowed={**PLAIN, "mlp_bias": (False,)},
    modules=APART,
    adapted_from="llama",
    mask_token="<|mask|>",
)
