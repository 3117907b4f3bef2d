"""Query and key norms, partial rotary embedding, and the way of keys and values into the cache, in one kernel.

Shape suffixes: N tokens, H query heads, K key/value heads, J all heads (H + 2 K), C head channels, R rotary channels,
S positions of a cache.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class LayerCache(NamedTuple):
    """Where a layer keeps keys and values, and which of its positions the tokens of a call fill."""

    keys_KSC: Tensor
    """Channels contiguous; heads and positions at any distance."""
    values_KSC: Tensor
    """Laid out as the keys."""
    writes_N: Tensor
    """int64. Where one comes up twice, either token's key and value may stay."""


def normalize_and_rotate(
    qkv_NJC: Tensor,
    query_weight_C: Tensor | None,
    key_weight_C: Tensor | None,
    cos_NR: Tensor,
    sin_NR: Tensor,
    num_heads: int,
    eps: float,
    cache: LayerCache | None = None,
) -> tuple[Tensor, Tensor]:
    """Norm and rotate the query and key heads of the fused projection; write keys and values where a cache is given.

    Args:
        qkv_NJC: contiguous output of the projection: H query, K key and K value heads.
        query_weight_C, key_weight_C: weights of the two norms; None where heads turn as they are.
        cos_NR, sin_NR: float32, contiguous, of the tokens' positions, as
            :class:`~dmax.models.layers.RotaryTable` gives them.
        num_heads: H.
        eps: of the norms.
        cache: keys and values go there as well.

    Returns:
        Queries ``(N, H, C)`` and keys ``(N, K, C)``, contiguous, in the dtype of ``qkv_NJC``.
    """
    num_tokens, all_heads, channels = qkv_NJC.shape
    kv_heads = (all_heads - num_heads) // 2
    q_NHC = qkv_NJC.new_empty(num_tokens, num_heads, channels)
    k_NKC = qkv_NJC.new_empty(num_tokens, kv_heads, channels)
    strides = (0, 0) if cache is None else cache.keys_KSC.stride()[:2]
    rotary = cos_NR.shape[-1]
    _normalize_and_rotate[(num_tokens, all_heads if cache else num_heads + kv_heads)](
        qkv_NJC, q_NHC, k_NKC, query_weight_C, key_weight_C, cos_NR, sin_NR, eps, *(cache or (None, None, None)),
        *strides, H=num_heads, K=kv_heads, C=channels, R=rotary, NORM=key_weight_C is not None, CACHE=cache is not None,
        BLOCK_C=triton.next_power_of_2(channels), num_warps=1,
    )  # fmt: skip
    return q_NHC, k_NKC


@triton.jit
def _rotated(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, eps,
    C: tl.constexpr, R: tl.constexpr, NORM: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Norm one head, where there are norms, and rotate it, in float32 but for the rounding of the norm's quotient."""
    c_C = tl.arange(0, BLOCK_C)
    has_C = c_C < C
    turns_C = c_C < R
    # Channel c turns with its partner R/2 away; the partner is read again rather than shuffled: it lies in the cache.
    partner_C = tl.where(turns_C, (c_C + R // 2) % R, c_C)
    x_C = tl.load(x_ptr + c_C, mask=has_C, other=0.0)
    other_C = tl.load(x_ptr + partner_C, mask=has_C, other=0.0)
    normed_C = x_C.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(normed_C * normed_C, axis=0) / C + eps)
        x_weight_C = tl.load(weight_ptr + c_C, mask=has_C, other=0.0).to(tl.float32)
        other_weight_C = tl.load(weight_ptr + partner_C, mask=has_C, other=0.0).to(tl.float32)
        normed_C = (normed_C * scale).to(x_C.dtype).to(tl.float32) * x_weight_C
        other_C = (other_C.to(tl.float32) * scale).to(x_C.dtype).to(tl.float32) * other_weight_C
    else:
        other_C = other_C.to(tl.float32)
    cos_C = tl.load(cos_ptr + c_C, mask=turns_C, other=1.0)
    sin_C = tl.load(sin_ptr + c_C, mask=turns_C, other=0.0)
    return normed_C * cos_C + tl.where(c_C < R // 2, -other_C, other_C) * sin_C


@triton.jit
def _normalize_and_rotate(
    qkv_ptr, q_ptr, k_ptr, query_weight_ptr, key_weight_ptr, cos_ptr, sin_ptr, eps,
    keys_ptr, values_ptr, writes_ptr, cache_head_stride, cache_position_stride,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
    NORM: tl.constexpr, CACHE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Norm and rotate one head of one token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    c_C = tl.arange(0, BLOCK_C)
    has_C = c_C < C
    x_ptr = qkv_ptr + (token * (H + 2 * K) + head) * C
    cos_ptr += token * R
    sin_ptr += token * R
    if head < H:
        q_C = _rotated(x_ptr, query_weight_ptr, cos_ptr, sin_ptr, eps, C, R, NORM, BLOCK_C)
        tl.store(q_ptr + (token * H + head) * C + c_C, q_C.to(q_ptr.dtype.element_ty), mask=has_C)
    elif head < H + K:
        k_C = _rotated(x_ptr, key_weight_ptr, cos_ptr, sin_ptr, eps, C, R, NORM, BLOCK_C).to(k_ptr.dtype.element_ty)
        tl.store(k_ptr + (token * K + head - H) * C + c_C, k_C, mask=has_C)
        if CACHE:
            position = tl.load(writes_ptr + token)
            offset = (head - H).to(tl.int64) * cache_head_stride + position * cache_position_stride
            tl.store(keys_ptr + offset + c_C, k_C, mask=has_C)
    else:
        if CACHE:
            position = tl.load(writes_ptr + token)
            offset = (head - H - K).to(tl.int64) * cache_head_stride + position * cache_position_stride
            v_C = tl.load(x_ptr + c_C, mask=has_C)
            tl.store(values_ptr + offset + c_C, v_C, mask=has_C)
