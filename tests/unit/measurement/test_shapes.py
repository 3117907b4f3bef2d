"""Shapes that are timed with random weights are those of the models they are named after."""

from __future__ import annotations

import pytest
import torch

from dmax.cli._common.facts import _count
from dmax.measurement.shapes import SHAPES
from dmax.models import BlockDiffusionLM

PARAMETERS = {
    "llada2-mini": (16_255_638_528, 1.43e9),
    "llada2-flash": (102_889_697_280, 6.15e9),
    "llada2.2-mini": (16_255_638_528, 1.43e9),
    "sdar-1.7b": (1_720_574_976, 1_720_574_976),
    "sdar-4b": (4_022_468_096, 4_022_468_096),
    "sdar-8b": (8_190_735_360, 8_190_735_360),
    "fast-dllm-v2-1.5b": (1_543_714_304, 1_543_714_304),
}
"""In all and for a token: of Qwen3-1.7B, -4B and -8B, and of Qwen2.5-1.5B, as their authors count; LLaDA2's by hand."""


@pytest.mark.parametrize("shape", PARAMETERS)
def test_parameters_are_those_of_the_published_model(shape: str) -> None:
    with torch.device("meta"):
        model = BlockDiffusionLM(SHAPES[shape])
    total, active = PARAMETERS[shape]
    counted = _count(model)
    assert counted[0] == total
    assert counted[1] == pytest.approx(active, rel=0.01)


def test_every_shape_is_counted() -> None:
    assert set(SHAPES) == {*PARAMETERS, "nano"}
    assert (SHAPES["sdar-8b"].usual_block_length, SHAPES["sdar-8b"].tie_word_embeddings) == (4, False)
    assert SHAPES["fast-dllm-v2-1.5b"].shift_logits
    assert (SHAPES["llada2.2-mini"].expert_capacity, SHAPES["llada2.2-mini"].usual_block_length) == (48, 32)
