"""SDAR with experts (JetLM; 30B-A3B): Qwen3-MoE, whose router takes a softmax and knows no groups."""

from __future__ import annotations

from dmax.models.families.base import APART, PLAIN, Family
from dmax.models.families.sdar import FAMILY as SDAR

FAMILY = Family(
    model_type="sdar_moe",
    architecture="SDARMoeForCausalLM",
    keys={**SDAR.keys, "num_experts": ("num_experts", "num_local_experts")},
    fixed={
        "use_qk_norm": True,
        "shift_logits": False,
        "num_shared_experts": None,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "score_function": "softmax",
        "moe_router_enable_expert_bias": False,
        "expert_capacity": 0,
        "routing_block_length": 32,
    },
    defaults={**SDAR.defaults, "num_experts_per_tok": 8, "norm_topk_prob": False},
    allowed=PLAIN,
    modules=APART,
    block_length=SDAR.block_length,
    mask_token=SDAR.mask_token,
)
