"""The compiled experts of a CPU: against the layer in float64, and every token as if it were alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.kernels.cpu.experts import CpuExperts, in_panels, serves

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Layer:
    """Random experts, the shared one's parts last, and tokens that were sent to ``chosen`` of the routed ones."""

    def __init__(
        self, dtype: torch.dtype, tokens: int, routed: int, chosen: int, shared: int, width: int, hidden: int
    ) -> None:
        generator = torch.Generator().manual_seed(tokens + hidden)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.dtype, self.routed, self.width = dtype, routed, width
        self.x_ND = draw(tokens, hidden).to(dtype)
        self.gate_up = (draw(routed + shared, 2 * width, hidden) / hidden**0.5).to(dtype)
        self.down = (draw(routed + shared, hidden, width) / width**0.5).to(dtype)
        picked = torch.rand(tokens, routed, generator=generator).topk(chosen).indices
        weights = 0.1 + torch.rand(tokens, chosen, generator=generator)
        self.weights_NE = torch.zeros(tokens, routed).scatter(1, picked, weights)

    def run(self, library: Path, rows: slice = slice(None)) -> Tensor:
        run = CpuExperts(library, self.dtype)
        return run(self.x_ND[rows], self.weights_NE[rows], in_panels(self.gate_up), in_panels(self.down))

    def expected(self) -> Tensor:
        x_ND = self.x_ND.double()
        total = torch.zeros_like(x_ND)
        for expert, (gate_up, down) in enumerate(zip(self.gate_up.double(), self.down.double(), strict=True)):
            gate, up = (x_ND @ gate_up.T).chunk(2, -1)
            weight = self.weights_NE[:, expert, None].double() if expert < self.routed else 1.0
            total += (F.silu(gate) * up * weight) @ down.T
        return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7, 32, 150])
@pytest.mark.parametrize(
    ("routed", "chosen", "shared", "width", "hidden"),
    [(8, 2, 1, 96, 256), (4, 2, 1, 16, 32), (6, 1, 0, 48, 80), (16, 4, 3, 32, 64)],
)
def test_it_is_the_sum_of_the_chosen_and_the_shared(
    cpu_library: Path, dtype: torch.dtype, tokens: int, routed: int, chosen: int, shared: int, width: int, hidden: int
) -> None:
    layer = Layer(dtype, tokens, routed, chosen, shared, width, hidden)
    found = layer.run(cpu_library).double()
    torch.testing.assert_close(found, layer.expected(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_gets_the_same_bits_alone_and_among_others(cpu_library: Path, dtype: torch.dtype) -> None:
    layer = Layer(dtype, 200, 8, 2, 1, 96, 256)
    together = layer.run(cpu_library)
    for rows in (slice(0, 1), slice(5, 38), slice(100, 200)):
        assert torch.equal(layer.run(cpu_library, rows), together[rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_gates_are_finite(cpu_library: Path, dtype: torch.dtype) -> None:
    layer = Layer(dtype, 8, 4, 2, 1, 16, 32)
    layer.x_ND *= 1e4
    found = layer.run(cpu_library).double()
    assert found.isfinite().all()
    torch.testing.assert_close(found, layer.expected(), rtol=0.05, atol=0.02 * float(layer.expected().abs().max()))


def test_what_it_is_not_written_for() -> None:
    assert serves(256, 96, 96, torch.bfloat16) and serves(256, 96, 0, torch.float32)
    assert not serves(250, 96, 96, torch.float32)
    assert not serves(256, 90, 90, torch.float32)
    assert not serves(256, 96, 96, torch.float16)
