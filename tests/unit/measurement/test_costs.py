"""Bytes and operations of a pass, against the model's own parameters and against hand counts."""

from __future__ import annotations

import pytest
import torch

from dmax.measurement.costs import PassShape, count_flops, count_pass, stored_bytes, uniform_experts, weights_by_part
from dmax.measurement.shapes import SHAPES, MeasurementError, random_model
from dmax.models import BlockDiffusionLM
from dmax.models.convert import Quantization
from dmax.models.quantized import dequantize, scale_name

NANO = SHAPES["nano"]


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_weight_is_counted_once(shape: str) -> None:
    config = SHAPES[shape]
    with torch.device("meta"):
        model = BlockDiffusionLM(config)
    uncounted = ("norm.weight", "layernorm.weight", "word_embeddings.weight", ".bias", "lm_head.weight")
    weights = sum(p.numel() for name, p in model.named_parameters() if not name.endswith(uncounted))
    weights += model.lm_head.weight.numel()  # read as the head, whether it is the embedding table or not
    assert sum(weights_by_part(config, touched_experts=config.num_experts).values()) == weights


@pytest.mark.parametrize(("shape", "total"), [("llada2-mini", 16e9), ("llada2-flash", 100e9)])
def test_the_published_shapes_have_the_published_size(shape: str, total: float) -> None:
    with torch.device("meta"):
        model = BlockDiffusionLM(SHAPES[shape])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(total, rel=0.05)


def test_a_block_of_the_16b_model_touches_two_thirds_of_its_experts_and_21_gigabytes() -> None:
    config = SHAPES["llada2-mini"]
    assert uniform_experts(config, 32) / 256 == pytest.approx(0.64, abs=0.005)
    cost = count_pass(config, PassShape(1, 32, 1024, 32), itemsize=2, touched_experts=None)
    assert cost.total_bytes == pytest.approx(21e9, rel=0.03)


def test_counts_of_a_small_pass() -> None:
    cost = count_pass(NANO, PassShape(batch=2, positions=64, context=96, decoded=32), itemsize=4, touched_experts=3.0)
    assert cost.bytes["experts"] == 5 * 3 * 3 * 256 * 96 * 4
    assert cost.bytes["cache"] == 2 * (96 + 2 * 64) * 2 * 6 * 2 * 64 * 4
    assert cost.flops["experts"] == 2 * 128 * 5 * 2 * 3 * 256 * 96
    assert cost.flops["head"] == 2 * 64 * 256 * 1536
    scores_and_values = 2 * 2 * 6 * 4 * 64 * sum(32 * (96 + 32) + 32 * (96 + 64) for _ in range(2))
    assert cost.flops["attention"] == 2 * 128 * 6 * 256 * 64 * (2 * 4 + 2 * 2) + scores_and_values


def test_operations_of_forwards_are_those_of_their_matrix_products() -> None:
    done = count_flops(NANO, positions=100, decoded=32, attended=9_000)
    assert done["head"] == 2 * 32 * 256 * 1536, "positions without logits never see the head"
    assert done["attention"] == 2 * 100 * 6 * 256 * 64 * (2 * 4 + 2 * 2) + 2 * 2 * 9_000 * 6 * 4 * 64
    weights = weights_by_part(NANO)
    assert done["experts"] == 2 * 100 * weights["experts"]
    assert set(done) == set(weights)


def test_bytes_are_those_of_the_stored_formats() -> None:
    cpu, formats = torch.device("cpu"), Quantization("int4", embeddings="int8")
    model = random_model("nano", device=cpu, dtype=torch.bfloat16, layers=2, weights=formats)
    stored = stored_bytes(model)
    of_64, of_32 = 0.5 + 4 / 64, 0.5 + 4 / 32  # a pair of bfloat16 numbers a group
    of_experts = (2 * of_64 + of_32) / 3  # 64 do not divide the 96 inputs of the down projections
    expected = {
        "attention": of_64, "router": 2, "experts": of_experts, "shared": of_experts, "dense": of_64,
        "head": 1 + 4 / 256, "embeddings": 1 + 4 / 256,
    }  # fmt: skip
    assert stored == pytest.approx(expected)
    shape = PassShape(1, 32, 64, 32)
    wide, narrow = (count_pass(model.config, shape, 2, 3.0, each).bytes for each in (None, stored))
    assert narrow["experts"] == pytest.approx(wide["experts"] * of_experts / 2, abs=1)
    assert (narrow["cache"], narrow["router"]) == (wide["cache"], wide["router"])


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_random_quantised_weights_are_as_large_as_others(weights: str) -> None:
    cpu, formats = torch.device("cpu"), Quantization(weights, embeddings="int8")  # type: ignore[arg-type]
    model = random_model("nano", device=cpu, dtype=torch.float32, layers=2, weights=formats)
    plain = random_model("nano", device=cpu, dtype=torch.float32, layers=2).state_dict()
    tensors = model.state_dict()
    quantized = [name for name in tensors if scale_name(name) in tensors]
    assert len(quantized) > 8
    for name in quantized:
        found = dequantize(tensors[name], tensors[scale_name(name)], torch.float32)
        assert found.std().item() == pytest.approx(plain[name].std().item(), rel=0.05)
        assert abs(found.mean().item()) < 0.1 * found.std().item()


def test_random_models_are_seeded_and_of_the_asked_dtype() -> None:
    first, again, other = (
        random_model("nano", device=torch.device("cpu"), dtype=torch.bfloat16, seed=seed, layers=2)
        for seed in (3, 3, 4)
    )
    ids = torch.arange(64)[None]
    assert first.dtype == torch.bfloat16 and len(first.model.layers) == 2
    assert first.logits(ids).isfinite().all()
    assert torch.equal(first.logits(ids), again.logits(ids))
    assert not torch.equal(first.logits(ids), other.logits(ids))


@pytest.mark.parametrize("wrong", [{"shape": "llada3"}, {"shape": "nano", "layers": 7}, {"shape": "nano", "layers": 0}])
def test_a_shape_that_does_not_exist_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MeasurementError, match=r"choose from|so give a number"):
        random_model(**wrong, device=torch.device("cpu"), dtype=torch.float32)
