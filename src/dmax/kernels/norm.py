"""RMSNorm, alone and together with the residual addition before it.

Shape suffixes: N rows, D channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return ``weight * (x / rms(x))`` over the last dimension, the quotient in ``x``'s dtype (algorithm.md#the-model).

    Args:
        x: ``(..., D)``, in rows of equal distance, such as a slice of a wider contiguous tensor.
        weight_D: in the dtype of ``x``.
        eps: added to the mean square.
    """
    x_ND = x.view(-1, x.shape[-1])
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _rms_norm[(x_ND.shape[0],)](
        x_ND, x_ND, x_ND, weight_D, out, x_ND.stride(0), eps,
        D=x.shape[-1], ADD=False, **_launch(x.shape[-1]),
    )  # fmt: skip
    return out


def add_rms_norm(x: Tensor, y: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute ``x + y`` and its :func:`rms_norm`; both contiguous, ``(..., D)``."""
    total, out = torch.empty_like(x), torch.empty_like(x)
    size = x.shape[-1]
    _rms_norm[(x.numel() // size,)](x, y, total, weight_D, out, size, eps, D=size, ADD=True, **_launch(size))
    return total, out


def _launch(size: int) -> dict[str, int]:
    block_d = triton.next_power_of_2(size)
    return {"BLOCK_D": block_d, "num_warps": max(1, min(8, block_d // 256))}


@triton.jit
def _rms_norm(
    x_ptr, y_ptr, total_ptr, weight_ptr, out_ptr, row_stride, eps,
    D: tl.constexpr, ADD: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d_D = tl.arange(0, BLOCK_D)
    has_D = d_D < D
    x_D = tl.load(x_ptr + row * row_stride + d_D, mask=has_D, other=0.0)
    if ADD:
        y_D = tl.load(y_ptr + row * row_stride + d_D, mask=has_D, other=0.0)
        x_D = (x_D.to(tl.float32) + y_D.to(tl.float32)).to(x_D.dtype)
        tl.store(total_ptr + row * row_stride + d_D, x_D, mask=has_D)
    wide_D = x_D.to(tl.float32)
    scaled_D = wide_D * tl.rsqrt(tl.sum(wide_D * wide_D, axis=0) / D + eps)
    weight_D = tl.load(weight_ptr + d_D, mask=has_D, other=0.0)
    out_D = scaled_D.to(x_D.dtype).to(tl.float32) * weight_D.to(tl.float32)
    tl.store(out_ptr + row * D + d_D, out_D.to(x_D.dtype), mask=has_D)
