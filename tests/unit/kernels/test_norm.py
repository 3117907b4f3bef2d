"""Norms and rotary embedding against the model's own."""

from __future__ import annotations

import pytest
import torch

from dmax.models.layers import RMSNorm, RotaryTable, apply_rotary


def build_norm(size: int, dtype: torch.dtype, generator: torch.Generator, device: torch.device) -> RMSNorm:
    norm = RMSNorm(size, 1e-6)
    norm.weight.data.normal_(1.0, 0.2, generator=generator)
    return norm.to(device, dtype)


def one_rounding(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2 * torch.finfo(dtype).eps}


@pytest.mark.parametrize("size", [24, 256, 2048])
def test_norm_and_norm_of_a_sum(
    size: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    from dmax.kernels.norm import add_rms_norm, rms_norm

    norm = build_norm(size, dtype, generator, device)
    x, y = (torch.randn(2, 3, size, generator=generator).to(device, dtype) for _ in range(2))
    expected_sum = x + y
    expected = norm(expected_sum)
    torch.testing.assert_close(rms_norm(x, norm.weight, norm.eps), norm(x), **one_rounding(dtype))
    total, normed = add_rms_norm(x, y, norm.weight, norm.eps)
    assert torch.equal(total, expected_sum)
    torch.testing.assert_close(normed, expected, **one_rounding(dtype))


@pytest.mark.parametrize(("channels", "rotary"), [(128, 64), (64, 32), (24, 12), (16, 16)])
def test_heads_are_normed_and_turned(
    channels: int, rotary: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    from dmax.kernels.rotary import normalize_and_rotate

    heads, kv_heads = 4, 2
    query_norm, key_norm = (build_norm(channels, dtype, generator, device) for _ in range(2))
    qkv = torch.randn(1, 5, heads + 2 * kv_heads, channels, generator=generator).to(device, dtype)
    cos, sin = RotaryTable(rotary, 10_000.0)(torch.tensor([[0, 1, 2, 40, 900]], device=device))
    weights = (query_norm.weight, key_norm.weight)
    q, k = normalize_and_rotate(qkv[0], *weights, cos[0, 0], sin[0, 0], heads, query_norm.eps)
    q_BHTC, k_BKTC, _ = qkv.transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    eps = torch.finfo(dtype).eps  # the model rounds after each of three steps, the kernel once
    for found, norm, part in ((q, query_norm, q_BHTC), (k, key_norm, k_BKTC)):
        expected = apply_rotary(norm(part), cos, sin)[0].transpose(0, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=16 * eps)


def test_keys_and_values_go_to_their_positions_and_nowhere_else(
    device: torch.device, generator: torch.Generator
) -> None:
    from dmax.kernels.rotary import LayerCache, normalize_and_rotate

    norm = build_norm(16, torch.float32, generator, device)
    qkv = torch.randn(4, 3 + 2 * 2, 16, generator=generator).to(device)
    cos, sin = RotaryTable(8, 10_000.0)(torch.arange(4, device=device)[None])
    keys, values = (torch.full((2, 12, 16), 7.0, device=device) for _ in range(2))
    writes = torch.tensor([10, 0, 3, 4], device=device)
    arguments = (qkv, norm.weight, norm.weight, cos[0, 0], sin[0, 0], 3, norm.eps)
    _, alone = normalize_and_rotate(*arguments)
    _, k = normalize_and_rotate(*arguments, LayerCache(keys, values, writes))
    assert torch.equal(k, alone)
    assert torch.equal(keys[:, writes], k.transpose(0, 1))
    assert torch.equal(values[:, writes], qkv[:, 5:].transpose(0, 1))
    others = [slot for slot in range(12) if slot not in writes]
    assert (keys[:, others] == 7.0).all() and (values[:, others] == 7.0).all()
