"""Normalisation, rotary position embedding and the dense feed-forward block.

Shape suffixes: B rows, T positions, D hidden, C head channels, R rotary channels, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmax.models.rotary_scaling import scaled_frequencies


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32; the weight multiplies after casting back (algorithm.md#the-model)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide ``x`` by its root mean square in the last dimension, in float32, cast back, and multiply by ``weight``."""
    x32 = x.float()
    return weight * (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class Linear(nn.Linear):
    """A linear map, by default without bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width)
        self.up_proj = Linear(hidden_size, width)
        self.down_proj = Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RotaryTable(nn.Module):
    """Cosines and sines of the rotary angles, computed in float32 from the position ids of each call.

    Nothing is stored, so there is no buffer that meta-device loading could leave unset (algorithm.md#traps).
    """

    def __init__(self, rotary_dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.rotary_dim = rotary_dim
        self.theta = theta
        self.scaling = scaling

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute ``(B, T)`` int64 positions -> cosines and sines, each ``(B, 1, T, R)`` float32."""
        cos_BTR, sin_BTR = rotary_angles(
            position_ids, rotary_dim=self.rotary_dim, theta=self.theta, scaling=self.scaling
        )
        return cos_BTR[:, None], sin_BTR[:, None]


def rotary_angles(
    position_ids: Tensor, *, rotary_dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines of the rotary angles, ``(B, T, R)`` float32 each, of ``(B, T)`` int64 positions."""
    exponents = torch.arange(0, rotary_dim, 2, device=position_ids.device, dtype=torch.float32)
    frequencies, factor = 1.0 / (theta ** (exponents / rotary_dim)), 1.0
    if scaling is not None:
        frequencies, factor = scaled_frequencies(frequencies, rotary_dim, theta, scaling)
    angles_BTR = (position_ids[:, :, None].float() * frequencies).repeat(1, 1, 2)
    cos_BTR, sin_BTR = angles_BTR.cos(), angles_BTR.sin()
    return (cos_BTR, sin_BTR) if factor == 1.0 else (cos_BTR * factor, sin_BTR * factor)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R channels of every head (half-split pairs), leaving the others as they are.

    Args:
        x: ``(..., C)``.
        cos, sin: ``(..., R)`` tables of :class:`RotaryTable` that broadcast over the heads.
    """
    rotary_dim = cos.shape[-1]
    half = rotary_dim // 2
    first, second = x[..., :half], x[..., half:rotary_dim]
    cos, sin = cos[..., :half].to(x.dtype), sin[..., :half].to(x.dtype)
    turned_first = torch.addcmul(first * cos, second, sin, value=-1)
    turned_second = torch.addcmul(second * cos, first, sin)
    return torch.cat([turned_first, turned_second, x[..., rotary_dim:]], -1)
