"""Counted operations against those that PyTorch counts while the model runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmax.models import LLaDA2, ModelConfig
from dmax.models.llada2 import initialize
from dmax.training.data import Example, generator_for
from dmax.training.flops import ForwardFlops, peak_flops
from dmax.training.layout import lay_out
from dmax.training.objectives.registry import BuiltInSection, get_objective
from dmax.training.predictor import Predictor

DENSE = ModelConfig(
    vocab_size=300, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, mask_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip


def test_a_forward_pass_takes_what_pytorch_counts() -> None:
    model = initialize(LLaDA2(DENSE), generator_for(1))
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


@pytest.mark.parametrize(("form", "forwards"), [("joint", 3), ("alternate", 4)])
def test_a_rollout_is_one_more_forward_where_no_loss_shares_it(form: str, forwards: int) -> None:
    assert get_objective(BuiltInSection.model_validate({"kind": "oput", "form": form})).forwards_of_a_loss == forwards


def test_the_peak_of_a_cpu_is_not_known() -> None:
    assert peak_flops(torch.device("cpu")) is None
