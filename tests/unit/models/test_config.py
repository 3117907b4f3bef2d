"""Configurations: the published ones, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dmax.models import BlockDiffusionLM, CheckpointError, ConfigError, ModelConfig, load_config, load_tokenizer

MINI: dict[str, Any] = {
    "architectures": ["LLaDA2MoeModelLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "embedding_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "max_position_embeddings": 32768,
    "max_window_layers": 20,
    "model_type": "llada2_moe",
    "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True,
    "n_group": 8,
    "norm_head": False,
    "norm_softmax": False,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "pad_token_id": 156892,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 600000,
    "rotary_dim": 64,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "transformers_version": "4.57.1",
    "use_bias": False,
    "use_cache": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "use_sliding_window": False,
    "vocab_size": 157184,
}
"""The published mini's keys: neither the mask token's id nor the end token's is among them."""

FLASH = {
    **MINI,
    "hidden_size": 4096,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
}
WITH_IDS = {**MINI, "mask_token_id": 156895, "eos_token_id": [156892, 156900]}
STACKED = {**WITH_IDS, "model_type": "llada2_moe_veomni"}
TRANSFORMERS_5 = {
    **{key: value for key, value in WITH_IDS.items() if key not in ("rope_theta", "partial_rotary_factor")},
    "rope_parameters": {"rope_theta": 600000, "rope_type": "default", "partial_rotary_factor": 0.5},
}
ADDED_TOKENS = [(156892, "<|endoftext|>"), (156895, "<|mask|>"), (156900, "<|role_end|>")]

TINY: dict[str, Any] = {
    "model_type": "llada2_moe",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mask_token_id": 1,
    "eos_token_id": 2,
}


def write(folder: Path, config: dict[str, Any], eos_token: str = "<|role_end|>") -> Path:
    """A folder as published: configuration and tokenizer; the tokenizer alone knows the mask token."""
    added = [
        {"id": id_, "content": text, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for id_, text in ADDED_TOKENS
    ]
    vocab = {text: id_ for id_, text in ADDED_TOKENS}
    tokenizer = {"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": []}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos_token}))
    return folder


def parameters(config: ModelConfig) -> tuple[int, int]:
    """Parameters in all and those a token passes through, counted from the shapes by hand."""
    d, width = config.hidden_size, config.moe_intermediate_size
    assert config.num_experts is not None
    assert width is not None
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    attention = heads * config.head_dim * d + config.num_attention_heads * config.head_dim * d + 2 * config.head_dim
    sparse_layers = config.num_hidden_layers - config.first_k_dense_replace
    dense = config.first_k_dense_replace * 3 * d * config.intermediate_size
    router_and_shared = sparse_layers * (config.num_experts * d + 3 * d * width)
    expert = 3 * d * width
    rest = 2 * config.vocab_size * d + config.num_hidden_layers * (attention + 2 * d) + d + dense + router_and_shared
    return (
        rest + sparse_layers * config.num_experts * expert,
        rest + sparse_layers * config.num_experts_per_tok * expert,
    )


@pytest.mark.parametrize(
    ("published", "total", "active"),
    [(MINI, 16.3e9, 1.43e9), (FLASH, 102.9e9, 6.15e9), (STACKED, 16.3e9, 1.43e9), (TRANSFORMERS_5, 16.3e9, 1.43e9)],
    ids=["mini", "flash", "mini, experts stacked", "mini, saved by transformers 5"],
)
def test_published_configurations(published: dict[str, Any], total: float, active: float, tmp_path: Path) -> None:
    config = load_config(write(tmp_path, published))
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (156895, 156892, 156892)
    assert (config.rotary_dim, config.rope_theta, config.rms_norm_eps) == (64, 600_000, 1e-6)
    with torch.device("meta"):
        model = BlockDiffusionLM(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert (counted, parameters(config)[1]) == (parameters(config)[0], pytest.approx(active, rel=0.01))
    assert counted == pytest.approx(total, rel=0.01)


def test_all_end_tokens_are_kept_and_those_for_generation_win(tmp_path: Path) -> None:
    write(tmp_path, WITH_IDS)
    assert load_config(tmp_path).eos_token_ids == (156892, 156900)
    for ends, expected in (([156900, 7, 156900], (156900, 7)), (9, (9,)), (None, (156892, 156900))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert load_config(tmp_path).eos_token_ids == expected
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer is not None
        assert tokenizer.eos_token_id == expected[0], "with which training lets answers end"
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be read as JSON"):
        load_config(tmp_path)


def test_an_end_token_that_only_the_tokenizer_names(tmp_path: Path) -> None:
    config = {key: value for key, value in MINI.items() if key != "pad_token_id"}
    assert load_config(write(tmp_path, config)).eos_token_id == 156900


def test_a_mask_token_that_nothing_names(tmp_path: Path) -> None:
    write(tmp_path, MINI)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="lacks mask_token_id"):
        load_config(tmp_path)


def test_dense_variants_and_implied_values() -> None:
    config = ModelConfig.from_dict({**TINY, "num_experts": None, "num_key_value_heads": 0})
    assert not any(config.is_moe_layer(i) for i in range(2))
    assert (config.head_dim, config.num_key_value_heads, config.pad_token_id, config.rotary_dim) == (4, 4, 2, 4)
    assert ModelConfig.from_dict({**TINY, "num_experts": 0}).num_experts is None
    assert ModelConfig.from_dict({**TINY, "head_dim": 8, "rotary_dim": 4}).partial_rotary_factor == 0.5


def test_a_configuration_survives_being_written() -> None:
    defaults = {"soft-parallel": {"threshold": 0.9}}
    changes = {"num_hidden_layers": 3, "decoder_defaults": defaults, "block_length": 8}
    config = ModelConfig.from_dict({**WITH_IDS, **changes})
    assert config.block_length == 8
    assert config.decoder_defaults == defaults
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


REFUSED = {
    "another architecture": ({"model_type": "qwen3"}, "model_type is 'qwen3'"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is .gelu."),
    "softmax router": ({"score_function": "softmax"}, "score_function is 'softmax'"),
    "low-precision router": ({"router_dtype": "bf16"}, "router_dtype is 'bf16'"),
    "sliding window": ({"use_sliding_window": True}, "use_sliding_window is True"),
    "scaled rotary": ({"rope_scaling": {"type": "yarn"}}, "'yarn'"),
    "scaled rotary, new form": ({"rope_parameters": {"rope_type": "linear"}}, "'linear'"),
    "rotary at odds": ({"head_dim": 8, "rotary_dim": 4, "partial_rotary_factor": 1.0}, "rotary_dim"),
    "odd rotary": ({"partial_rotary_factor": 0.25}, "must be even"),
    "text for a number": ({"hidden_size": "16"}, "hidden_size is '16'"),
    "no end token": ({"eos_token_id": []}, "eos_token_id is \\[\\]"),
    "text for an end token": ({"eos_token_id": [2, "3"]}, "eos_token_id is \\[2, '3'\\]"),
    "end token beyond the vocabulary": ({"eos_token_id": [2, 32]}, "eos_token_id is 32, outside the vocabulary"),
    "no block": ({"block_length": 0}, "block_length is 0; it must be at least 1"),
    "zero width": ({"intermediate_size": 0}, "intermediate_size is 0"),
    "uneven heads": ({"num_key_value_heads": 3}, "must be a multiple"),
    "mask beyond the vocabulary": ({"mask_token_id": 32}, "outside the vocabulary of 32"),
    "experts without width": ({"num_experts": 4}, "moe_intermediate_size"),
    "uneven groups": ({"num_experts": 4, "moe_intermediate_size": 8, "n_group": 3}, "multiple of n_group"),
    "too many groups": ({"num_experts": 4, "moe_intermediate_size": 8, "topk_group": 2}, "topk_group is 2"),
    "defaults of no decoder": ({"decoder_defaults": [0.9]}, "decoder_defaults is \\[0.9\\]; it must be of type dict"),
    "defaults without names": ({"decoder_defaults": {"threshold": 0.9}}, "decoder_defaults.threshold is 0.9"),
    "too many experts": ({"num_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 5}, "hold 4 experts"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict({**TINY, **changes})


def test_missing_keys_are_named_together() -> None:
    with pytest.raises(ConfigError, match=r"lacks hidden_size, vocab_size\."):
        ModelConfig.from_dict(
            {k: v for k, v in TINY.items() if k not in ("vocab_size", "hidden_size")} | {"head_dim": 4}
        )
