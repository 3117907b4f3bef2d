"""Products with weights in 8 and 4 bits on a CPU: against the definition, row by row, and for lesser processors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.engine.backends.cpu_modules import int8_linear, weigh_experts
from dmax.kernels.cpu.quantized import CpuQuantized, Expert, Matrix, router_panels, serves
from dmax.models.moe import BlockLimit, RoutingRule
from dmax.models.quantized import dequantize, pack, quantize, scales_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

FORMATS = (0, 32, 64)
"""int8, and groups of int4."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(group: int, *shape: int, seed: int = 0) -> Matrix:
    """Random weights of about unit gain."""
    weight = draw(*shape, seed=seed) / shape[-1] ** 0.5
    if not group:
        scale = scales_of(weight, torch.int8)
        return Matrix(quantize(weight, scale, torch.int8), scale)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 16, (*shape[:-1], shape[-1] // group, group), generator=generator)
    scale = (0.1 + torch.rand(levels.shape[:-1], generator=generator)) / (4 * shape[-1] ** 0.5)
    zero = torch.randint(4, 12, levels.shape[:-1], generator=generator).float()
    return Matrix(pack(levels), torch.stack([scale, zero], -1).bfloat16())


def rounded(x: Tensor) -> Tensor:
    """Rows as the kernel multiplies them."""
    scale = scales_of(x, torch.int8)
    return quantize(x, scale, torch.int8).double() * scale[..., None]


def wide(matrix: Matrix) -> Tensor:
    return dequantize(matrix.weight, matrix.scale, torch.float64)


def kernel(library: Path, dtype: torch.dtype = torch.float32) -> CpuQuantized:
    return CpuQuantized(library, dtype)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 33, 100])
@pytest.mark.parametrize("inputs", [128, 640, 2048])
def test_int8_is_the_modules_whole_number_arithmetic(cpu_library: Path, rows: int, inputs: int) -> None:
    weights, x = matrix(0, 80, inputs), draw(rows, inputs, seed=1) * torch.logspace(-3, 3, rows)[:, None]
    assert torch.equal(kernel(cpu_library).linear(x, weights), int8_linear(x, *weights))


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 33])
@pytest.mark.parametrize("inputs", [128, 640, 2048])  # 640: groups that fill no vector
def test_int4_is_the_product_of_rounded_rows(cpu_library: Path, group: int, rows: int, inputs: int) -> None:
    weights, x = matrix(group, 80, inputs), draw(rows, inputs, seed=1)
    found = kernel(cpu_library).linear(x, weights)
    torch.testing.assert_close(found.double(), rounded(x) @ wide(weights).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gets_the_same_bits_alone_and_among_others(cpu_library: Path, group: int, dtype: torch.dtype) -> None:
    weights, x = matrix(group, 144, 512), draw(61, 512, seed=2).to(dtype)
    run = kernel(cpu_library, dtype)
    together = run.linear(x, weights)
    assert together.dtype == dtype
    for row in range(61):
        assert torch.equal(run.linear(x[row], weights), together[row])


@pytest.mark.parametrize("group", FORMATS)
def test_what_is_not_finite_stays_in_its_row(cpu_library: Path, group: int) -> None:
    weights, x = matrix(group, 32, 256), draw(4, 256)
    x[1, 7], x[2, 9], x[3] = float("nan"), float("inf"), 0.0
    found = kernel(cpu_library).linear(x, weights)
    assert torch.equal(found[0], kernel(cpu_library).linear(x[0], weights))
    assert not found[1:3].isfinite().any() and torch.equal(found[3], torch.zeros(32))


@pytest.mark.parametrize("group", FORMATS)
def test_lesser_processors_get_the_same_bits(cpu_library: Path, narrow_libraries: dict[str, Path], group: int) -> None:
    """Without instructions that multiply and add at once, int4's sums are rounded once more."""
    weights, x = matrix(group, 80, 640), draw(9, 640, seed=3)
    expected = kernel(cpu_library).linear(x, weights)
    for name, library in narrow_libraries.items():
        found = kernel(library).linear(x, weights)
        if group and name == "x86-64-v2":
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(found, expected), name


class Layer:
    """Quantised experts, a shared one of another width, and tokens with their weights."""

    def __init__(self, group: int, shared: int | None, tokens: int, routed: int = 12, chosen: int = 3) -> None:
        hidden, width = 256, 128
        self.routed = self._expert(group, hidden, width, routed)
        self.shared = None if shared is None else self._expert(shared, hidden, 2 * width)
        self.x_ND = draw(tokens, hidden, seed=5)
        generator = torch.Generator().manual_seed(tokens)
        picked = torch.rand(tokens, routed, generator=generator).topk(chosen).indices
        weights = 0.1 + torch.rand(tokens, chosen, generator=generator)
        self.weights_NE = torch.zeros(tokens, routed).scatter(1, picked, weights)

    @staticmethod
    def _expert(group: int, hidden: int, width: int, *stack: int) -> Expert:
        shapes = ((width, hidden), (width, hidden), (hidden, width))
        return Expert(*(matrix(group, *stack, *shape, seed=seed) for seed, shape in enumerate(shapes)))

    def run(self, library: Path, rows: slice = slice(None)) -> Tensor:
        return kernel(library).experts(self.x_ND[rows], self.weights_NE[rows], self.routed, self.shared)

    def expected(self) -> Tensor:
        total, x_ND = torch.zeros_like(self.x_ND, dtype=torch.float64), rounded(self.x_ND)
        experts = [
            (*(wide(Matrix(each.weight[index], each.scale[index])) for each in self.routed), self.weights_NE[:, index])
            for index in range(self.weights_NE.shape[1])
        ]
        if self.shared is not None:
            experts.append((*map(wide, self.shared), torch.ones(len(x_ND))))
        for gate, up, down, weights_N in experts:
            hidden = F.silu(x_ND @ gate.T) * (x_ND @ up.T)
            total += weights_N[:, None] * (rounded(hidden.float()) @ down.T)
        return total


@pytest.mark.parametrize("group", FORMATS)
@pytest.mark.parametrize("shared", [None, 0, 64])
@pytest.mark.parametrize("tokens", [1, 7, 120])
def test_experts_are_the_sum_of_the_chosen_and_the_shared(
    cpu_library: Path, group: int, shared: int | None, tokens: int
) -> None:
    layer = Layer(group, shared, tokens)
    found, expected = layer.run(cpu_library).double(), layer.expected()
    # Where a hidden value lies between two of 8 bits, it may be rounded the other way.
    assert (found - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("group", FORMATS)
def test_a_token_gets_the_same_bits_from_experts_alone_and_among_others(cpu_library: Path, group: int) -> None:
    layer = Layer(group, 0, 150)
    together = layer.run(cpu_library)
    for rows in (slice(0, 1), slice(5, 38), slice(100, 150)):
        assert torch.equal(layer.run(cpu_library, rows), together[rows])


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("limit", [None, BlockLimit(9, 8)])
def test_routing_is_that_of_the_modules(cpu_library: Path, softmax: bool, limit: BlockLimit | None) -> None:
    rule = RoutingRule(4, 2, 3, 2.5, softmax)
    x_ND, router_ED, bias_E = draw(29, 64, seed=6), draw(32, 64, seed=7), draw(32, seed=8) / 10
    run = kernel(cpu_library)
    found_NE = run.route(x_ND, router_panels(router_ED), bias_E, rule, limit)
    expected_NE = weigh_experts(x_ND, router_ED, bias_E, rule, limit)
    assert torch.equal(found_NE != 0, expected_NE != 0)
    torch.testing.assert_close(found_NE, expected_NE)
    for rows in (slice(0, 8), slice(16, 29)):  # whole blocks
        assert torch.equal(run.route(x_ND[rows], router_panels(router_ED), bias_E, rule, limit), found_NE[rows])


def test_what_it_is_not_written_for() -> None:
    assert all(serves(*matrix(group, 32, 128)) for group in FORMATS)
    assert not serves(torch.zeros(32, 100, dtype=torch.int8), torch.ones(32))
    assert not serves(torch.zeros(30, 128, dtype=torch.int8), torch.ones(30))
    assert not serves(torch.zeros(32, 128, dtype=torch.float8_e4m3fn), torch.ones(32))
    assert not serves(torch.zeros(32, 128), None)
