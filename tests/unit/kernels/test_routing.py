"""The fused router against the model's own, which tests/unit/models/test_moe.py holds to algorithm.md#the-model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmax.models import ModelConfig
from dmax.models.moe import Router

ROUTINGS: dict[str, dict[str, Any]] = {
    "published": {"num_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4},
    "nano": {"num_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2},
    "one group": {"num_experts": 8, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1},
    "all groups kept": {"num_experts": 12, "num_experts_per_tok": 5, "n_group": 3, "topk_group": 3},
    "one expert a group": {"num_experts": 6, "num_experts_per_tok": 2, "n_group": 6, "topk_group": 3},
    "nothing a power of two": {"num_experts": 15, "num_experts_per_tok": 3, "n_group": 3, "topk_group": 2},
    "softmax": {"num_experts": 12, "num_experts_per_tok": 3, "score_function": "softmax"},
    "weights as they are": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "score_function": "softmax",
        "norm_topk_prob": False,
    },
}


def build(generator: torch.Generator, hidden: int, **routing: Any) -> Router:
    config = ModelConfig(
        vocab_size=4, hidden_size=hidden, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, mask_token_id=1, eos_token_id=2, pad_token_id=0,
        moe_intermediate_size=8, routed_scaling_factor=2.5, **routing,
    )  # fmt: skip
    router = Router(config)
    router.weight.data.normal_(0.0, 0.2, generator=generator)
    router.expert_bias.normal_(0.0, 0.3, generator=generator)
    return router


def fused(router: Router, x_ND: torch.Tensor):  # type: ignore[no-untyped-def]
    from dmax.kernels.routing import route

    return route(
        x_ND,
        router.weight.detach(),
        router.expert_bias,
        **router.rule._asdict(),
    )


@pytest.mark.parametrize("tokens", [1, 37])
@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS.keys())
def test_choices_and_weights_are_those_of_the_model(
    routing: dict[str, Any], tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    router = build(generator, 264, **routing).to(device)
    x = torch.randn(tokens, 264, generator=generator).to(device)
    experts, weights = router(x)
    found = fused(router, x)
    for token in range(tokens):
        expected = dict(zip(experts[token].tolist(), weights[token].tolist(), strict=True))
        got = dict(zip(found.experts_NA[token].tolist(), found.weights_NA[token].tolist(), strict=True))
        assert got == pytest.approx(expected, abs=1e-5)


def test_every_token_is_in_the_lists_of_its_experts_once(device: torch.device, generator: torch.Generator) -> None:
    router = build(generator, 40, **ROUTINGS["nano"]).to(device)
    found = fused(router, torch.randn(50, 40, generator=generator).to(device))
    listed = []
    for expert, load in enumerate(found.loads_E.tolist()):
        assignments = found.assignments_EN[expert, :load].tolist()
        assert all(found.experts_NA.flatten()[assignment] == expert for assignment in assignments)
        listed += assignments
    assert sorted(listed) == list(range(100))


def test_ties_go_to_the_lowest_index(device: torch.device, generator: torch.Generator) -> None:
    router = build(generator, 24, **ROUTINGS["nano"]).to(device)
    router.weight.data.zero_()
    router.expert_bias.zero_()
    found = fused(router, torch.randn(3, 24, generator=generator).to(device))
    assert found.experts_NA.tolist() == [[0, 1]] * 3
    assert found.weights_NA.tolist() == [[1.25, 1.25]] * 3


def test_a_token_of_nans_stays_within_bounds(device: torch.device, generator: torch.Generator) -> None:
    router = build(generator, 24, **ROUTINGS["nano"]).to(device)
    x = torch.randn(4, 24, generator=generator).to(device)
    clean = fused(router, x)
    x[1] = float("nan")
    found = fused(router, x)
    assert found.experts_NA.min() >= 0 and found.experts_NA.max() < 8
    assert torch.equal(found.weights_NA[[0, 2, 3]], clean.weights_NA[[0, 2, 3]])
