"""A small model's layers as the kernel sees them that runs all of them in one call (:mod:`dmax.kernels.cpu.layers`).

Shape suffixes: O outputs, I inputs, E experts, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dmax.kernels.cpu.experts import down_in_words, gate_up_in_words
from dmax.kernels.cpu.layers import FeedForwardSize, LayersSize, in_panels, one_behind_the_other, padded
from dmax.kernels.cpu.library import LANES
from dmax.models.attention import Attention
from dmax.models.layers import Linear, RMSNorm, RotaryTable, SwiGLU
from dmax.models.llada2 import Backbone, DecoderLayer, LLaDA2
from dmax.models.moe import Experts, Router, RoutingRule, SparseMLP
from dmax.models.packing import usable
from dmax.models.quantized import QuantizedLinear, wide_weight

_PLAIN = {
    *(Backbone, DecoderLayer, Attention, SparseMLP, Router, Experts, SwiGLU, RMSNorm, RotaryTable),
    *(Linear, QuantizedLinear, nn.Embedding, nn.ModuleList),
}
_WIDEST = 128
"""A dense feed-forward is cut into parts of at most this width, so that threads can share it."""


class LayerStack:
    """The layers of a model, for the kernel.

    Args:
        model: whose modules may still change; what has to be called, because it is of another kind or somebody watches
            it, is found by :meth:`weights`.
    """

    def __init__(self, model: LLaDA2) -> None:
        self._backbone = model.model
        config = model.config
        rule = RoutingRule.of(config) if config.num_experts is not None else RoutingRule(1, 1, 1, 1.0)
        self.size = LayersSize(
            config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim,
            config.rotary_dim, config.rms_norm_eps, tuple(rule), tuple(map(_feed_forward_size, model.model.layers)),
        )  # fmt: skip

    def weights(self, x: Tensor) -> Tensor | None:
        """All weights, for passes over tensors like ``x``; None where the modules have to be called.

        They are copied when first asked for, and again when one of them has changed.
        """
        backbone = self._backbone
        packed = backbone.packed
        if not packed.on or not all(map(_is_plain, backbone.modules())):
            return None
        biases = [layer.mlp.gate.expert_bias for layer in backbone.layers if isinstance(layer.mlp, SparseMLP)]
        weights = tuple(parameter for module in (*backbone.layers, backbone.norm) for parameter in _weights_of(module))
        if not usable(x, *weights) or any(bias.is_inference() for bias in biases):
            return None
        return packed.copy(x.dtype, (*weights, *biases), self._make)

    def angles(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary angles, ``(N, R)``, of ``(1, N)`` positions."""
        cos_11NR, sin_11NR = self._backbone.rotary(position_ids)
        return cos_11NR[0, 0], sin_11NR[0, 0]

    def _make(self, dtype: torch.dtype) -> Tensor:
        arrays = [array for layer in self._backbone.layers for array in _arrays(layer, dtype)]
        return one_behind_the_other([*arrays, self._backbone.norm.weight])


def _is_plain(module: nn.Module) -> bool:
    """Whether nothing is missed if a module is not called."""
    return type(module) in _PLAIN and not module._forward_hooks and not module._forward_pre_hooks


def _weights_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, and those weights in 8 bits that are buffers."""
    yield from module.parameters()
    yield from (part.weight for part in module.modules() if isinstance(part, QuantizedLinear))


def _feed_forward_size(layer: nn.Module) -> FeedForwardSize:
    mlp = layer.mlp
    if isinstance(mlp, SparseMLP):
        routed, width = mlp.experts.gate_proj.shape[:2]
        shared = 0 if mlp.shared_experts is None else mlp.shared_experts.gate_proj.weight.shape[0]
        return FeedForwardSize(routed, routed + shared // width, width)
    assert isinstance(mlp, SwiGLU)
    width = mlp.gate_proj.weight.shape[0]
    part = next((size for size in range(_WIDEST, 0, -LANES) if width % size == 0), width)
    return FeedForwardSize(0, width // part, part)


def _arrays(layer: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    """A layer's weights in the order in which the kernel reads them."""
    assert isinstance(layer, DecoderLayer)
    attention, mlp = layer.attention, layer.mlp
    yield layer.input_layernorm.weight
    yield in_panels(wide_weight(attention.query_key_value, dtype))
    yield attention.query_layernorm.weight
    yield attention.key_layernorm.weight
    yield in_panels(wide_weight(attention.dense, dtype))
    yield layer.post_attention_layernorm.weight
    if isinstance(mlp, SparseMLP):
        yield padded(mlp.gate.weight).t()
        yield padded(mlp.gate.expert_bias)
        yield from mlp.in_words(dtype)
        return
    assert isinstance(mlp, SwiGLU)
    width = _feed_forward_size(layer).width
    yield gate_up_in_words(wide_weight(mlp.gate_proj, dtype), wide_weight(mlp.up_proj, dtype), width)
    yield down_in_words(wide_weight(mlp.down_proj, dtype), width)
