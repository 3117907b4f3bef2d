"""Training on a GPU: cut by FSDP2, offloaded and recomputed, it takes the steps of the plain run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dmax.training.activations import BatchShape
from dmax.training.data import Example, generator_for
from dmax.training.layout import lay_out
from dmax.training.recipe import Recipe
from dmax.training.requirements import requirements_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke" / "oput.yaml"
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]


def losses(folder: Path, name: str, launcher: list[str], parallel: dict[str, Any]) -> list[float]:
    """Losses of the first steps of the smoke recipe, its checkpoints written along the way."""
    values = yaml.safe_load(SMOKE.read_text()) | {"parallel": parallel}
    values["train"] |= {"steps": 6, "checkpoint_every": 3, "validate_every": 6, "validation_rows": 4, "device": "cuda"}
    values["optimizer"] |= {"muon_lr": 0.0, "adamw_lr": 0.001}
    recipe, output = folder / f"{name}.yaml", folder / name
    recipe.write_text(yaml.safe_dump(values))
    command = [sys.executable, *launcher, "-m", "dmax.training", str(recipe), "--output", str(output)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True, timeout=400)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (output / "checkpoints" / "step-0000006" / "trainer_state.json").exists()
    assert (output / "model" / "model.safetensors").exists()
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(tmp_path_factory.mktemp("plain"), "plain", [], {})


@pytest.mark.parametrize(
    "parallel",
    [{"recompute": True, "asynchronous_checkpoints": True}, {"cpu_offload": True}],
    ids=["recomputed", "offloaded"],
)
def test_a_sharded_run_gives_the_losses_of_a_whole_one(
    plain: list[float], tmp_path: Path, parallel: dict[str, Any]
) -> None:
    assert losses(tmp_path, "sharded", LAUNCHER, parallel) == pytest.approx(plain, rel=1e-3)


def test_the_planned_memory_is_right_within_15_percent() -> None:
    from dmax.models import BlockDiffusionLM, ModelConfig
    from dmax.models.transformer import initialize
    from dmax.training.objectives.masked import masked_loss
    from dmax.training.optim import Optimizer
    from dmax.training.predictor import Predictor

    config = ModelConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, mask_token_id=1, eos_token_id=2, pad_token_id=0, num_experts=16,
        num_experts_per_tok=4, num_shared_experts=1, moe_intermediate_size=256, first_k_dense_replace=1,
    )  # fmt: skip
    recipe = Recipe.model_validate(
        {
            "name": "memory", "seed": 1, "model": {"config": {}}, "tokenizer": {"vocab_size": 300},
            "data": [{"source": "arithmetic"}], "objective": {"kind": "masked"},
            "optimizer": {"adamw_lr": 1e-3}, "train": {"steps": 1, "rows": 16},
        }
    )  # fmt: skip
    device = torch.device("cuda")
    layout = lay_out([Example((5,) * 512, (False,) * 128 + (True,) * 384)] * 16, 32, pad_token_id=0).to(device)
    model = initialize(BlockDiffusionLM(config), generator_for(1)).to(device).train()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    predict = Predictor(model, torch.bfloat16)
    optimizer = Optimizer(model, adamw_lr=1e-3, muon_lr=0.0, betas=(0.9, 0.999), weight_decay=0.0, clip_norm=1.0)
    for _ in range(2):
        for _ in range(2):  # two passes a step: the second keeps the first one's gradients
            masked_loss(predict, layout, layout.supervised, 1).loss.backward()
        optimizer.clip()
        optimizer.step(1.0)
    rows, length = layout.positions().shape
    shape = BatchShape(rows, length, int(layout.supervised.sum()))
    planned = requirements_of(recipe, config, shape, 1, "cuda").memory.total
    assert planned == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
