"""The grouped experts against each expert run by itself in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dmax.kernels.routing import Routing

EXPERTS, HIDDEN, WIDTH = 6, 72, 40

LOADS = {
    "scattered": lambda n, g: torch.rand(n, EXPERTS, generator=g).topk(2).indices,
    "all tokens to two experts": lambda n, g: torch.tensor([[4, 1]]).repeat(n, 1),
    "one token apart": lambda n, g: torch.tensor([[0, 5]] + [[2, 3]] * (n - 1)),
}


def slow(x: Tensor, experts: Tensor, weights: Tensor, routed: tuple[Tensor, ...], shared: list[Tensor]) -> Tensor:
    gate, up, down = (stack.double() for stack in routed)
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, row in enumerate(x.cpu().double()):
        for expert, weight in zip(experts[token].tolist(), weights[token].tolist(), strict=True):
            gated = gate[expert] @ row
            out[token] += weight * (down[expert] @ (gated * gated.sigmoid() * (up[expert] @ row)))
        if shared:
            gated = shared[0].double() @ row
            out[token] += shared[2].double() @ (gated * gated.sigmoid() * (shared[1].double() @ row))
    return out


def routing_of(experts_NA: Tensor, weights_NA: Tensor, num_experts: int) -> Routing:
    """The lists that the router kernel makes beside its choices."""
    from dmax.kernels.routing import Routing

    chosen_EM = experts_NA.flatten() == torch.arange(num_experts, device=experts_NA.device)[:, None]
    first_EM = (~chosen_EM).to(torch.int32).sort(dim=1, stable=True).indices.to(torch.int32)
    assignments_EN = first_EM[:, : experts_NA.shape[0]].contiguous()
    loads_E = chosen_EM.sum(1, dtype=torch.int32)
    return Routing(experts_NA.to(torch.int32), weights_NA.float(), loads_E, assignments_EN)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator) * 0.2


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Twice the rounding of the three tensors that the kernels hand on, at values of a few units."""
    return {"rtol": 0, "atol": 2e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps}


@pytest.mark.parametrize(
    ("load", "num_shared", "tokens_first"),
    [
        (LOADS["scattered"], 0, True),
        (LOADS["scattered"], 2, False),
        (LOADS["all tokens to two experts"], 1, True),
        (LOADS["one token apart"], 1, False),
    ],
)
def test_experts_are_those_run_one_by_one(
    load, num_shared: int, tokens_first: bool, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:  # type: ignore[no-untyped-def]
    from dmax.kernels.experts import Stack, run_experts
    from dmax.kernels.tiles import Tile

    tokens = 21  # more than one tile of 16
    x = draw(generator, tokens, HIDDEN).to(dtype) * 5
    shapes = ((EXPERTS, WIDTH, HIDDEN), (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH))
    routed = tuple(draw(generator, *shape).to(dtype) for shape in shapes)
    total = num_shared * WIDTH
    shared = [draw(generator, *shape).to(dtype) for shape in ((total, HIDDEN), (total, HIDDEN), (HIDDEN, total))]
    experts = load(tokens, generator)
    weights = torch.rand(tokens, 2, generator=generator) + 0.5

    gate, up, down = (tensor.to(device) for tensor in shared)
    shared_stack = Stack(
        gate.view(num_shared, WIDTH, HIDDEN),
        up.view(num_shared, WIDTH, HIDDEN),
        down.view(HIDDEN, num_shared, WIDTH).transpose(0, 1),
    )
    tile = Tile(16, 32, 32, 4, 2, tokens_first)
    found = run_experts(
        x.to(device),
        routing_of(experts.to(device), weights.to(device), EXPERTS),
        Stack(*(stack.to(device) for stack in routed)),
        shared_stack if num_shared else None,
        (tile, tile),
    )
    assert found.dtype == dtype
    expected = slow(x, experts, weights, routed, shared if num_shared else [])
    torch.testing.assert_close(found.cpu().double(), expected, **tolerance(dtype))


def test_programs_that_share_an_expert_cover_all_its_tokens(device: torch.device, generator: torch.Generator) -> None:
    from dmax.kernels.experts import Stack, run_experts
    from dmax.kernels.tiles import Tile

    x = draw(generator, 70, HIDDEN).to(device)
    shapes = ((EXPERTS, WIDTH, HIDDEN), (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH))
    stack = Stack(*(draw(generator, *shape).to(device) for shape in shapes))
    routing = routing_of(torch.tensor([[3, 0]]).repeat(70, 1), torch.ones(70, 2), EXPERTS)
    routing = type(routing)(*(tensor.to(device) for tensor in vars(routing).values()))
    alone = Tile(16, 32, 32, 4, 2)
    several = Tile(16, 32, 32, 4, 2, shares=3)
    one, other = (run_experts(x, routing, stack, stack, (tile, tile)) for tile in (alone, several))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_default_tiles_serve_any_number_of_tokens(device: torch.device, generator: torch.Generator) -> None:
    from dmax.kernels.experts import Stack, run_experts

    shapes = ((EXPERTS, WIDTH, HIDDEN), (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH))
    routed = tuple(draw(generator, *shape) for shape in shapes)
    for tokens in (1, 130):
        x = draw(generator, tokens, HIDDEN)
        experts = LOADS["scattered"](tokens, generator)
        weights = torch.rand(tokens, 2, generator=generator)
        routing = routing_of(experts.to(device), weights.to(device), EXPERTS)
        found = run_experts(x.to(device), routing, Stack(*(stack.to(device) for stack in routed)))
        expected = slow(x, experts, weights, routed, [])
        torch.testing.assert_close(found.cpu().double(), expected, **tolerance(torch.float32))


@pytest.mark.parametrize(("eight_bit", "shared_too"), [(torch.float8_e4m3fn, True), (torch.int8, False)])
def test_eight_bit_experts_are_their_dequantised_selves(
    eight_bit: torch.dtype, shared_too: bool, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    from dmax.kernels.experts import Stack, run_experts
    from dmax.models.quantized import dequantize, quantize, scales_of

    shapes = ((EXPERTS, WIDTH, HIDDEN), (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH))
    whole = [draw(generator, *shape) * torch.logspace(-1, 0.5, shape[1])[:, None] for shape in shapes]
    scales = [scales_of(weight, eight_bit) for weight in whole]
    small = [quantize(weight, scale, eight_bit) for weight, scale in zip(whole, scales, strict=True)]
    rounded = [dequantize(weight, scale, torch.float32) for weight, scale in zip(small, scales, strict=True)]
    plain_shared = [draw(generator, 1, *shape[1:]).to(dtype) for shape in shapes]

    x = draw(generator, 18, HIDDEN).to(dtype)
    experts = LOADS["scattered"](18, generator)
    weights = torch.rand(18, 2, generator=generator)
    routing = routing_of(experts.to(device), weights.to(device), EXPERTS)
    routed = Stack(*(tensor.to(device) for tensor in (*small, *scales)))
    first = Stack(*(tensor[:1].to(device) for tensor in (*small, *scales)))
    other = Stack(*(tensor.to(device) for tensor in plain_shared))
    found = run_experts(x.to(device), routing, routed, first if shared_too else other)
    shared = [tensor[0] for tensor in (rounded if shared_too else plain_shared)]
    expected = slow(x, experts, weights, tuple(rounded), shared)
    torch.testing.assert_close(found.cpu().double(), expected, **tolerance(dtype))


@pytest.mark.parametrize("eight_bit", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 40, 24), (37, 300, 70)])
def test_an_eight_bit_linear_layer_is_its_dequantised_self(
    eight_bit: torch.dtype,
    tokens: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    from dmax.kernels.linear import scaled_linear
    from dmax.models.quantized import dequantize, quantize, scales_of

    weight = draw(generator, outputs, inputs)
    scale = scales_of(weight, eight_bit)
    small = quantize(weight, scale, eight_bit)
    x = draw(generator, tokens, inputs).to(dtype)
    found = scaled_linear(x.to(device), small.to(device), scale.to(device))
    expected = x.double() @ dequantize(small, scale, torch.float32).double().T
    torch.testing.assert_close(found.cpu().double(), expected, **tolerance(dtype))
