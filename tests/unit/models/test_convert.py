"""Converting between expert layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmax.models import CheckpointError, LLaDA2, load_model, save_model
from dmax.models.convert import convert_checkpoint
from dmax.models.llada2 import expert_stacks, routers


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (str(tensor.dtype), tuple(tensor.shape), tensor.flatten().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


@pytest.fixture
def half(model: LLaDA2) -> LLaDA2:
    """bfloat16 weights beside float32 router biases, with the values that arithmetic would not preserve."""
    biases = [router.expert_bias for router in routers(model)]
    model.to(torch.bfloat16)
    for router, bias in zip(routers(model), biases, strict=True):
        router.expert_bias = bias
    with torch.no_grad():
        expert_stacks(model)[0].up_proj[3, 0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40])
    return model


@pytest.mark.parametrize("merged_first", [True, False])
@pytest.mark.parametrize("shard_bytes", [(2**30, 2**30), (9_000, 2**30), (2**30, 9_000), (9_000, 14_000)])
def test_there_and_back_keeps_every_bit(
    half: LLaDA2, merged_first: bool, shard_bytes: tuple[int, int], tmp_path: Path
) -> None:
    save_model(half, tmp_path / "start", merged=merged_first, max_shard_bytes=shard_bytes[0])
    there, back = ("separate", "merged") if merged_first else ("merged", "separate")
    convert_checkpoint(tmp_path / "start", tmp_path / "there", there, max_shard_bytes=shard_bytes[1])
    convert_checkpoint(tmp_path / "there", tmp_path / "back", back)
    assert bits(tensors_of(tmp_path / "back")) == bits(tensors_of(tmp_path / "start"))
    assert tensors_of(tmp_path / "there").keys() != tensors_of(tmp_path / "start").keys()


def test_stacks_are_the_experts_in_order(folder: Path, model: LLaDA2, tmp_path: Path) -> None:
    convert_checkpoint(folder, tmp_path / "merged", "merged")
    tensors = tensors_of(tmp_path / "merged")
    assert not any(".experts.0." in name for name in tensors)
    for layer, experts in zip((1, 2), expert_stacks(model), strict=True):
        for projection in ("gate_proj", "up_proj", "down_proj"):
            stack = tensors[f"model.layers.{layer}.mlp.experts.{projection}"]
            assert torch.equal(stack, getattr(experts, projection))


def test_companion_files_go_along_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "modeling_llada2_moe.py").write_text("raise SystemExit")
    convert_checkpoint(folder, tmp_path / "merged", "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
    ]
    for name in ("chat_template.jinja", "config.json", "tokenizer_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (folder / name).read_bytes()


def test_progress_reaches_the_whole(folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert_checkpoint(folder, tmp_path / "out", "merged", progress=lambda done, total: calls.append((done, total)))
    size = sum(tensor.nbytes for tensor in tensors_of(folder).values())
    assert calls[-1] == (size, size)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_a_declared_absence_of_router_biases_is_kept(folder: Path, tmp_path: Path) -> None:
    tensors = {name: t for name, t in tensors_of(folder).items() if not name.endswith("expert_bias")}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "moe_router_enable_expert_bias": False}))
    convert_checkpoint(folder, tmp_path / "merged", "merged")
    load_model(tmp_path / "merged")
    assert not any(name.endswith("expert_bias") for name in tensors_of(tmp_path / "merged"))


def test_a_dense_model_converts_to_itself(build: Callable[..., LLaDA2], tmp_path: Path) -> None:
    save_model(build(num_experts=None), tmp_path / "dense")
    convert_checkpoint(tmp_path / "dense", tmp_path / "out", "merged")
    assert bits(tensors_of(tmp_path / "out")) == bits(tensors_of(tmp_path / "dense"))


def test_experts_of_different_dtypes_cannot_be_stacked(folder: Path, tmp_path: Path) -> None:
    tensors = tensors_of(folder)
    tensors["model.layers.1.mlp.experts.4.up_proj.weight"] = torch.zeros(16, 24, dtype=torch.float16)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"experts of model\.layers\.1\.mlp\.experts\.up_proj .* F16, F32"):
        convert_checkpoint(folder, tmp_path / "merged", "merged")
    assert not (tmp_path / "merged").exists()


def test_bad_requests(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="choose merged or separate"):
        convert_checkpoint(folder, tmp_path / "out", "stacked")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is not empty"):
        convert_checkpoint(folder, folder, "merged")
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        convert_checkpoint(folder, tmp_path / "out", "merged", max_shard_bytes=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
