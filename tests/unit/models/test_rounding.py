"""Four bits: levels, scales and zero points."""

from __future__ import annotations

import pytest
import torch

from dmax.models.quantized import Scheme, dequantize, pack, unpack
from dmax.models.rounding import round_rows


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def test_bytes_hold_the_halves_of_a_group() -> None:
    levels = torch.arange(64).view(1, 2, 32) % 16
    packed = pack(levels)
    assert packed.shape == (1, 32) and packed.dtype == torch.uint8
    assert packed[0, :3].tolist() == [0 | 0 << 4, 1 | 1 << 4, 2 | 2 << 4]
    low, high = levels[0, 1, 0].item(), levels[0, 1, 16].item()
    assert packed[0, 16].item() == low | high << 4
    assert torch.equal(unpack(packed, 2), levels.to(torch.uint8))


@pytest.mark.parametrize("group", [32, 64])
def test_rounding_errs_by_half_a_level_at_most(group: int) -> None:
    weight = draw(7, 192) * torch.logspace(-6, 2, 7)[:, None]
    weight[2, :64] = 0.0
    weight[3, :64] = weight[3, :64].abs() + 1.0  # zero is not among them
    rounded = round_rows(weight, Scheme("int4", group))
    assert rounded.weight.shape == (7, 96) and rounded.scale.shape == (7, 192 // group, 2)
    wide = dequantize(rounded.weight, rounded.scale, torch.float32)
    assert torch.equal(wide[2, :64], torch.zeros(64))
    groups = weight.unflatten(-1, (-1, group))
    level = (groups.amax(-1).clamp_min(0) - groups.amin(-1).clamp_max(0)) / 15
    error = (wide - weight).unflatten(-1, (-1, group)).abs()
    # In bfloat16 a scale may be 0.4 % too small, which is 6 % of a level at the end of 15.
    assert (error <= 0.57 * level[..., None] + 1e-12).all()
    squares = (wide - weight).double().square().sum().item(), weight.double().square().sum().item()
    assert (rounded.error_squares, rounded.weight_squares) == pytest.approx(squares, rel=1e-4)


def test_the_search_errs_less() -> None:
    weight = draw(64, 256) * 0.02
    errors = {
        (group, method): round_rows(weight, Scheme("int4", group), method).error_squares
        for group in (32, 64)
        for method in ("nearest", "search")
    }
    assert errors[64, "search"] < 0.9 * errors[64, "nearest"]
    assert errors[32, "search"] < 0.9 * errors[32, "nearest"]
    assert errors[32, "nearest"] < errors[64, "nearest"]


@pytest.mark.parametrize("method", ["nearest", "search"])
def test_evenly_spaced_weights_are_kept(method: str) -> None:
    weight = (torch.arange(64) % 16 - 4).float().view(1, 64) * 0.5
    rounded = round_rows(weight, Scheme("int4", 32), method)  # type: ignore[arg-type]
    assert torch.equal(dequantize(rounded.weight, rounded.scale, torch.float32), weight)
    assert rounded.error_squares == 0


def test_what_is_rounded_stays_as_it_was() -> None:
    weight = draw(4, 64)
    before = weight.clone()
    for scheme in (Scheme("int4", 32), Scheme("int8"), Scheme("fp8")):
        round_rows(weight, scheme)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("scheme", [Scheme("int4", 32), Scheme("int8"), Scheme("fp8")])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_noticed(scheme: Scheme, value: float) -> None:
    weight = draw(4, 64)
    assert round_rows(weight, scheme).is_finite
    weight[2, 40] = value
    assert not round_rows(weight, scheme).is_finite
