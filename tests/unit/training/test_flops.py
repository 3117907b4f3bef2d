"""Counted operations against those that PyTorch counts while the model runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmax.decoding.base import SoftMix
from dmax.models import BlockDiffusionLM, ModelConfig
from dmax.models.transformer import initialize
from dmax.training.data import Example, generator_for
from dmax.training.flops import ForwardFlops, peak_flops
from dmax.training.layout import Batch, Layout, lay_out
from dmax.training.objectives.base import Pass
from dmax.training.objectives.registry import BuiltInSection, get_objective
from dmax.training.predictor import Predictor

DENSE = ModelConfig(
    vocab_size=300, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, mask_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip


def test_a_forward_pass_takes_what_pytorch_counts() -> None:
    model = initialize(BlockDiffusionLM(DENSE), generator_for(1))
    layout = lay_out([Example((5,) * 32, (False,) * 8 + (True,) * 24)] * 2, 8, pad_token_id=0)
    predict = Predictor(model, torch.float32)
    with FlopCounterMode(display=False) as counter:
        predict(layout.noisy_ids, layout)
    rows, length = layout.positions().shape
    expected = ForwardFlops.of(DENSE).of_pass(rows, length, int(layout.supervised.sum()))
    assert counter.get_total_flops() == expected


def test_a_token_takes_only_its_own_experts() -> None:
    sparse = replace(
        DENSE, num_experts=8, num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=16,
        first_k_dense_replace=1,
    )  # fmt: skip
    difference = ForwardFlops.of(sparse).per_token - ForwardFlops.of(DENSE).per_token
    per_layer = 2 * 32 * (3 * (2 + 1) * 16 + 8 - 3 * 56)
    assert difference == 2 * per_layer


@pytest.mark.parametrize(
    ("objective", "forwards"),
    [
        ({"kind": "masked"}, 3),
        ({"kind": "oput"}, 6),
        ({"kind": "oput", "form": "alternate"}, 4),
        ({"kind": "oput", "losses": ["mask"]}, 3),
        ({"kind": "oput", "losses": ["pred"]}, 4),
        ({"kind": "oput", "rollout_passes": 4}, 9),
        ({"kind": "oput", "rollout_passes": 4, "losses": ["mask"]}, 3),
        ({"kind": "consistency"}, 7),
        ({"kind": "consistency", "rollout_passes": 2, "rollout_states": "soft"}, 8),
        ({"kind": "calibrated", "rollout_passes": 2}, 7),
        ({"kind": "entropy-weighted"}, 6),
    ],
)
def test_a_batch_costs_what_its_losses_run(objective: dict[str, Any], forwards: int) -> None:
    """A forward that keeps its graph counts three, for its backward pass."""
    options = BuiltInSection.model_validate(objective)
    layout = lay_out([Example(tuple(range(3, 11)), (False,) * 4 + (True,) * 4)] * 2, 4, pad_token_id=1)
    batch = Batch(layout, layout.supervised, (0, 1), int(layout.supervised.sum()))
    table, counted = torch.randn(12, 12, generator=generator_for(1)).requires_grad_(), []

    def predict(noisy_ids: torch.Tensor, layout: Layout, mix: SoftMix | None = None) -> torch.Tensor:
        counted.append(3 if torch.is_grad_enabled() else 1)
        return table[noisy_ids[layout.supervised]]

    chosen = get_objective(options)
    list(chosen.losses(predict, batch, Pass(0, 1, DENSE)))
    assert sum(counted) == chosen.forwards_of_a_batch == forwards


def test_the_peak_of_a_cpu_is_not_known() -> None:
    assert peak_flops(torch.device("cpu")) is None
