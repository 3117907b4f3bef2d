"""What a run may be resumed with: the same recipe, but for its length; the same data; one process at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmax.models import ModelConfig, Tokenizer
from dmax.training.identity import differing_keys, only_run_in, recipe_digest, recipe_text
from dmax.training.recipe import Recipe, load_recipe
from dmax.training.section import RecipeError
from dmax.training.setup import check_agreement, check_experts

RECIPES = Path(__file__).parents[3] / "recipes"


def smoke(objective: dict[str, Any] | None = None, optimizer: dict[str, Any] | None = None, **train: Any) -> Recipe:
    values = yaml.safe_load((RECIPES / "smoke" / "oput.yaml").read_text())
    for section, changes in (("train", train), ("objective", objective or {}), ("optimizer", optimizer or {})):
        values[section] |= changes
    return Recipe.model_validate(values)


@pytest.mark.parametrize(
    ("name", "digest"),
    [("gsm-symbolic/1-autoregressive", "390e493825114b4f"), ("smoke/oput", "29013e551aa02bf9")],
)
def test_a_run_of_an_earlier_version_can_be_resumed(name: str, digest: str) -> None:
    """A change of these strands the checkpoints that people have."""
    assert recipe_digest(load_recipe(RECIPES / f"{name}.yaml")) == digest


def test_a_run_may_be_made_longer() -> None:
    assert recipe_digest(smoke(steps=80, snapshots=[0.5])) == recipe_digest(smoke())
    assert recipe_digest(smoke(rows=5)) != recipe_digest(smoke())


def test_the_keys_that_differ_are_named() -> None:
    earlier = json.loads(recipe_text(smoke()))
    assert differing_keys(smoke(), earlier) == []
    assert differing_keys(smoke(rows=5, steps=80, dtype="bfloat16"), earlier) == [
        "train.rows (was 4, is 5)",
        'train.dtype (was "float32", is "bfloat16")',
    ]
    other = smoke().model_copy(update={"data": smoke().data[:1]})
    assert differing_keys(other, earlier)[0].startswith("data (was [{")


def test_one_run_in_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(RecipeError, match=r"another run is going on in .*run")
    with only_run_in(tmp_path / "run"), refused, only_run_in(tmp_path / "run"):
        pass
    with only_run_in(tmp_path / "run"):
        pass


def config(**changes: int) -> ModelConfig:
    ids = {"vocab_size": 300, "mask_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return ModelConfig.from_dict(
        {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, **ids, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": 200}, "ids up to 260, the model only 200 tokens"),
        ({"eos_token_id": 3}, "eos_token_id is 2, the model's 3"),
        ({"mask_token_id": 4}, "mask_token_id is 1, the model's 4"),
    ],
)
def test_a_tokenizer_that_is_not_the_models_is_refused(
    tokenizer: Tokenizer, changes: dict[str, int], named: str
) -> None:
    check_agreement(tokenizer, config())
    with pytest.raises(RecipeError, match=named):
        check_agreement(tokenizer, config(**changes))


def test_routers_are_trained_as_they_choose() -> None:
    sizes = {"num_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
    blocks = config(**sizes, expert_capacity=2, block_size=16)
    check_experts(smoke({"block_length": 32}), blocks)
    check_experts(smoke({"block_length": 8}), config(**sizes))
    check_experts(smoke({"block_length": 8}), config(expert_capacity=2))
    stages = smoke({"block_length": [{"step": 0, "block_length": 8}, {"step": 2, "block_length": 32}]})
    with pytest.raises(RecipeError, match=r"block_length is 8, 32: .* experts for blocks of 16, so give multiples"):
        check_experts(stages, blocks)
    unbiased = config(**sizes, moe_router_enable_expert_bias=False)
    check_experts(smoke(), unbiased)
    with pytest.raises(RecipeError, match=r"router_bias_rate is 0.001: this model's routers have no bias"):
        check_experts(smoke(optimizer={"router_bias_rate": 0.001}), unbiased)


def test_rows_for_validation_need_rows() -> None:
    with pytest.raises(ValueError, match="validation_share needs data of a jsonl or hub source"):
        smoke(validation_share=0.1)
