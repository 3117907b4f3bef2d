"""The kernels compiled for 64-bit ARM, run by an emulator: they give what they give on this processor."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmax.kernels import cpu

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
PROGRAM = Path(__file__).with_name("kernels_program.cpp")
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=fast", "-pthread", "-static", f"-I{Path(cpu.__file__).parent}")
PRODUCTS = 3 * 9 * 80
"""Numbers that the program writes first: sums of whole numbers, and in int4 of what is widened in a fixed order."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with x86"),
    *(pytest.mark.skipif(shutil.which(tool) is None, reason=f"needs {tool}") for tool in ("g++", COMPILER, EMULATOR)),
]


def written(folder: Path, compiler: str, processor: str, *before: str) -> Tensor:
    """Return what the program writes, compiled for a processor and started behind ``before``."""
    program = folder / processor
    subprocess.run([compiler, *FLAGS, f"-march={processor}", str(PROGRAM), "-o", str(program)], check=True)
    numbers = subprocess.run([*before, str(program)], check=True, capture_output=True, timeout=600).stdout
    return torch.frombuffer(bytearray(numbers), dtype=torch.float32)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return written(tmp_path_factory.mktemp("x86"), "g++", "native")


@pytest.mark.parametrize("processor", ["armv8-a", "armv8.2-a+dotprod"])
def test_arm_gives_the_same(processor: str, expected: Tensor, tmp_path: Path) -> None:
    found = written(tmp_path, COMPILER, processor, EMULATOR)
    assert expected.isfinite().all() and expected.abs().amax() > 0.1
    assert torch.equal(found[:PRODUCTS], expected[:PRODUCTS])
    torch.testing.assert_close(
        found[PRODUCTS:], expected[PRODUCTS:], rtol=2e-3, atol=2e-3 * float(expected.abs().amax())
    )
