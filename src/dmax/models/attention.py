"""Grouped-query attention with per-head query and key norms and partial rotary embedding (SPEC section 2).

Shape suffixes: B rows, T query positions, S key positions, D hidden, H query heads, K key/value heads, C head channels.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from dmax.models.config import ModelConfig
from dmax.models.layers import RMSNorm, apply_rotary


class KeyValueStore(Protocol):
    """Where attention leaves the keys and values of a pass and reads those of earlier ones."""

    def update(self, layer: int, keys_BKTC: Tensor, values_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Take this pass's keys and values; return all that its queries read, each ``(B, K, S, C)``."""
        ...


class Attention(nn.Module):
    """Self-attention of one layer; what may see what is decided by the mask alone."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        qkv_width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, qkv_width, bias=False)
        self.query_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.key_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.dense = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_B1TS: Tensor | None,
        store: KeyValueStore | None = None,
    ) -> Tensor:
        batch, length, _ = x_BTD.shape
        heads_BTHC = self.query_key_value(x_BTD).view(batch, length, -1, self.head_dim)
        q_BHTC, k_BKTC, v_BKTC = heads_BTHC.transpose(1, 2).split(
            [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1
        )
        q_BHTC = apply_rotary(self.query_layernorm(q_BHTC), *rotary)
        k_BKTC = apply_rotary(self.key_layernorm(k_BKTC), *rotary)
        if store is not None:
            k_BKTC, v_BKTC = store.update(self.layer, k_BKTC, v_BKTC)
        mixed_BHTC = F.scaled_dot_product_attention(
            q_BHTC, k_BKTC, v_BKTC, attn_mask=mask_B1TS, enable_gqa=self.num_heads != self.num_kv_heads
        )
        return self.dense(mixed_BHTC.transpose(1, 2).reshape(batch, length, -1))
