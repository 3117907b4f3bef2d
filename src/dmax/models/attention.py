"""Grouped-query attention with partial rotary embedding, and norms on query and key heads (algorithm.md#the-model).

Shape suffixes: B rows, T query positions, S key positions, D hidden, H query heads, K key/value heads,
J all heads (H + 2 K) or those that turn (H + K), R rotary channels, C head channels.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmax.models.config import ModelConfig
from dmax.models.layers import Linear, RMSNorm, apply_rotary, rms_norm


class KeyValueStore(Protocol):
    """Keeps keys and values between passes, and knows which of them the queries of a pass may see."""

    def attend(self, layer: int, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor) -> Tensor:
        """Store the keys and values of a pass, and attend to all that its queries may see: ``(B, H, T, C)``."""
        ...


class Attention(nn.Module):
    """Self-attention of one layer; what may see what is decided by the mask, or by the store where there is one."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        qkv_width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.query_key_value = Linear(config.hidden_size, qkv_width, config.use_qkv_bias)
        self.query_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.use_qk_norm else None
        self.key_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.use_qk_norm else None
        self.dense = Linear(self.num_heads * self.head_dim, config.hidden_size, config.use_bias)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_B1TS: Tensor | None,
        store: KeyValueStore | None = None,
    ) -> Tensor:
        batch, length, _ = x_BTD.shape
        heads_BTJC = self.query_key_value(x_BTD).view(batch, length, -1, self.head_dim)
        v_BKTC = heads_BTJC[:, :, -self.num_kv_heads :].transpose(1, 2)
        turned_BTJC = self.normalize_and_rotate(heads_BTJC[:, :, : -self.num_kv_heads], rotary)
        q_BHTC, k_BKTC = turned_BTJC.transpose(1, 2).split([self.num_heads, self.num_kv_heads], 1)
        if store is None:
            mixed_BHTC = attend(q_BHTC, k_BKTC, v_BKTC, mask_B1TS)
        else:
            mixed_BHTC = store.attend(self.layer, q_BHTC, k_BKTC, v_BKTC)
        return self.dense(mixed_BHTC.transpose(1, 2).reshape(batch, length, -1))

    def normalize_and_rotate(self, heads_BTJC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Put query and key heads under their norms, if there are any, and turn them by the angles of their positions.

        Queries and keys go together: for a block's worth of positions, the number of operations is what costs.
        """
        cos_BT1R, sin_BT1R = (table_B1TR.transpose(1, 2) for table_B1TR in rotary)
        if self.query_layernorm is not None and self.key_layernorm is not None:
            num_keys = heads_BTJC.shape[2] - self.num_heads
            weights = self.query_layernorm.weight, self.key_layernorm.weight
            weight_JC = torch.cat([weights[0].expand(self.num_heads, -1), weights[1].expand(num_keys, -1)])
            heads_BTJC = rms_norm(heads_BTJC, weight_JC, self.query_layernorm.eps)
        return apply_rotary(heads_BTJC, cos_BT1R, sin_BT1R)


def attend(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask_B1TS: Tensor | None) -> Tensor:
    """Attend by softmax, scaled by C^-0.5, every group of H/K query heads reading one key/value head.

    Args:
        q_BHTC, k_BKSC, v_BKSC: queries, keys and values, of one dtype.
        mask_B1TS: bool, True where a query may attend to a key; every query must see at least one. None: all see all.

    Returns:
        ``(B, H, T, C)`` in the dtype of the queries.
    """
    if mask_B1TS is not None and q_BHTC.device.type == "cpu" and torch.is_grad_enabled():
        return _attend_by_matmul(q_BHTC, k_BKSC, v_BKSC, mask_B1TS)
    group = q_BHTC.shape[1] // k_BKSC.shape[1]
    if mask_B1TS is not None and group > 1 and q_BHTC.device.type == "cuda":  # masked kernels know no groups there
        k_BKSC, v_BKSC = (heads.repeat_interleave(group, 1) for heads in (k_BKSC, v_BKSC))
    grouped = q_BHTC.shape[1] != k_BKSC.shape[1]
    return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask=mask_B1TS, enable_gqa=grouped)


def _attend_by_matmul(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask_B1TS: Tensor) -> Tensor:
    """Attend by plain matmuls: on a CPU, forward and backward together take a third of the fused kernel's time.

    Scores stay in their dtype: the softmax of a bfloat16 tensor is computed in float32 inside, without the copies.
    """
    batch, heads, length, channels = q_BHTC.shape
    kv_heads, keys = k_BKSC.shape[1:3]
    rows, group = batch * kv_heads, heads // kv_heads
    scaled = (q_BHTC * channels**-0.5).reshape(rows, group * length, channels)
    scores = torch.bmm(scaled, k_BKSC.reshape(rows, keys, channels).transpose(1, 2)).view(batch, heads, length, keys)
    weights = scores.masked_fill_(~mask_B1TS, float("-inf")).softmax(-1)
    mixed = torch.bmm(weights.view(rows, group * length, keys), v_BKSC.reshape(rows, keys, channels))
    return mixed.view(batch, heads, length, channels)
