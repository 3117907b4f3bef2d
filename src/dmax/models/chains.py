"""The chains of small operations in a model's pass that can be compiled ahead of time.

Shape suffixes: N positions, D hidden, J heads that turn, C head channels, R rotary channels, E experts, W gate and up
outputs, X those of all experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from dmax.kernels.ahead import LIKELY, Chain
from dmax.kernels.steps import Step
from dmax.models import attention, layers, moe
from dmax.models.config import ModelConfig

_N = ("positions",)


def model_steps(model: nn.Module) -> Iterator[Step]:
    """The places of a model for what is compiled of them."""
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Step))


def model_chains(config: ModelConfig, dtype: torch.dtype) -> Iterator[Chain]:
    """What stands between the matmuls of a model with weights of this dtype.

    The functions are those that the model runs anyway, so there is no second definition of anything. What differs is
    rounding: a compiled chain rounds once where separate operations round in between.
    """
    eps, hidden = config.rms_norm_eps, config.hidden_size
    angles = partial(layers.rotary_angles, rotary_dim=config.rotary_dim, theta=config.rope_theta)
    yield Chain("angles", angles, (torch.zeros(2, LIKELY, dtype=torch.int64),), (("rows", "positions"),))
    x_ND, weight_D = torch.zeros(LIKELY, hidden, dtype=dtype), torch.ones(hidden, dtype=dtype)
    yield Chain("norm", partial(layers.rms_norm, eps=eps), (x_ND, weight_D), (_N, ()))
    yield Chain(
        "norm_of_sum", partial(layers.add_rms_norm, eps=eps), (x_ND, torch.zeros_like(x_ND), weight_D),
        (_N, _N, ()),
    )  # fmt: skip

    heads, kv_heads, channels = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    heads_NJC = torch.zeros(LIKELY, heads + kv_heads, channels, dtype=dtype)
    weight_C, angles_NR = torch.ones(channels, dtype=dtype), torch.zeros(LIKELY, config.rotary_dim)
    yield Chain(
        "turn", partial(attention.normalize_and_rotate, num_heads=heads, eps=eps),
        (heads_NJC, weight_C, weight_C.clone(), angles_NR, torch.zeros_like(angles_NR)),
        (_N, (), (), _N, _N),
    )  # fmt: skip

    if any(not config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)):
        gate_up_NW = torch.zeros(LIKELY, 2 * config.intermediate_size, dtype=dtype)
        yield Chain("gate", layers.gate, (gate_up_NW,), (_N,))
    if config.num_experts is None or config.moe_intermediate_size is None:
        return
    experts = config.num_experts
    width = config.moe_intermediate_size
    route = partial(moe.weigh_experts, rule=moe.RoutingRule.of(config))
    router_ED, bias_E = torch.zeros(experts, hidden, dtype=dtype), torch.zeros(experts)
    yield Chain("route", route, (x_ND, router_ED, bias_E), (_N, (), ()))
    gate_up_NX = torch.zeros(LIKELY, 2 * (experts + (config.num_shared_experts or 0)) * width, dtype=dtype)
    yield Chain("weigh", partial(moe.gate_and_weigh, width=width), (gate_up_NX, torch.zeros(LIKELY, experts)), (_N, _N))
