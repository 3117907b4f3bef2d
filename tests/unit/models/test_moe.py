"""Routing and experts against algorithm.md#the-model, restated as slow loops over single tokens in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dmax.models import BlockDiffusionLM, ConfigError, ModelConfig
from dmax.models.moe import Router, SparseMLP
from dmax.models.transformer import routers


def route(router: Router, x: torch.Tensor, config: ModelConfig) -> list[dict[int, float]]:
    """Each token's experts with their combination weights."""
    assert config.num_experts is not None
    weight, bias = router.weight.double(), router.expert_bias.double()
    per_group = config.num_experts // config.n_group
    all_scores = [scores_of(weight, token, config) for token in x.double()]
    chosen = []
    for index, scores in enumerate(all_scores):
        biased = [scores[e] + bias[e].item() for e in range(config.num_experts)]
        members = [list(range(g * per_group, (g + 1) * per_group)) for g in range(config.n_group)]
        group_scores = [sum(sorted((biased[e] for e in group), reverse=True)[:2]) for group in members]
        groups = sorted(range(config.n_group), key=lambda g: -group_scores[g])[: config.topk_group]
        reachable = [e for g in groups for e in members[g]]
        if config.expert_capacity:
            start = index - index % config.routing_block_length
            block = all_scores[start : start + config.routing_block_length]
            best = [max(other[e] for other in block) + bias[e].item() for e in range(config.num_experts)]
            reachable = sorted(range(config.num_experts), key=lambda e: -best[e])[: config.expert_capacity]
        experts = sorted(reachable, key=lambda e: -biased[e])[: config.num_experts_per_tok]
        total = sum(scores[e] for e in experts) + 1e-20 if config.norm_topk_prob else 1.0
        chosen.append({e: scores[e] / total * config.routed_scaling_factor for e in experts})
    return chosen


def scores_of(weight: torch.Tensor, token: torch.Tensor, config: ModelConfig) -> list[float]:
    logits = [(row @ token).item() for row in weight]
    if config.score_function == "softmax":
        return [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
    return [1 / (1 + math.exp(-logit)) for logit in logits]


def random_layer(config: ModelConfig) -> tuple[SparseMLP, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    layer = SparseMLP(config)
    for parameter in layer.parameters():
        parameter.data.normal_(0.0, 0.4, generator=generator)
    layer.gate.expert_bias.normal_(0.0, 0.3, generator=generator)
    return layer, torch.randn(40, config.hidden_size, generator=generator)


ROUTINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "one group": {"n_group": 1, "topk_group": 1},
    "all groups kept": {"topk_group": 4},
    "one expert a group": {"n_group": 8, "topk_group": 3},
    "one group kept": {"topk_group": 1},
    "scale": {"routed_scaling_factor": 0.7},
    "softmax": {"score_function": "softmax", "n_group": 1, "topk_group": 1},
    "softmax in groups": {"score_function": "softmax"},
    "weights as they are": {"score_function": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "blocks": {"expert_capacity": 3, "routing_block_length": 16},
    "blocks of one": {"expert_capacity": 2, "routing_block_length": 1},
}


@pytest.mark.parametrize("changes", ROUTINGS.values(), ids=ROUTINGS.keys())
def test_router_chooses_and_weighs_as_the_rule_says(changes: dict[str, Any], config: ModelConfig) -> None:
    config = replace(config, **changes)
    layer, x = random_layer(config)
    experts, weights = layer.gate(x)
    assert weights.dtype == torch.float32
    for token, expected in enumerate(route(layer.gate, x, config)):
        found = dict(zip(experts[token].tolist(), weights[token].tolist(), strict=True))
        assert found == pytest.approx(expected, abs=1e-5)


def test_a_block_reaches_experts_that_its_tokens_share(config: ModelConfig) -> None:
    layer, x = random_layer(replace(config, expert_capacity=3, routing_block_length=8))
    experts, _ = layer.gate(x.view(2, 20, -1))  # each row begins a block: 8, 8 and 4 tokens
    for block in (*experts[:20].split(8), *experts[20:].split(8)):
        assert block.unique().numel() <= 3
    assert experts.unique().numel() > 3, "or nothing was chosen by block"
    alone, _ = layer.gate(x.view(2, 20, -1)[1:])
    assert torch.equal(alone, experts[20:])


def test_a_model_can_be_limited_that_was_not_made_so(config: ModelConfig) -> None:
    model = BlockDiffusionLM(replace(config, expert_capacity=0))
    per_token = model.config.num_experts_per_tok
    x = torch.randn(1, 64, model.config.hidden_size, generator=torch.Generator().manual_seed(2))

    def most_of_a_block() -> int:
        length = model.config.routing_block_length
        return max(
            experts_LA.unique().numel()
            for router in routers(model)
            for experts_LA in router(x)[0].split(length)
        )  # fmt: skip

    assert most_of_a_block() > per_token + 1
    model.limit_experts(per_token + 1)
    assert most_of_a_block() == per_token + 1 == model.config.expert_capacity
    with pytest.raises(ConfigError, match="expert_capacity is 9"):
        model.limit_experts(9)
    dense = BlockDiffusionLM(replace(config, num_experts=None))
    with pytest.raises(ConfigError, match="no experts"):
        dense.limit_experts(4)


def test_the_bias_moves_the_choice_but_not_the_weights(config: ModelConfig) -> None:
    layer, x = random_layer(config)
    layer.gate.expert_bias.zero_()
    layer.gate.expert_bias[:2] = 5.0  # both experts of the first group
    experts, weights = layer.gate(x)
    assert (experts.sort(-1).values == torch.tensor([0, 1])).all()
    scores = torch.sigmoid(x @ layer.gate.weight.T).gather(-1, experts)
    torch.testing.assert_close(weights, scores / scores.sum(-1, keepdim=True) * 2.5)


def test_router_scores_in_float32_in_a_low_precision_model(config: ModelConfig) -> None:
    layer, x = random_layer(config)
    bias = layer.gate.expert_bias.clone()
    layer.bfloat16()
    layer.gate.expert_bias = bias
    x = x.bfloat16()
    experts, weights = layer.gate(x)
    for token, expected in enumerate(route(layer.gate, x, config)):
        assert dict(zip(experts[token].tolist(), weights[token].tolist(), strict=True)) == pytest.approx(expected, 1e-4)


@pytest.mark.parametrize("shared", [None, 1, 2])
def test_layer_is_the_weighted_experts_plus_the_shared_one(shared: int | None, config: ModelConfig) -> None:
    config = replace(config, num_shared_experts=shared)
    layer, x = random_layer(config)
    gate, up, down = (getattr(layer.experts, f"{name}_proj").double() for name in ("gate", "up", "down"))
    out = layer(x[None])[0]
    for token, chosen in enumerate(route(layer.gate, x, config)):
        expected = torch.zeros(config.hidden_size, dtype=torch.float64)
        for expert, weight in chosen.items():
            gated = gate[expert] @ x[token].double()
            expected += weight * (down[expert] @ (gated * gated.sigmoid() * (up[expert] @ x[token].double())))
        if layer.shared_experts is not None:
            assert layer.shared_experts.gate_proj.weight.shape == (16 * shared, config.hidden_size)
            expected += layer.shared_experts(x[token]).double()
        torch.testing.assert_close(out[token].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_gradients_are_those_of_every_expert_run_on_its_own_tokens(tokens: int, config: ModelConfig) -> None:
    layer, _ = random_layer(config)
    x = torch.randn(tokens, config.hidden_size, generator=torch.Generator().manual_seed(5), requires_grad=True)
    stacks = list(layer.experts.parameters())
    assert config.num_experts is not None
    with torch.no_grad():
        experts, weights = layer.gate(x)
    experts = experts.masked_fill(experts == config.num_experts - 1, 0)  # the last expert goes without a token

    slow = torch.zeros(tokens, config.hidden_size)
    for slot, expert in enumerate(experts.unbind(1)):
        gate, up, down = (stack[expert] for stack in stacks)
        hidden = torch.nn.functional.silu(gate @ x[..., None]) * (up @ x[..., None])
        slow = slow + weights[:, slot, None] * (down @ hidden)[..., 0]
    expected = torch.autograd.grad(slow.sin().sum(), [x, *stacks])

    fast = layer.experts(x, experts, weights)
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)
    found = torch.autograd.grad(fast.sin().sum(), [x, *stacks])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
