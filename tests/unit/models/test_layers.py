"""Norm, rotary embedding and feed-forward, against their formulas in float64."""

from __future__ import annotations

import math

import torch

from dmax.models.layers import RMSNorm, RotaryTable, SwiGLU, apply_rotary


def test_rms_norm_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 16, generator=generator) * 3
    norm = RMSNorm(16, eps=0.1)
    norm.weight.data.normal_(generator=generator)
    x64 = x.double()
    expected = norm.weight.double() * x64 / (x64.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_rms_norm_computes_in_float32_and_multiplies_after_the_cast_back() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(64, 32, generator=generator) * 100).bfloat16()
    norm = RMSNorm(32, eps=1e-6).bfloat16()
    norm.weight.data.normal_(generator=generator)
    x32 = x.float()
    scaled = (x32 / (x32.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), norm.weight * scaled)


def test_rotary_turns_each_pair_by_its_own_angle_and_leaves_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    rotary_dim, theta = 6, 100.0
    x = torch.randn(1, 2, 3, 10, generator=generator)
    positions = torch.tensor([[0, 5, 1000]])
    turned = apply_rotary(x, *RotaryTable(rotary_dim, theta)(positions))
    half = rotary_dim // 2
    for head in range(2):
        for index, position in enumerate(positions[0].tolist()):
            for pair in range(half):
                angle = position * theta ** (-2 * pair / rotary_dim)
                a, b = x[0, head, index, pair].item(), x[0, head, index, pair + half].item()
                expected = (a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle))
                found = (turned[0, head, index, pair].item(), turned[0, head, index, pair + half].item())
                assert math.isclose(found[0], expected[0], abs_tol=2e-4)
                assert math.isclose(found[1], expected[1], abs_tol=2e-4)
    assert torch.equal(turned[..., rotary_dim:], x[..., rotary_dim:])


def test_rotary_angles_are_float32_whatever_the_model_computes_in() -> None:
    cos, sin = RotaryTable(8, 600_000.0).bfloat16()(torch.tensor([[30_000]]))
    assert cos.dtype == sin.dtype == torch.float32
    frequencies = torch.tensor([600_000.0 ** (-2 * pair / 8) for pair in range(4)], dtype=torch.float64)
    torch.testing.assert_close(cos[0, 0, 0, :4].double(), (30_000 * frequencies).cos(), rtol=0, atol=5e-3)


def test_swiglu_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = SwiGLU(6, 10)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    x = torch.randn(4, 6, generator=generator)
    gate, up, down = (p.weight.double() for p in (layer.gate_proj, layer.up_proj, layer.down_proj))
    gated = x.double() @ gate.T
    expected = (gated * torch.sigmoid(gated) * (x.double() @ up.T)) @ down.T
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
