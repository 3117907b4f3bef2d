"""The table of families, and their checkpoints: random models as transformers writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmax.models import BlockDiffusionLM, ModelConfig, Tokenizer, load_model
from dmax.models.families import family_names
from dmax.models.transformer import initialize

MASK, EOS, PAD, VOCAB = 1, 2, 0, 48
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
    "mlp_only_layers": [0],
}  # fmt: skip

TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "sdar": ("Qwen3", {"head_dim": 32}),
    "sdar_moe": ("Qwen3Moe", {"head_dim": 32, **EXPERTS}),
    "a2d-qwen3": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "a2d-qwen2": ("Qwen2", {}),
    "a2d-llama": ("Llama", {}),
    "Fast_dLLM_Qwen": ("Qwen2", {}),
}
"""A model type -> the class in transformers that computes the same, and what its configuration has beside the sizes."""

BLOCK_ROUTING: dict[str, Any] = {
    "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "expert_capacity": 3, "routing_block_length": 4,
}  # fmt: skip
"""The family that transformers has no class for is held to the published code by the golden tests; this is what newer
members have in addition."""


@dataclass(frozen=True)
class Made:
    """A checkpoint, and the model that it was made from."""

    folder: Path
    theirs: Any
    """Of transformers."""


Make = Callable[..., Made]


@pytest.fixture(params=TABLE)
def family(request: pytest.FixtureRequest) -> str:
    """Every family of the table."""
    assert set(TABLE) == set(family_names()) - {"llada2_moe"}, "a family is in no test"
    return str(request.param)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory, word_tokenizer: Callable[[str | None], Tokenizer]) -> Make:
    """A family, and changes to the configuration in transformers -> its checkpoint, made once."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known: dict[str, Made] = {}

    def build(name: str, *, shards: bool = False, **changes: Any) -> Made:
        key = repr((name, shards, sorted(changes.items())))
        if key in known:
            return known[key]
        kind, own = TABLE[name]
        config = getattr(transformers, f"{kind}Config")(**{**SIZES, **own, **changes})
        torch.manual_seed(7)
        theirs = getattr(transformers, f"{kind}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter_name, parameter in theirs.named_parameters():
                if "norm" in parameter_name:
                    parameter.normal_(1.0, 0.1)
                elif parameter_name.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
        folder = tmp_path_factory.mktemp("family") / "model"
        theirs.save_pretrained(folder, max_shard_size="40KB" if shards else "1GB")
        assert len(list(folder.glob("*.safetensors"))) > 1 or not shards
        ids = {"mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": PAD}
        values = json.loads((folder / "config.json").read_text()) | ids | {"model_type": name}
        (folder / "config.json").write_text(json.dumps(values))
        word_tokenizer(_TEMPLATE).save(folder)
        known[key] = Made(folder, theirs)
        return known[key]

    return build


@pytest.fixture
def checkpoint(family: str, make: Make) -> Path:
    """A checkpoint of every family."""
    return make(family).folder


@pytest.fixture(params=[*TABLE, "a2d-qwen3, shifted", "llada2_moe, block routing"])
def model(request: pytest.FixtureRequest, make: Make) -> BlockDiffusionLM:
    """A model of every family, of newer members of the first one, and one that `dmax adapt` made."""
    name, _, variant = request.param.partition(", ")
    if name in TABLE:
        found = load_model(make(name).folder)
        found.config = replace(found.config, shift_logits=found.config.shift_logits or variant == "shifted")
        return found
    ids = {"mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": PAD}
    config = ModelConfig(**{**SIZES, **ids, "head_dim": 16, **BLOCK_ROUTING})
    return initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(3)).eval()


_TEMPLATE = "{% for m in messages %}{{ 'w3' if m.role == 'user' else 'w4' }} {{ m.content }} {% endfor %}w5"
