"""Logits agree with the published model's, from both checkpoint layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmax.models import BlockDiffusionLM, load_model
from dmax.models.convert import convert_checkpoint

DATA = Path(__file__).parent / "data"
CHECKPOINTS = ("dense", "moe", "moe-nogroup", "trained-dense")


def vectors(name: str) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Block length -> token ids ``(2, T)`` and logits ``(2, T, V)``."""
    tensors = load_file(DATA / name / "logits.safetensors")
    lengths = [int(key.removeprefix("ids_")) for key in tensors if key.startswith("ids_")]
    assert lengths, "no vector would be tested"
    return {length: (tensors[f"ids_{length}"].long(), tensors[f"logits_{length}"]) for length in lengths}


def assert_same_logits(model: BlockDiffusionLM, name: str) -> None:
    for block_length, (ids, expected) in vectors(name).items():
        torch.testing.assert_close(model.logits(ids, block_length), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_of_the_separate_layout(name: str) -> None:
    assert_same_logits(load_model(DATA / name), name)


@pytest.mark.parametrize("name", ["moe", "moe-nogroup"])
def test_logits_of_the_merged_layout(name: str, tmp_path: Path) -> None:
    convert_checkpoint(DATA / name, tmp_path / "merged", "merged")
    assert_same_logits(load_model(tmp_path / "merged"), name)


def test_the_vectors_notice_the_block_length() -> None:
    model = load_model(DATA / "moe")
    ids, expected = vectors("moe")[8]
    assert (model.logits(ids, 16) - expected).abs().max() > 1e-2
