"""A model small enough to run hundreds of passes a second."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dmax.models import BlockDiffusionLM, ModelConfig
from dmax.models.transformer import initialize


@pytest.fixture(scope="session")
def tiny_model(tiny_config: Callable[..., ModelConfig]) -> BlockDiffusionLM:
    """Random weights, wide enough apart for confident predictions: 48 tokens, experts, grouped queries."""
    config = tiny_config(moe=True, partial_rotary_factor=0.5, n_group=2, topk_group=1, max_position_embeddings=256)
    return initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(0)).eval()
