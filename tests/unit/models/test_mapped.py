"""Weights that stay in their files: what a process has of its own, and what it computes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dmax.models import BlockDiffusionLM, load_model, save_model
from dmax.models.convert import Quantization, convert_checkpoint

needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
OWN = """
import json, sys
from pathlib import Path
from dmax.models import load_model

def own():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

before = own()
model = load_model(sys.argv[1], mapped=sys.argv[2] == "mapped")
quantized = [tensor for tensor in model.state_dict().values() if not tensor.is_floating_point()]
read = sum(int(tensor.flatten()[::1024].sum()) for tensor in quantized)
print(json.dumps([own() - before, read]))
"""


@pytest.fixture
def sizeable(build: Callable[..., BlockDiffusionLM], tmp_path: Path) -> Path:
    """A checkpoint of 130 MiB in float32, nearly all of it experts."""
    shape = {"hidden_size": 512, "intermediate_size": 64, "moe_intermediate_size": 1344, "head_dim": 16}
    save_model(build(**shape), tmp_path / "wide")
    return tmp_path / "wide"


@needs_smaps
@pytest.mark.parametrize("weights", ["int8", "fp8", "int4"])
def test_a_process_has_next_to_nothing_of_mapped_weights_to_itself(
    weights: str, sizeable: Path, tmp_path: Path
) -> None:
    quantization = Quantization(weights)  # type: ignore[arg-type]
    convert_checkpoint(sizeable, tmp_path / "small", quantization=quantization)
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert size > 2**24

    def own(how: str) -> tuple[int, int]:
        command = [sys.executable, "-c", OWN, str(tmp_path / "small"), how]
        done = subprocess.run(command, capture_output=True, check=True)
        anonymous, read = json.loads(done.stdout)
        return anonymous, read

    (mapped, read), (copied, same) = own("mapped"), own("copied")
    assert read == same
    assert copied > 0.9 * size
    assert mapped < 0.1 * size


@pytest.mark.parametrize("weights", ["int8", "fp8", "int4"])
def test_mapped_and_copied_weights_compute_the_same(
    weights: str, build: Callable[..., BlockDiffusionLM], tmp_path: Path
) -> None:
    save_model(build(hidden_size=64, intermediate_size=128, moe_intermediate_size=32, head_dim=16), tmp_path / "whole")
    quantization = Quantization(weights, embeddings="int8")  # type: ignore[arg-type]
    convert_checkpoint(tmp_path / "whole", tmp_path / "small", quantization=quantization)
    ids = torch.arange(3, 40)[None]
    logits = [load_model(tmp_path / "small", mapped=mapped).logits(ids) for mapped in (False, True)]
    assert torch.equal(*logits)


def test_writing_to_mapped_weights_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder, mapped=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before
    other = load_model(folder)
    assert torch.equal(model.lm_head.weight, other.lm_head.weight + 1.0)


def test_what_has_to_change_is_copied(folder: Path) -> None:
    mapped, copied = (load_model(folder, dtype=torch.bfloat16, mapped=mapped) for mapped in (True, False))
    assert {tensor.dtype for tensor in mapped.parameters()} == {torch.bfloat16}
    for name, tensor in mapped.state_dict().items():
        assert torch.equal(tensor, copied.state_dict()[name])


def test_router_biases_that_no_file_holds_are_zero(build: Callable[..., BlockDiffusionLM], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(build(), tmp_path / "whole")
    path = tmp_path / "whole" / "model.safetensors"
    save_file({name: t for name, t in load_file(path).items() if not name.endswith("expert_bias")}, path)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    (tmp_path / "whole" / "config.json").write_text(json.dumps({**config, "moe_router_enable_expert_bias": False}))
    model = load_model(tmp_path / "whole", mapped=True)
    assert not any(value.any() for name, value in model.state_dict().items() if name.endswith("expert_bias"))
