"""Weights in 8 and 4 bits: files, and models that load them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmax import LLM, GenerationParams
from dmax.engine.backends import packed
from dmax.engine.backends.cpu import CpuBackend
from dmax.engine.backends.cpu_modules import Compiled, PackedQuantizedLinear, int8_linear
from dmax.engine.backends.swapped import copy_as
from dmax.measurement.shapes import SHAPES
from dmax.models import BlockDiffusionLM, CheckpointError, load_model, save_model
from dmax.models.convert import Quantization, convert_checkpoint, errors_by_layer
from dmax.models.quantized import (
    QuantizedEmbedding,
    QuantizedLinear,
    Scheme,
    WeightFormat,
    dequantize,
    part_of,
    quantize,
    scale_name,
    scales_of,
    widen,
)
from dmax.models.rounding import round_rows
from dmax.models.transformer import expert_stacks, initialize

EMBEDDINGS = "model.word_embeddings.weight"
FORMATS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS.keys())
def test_rounding_is_to_the_nearest_value_of_each_channel(dtype: torch.dtype) -> None:
    weight = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-4, 2, 7)[:, None]
    weight[0, 0] = 0.0
    scale = scales_of(weight, dtype)
    rounded = quantize(weight, scale, dtype)
    assert rounded.dtype == dtype and scale.shape == (5, 7)
    levels = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    levels = levels[levels.isfinite() & (levels.abs() <= 448 if dtype.is_floating_point else levels.abs() <= 127)]
    nearest = (weight[..., None] / scale[..., None, None] - levels).abs().amin(-1)
    found = (weight / scale[..., None] - rounded.float()).abs()
    torch.testing.assert_close(found, nearest, rtol=1e-4, atol=1e-5)
    assert torch.equal(dequantize(rounded, scale, torch.float32)[0, 0], weight[0, 0])
    largest = dequantize(rounded, scale, torch.float32).abs().amax(-1)
    torch.testing.assert_close(largest, weight.abs().amax(-1))


def test_router_and_norms_are_never_quantised(model: BlockDiffusionLM) -> None:
    names = [*model.state_dict(), "model.layers.1.mlp.experts.3.up_proj.weight"]
    kept = [name for name in names if part_of(name) is None]
    assert {part_of(name) for name in names if "experts." in name and "shared" not in name} == {"experts"}
    assert {part_of(name) for name in names if "shared_experts" in name} == {"dense"}
    assert {name for name in names if part_of(name) == "embeddings"} == {EMBEDDINGS, "lm_head.weight"}
    assert all("norm" in name or "gate.weight" in name or name.endswith("bias") for name in kept)


@pytest.mark.parametrize("layout", ["separate", "merged"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_checkpoint_computes_with_the_rounded_weights(
    name: str, layout: str, folder: Path, model: BlockDiffusionLM, tmp_path: Path
) -> None:
    errors = convert_checkpoint(folder, tmp_path / "small", layout, quantization=Quantization(name))
    assert json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["weights"] == name
    rounded = model.state_dict()
    for tensor_name, tensor in rounded.items():
        if part_of(tensor_name) in ("experts", "dense"):
            scale = scales_of(tensor, FORMATS[name])
            tensor.copy_(dequantize(quantize(tensor, scale, FORMATS[name]), scale, torch.float32))
    ids = torch.arange(3, 40)[None]
    loaded = load_model(tmp_path / "small")
    assert isinstance(loaded.model.layers[0].attention.dense, QuantizedLinear)
    assert expert_stacks(loaded)[0].gate_proj.dtype == FORMATS[name]
    torch.testing.assert_close(loaded.logits(ids), model.logits(ids), rtol=1e-4, atol=1e-4)
    errors = errors_by_layer(errors)
    assert [(error.layer, error.part) for error in errors] == [
        (0, "dense"), (1, "dense"), (1, "experts"), (2, "dense"), (2, "experts"),
    ]  # fmt: skip
    bound = 0.03 if name == "fp8" else 0.01
    assert all(bound / 10 < error.relative_error < bound for error in errors)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("parts", [("experts",), ("dense",), ("experts", "dense")])
def test_packed_and_plain_passes_agree_and_follow_a_change_of_dtype(
    name: str, parts: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    convert_checkpoint(folder, tmp_path / "small", quantization=Quantization(name, parts=parts))
    model = load_model(tmp_path / "small").eval()
    in_engine = CpuBackend(model).modules
    ids = torch.arange(3, 40)[None]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float32, 1e-4)):
        model.to(dtype)
        difference = (in_engine.logits(ids) - model.logits(ids)).abs()
        assert difference.mean() < tolerance, "in bfloat16 a few close choices of the router differ"


def int8_layer(seed: int = 0) -> tuple[QuantizedLinear, torch.Tensor]:
    """A layer, and the weights it stands for."""
    layer = QuantizedLinear(40, 96, Scheme("int8"))
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(seed))
    layer.weight_scale.copy_(scales_of(weight, torch.int8))
    layer.weight.copy_(quantize(weight, layer.weight_scale, torch.int8))
    return layer, dequantize(layer.weight, layer.weight_scale, torch.float32)


def test_whole_number_arithmetic_rounds_every_row_by_itself() -> None:
    layer, wide = int8_layer()
    x = torch.randn(2, 17, 96, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 3, 17)[:, None]
    x[0, 5] = 0.0
    found = int8_linear(x, layer.weight, layer.weight_scale)
    expected = x @ wide.T
    assert torch.equal(found[0, 5], torch.zeros(40))
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-9)
    assert 1e-4 < error.max() < 0.02
    for row, alone in enumerate(x[1]):
        assert torch.equal(int8_linear(alone[None], layer.weight, layer.weight_scale)[0], found[1, row])
    assert int8_linear(x.bfloat16(), layer.weight, layer.weight_scale).dtype == torch.bfloat16


def test_large_int8_layers_multiply_in_whole_numbers_in_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, wide = int8_layer()
    monkeypatch.setattr(packed, "MOST_WEIGHTS", layer.weight.numel() - 1)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(4))
    in_engine = copy_as(layer, PackedQuantizedLinear)
    in_engine.prepare(Compiled())
    with torch.inference_mode():
        assert torch.equal(in_engine(x), int8_linear(x, layer.weight, layer.weight_scale))
    torch.testing.assert_close(layer(x.requires_grad_()), x @ wide.T)


def test_only_the_parts_asked_for(folder: Path, tmp_path: Path) -> None:
    convert_checkpoint(folder, tmp_path / "small", quantization=Quantization("int8", parts=("experts",)))
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    assert {name for name, tensor in tensors.items() if tensor.dtype == torch.int8} == {
        name for name in tensors if part_of(name) == "experts"
    }


def test_layouts_shards_and_saving_keep_quantised_weights(folder: Path, tmp_path: Path) -> None:
    fp8 = Quantization("fp8")
    convert_checkpoint(folder, tmp_path / "small", "separate", quantization=fp8, max_shard_bytes=9_000)
    convert_checkpoint(tmp_path / "small", tmp_path / "merged", "merged")
    save_model(load_model(tmp_path / "merged"), tmp_path / "saved")
    ids = torch.arange(3, 40)[None]
    logits = [load_model(tmp_path / name).logits(ids) for name in ("small", "merged", "saved")]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_a_change_of_dtype_leaves_quantised_weights_alone(folder: Path, tmp_path: Path) -> None:
    convert_checkpoint(folder, tmp_path / "small", quantization=Quantization("fp8"))
    model = load_model(tmp_path / "small", dtype=torch.bfloat16).to(torch.float16)
    linear, experts = model.model.layers[0].attention.dense, expert_stacks(model)[0]
    assert model.dtype == torch.float16
    assert linear.weight.dtype == experts.down_proj.dtype == torch.float8_e4m3fn
    assert linear.weight_scale.dtype == experts.down_proj_scale.dtype == torch.float32
    assert model.logits(torch.arange(3, 9)[None]).dtype == torch.float16


@pytest.fixture
def even(build: Callable[..., BlockDiffusionLM], tmp_path: Path) -> tuple[Path, BlockDiffusionLM]:
    """A model whose widths groups of 32 divide, and of 64 all but one, as a checkpoint."""
    model = build(hidden_size=64, intermediate_size=128, moe_intermediate_size=32, head_dim=16)
    save_model(model, tmp_path / "even")
    return tmp_path / "even", model


@pytest.mark.parametrize("layout", ["separate", "merged"])
@pytest.mark.parametrize("method", ["nearest", "search"])
def test_a_checkpoint_in_4_bits_computes_with_the_rounded_weights(
    method: str, layout: str, even: tuple[Path, BlockDiffusionLM], tmp_path: Path
) -> None:
    folder, model = even
    int4 = Quantization("int4", method=method, embeddings="int8")  # type: ignore[arg-type]
    errors = convert_checkpoint(folder, tmp_path / "small", layout, quantization=int4)  # type: ignore[arg-type]
    said = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert said == {
        "quant_method": "dmax", "weights": "int4", "parts": ["experts", "dense"], "scales": "group", "group_size": 64,
        "method": method, "embeddings": "int8",
    }  # fmt: skip
    rounded = model.state_dict()
    for name, tensor in rounded.items():
        scheme = int4.scheme_of(name, tuple(tensor.shape))
        if scheme is not None:
            assert scheme.group == {"int8": 0, "int4": 32 if name.endswith("experts.down_proj") or (
                "shared" in name and name.endswith("down_proj.weight")
            ) else 64}[scheme.format]  # fmt: skip
            parts = [round_rows(rows, scheme, method) for rows in tensor.reshape(-1, 1, tensor.shape[-1])]  # type: ignore[arg-type]
            wide = [dequantize(part.weight, part.scale, torch.float32) for part in parts]
            tensor.copy_(torch.cat(wide).view_as(tensor))
    ids = torch.arange(3, 40)[None]
    loaded = load_model(tmp_path / "small")
    assert isinstance(loaded.model.word_embeddings, QuantizedEmbedding)
    torch.testing.assert_close(loaded.logits(ids), model.logits(ids), rtol=1e-4, atol=1e-4)
    assert {error.part for error in errors} == {"experts", "dense", "embeddings"}
    assert all(0.04 < error.relative_error < 0.12 for error in errors if error.part != "embeddings")


@pytest.mark.parametrize("name", ["int8", "fp8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_engine_answers_as_the_modules_do(
    name: str, tied: bool, build: Callable[..., BlockDiffusionLM], tmp_path: Path
) -> None:
    model = build(
        hidden_size=64, intermediate_size=128, moe_intermediate_size=32, head_dim=16, tie_word_embeddings=tied
    )
    save_model(model, tmp_path / "whole")
    quantization = Quantization(name, embeddings="int8")  # type: ignore[arg-type]
    convert_checkpoint(tmp_path / "whole", tmp_path / "small", quantization=quantization)
    loaded = load_model(tmp_path / "small")
    assert loaded.lm_head.weight.dtype == torch.int8 and loaded.dtype == torch.float32
    assert (loaded.lm_head.weight is loaded.model.word_embeddings.weight) == tied
    widened = load_model(tmp_path / "whole")
    quantized = loaded.state_dict()
    for at, tensor in widened.state_dict().items():
        tensor.copy_(dequantize(quantized[at], quantized.get(scale_name(at)), torch.float32))
    params = GenerationParams(gen_length=32, block_length=8)
    prompts = [[3, 9, 27], [5, 6, 7, 8, 9, 10, 11, 12, 13]]
    found, expected = (LLM(each).generate(prompts, params) for each in (loaded, widened))
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    uncached = LLM(loaded).generate(prompts, replace(params, use_cache=False))
    assert [output.token_ids for output in uncached] == [output.token_ids for output in expected]


@pytest.mark.parametrize("name", ["sdar-1.7b", "fast-dllm-v2-1.5b"])
def test_weights_that_a_family_stores_apart_and_biases_beside_them(name: str, tmp_path: Path) -> None:
    small = {"vocab_size": 48, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    special = {"mask_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = replace(SHAPES[name], num_attention_heads=4, num_key_value_heads=2, **small, **special)
    model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(3)).eval()
    save_model(model, tmp_path / "whole")
    ids = torch.arange(3, 40)[None]
    expected = model.logits(ids)
    for weights, bound in (("int8", 0.02), ("int4", 0.1)):
        quantization = Quantization(weights, embeddings="int8")  # type: ignore[arg-type]
        convert_checkpoint(tmp_path / "whole", tmp_path / weights, quantization=quantization)
        found = load_model(tmp_path / weights, mapped=True)
        assert isinstance(found.model.layers[0].attention.query_key_value, QuantizedLinear)
        assert (found.logits(ids) - expected).norm() < bound * expected.norm()


def test_what_cannot_be_quantised_is_said(folder: Path, tmp_path: Path) -> None:
    convert_checkpoint(folder, tmp_path / "small", quantization=Quantization("int8"))
    with pytest.raises(CheckpointError, match="is quantised already"):
        convert_checkpoint(tmp_path / "small", tmp_path / "again", quantization=Quantization("fp8"))
    with pytest.raises(CheckpointError, match="Weight format 'int3' does not exist: choose fp8 or int8 or int4"):
        Quantization("int3")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="Group size 48 does not exist: choose 32 or 64"):
        Quantization("int4", group=48)
    with pytest.raises(CheckpointError, match="Method 'search' is for int4"):
        Quantization("int8", method="search")
    with pytest.raises(CheckpointError, match=r"has 24 inputs, which groups of 32 do not divide: choose int8 or fp8"):
        convert_checkpoint(folder, tmp_path / "again", quantization=Quantization("int4"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight holds values that are not finite"):
        convert_checkpoint(folder, tmp_path / "again", quantization=Quantization("fp8"))
    assert not (tmp_path / "again").exists()


def test_a_stack_of_mixed_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    convert_checkpoint(folder, tmp_path / "small", "separate", quantization=Quantization("int8"))
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    tensors[name] = tensors[name].float()
    save_file(tensors, tmp_path / "small" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 not quantised as the rest of their stack: .*\(is F32\)"):
        load_model(tmp_path / "small")


@pytest.mark.parametrize("form", ["int8", "int4", "fp8"])
def test_widened_weights_are_what_the_quantised_ones_stand_for_and_can_be_trained(
    form: WeightFormat, even: tuple[Path, BlockDiffusionLM], tmp_path: Path
) -> None:
    folder, plain = even
    convert_checkpoint(folder, tmp_path / "small", quantization=Quantization(form, embeddings="int8"))
    model = load_model(tmp_path / "small")
    ids = torch.arange(3, 40)[None]
    expected = model.logits(ids)
    widen(model, torch.float32)
    torch.testing.assert_close(model.logits(ids), expected, rtol=1e-4, atol=1e-4)
    assert {name: (p.shape, p.dtype) for name, p in model.named_parameters() if p.requires_grad} == {
        name: (p.shape, p.dtype) for name, p in plain.named_parameters()
    }
    assert model.state_dict().keys() == plain.state_dict().keys()
