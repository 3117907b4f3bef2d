"""The memory that is worked out, against what a pass really keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dmax.models import BlockDiffusionLM, ModelConfig
from dmax.models.transformer import initialize
from dmax.training.activations import BatchShape, saved_bytes
from dmax.training.data import Example, generator_for
from dmax.training.layout import Layout, lay_out
from dmax.training.predictor import Predictor

DENSE = ModelConfig(
    vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, partial_rotary_factor=0.5, mask_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
SPARSE = replace(
    DENSE, num_experts=8, num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=32, n_group=4,
    topk_group=2, first_k_dense_replace=1,
)  # fmt: skip


def kept_by(predict: Predictor, layout: Layout, config: ModelConfig) -> int:
    """Bytes of the storages that a forward pass saves for its backward pass, weights and logits left out."""
    weights = {tuple(p.shape) for p in predict.model.parameters()}  # of which the pass makes copies
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # or a later tensor might be given a freed one's address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        turned = tuple(tensor.transpose(-2, -1).shape) if tensor.ndim > 1 else ()
        if not {tuple(tensor.shape), turned} & weights and tensor.shape[-1:] != (config.vocab_size,):
            alive.append(tensor)
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predict(layout.noisy_ids, layout)
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "experts"])
@pytest.mark.parametrize("tokens", [48, 160])
def test_activations_are_right_within_15_percent(config: ModelConfig, dtype: torch.dtype, tokens: int) -> None:
    layout = lay_out([Example((5,) * tokens, (False,) * 16 + (True,) * (tokens - 16))] * 3, 16, pad_token_id=0)
    predict = Predictor(initialize(BlockDiffusionLM(config), generator_for(1)), dtype)
    rows, length = layout.positions().shape
    shape = BatchShape(rows, length, int(layout.supervised.sum()))
    estimate = saved_bytes(config, shape, dtype.itemsize, "cpu", recompute=False)
    assert estimate == pytest.approx(kept_by(predict, layout, config), rel=0.15)


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "experts"])
def test_recomputation_keeps_the_inputs_and_one_layer(config: ModelConfig) -> None:
    shape = BatchShape(2, 96, 60)
    few, many = (replace(config, num_hidden_layers=layers) for layers in (4, 12))
    sizes = [saved_bytes(each, shape, 2, "cuda", recompute=True) for each in (few, many)]
    assert sizes[1] - sizes[0] == 8 * shape.positions * config.hidden_size * 2
    assert sizes[1] < saved_bytes(many, shape, 2, "cuda", recompute=False) / 4
