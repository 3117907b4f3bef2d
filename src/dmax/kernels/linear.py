"""A linear layer over 8-bit weights, for few tokens: the weights are read once, widened in registers.

Shape suffixes: N tokens, O output channels, I input channels; blocks are M tokens, W weight rows, K channels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

MOST_TOKENS = 256
"""Beyond this many, arithmetic weighs more than reading weights: better to widen them all for a library's matmul."""


def scaled_linear(x: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    """Compute ``x (weight * scale)^T``, summed in float32: ``(..., I)`` -> ``(..., O)`` in the dtype of ``x``.

    Args:
        x: contiguous.
        weight_OI: int8 or float8_e4m3fn, contiguous.
        scale_O: float32.
    """
    outputs, inputs = weight_OI.shape
    num_tokens = x.numel() // inputs
    out = x.new_empty(*x.shape[:-1], outputs)
    block_m, block_w = 16 if num_tokens <= 16 else 32, 16
    _scaled_linear[(triton.cdiv(outputs, block_w), triton.cdiv(num_tokens, block_m))](
        x.contiguous(), weight_OI, scale_O, out, num_tokens,
        OUT=outputs, IN=inputs, BLOCK_M=block_m, BLOCK_W=block_w, BLOCK_K=256, num_warps=2, num_stages=4,
    )  # fmt: skip
    return out


@triton.jit
def _scaled_linear(
    x_ptr, weight_ptr, scale_ptr, out_ptr, num_tokens,
    OUT: tl.constexpr, IN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n_M = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_W = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    row_W = tl.minimum(o_W, OUT - 1)
    k_K = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + tl.minimum(n_M, num_tokens - 1).to(tl.int64)[:, None] * IN + k_K
    weight_ptrs = weight_ptr + row_W.to(tl.int64)[:, None] * IN + k_K
    acc_MW = tl.zeros((BLOCK_M, BLOCK_W), tl.float32)
    for start in range(0, IN, BLOCK_K):
        if IN % BLOCK_K == 0:
            x_MK = tl.load(x_ptrs + start)
            weight_WK = tl.load(weight_ptrs + start)
        else:
            has_k = (start + k_K < IN)[None, :]
            x_MK = tl.load(x_ptrs + start, mask=has_k, other=0.0)
            weight_WK = tl.load(weight_ptrs + start, mask=has_k, other=0.0)
        acc_MW = tl.dot(x_MK, tl.trans(weight_WK.to(x_MK.dtype)), acc_MW, input_precision="ieee")
    acc_MW *= tl.load(scale_ptr + row_W)
    out_ptrs = out_ptr + n_M.to(tl.int64)[:, None] * OUT + o_W
    tl.store(out_ptrs, acc_MW.to(out_ptr.dtype.element_ty), mask=(n_M < num_tokens)[:, None] & (o_W < OUT))
