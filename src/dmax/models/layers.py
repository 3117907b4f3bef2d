"""Normalisation, rotary position embedding and the dense feed-forward block.

Shape suffixes: B rows, T positions, D hidden, C head channels, R rotary channels, I inputs, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmax import kernels
from dmax.kernels.steps import Step
from dmax.models.packing import Packed, usable
from dmax.models.quantized import wide_weight


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32; the weight multiplies after casting back (algorithm.md#the-model)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self._norm, self._norm_of_sum = Step("norm"), Step("norm_of_sum")

    def forward(self, x: Tensor) -> Tensor:
        if kernels.usable(x):
            from dmax.kernels.norm import rms_norm as fused  # here, because it imports Triton

            return fused(x, self.weight, self.eps)
        if self._norm.usable(x, self.weight):
            return self._norm(x.view(-1, x.shape[-1]), self.weight)[0].view_as(x)
        return rms_norm(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``x + y``, and its norm."""
        if kernels.usable(x):
            from dmax.kernels.norm import add_rms_norm as fused

            return fused(x, y, self.weight, self.eps)
        if self._norm_of_sum.usable(x, self.weight):
            width = x.shape[-1]
            total, normed = self._norm_of_sum(x.view(-1, width), y.view(-1, width), self.weight)
            return total.view_as(x), normed.view_as(x)
        return add_rms_norm(x, y, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` over its root mean square in the last dimension, computed in float32 and cast back, times ``weight``."""
    x32 = x.float()
    return weight * (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + y``, and its norm."""
    total = x + y
    return total, rms_norm(total, weight, eps)


class Linear(nn.Linear):
    """A linear map without bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self._packed = Packed()

    def forward(self, x: Tensor) -> Tensor:
        if self._packed.on and usable(x, self.weight):
            return self._packed.linear(x, (self.weight,))
        return F.linear(x, self.weight)


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width)
        self.up_proj = Linear(hidden_size, width)
        self.down_proj = Linear(width, hidden_size)
        self._gate_up = Packed()
        self._gate = Step("gate")

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.gate_proj.weight, self.up_proj.weight)
        if self._gate_up.on and usable(x, *weights):
            gate_up = self._gate_up.linear(x, weights, self._both)
            if self._gate.usable(gate_up, gate_up):
                [hidden] = self._gate(gate_up.flatten(0, -2))
                return self.down_proj(hidden.unflatten(0, x.shape[:-1]))
            return self.down_proj(gate(gate_up))
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    def _both(self, dtype: torch.dtype) -> Tensor:
        """The gates, then the ups."""
        return torch.cat([wide_weight(self.gate_proj, dtype), wide_weight(self.up_proj, dtype)])


def gate(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of a tensor that holds both, the gates first: ``(..., 2 * W) -> (..., W)``."""
    gates, ups = gate_up.chunk(2, -1)
    return F.silu(gates) * ups


class RotaryTable(nn.Module):
    """Cosines and sines of the rotary angles, computed in float32 from the position ids of each call.

    Nothing is stored, so there is no buffer that meta-device loading could leave unset (algorithm.md#traps).
    """

    def __init__(self, rotary_dim: int, theta: float) -> None:
        super().__init__()
        self.rotary_dim = rotary_dim
        self.theta = theta
        self._angles = Step("angles")

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, T)`` int64 positions -> cosines and sines, each ``(B, 1, T, R)`` float32."""
        if self._angles.filled and self._angles.callable_on(position_ids):
            cos_BTR, sin_BTR = self._angles(position_ids)
        else:
            cos_BTR, sin_BTR = rotary_angles(position_ids, rotary_dim=self.rotary_dim, theta=self.theta)
        return cos_BTR[:, None], sin_BTR[:, None]


def rotary_angles(position_ids: Tensor, *, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, ``(B, T, R)`` float32 each, of ``(B, T)`` int64 positions."""
    exponents = torch.arange(0, rotary_dim, 2, device=position_ids.device, dtype=torch.float32)
    frequencies = 1.0 / (theta ** (exponents / rotary_dim))
    angles_BTR = (position_ids[:, :, None].float() * frequencies).repeat(1, 1, 2)
    return angles_BTR.cos(), angles_BTR.sin()


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
