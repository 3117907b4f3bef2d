"""LLaDA2.0, 2.1 and 2.2 (inclusionAI), and DMax (Zigeng): the mixture of experts that the definition was written for.

Its field names are those of this family's ``config.json``, and so are its tensor names.
"""

from __future__ import annotations

from dmax.models.families.base import Family

FAMILY = Family(
    model_type="llada2_moe",
    architecture="LLaDA2MoeModelLM",
    also=("llada2_moe_veomni",),  # what the published training code calls it when experts are stacked
    keys={
        "routing_block_length": ("block_size",),
        "eos_token_id": ("eos_token_id", "pad_token_id"),  # published configurations name the padding alone
    },
    fixed={"shift_logits": False, "mlp_only_layers": (), "decoder_sparse_step": 1},
    allowed={
        "hidden_act": ("silu",),
        "use_sliding_window": (False,),
        "norm_head": (False,),
        "norm_topk_prob": (True,),
        "score_function": ("sigmoid",),
        "router_dtype": ("fp32", "float32"),
    },
    decoder_tokens={"joint-threshold-indel": {"delete_token_id": "delete_token", "insert_token_id": "split_token"}},
    mask_token="<|mask|>",
)
