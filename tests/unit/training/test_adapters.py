"""Adapters: what they train, what they leave alone, and what is left once they are merged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dmax.models import BlockDiffusionLM
from dmax.training.checkpointing import CheckpointWriter, RunState, load_checkpoint, newest_checkpoint
from dmax.training.data import Example, generator_for
from dmax.training.layout import Layout, lay_out
from dmax.training.optim import Optimizer
from dmax.training.predictor import Predictor
from dmax.training.recipe import LoraSection

pytest.importorskip("peft")
from dmax.training.adapters import Adapters


@pytest.fixture
def layout() -> Layout:
    ids = torch.randint(3, 40, (2, 8), generator=generator_for(2)).tolist()
    return lay_out([Example(tuple(row), (False,) * 3 + (True,) * 5) for row in ids], 4, pad_token_id=0)


def adapted(
    model: BlockDiffusionLM, dtype: torch.dtype = torch.float32, recompute: bool = False, **section: bool
) -> Predictor:
    adapters = Adapters(model.to(dtype), LoraSection(rank=2, alpha=4.0, **section), generator_for(3))
    return Predictor(model, dtype, recompute=recompute, adapters=adapters)


def train(predict: Predictor, layout: Layout, steps: int = 3, muon_lr: float = 0.0) -> Optimizer:
    optimizer = Optimizer(
        predict.model, adamw_lr=0.02, muon_lr=muon_lr, betas=(0.9, 0.999), weight_decay=0.0, clip_norm=1.0
    )  # fmt: skip
    for _ in range(steps):
        F.cross_entropy(predict(layout.noisy_ids, layout), layout.noisy_ids[layout.supervised]).backward()
        assert optimizer.clip() > 0
        optimizer.step(1.0)
    return optimizer


@torch.no_grad()
def logits(predict: Predictor, layout: Layout) -> torch.Tensor:
    return predict(layout.noisy_ids, layout)


def test_new_adapters_change_nothing(model: BlockDiffusionLM, layout: Layout) -> None:
    before = logits(Predictor(model, torch.float32), layout)
    torch.testing.assert_close(logits(adapted(model), layout), before)


@pytest.mark.parametrize(("recompute", "muon_lr"), [(False, 0.0), (True, 0.0), (False, 0.02)])
def test_every_place_is_trained_and_nothing_else(
    model: BlockDiffusionLM, layout: Layout, recompute: bool, muon_lr: float
) -> None:
    predict = adapted(model, recompute=recompute)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(predict, layout, muon_lr=muon_lr)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    trained = {name.split(".lora_")[0].replace(".base_layer", "") for name in changed}
    dense, sparse = ("model.layers.0", "model.layers.1")
    assert trained == {
        *(f"{layer}.attention.{part}" for layer in (dense, sparse) for part in ("query_key_value", "dense")),
        *(f"{dense}.mlp.{part}_proj" for part in ("gate", "up", "down")),
        *(f"{sparse}.mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")),
        f"{sparse}.mlp.experts",
    }
    assert sum(name.startswith(f"{sparse}.mlp.experts") for name in changed) == 6, "two matrices a stack"


def test_merged_weights_predict_what_the_adapters_did(model: BlockDiffusionLM, layout: Layout) -> None:
    original = copy.deepcopy(model)
    predict = adapted(model)
    train(predict, layout)
    tuned = logits(predict, layout)
    merged = predict.finished_model()
    assert merged is not None
    assert {n: p.shape for n, p in merged.named_parameters()} == {n: p.shape for n, p in original.named_parameters()}
    torch.testing.assert_close(logits(Predictor(merged, torch.float32), layout), tuned, atol=1e-5, rtol=1e-5)
    assert (tuned - logits(Predictor(original, torch.float32), layout)).abs().max() > 0.05


def test_adapters_stay_in_float32_beside_bfloat16_weights(model: BlockDiffusionLM, layout: Layout) -> None:
    predict = adapted(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    train(predict, layout)
    assert logits(predict, layout).dtype == torch.float32


def test_attention_alone_can_be_adapted(model: BlockDiffusionLM) -> None:
    adapted(model, feed_forward=False)
    assert all(".attention." in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_holds_the_adapters_alone(model: BlockDiffusionLM, layout: Layout, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    predict = adapted(model)
    optimizer = train(predict, layout)
    CheckpointWriter(tmp_path, lambda folder: None).save(RunState(3, "x", 0.0), model, optimizer.optimizers)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    stored = sum(file.stat().st_size for file in (newest / "model").glob("*.safetensors"))
    assert stored < 4 * sum(p.numel() for p in model.parameters())

    resumed = adapted(other)
    settings = Optimizer(other, adamw_lr=0.02, muon_lr=0.0, betas=(0.9, 0.999), weight_decay=0.0, clip_norm=1.0)
    load_checkpoint(newest, other, settings.optimizers)
    torch.testing.assert_close(logits(resumed, layout), logits(predict, layout))
