"""A run's memory from its recipe: against parameters that are there, and against what it is refused for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmax.models import BlockDiffusionLM, ModelConfig
from dmax.models.memory import DoesNotFit
from dmax.models.transformer import initialize
from dmax.training.activations import BatchShape
from dmax.training.batches import POOL, Batches
from dmax.training.data import Example, generator_for
from dmax.training.objectives.registry import BuiltInSection, get_objective
from dmax.training.recipe import Recipe
from dmax.training.requirements import POOLS_READ, Memory, Requirements, largest_batch, requirements_of
from dmax.training.section import RecipeError

MINI = ModelConfig(
    vocab_size=157184, hidden_size=2048, intermediate_size=5120, num_hidden_layers=20, num_attention_heads=16,
    num_key_value_heads=4, head_dim=128, partial_rotary_factor=0.5, mask_token_id=156895, eos_token_id=156892,
    pad_token_id=156892, num_experts=256, num_experts_per_tok=8, num_shared_experts=1, moe_intermediate_size=512,
    first_k_dense_replace=1, n_group=8, topk_group=4,
)  # fmt: skip
SMALL = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, mask_token_id=1, eos_token_id=2, pad_token_id=0, num_experts=4,
    num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=8, first_k_dense_replace=1,
)  # fmt: skip
GPU = torch.device("cuda")
SHAPE = BatchShape(rows=1, length=4096, supervised=2000)


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "planned",
        "seed": 1,
        "model": {"start_from": "somewhere"},
        "tokenizer": {"start_from": "somewhere"},
        "data": [{"source": "arithmetic"}],
        "objective": {"kind": "oput"},
        "train": {"steps": 3, "rows": 1},
    }
    return Recipe.model_validate(values | sections)


def test_the_published_model_trains_on_eight_gpus_of_80_gib_and_not_on_one() -> None:
    settings = recipe(parallel={"recompute": True})
    eight = requirements_of(settings, MINI, SHAPE, 8, "cuda")
    assert eight.parameters == pytest.approx(16.3e9, rel=0.02)
    assert eight.memory.weights + eight.memory.gradients + eight.memory.optimizer == pytest.approx(
        16 * eight.parameters / 8, rel=0.01
    )
    eight.check(80 * 2**30, GPU)
    with pytest.raises(
        DoesNotFit, match=r"needs 30\d\.\d GiB of memory .*, and cuda has 80\.0 GiB available: use more"
    ):
        requirements_of(settings, MINI, SHAPE, 1, "cuda").check(80 * 2**30, GPU)


def test_adapters_of_the_published_model_train_on_one_gpu() -> None:
    plan = requirements_of(recipe(lora={"rank": 16}, parallel={"recompute": True}), MINI, SHAPE, 1, "cuda")
    assert plan.trained < 0.05 * plan.parameters
    plan.check(80 * 2**30, GPU)


@pytest.mark.parametrize("section", [{}, {"attention": False}, {"feed_forward": False}])
def test_adapters_are_counted_as_peft_makes_them(section: dict[str, bool]) -> None:
    pytest.importorskip("peft")
    from dmax.training.adapters import Adapters

    settings = recipe(lora={"rank": 3, **section})
    assert settings.lora is not None
    model = initialize(BlockDiffusionLM(SMALL), generator_for(1))
    Adapters(model, settings.lora, generator_for(2))
    there = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert requirements_of(settings, SMALL, SHAPE, 1, "cpu").trained == there


def test_what_is_offloaded_takes_no_room_and_copies_of_the_weights_do() -> None:
    offloaded = requirements_of(recipe(parallel={"cpu_offload": True}), MINI, SHAPE, 8, "cuda").memory
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (0, 0, 0)
    one, two = (requirements_of(recipe(parallel={"replicas": n}), MINI, SHAPE, 8, "cuda").memory for n in (1, 2))
    assert two.weights == pytest.approx(2 * one.weights, abs=2)
    with pytest.raises(RecipeError, match="must divide 8"):
        requirements_of(recipe(parallel={"replicas": 3}), MINI, SHAPE, 8, "cuda")


def test_optimizer_state_is_what_the_optimisers_keep() -> None:
    from dmax.training.optim import Optimizer

    model = initialize(BlockDiffusionLM(SMALL), generator_for(1))
    optimizer = Optimizer(model, adamw_lr=0.1, muon_lr=0.1, betas=(0.9, 0.9), weight_decay=0.0, clip_norm=1.0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(1.0)
    kept = sum(
        value.nbytes
        for each in optimizer.optimizers
        for state in each.state.values()
        for value in state.values()
        if value.ndim
    )
    assert requirements_of(recipe(optimizer={"muon_lr": 0.1}), SMALL, SHAPE, 1, "cpu").memory.optimizer == kept


def test_the_peak_is_in_the_backward_pass_or_in_the_update() -> None:
    backward = Memory(weights=1, copies=2, gradients=3, optimizer=4, activations=50, update=10)
    update = Memory(weights=1, copies=2, gradients=3, optimizer=4, activations=5, update=100)
    assert (backward.total, update.total) == (60, 108)
    Requirements(1, 1, 1, 1, SHAPE, backward).check(60, GPU)
    with pytest.raises(DoesNotFit):
        Requirements(1, 1, 1, 1, SHAPE, backward).check(59, GPU)


class Growing:
    """Longer and longer examples."""

    def example(self, index: int) -> Example:
        length = 4 + index // 8
        return Example((5,) * length, (False,) + (True,) * (length - 1))


def test_the_largest_batch_is_looked_for_in_the_first_pools() -> None:
    objective = get_objective(BuiltInSection(kind="oput", block_length=4))
    batches = Batches(Growing(), objective, rows=2, context=10**6, eos_token_id=2, seed=1, passes_per_step=1)
    longest = 4 + (POOLS_READ * POOL * 2 - 1) // 8
    shape = largest_batch(batches)
    assert shape.rows == 2
    assert 2 * longest - 8 <= shape.length <= 2 * longest + 40
