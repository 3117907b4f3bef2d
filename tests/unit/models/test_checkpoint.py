"""Loading and saving checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmax.models import BlockDiffusionLM, CheckpointError, load_model, save_model
from dmax.models.convert import Quantization, convert_checkpoint
from dmax.models.transformer import expert_stacks, routers

Tensors = dict[str, torch.Tensor]


def assert_same_weights(found: BlockDiffusionLM, expected: BlockDiffusionLM) -> None:
    found_state, expected_state = found.state_dict(), expected.state_dict()
    assert found_state.keys() == expected_state.keys()
    for name, tensor in expected_state.items():
        assert found_state[name].dtype == tensor.dtype, name
        assert torch.equal(found_state[name], tensor), name


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [2**30, 20_000])
def test_what_is_saved_is_loaded(model: BlockDiffusionLM, merged: bool, max_shard_bytes: int, tmp_path: Path) -> None:
    save_model(model, tmp_path / "out", merged=merged, max_shard_bytes=max_shard_bytes)
    assert_same_weights(load_model(tmp_path / "out"), model)


def test_all_end_tokens_and_the_block_length_are_saved(model: BlockDiffusionLM, tmp_path: Path) -> None:
    changed = BlockDiffusionLM(replace(model.config, further_eos_token_ids=(5, 7), block_length=16))
    changed.load_state_dict(model.state_dict())
    save_model(changed, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (stored["eos_token_id"], stored["block_length"]) == ([2, 5, 7], 16)
    assert load_model(tmp_path / "out").config == changed.config


def test_the_published_layout_on_disk(folder: Path, model: BlockDiffusionLM) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(folder / "model.safetensors")
    expected = {"lm_head.weight", "model.norm.weight", "model.word_embeddings.weight"}
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        expected |= {f"{prefix}.attention.{n}.weight" for n in ("query_key_value", "dense")}
        expected |= {f"{prefix}.attention.{n}_layernorm.weight" for n in ("query", "key")}
        expected |= {f"{prefix}.{n}_layernorm.weight" for n in ("input", "post_attention")}
        homes = ["mlp"] if layer == 0 else ["mlp.shared_experts", *(f"mlp.experts.{e}" for e in range(8))]
        expected |= {f"{prefix}.{home}.{n}_proj.weight" for home in homes for n in ("gate", "up", "down")}
        if layer > 0:
            expected |= {f"{prefix}.mlp.gate.weight", f"{prefix}.mlp.gate.expert_bias"}
    assert tensors.keys() == expected
    stack = expert_stacks(model)[1].down_proj
    assert torch.equal(tensors["model.layers.2.mlp.experts.5.down_proj.weight"], stack[5])


def test_shards_and_their_index(model: BlockDiffusionLM, tmp_path: Path) -> None:
    save_model(model, tmp_path / "out", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    found: dict[str, str] = {}
    total = 0
    for file in files:
        tensors = load_file(tmp_path / "out" / file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 20_000
        total += size
        found |= dict.fromkeys(tensors, file)
    assert index == {"metadata": {"total_size": total}, "weight_map": found}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_take_the_dtype_asked_and_the_router_bias_stays_float32(
    folder: Path, model: BlockDiffusionLM, dtype: torch.dtype
) -> None:
    loaded = load_model(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.to(dtype))
    for found, expected in zip(routers(loaded), routers(model), strict=True):
        assert found.expert_bias.dtype == torch.float32
        assert torch.equal(found.expert_bias, expected.expert_bias)


def test_without_a_dtype_the_stored_one_is_kept(folder: Path, tmp_path: Path) -> None:
    half = load_model(folder, dtype=torch.bfloat16)
    save_model(half, tmp_path / "half")
    loaded = load_model(tmp_path / "half", dtype=None)
    assert loaded.dtype == torch.bfloat16
    assert_same_weights(loaded, half)
    assert load_model(folder, dtype=None).dtype == torch.float32


def test_every_tensor_is_aligned_to_its_items(build: Callable[..., BlockDiffusionLM], tmp_path: Path) -> None:
    model = build(vocab_size=49).to(torch.bfloat16)
    model.model.layers[0].input_layernorm.weight = torch.nn.Parameter(torch.ones(25, dtype=torch.bfloat16))
    for router in routers(model):
        router.expert_bias = router.expert_bias.float()
    model.lm_head.double()
    save_model(model, tmp_path / "mixed")
    content = (tmp_path / "mixed" / "model.safetensors").read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    assert header_bytes % 8 == 0
    header = json.loads(content[8 : 8 + header_bytes])
    sizes = {"F64": 8, "F32": 4, "BF16": 2}
    del header["__metadata__"]
    assert {entry["dtype"] for entry in header.values()} == sizes.keys()
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in header.values())
    tensors = load_file(tmp_path / "mixed" / "model.safetensors")
    assert all(torch.equal(tensors[name], t) for name, t in model.state_dict().items() if name in tensors)


def test_a_tied_head_is_stored_once_and_stays_tied(build: Callable[..., BlockDiffusionLM], tmp_path: Path) -> None:
    tied = build(tie_word_embeddings=True)
    save_model(tied, tmp_path / "tied")
    path = tmp_path / "tied" / "model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    assert_same_weights(load_model(tmp_path / "tied"), tied)
    save_file(tensors | {"lm_head.weight": torch.zeros(48, 24)}, path)  # a stale copy, as some writers leave it
    loaded = load_model(tmp_path / "tied")
    assert loaded.lm_head.weight is loaded.model.word_embeddings.weight
    assert_same_weights(loaded, tied)


def test_a_loaded_model_is_ready_for_both_uses(folder: Path) -> None:
    loaded = load_model(folder)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_hand_written_mix_of_layouts_loads(edit: Callable[..., Path], model: BlockDiffusionLM) -> None:
    def merge_one_projection(tensors: Tensors) -> None:
        names = [f"model.layers.1.mlp.experts.{e}.up_proj.weight" for e in range(8)]
        tensors["model.layers.1.mlp.experts.up_proj"] = torch.stack([tensors.pop(name) for name in names])

    assert_same_weights(load_model(edit(merge_one_projection)), model)


def test_stored_rotary_tables_are_passed_over(edit: Callable[..., Path], model: BlockDiffusionLM) -> None:
    folder = edit(lambda tensors: tensors.update({"model.rotary_emb.inv_freq": torch.ones(4)}))
    assert_same_weights(load_model(folder), model)


def test_every_difference_is_named_in_one_error(edit: Callable[..., Path]) -> None:
    def damage(tensors: Tensors) -> None:
        del tensors["model.norm.weight"]
        del tensors["model.layers.2.mlp.experts.3.up_proj.weight"]
        tensors["model.layers.0.attention.dense.bias"] = torch.zeros(24)
        tensors["model.layers.1.mlp.experts.8.gate_proj.weight"] = torch.zeros(16, 24)
        tensors["lm_head.weight"] = torch.zeros(24, 48)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(40, 24, dtype=torch.int8)

    with pytest.raises(CheckpointError) as raised:
        load_model(edit(damage))
    message = str(raised.value)
    assert "2 missing: " in message
    assert "model.norm.weight" in message
    assert "model.layers.2.mlp.experts.3.up_proj.weight" in message
    assert "2 unexpected: " in message
    assert "model.layers.0.attention.dense.bias" in message
    assert "model.layers.1.mlp.experts.8.gate_proj.weight" in message
    assert "1 of the wrong shape: lm_head.weight (is [24, 48], should be [48, 24])" in message
    assert "1 not floating-point: model.layers.0.mlp.up_proj.weight (is I8)" in message


def test_a_long_list_of_differences_names_them_all_by_their_ranges(edit: Callable[..., Path]) -> None:
    def drop_experts(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".experts." in name and "2.mlp.experts.5.up" not in name]:
            del tensors[name]

    with pytest.raises(CheckpointError) as raised:
        load_model(edit(drop_experts))
    for names in (
        "47 missing",
        "model.layers.{1-2}.mlp.experts.{0-7}.gate_proj.weight",
        "model.layers.1.mlp.experts.{0-7}.up_proj.weight",
        "model.layers.2.mlp.experts.{0-4,6-7}.up_proj.weight",
    ):
        assert names in str(raised.value)


def test_experts_stored_in_both_layouts_are_refused(edit: Callable[..., Path]) -> None:
    folder = edit(lambda tensors: tensors.update({"model.layers.1.mlp.experts.up_proj": torch.zeros(8, 16, 24)}))
    with pytest.raises(CheckpointError, match=r"8 unexpected: .*\.1\.mlp\.experts\.\{0-7\}\.up_proj\.weight"):
        load_model(folder)


def test_a_router_bias_may_only_be_absent_by_declaration(edit: Callable[..., Path]) -> None:
    folder = edit(lambda tensors: [tensors.pop(f"model.layers.{i}.mlp.gate.expert_bias") for i in (1, 2)])
    with pytest.raises(CheckpointError, match=r"2 missing: model\.layers\.\{1-2\}\.mlp\.gate\.expert_bias"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "moe_router_enable_expert_bias": False}))
    assert all(torch.equal(router.expert_bias, torch.zeros(8)) for router in routers(load_model(folder)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_a_dtype_that_is_no_float_is_refused(folder: Path, dtype: torch.dtype) -> None:
    with pytest.raises(CheckpointError, match="floating-point"):
        load_model(folder, dtype=dtype)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(CheckpointError, match=f"Device '{device}' cannot be used"):
        load_model(folder, device=device)


def test_an_occupied_folder_is_left_alone(model: BlockDiffusionLM, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(CheckpointError, match="is not empty"):
        save_model(model, tmp_path)
    with pytest.raises(CheckpointError, match="holds more than a checkpoint"):
        save_model(model, tmp_path, overwrite=True)
    with pytest.raises(CheckpointError, match="is a file"):
        save_model(model, tmp_path / "metrics.jsonl", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_old_checkpoint_is_replaced_whole(model: BlockDiffusionLM, folder: Path) -> None:
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    save_model(model, folder, overwrite=True, max_shard_bytes=20_000)
    assert not (folder / "model.safetensors").exists()
    assert_same_weights(load_model(folder), model)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(
    model: BlockDiffusionLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmax.models.checkpoint.write_config", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        save_model(model, folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_nothing_that_a_checkpoint_ships_is_run_or_unpickled(
    folder: Path, model: BlockDiffusionLM, tmp_path: Path
) -> None:
    trap = tmp_path / "sprung"
    script = f"from pathlib import Path\nPath({str(trap)!r}).touch()\n"
    for name in ("modeling_llada2_moe.py", "configuration_llada2_moe.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(script)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"lm_head.weight": torch.zeros(48, 24)}, folder / "pytorch_model.bin")
    assert_same_weights(load_model(folder), model)
    assert not trap.exists()


def test_pickled_weights_alone_are_refused(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"Pickled weights \(pytorch_model\.bin\) are never loaded"):
        load_model(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "brand-new"])
def test_weights_that_another_tool_quantised_are_recognised(
    folder: Path, edit: Callable[..., Path], method: str
) -> None:
    name = "model.layers.0.attention.dense"
    edit(lambda tensors: tensors.update({f"{name}.qweight": tensors.pop(f"{name}.weight").to(torch.int32)}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(CheckpointError, match=f"quantised by '?{method}.*dmax convert --quantize int8"):
        load_model(folder)


def test_a_format_of_a_later_version_is_recognised(folder: Path, edit: Callable[..., Path]) -> None:
    name = "model.layers.0.attention.dense"
    edit(lambda tensors: tensors.update({f"{name}.codes": tensors.pop(f"{name}.weight").to(torch.int32)}))
    config = json.loads((folder / "config.json").read_text())
    said = {"quantization_config": {"quant_method": "dmax", "weights": "int2"}}
    (folder / "config.json").write_text(json.dumps({**config, **said}))
    with pytest.raises(CheckpointError, match="in the format 'int2', of which this version knows fp8, int8, int4"):
        load_model(folder)


@pytest.mark.parametrize(
    ("ending", "tool"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("weight_packed", "compressed-tensors"),
        ("SCB", "bitsandbytes"),
        ("weight_scale_inv", "fp8"),
        ("W_q", "hqq"),
        ("scales", "MLX"),
    ],
)
def test_packed_weights_are_recognised_by_their_names(edit: Callable[..., Path], ending: str, tool: str) -> None:
    name = "model.layers.0.attention.dense"
    packed = edit(lambda tensors: tensors.update({f"{name}.{ending}": tensors.pop(f"{name}.weight").to(torch.int32)}))
    with pytest.raises(CheckpointError, match=f"quantised by {tool}, whose packing is not read"):
        load_model(packed)


@pytest.mark.parametrize("shape", ["scalar", "one", "column"])
def test_scales_may_be_one_for_a_weight_or_a_column(folder: Path, tmp_path: Path, shape: str) -> None:
    convert_checkpoint(folder, tmp_path / "int8", quantization=Quantization("int8"))
    path = tmp_path / "int8" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.attention.dense.weight_scale"
    largest = tensors[name].max()
    tensors[name] = {"scalar": largest, "one": largest[None], "column": tensors[name][:, None].clone()}[shape]
    save_file(tensors, path)
    found = load_model(tmp_path / "int8").state_dict()[name]
    expected = tensors[name].flatten()
    assert torch.equal(found, expected.expand_as(found))
