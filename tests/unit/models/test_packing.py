"""Packed weights give what the plain ones give, follow their parameters, and stay out of training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.models import packing
from dmax.models.config import ModelConfig
from dmax.models.layers import Linear, SwiGLU
from dmax.models.moe import SparseMLP

pytestmark = pytest.mark.skipif(packing._pack is None, reason="this build of torch has no oneDNN")

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(dtype: torch.dtype = torch.float32) -> Linear:
    made = Linear(48, 80)
    torch.nn.init.normal_(made.weight, std=0.2, generator=generator())
    return made.to(dtype)


def sparse(*, shared: int | None = 1) -> SparseMLP:
    config = ModelConfig(
        vocab_size=32, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=24, mask_token_id=1, eos_token_id=2, pad_token_id=0, num_experts=8,
        num_experts_per_tok=2, num_shared_experts=shared, moe_intermediate_size=24, n_group=4, topk_group=2,
        routed_scaling_factor=2.5,
    )  # fmt: skip
    made = SparseMLP(config)
    for index, parameter in enumerate(made.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=generator(index))
    return made


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(9)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 48), (32, 48), (2, 7, 48)])
def test_a_packed_linear_map_is_the_plain_one(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer, x = linear(dtype), draw(*shape, dtype=dtype)
    with torch.inference_mode():
        assert packing.usable(x, layer.weight)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight), **TOLERANCE[dtype])


def test_the_packed_copy_follows_its_parameter() -> None:
    layer, x = linear(), draw(4, 48)
    with torch.no_grad():
        layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight))
        layer.load_state_dict({"weight": draw(80, 48)})
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight))
        layer.weight = torch.nn.Parameter(draw(80, 48) + 1)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight))
        layer.to(torch.bfloat16)
        assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_a_step_of_an_optimizer_is_noticed() -> None:
    layer, x = linear(), draw(4, 48)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    with torch.no_grad():
        before = layer(x)
    layer(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = layer(x)
        torch.testing.assert_close(after, F.linear(x, layer.weight))
    assert (after - before).abs().max() > 0.01


def test_nothing_is_packed_where_gradients_flow_or_weights_are_large() -> None:
    layer, x = linear(), draw(4, 48)
    assert not packing.usable(x, layer.weight)
    with torch.inference_mode():
        assert not packing.usable(x.double(), layer.weight)
        assert not packing.usable(x, torch.empty(packing.MOST_WEIGHTS + 1, device="meta"))
        assert not packing.usable(x, torch.ones(4, 48)), "a tensor whose changes nobody counts"


def test_copies_do_not_share_or_carry_the_packed_weight() -> None:
    layer, x = linear(), draw(4, 48)
    with torch.no_grad():
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(other(x), expected)
            other.weight.zero_()
            assert not other(x).any()
        torch.testing.assert_close(layer(x), expected)


def test_gate_and_up_of_a_feed_forward_may_run_as_one() -> None:
    layer, x = SwiGLU(48, 96), draw(2, 16, 48)
    expected = layer(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("shared", [1, None])
def test_all_experts_side_by_side_give_what_the_chosen_ones_give(shared: int | None) -> None:
    layer, x = sparse(shared=shared), draw(2, 16, 48)
    expected = layer(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("tokens", [1, 32, 65, 200])
def test_what_a_token_is_given_does_not_depend_on_how_many_others_there_are(tokens: int) -> None:
    layer, x = sparse(), draw(1, 256, 48)
    with torch.inference_mode():
        assert torch.equal(layer(x[:, :tokens]), layer(x)[:, :tokens])
