"""Converting between expert layouts."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from dmax.models import BlockDiffusionLM, CheckpointError, load_model, save_model
from dmax.models.convert import Quantization, convert_checkpoint
from dmax.models.transformer import expert_stacks, routers


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
def half(model: BlockDiffusionLM) -> BlockDiffusionLM:
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
    half: BlockDiffusionLM, merged_first: bool, shard_bytes: tuple[int, int], tmp_path: Path
) -> None:
    save_model(half, tmp_path / "start", merged=merged_first, max_shard_bytes=shard_bytes[0])
    there, back = ("separate", "merged") if merged_first else ("merged", "separate")
    convert_checkpoint(tmp_path / "start", tmp_path / "there", there, max_shard_bytes=shard_bytes[1])
    convert_checkpoint(tmp_path / "there", tmp_path / "back", back)
    assert bits(tensors_of(tmp_path / "back")) == bits(tensors_of(tmp_path / "start"))
    assert tensors_of(tmp_path / "there").keys() != tensors_of(tmp_path / "start").keys()


def test_stacks_are_the_experts_in_order(folder: Path, model: BlockDiffusionLM, tmp_path: Path) -> None:
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


def test_a_dense_model_converts_to_itself(build: Callable[..., BlockDiffusionLM], tmp_path: Path) -> None:
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


KILLED = """
import os, signal, sys
from dmax.models.convert import Quantization, convert_checkpoint

def die(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

convert_checkpoint(
    sys.argv[1], sys.argv[2], quantization=Quantization("int8"), max_shard_bytes=int(sys.argv[3]), progress=die
)
"""
INT8 = Quantization("int8")
SHARD = 9_000


@pytest.fixture
def killed(folder: Path, tmp_path: Path) -> Path:
    """Where a conversion to int8 was killed half-way."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out"), str(SHARD)], check=False)
    assert done.returncode == -signal.SIGKILL
    return tmp_path / "out"


def test_a_killed_conversion_goes_on_where_it_was(killed: Path, folder: Path, tmp_path: Path) -> None:
    partial = killed.with_name(".out.partial")
    kept = {path.name: path.stat().st_ino for path in partial.glob("*.safetensors")}
    assert kept and not killed.exists()
    with pytest.raises(CheckpointError):
        load_model(partial)
    calls: list[tuple[int, int]] = []
    arguments = {"quantization": INT8, "max_shard_bytes": SHARD}
    errors = convert_checkpoint(folder, killed, progress=lambda *call: calls.append(call), **arguments)
    assert {name: (killed / name).stat().st_ino for name in kept} == kept, "what was whole was not written again"
    assert calls[-1][0] == calls[-1][1]
    expected = convert_checkpoint(folder, tmp_path / "at once", **arguments)
    assert errors == expected
    assert bits(tensors_of(killed)) == bits(tensors_of(tmp_path / "at once"))
    assert sorted(path.name for path in killed.iterdir()) == sorted(p.name for p in (tmp_path / "at once").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at once", "checkpoint", "out"]


@pytest.mark.parametrize("change", ["options", "source"])
def test_another_conversion_begins_anew(change: str, killed: Path, folder: Path) -> None:
    if change == "source":
        tensors = tensors_of(folder)
        save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1}, folder / "model.safetensors")
    quantization = Quantization("fp8") if change == "options" else INT8
    convert_checkpoint(folder, killed, quantization=quantization, max_shard_bytes=SHARD)
    other = killed.with_name("other")
    convert_checkpoint(folder, other, quantization=quantization, max_shard_bytes=SHARD)
    assert bits(tensors_of(killed)) == bits(tensors_of(other))


def test_a_full_disk_is_said_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**10))
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GiB more on the disk of .*, which has 0\.0 GiB free"):
        convert_checkpoint(folder, tmp_path / "out", "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_what_is_done_is_kept_when_writing_fails(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(CheckpointError, match=r"No space left on device; what is done is kept in .*\.out\.partial"):
            convert_checkpoint(folder, tmp_path / "out", "merged")
    assert (tmp_path / ".out.partial").is_dir()
    convert_checkpoint(folder, tmp_path / "out", "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]


def test_two_conversions_do_not_write_one_folder(folder: Path, tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".out.lock"),
        pytest.raises(CheckpointError, match=r"Another process is writing .*out: wait for it"),
    ):
        convert_checkpoint(folder, tmp_path / "out", "merged")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_memory_does_not_grow_with_the_checkpoint(
    weights: str, build: Callable[..., BlockDiffusionLM], tmp_path: Path
) -> None:
    save_model(
        build(hidden_size=1024, intermediate_size=64, moe_intermediate_size=512, num_experts=16, vocab_size=64),
        tmp_path / "wide",
    )
    size = (tmp_path / "wide" / "model.safetensors").stat().st_size
    assert size > 200 * 2**20
    script = f"""
import json, re, threading, time
from pathlib import Path
from dmax.models.convert import Quantization, convert_checkpoint

def own():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak = own()

def look(done, total):
    global peak
    peak = max(peak, own())

convert_checkpoint("wide", "small", quantization=Quantization({weights!r}), progress=look)
print(peak - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert int(done.stdout) < 0.4 * size
