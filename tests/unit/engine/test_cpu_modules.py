"""Modules of a CPU over packed weights give what the plain ones give, and follow their parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.engine.backends import packed
from dmax.engine.backends.cpu_modules import Compiled, EveryExpertRouter, PackedLinear, PackedSparseMLP, PackedSwiGLU
from dmax.engine.backends.swapped import copy_as
from dmax.models.config import ModelConfig
from dmax.models.layers import Linear, SwiGLU
from dmax.models.moe import Router, SparseMLP

pytestmark = pytest.mark.skipif(packed._pack is None, reason="this build of torch has no oneDNN")

Config = Callable[..., ModelConfig]
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


def packed_linear(layer: Linear) -> PackedLinear:
    """What stands in a layer's place."""
    made = copy_as(layer, PackedLinear)
    made.prepare(Compiled())
    return made


def packed_sparse(layer: SparseMLP) -> PackedSparseMLP:
    made = copy_as(layer, PackedSparseMLP)
    made._modules = dict(layer._modules)
    made.prepare(Compiled())
    return made


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 48), (32, 48), (2, 7, 48)])
@torch.inference_mode()
def test_a_packed_linear_map_is_the_plain_one(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    with torch.inference_mode(False):
        layer, x = linear(dtype), draw(*shape, dtype=dtype)
    assert packed.packable(x, layer.weight) == (dtype in packed._DTYPES)
    torch.testing.assert_close(packed_linear(layer)(x), layer(x), **TOLERANCE[dtype])


@torch.no_grad()
def test_the_packed_copy_follows_its_parameter() -> None:
    layer, x = linear(), draw(4, 48)
    own = packed_linear(layer)
    own(x)
    layer.weight.mul_(2)
    torch.testing.assert_close(own(x), F.linear(x, layer.weight))
    layer.load_state_dict({"weight": draw(80, 48)})
    torch.testing.assert_close(own(x), F.linear(x, layer.weight))
    layer.weight = torch.nn.Parameter(draw(80, 48) + 1)
    torch.testing.assert_close(own(x), F.linear(x, layer.weight))
    layer.to(torch.bfloat16)
    assert own(x.bfloat16()).dtype == torch.bfloat16


def test_a_step_of_an_optimizer_is_noticed() -> None:
    layer, x = linear(), draw(4, 48)
    own, optimizer = packed_linear(layer), torch.optim.AdamW(layer.parameters(), lr=0.1)
    with torch.no_grad():
        before = own(x)
    layer(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = own(x)
        torch.testing.assert_close(after, F.linear(x, layer.weight))
    assert (after - before).abs().max() > 0.01


def test_hooks_are_called_in_either() -> None:
    layer, x = linear(), draw(4, 48)
    own, seen = packed_linear(layer), []
    layer.register_forward_hook(lambda module, *_: seen.append(type(module)))
    with torch.no_grad():
        own(x)
    assert seen == [PackedLinear] and type(layer) is Linear


@torch.inference_mode()
def test_large_weights_and_other_dtypes_are_left_as_they_are() -> None:
    with torch.inference_mode(False):
        layer, x = linear(), draw(4, 48)
    assert not packed.packable(x.double(), layer.weight)
    assert not packed.packable(x, torch.empty(packed.MOST_WEIGHTS + 1, device="meta"))
    assert not packed.packable(x, torch.ones(4, 48)), "a tensor whose changes nobody counts"


@torch.inference_mode()
def test_gate_and_up_of_a_feed_forward_run_as_one() -> None:
    with torch.inference_mode(False):
        layer, x = SwiGLU(48, 96), draw(2, 16, 48)
    own = copy_as(layer, PackedSwiGLU)
    own.prepare(Compiled())
    torch.testing.assert_close(own(x), layer(x), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("shared", [1, None])
@torch.inference_mode()
def test_all_experts_side_by_side_give_what_the_chosen_ones_give(shared: int | None) -> None:
    with torch.inference_mode(False):
        layer, x = sparse(shared=shared), draw(2, 16, 48)
    torch.testing.assert_close(packed_sparse(layer)(x), layer(x), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("changes", [{}, {"n_group": 1, "topk_group": 1}, {"n_group": 8, "topk_group": 3}])
def test_every_expert_is_weighed_as_the_router_does(changes: dict[str, int], tiny_config: Config) -> None:
    router = Router(
        tiny_config(moe=True, num_experts=8, num_experts_per_tok=2, **{"n_group": 4, "topk_group": 2, **changes})
    )
    torch.nn.init.normal_(router.weight, generator=generator())
    router.expert_bias.normal_(0.0, 0.3, generator=generator(1))
    x = draw(40, router.weight.shape[1])
    with torch.no_grad():
        experts, weights = router(x)
        _, of_all = copy_as(router, EveryExpertRouter)(x)
    torch.testing.assert_close(of_all, torch.zeros(40, 8).scatter(1, experts, weights))


@pytest.mark.parametrize("tokens", [1, 32, 65, 200])
@torch.inference_mode()
def test_what_a_token_is_given_does_not_depend_on_how_many_others_there_are(tokens: int) -> None:
    with torch.inference_mode(False):
        layer, x = packed_sparse(sparse()), draw(1, 256, 48)
    assert torch.equal(layer(x[:, :tokens]), layer(x)[:, :tokens])
