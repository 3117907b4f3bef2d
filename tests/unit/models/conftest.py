"""Small models with random weights, and checkpoints of them on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmax.models import BlockDiffusionLM, ModelConfig, save_model
from dmax.models.transformer import initialize, routers

CONFIG = ModelConfig(
    vocab_size=48,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    partial_rotary_factor=0.5,
    mask_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    num_experts=8,
    num_experts_per_tok=2,
    num_shared_experts=1,
    moe_intermediate_size=16,
    first_k_dense_replace=1,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    initializer_range=0.3,
)


@pytest.fixture
def config() -> ModelConfig:
    """A model with one dense and two expert layers."""
    return CONFIG


@pytest.fixture
def build() -> Callable[..., BlockDiffusionLM]:
    """Changes to :data:`CONFIG` -> a float32 model whose weights and router biases are all random."""

    def make(**changes: object) -> BlockDiffusionLM:
        generator = torch.Generator().manual_seed(7)
        model = initialize(BlockDiffusionLM(replace(CONFIG, **changes)), generator)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data.normal_(1.0, 0.1, generator=generator)
        for router in routers(model):
            router.expert_bias.normal_(0.0, 0.1, generator=generator)
        return model.eval()

    return make


@pytest.fixture
def model(build: Callable[..., BlockDiffusionLM]) -> BlockDiffusionLM:
    return build()


@pytest.fixture
def folder(model: BlockDiffusionLM, tmp_path: Path) -> Path:
    """``model`` as a checkpoint in the published layout, one file, float32."""
    save_model(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def edit(folder: Path) -> Callable[[Callable[[dict[str, torch.Tensor]], object]], Path]:
    """Change the tensors of the checkpoint ``folder`` in place."""

    def apply(change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return apply
