"""Modules for inference on a GPU, by the kernels of :mod:`dmax.kernels`.

Shape suffixes: B rows, T positions, S key positions, N tokens (rows and positions flattened), D hidden, H query heads,
K key/value heads, J all heads (H + 2 K), C head channels, R rotary channels, E experts, F expert width, X shared
experts.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dmax.kernels.experts import Stack, run_experts
from dmax.kernels.linear import MOST_TOKENS, scaled_linear
from dmax.kernels.norm import add_rms_norm, rms_norm
from dmax.kernels.rotary import LayerCache, normalize_and_rotate
from dmax.kernels.routing import route
from dmax.models.attention import Attention, KeyValueStore
from dmax.models.layers import RMSNorm, SwiGLU
from dmax.models.moe import Experts, SparseMLP
from dmax.models.quantized import QuantizedLinear, weight_scale
from dmax.models.transformer import DecoderLayer


class LayerCacheStore(KeyValueStore, Protocol):
    """A store into which the kernel that turns the keys puts them, and the values, before anything is attended to."""

    def layer_cache(self, layer: int) -> LayerCache:
        """Return where this pass's keys and values belong."""
        ...


class KernelRMSNorm(RMSNorm):
    """The norm in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class KernelDecoderLayer(DecoderLayer):
    """A layer whose residual addition is part of the norm behind it."""

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask_B1TS: Tensor | None, store: KeyValueStore | None = None
    ) -> Tensor:
        attended_BTD = self.attention(self.input_layernorm(x_BTD), rotary, mask_B1TS, store)
        norm = self.post_attention_layernorm
        x_BTD, normed_BTD = add_rms_norm(x_BTD, attended_BTD, norm.weight, norm.eps)
        return x_BTD + self.mlp(normed_BTD)


class KernelAttention(Attention):
    """Attention over a :class:`LayerCacheStore`, with one kernel between projection and attention."""

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask_B1TS: Tensor | None, store: KeyValueStore | None = None
    ) -> Tensor:
        if store is None:
            return super().forward(x_BTD, rotary, mask_B1TS)
        batch, length, _ = x_BTD.shape
        heads_BTJC = self.query_key_value(x_BTD).view(batch, length, -1, self.head_dim)
        cos_NR, sin_NR = (table_B1TR.expand(batch, -1, -1, -1).flatten(0, 2) for table_B1TR in rotary)
        query, key = self.query_layernorm, self.key_layernorm
        cache = cast(LayerCacheStore, store).layer_cache(self.layer)
        q_NHC, k_NKC = normalize_and_rotate(
            heads_BTJC.flatten(0, 1),
            None if query is None else query.weight,
            None if key is None else key.weight,
            cos_NR,
            sin_NR,
            self.num_heads,
            0.0 if query is None else query.eps,
            cache,
        )
        q_BHTC, k_BKTC = (heads.view(batch, length, -1, self.head_dim).transpose(1, 2) for heads in (q_NHC, k_NKC))
        v_BKTC = heads_BTJC[:, :, -self.num_kv_heads :].transpose(1, 2)
        mixed_BHTC = store.attend(self.layer, q_BHTC, k_BKTC, v_BKTC)
        return self.dense(mixed_BHTC.transpose(1, 2).reshape(batch, length, -1))


class KernelQuantizedLinear(QuantizedLinear):
    """A linear map whose 8-bit weights are widened in registers, for few tokens; those in 4 bits are widened before."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() <= MOST_TOKENS * x.shape[-1] and self.weight.dtype != torch.uint8:
            out = scaled_linear(x, self.weight, self.weight_scale)
            return out if self.bias is None else out + self.bias
        return super().forward(x)


class KernelSparseMLP(SparseMLP):
    """Routing and experts by kernels that read the chosen experts alone."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        # Where a module of another kind stands around the experts, such as an adapter, it has to be called.
        is_own = isinstance(self.experts, Experts) and isinstance(self.shared_experts, SwiGLU | None)
        if not is_own or _has_4_bits(self) or self.gate.limit is not None:
            return super().forward(x_BTD)
        x_ND = x_BTD.flatten(0, 1)
        routing = route(x_ND, self.gate.weight, self.gate.expert_bias, **self.gate.rule._asdict())
        experts = self.experts
        routed = Stack(
            experts.gate_proj,
            experts.up_proj,
            experts.down_proj,
            experts.gate_proj_scale,
            experts.up_proj_scale,
            experts.down_proj_scale,
        )
        shared = None if self.shared_experts is None else _shared_stack(self.shared_experts, experts)
        return run_experts(x_ND, routing, routed, shared).view_as(x_BTD)


def _has_4_bits(mlp: SparseMLP) -> bool:
    """Tell whether weights are in 4 bits, for which there is no kernel."""
    shared = mlp.shared_experts
    weights = [mlp.experts.gate_proj, *([] if shared is None else [shared.gate_proj.weight])]
    return any(weight.dtype == torch.uint8 for weight in weights)


def _shared_stack(shared: SwiGLU, experts: Experts) -> Stack:
    """Return the shared expert, which may be several times as wide as a routed one, as a stack of that width."""
    width, hidden = experts.gate_proj.shape[1:]
    linears: tuple[nn.Linear | QuantizedLinear, ...] = (shared.gate_proj, shared.up_proj, shared.down_proj)
    gate_XFD, up_XFD = (linear.weight.view(-1, width, hidden) for linear in linears[:2])
    down_XDF = linears[2].weight.view(hidden, -1, width).transpose(0, 1)
    gate_scale, up_scale, down_scale = map(weight_scale, linears)
    if down_scale is None:
        return Stack(gate_XFD, up_XFD, down_XDF)
    return Stack(gate_XFD, up_XFD, down_XDF, gate_scale, up_scale, down_scale.expand(len(down_XDF), -1).contiguous())


CUDA_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    RMSNorm: KernelRMSNorm,
    DecoderLayer: KernelDecoderLayer,
    Attention: KernelAttention,
    QuantizedLinear: KernelQuantizedLinear,
    SparseMLP: KernelSparseMLP,
}
"""A kind of module -> what stands in its place on a GPU."""
