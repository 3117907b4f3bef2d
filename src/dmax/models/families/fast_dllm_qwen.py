"""Fast-dLLM v2 (Efficient-Large-Model; 1.5B, 7B): Qwen2.5, whose tokens are read one position before their own."""

from __future__ import annotations

from dmax.models.families.base import APART, DENSE, PLAIN, Family

FAMILY = Family(
    model_type="Fast_dLLM_Qwen",
    architecture="Fast_dLLM_QwenForCausalLM",
    keys={"block_length": ("bd_size", "block_length")},
    fixed={**DENSE, "use_qkv_bias": True, "use_bias": False, "use_qk_norm": False, "shift_logits": True},
    defaults={
        "default_decoder": "threshold",
        "rope_theta": 10_000.0,
        "max_position_embeddings": 32_768,
        "mask_token_id": 151_665,
        "eos_token_id": 151_645,
    },
    allowed=PLAIN,
    modules=APART,
    adapted_from="qwen2",
    mask_token="|<MASK>|",
)
