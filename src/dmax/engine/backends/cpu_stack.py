"""A small model's layers, as the kernel reads them that runs all of them in one call.

Shape suffixes: O outputs, I inputs, E experts, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from dmax.engine.backends.cpu_modules import down_panels, gate_up_panels
from dmax.engine.backends.packed import Packed, packable
from dmax.engine.backends.swapped import OWN_KINDS, is_plain
from dmax.kernels.cpu.experts import down_in_panels, gate_up_in_panels, in_panels
from dmax.kernels.cpu.layers import FeedForwardSize, LayersSize, one_behind_the_other, padded
from dmax.kernels.cpu.library import LANES
from dmax.models.layers import SwiGLU
from dmax.models.moe import RoutingRule, SparseMLP
from dmax.models.quantized import QuantizedEmbedding, QuantizedLinear, wide_weight
from dmax.models.transformer import BlockDiffusionLM, DecoderLayer

_BESIDE = ("expert_bias", "_scale")
"""Ends of the names of what stands beside weights, in float32 whatever the model's dtype."""
_WIDEST = 128
"""A dense feed-forward is cut into parts of at most this width, so that threads can share it."""
_ANGLES = 1024
"""Positions whose angles are computed at a time."""


class LayerStack:
    """The layers of a model, for the kernel.

    Args:
        model: of the package's own modules alone (see :meth:`of`). Should one be put in another's place later, or get
            a hook, :meth:`weights` finds it.
    """

    def __init__(self, model: BlockDiffusionLM) -> None:
        self._model, self._backbone = model, model.model
        self._packed = Packed()
        self._called = _called_in(model)
        self._children = [
            (module._modules, name, child) for module in self._called for name, child in module._modules.items()
        ]
        own = [module for module in self._called if not isinstance(module, nn.Embedding | QuantizedEmbedding)]
        kept = [(place, name) for module in own for place in (module._parameters, module._buffers) for name in place]
        self._weights = [at for at in kept if not at[1].endswith(_BESIDE)]
        self._beside = [at for at in kept if at[1].endswith(_BESIDE)]
        self._angles: tuple[Tensor, Tensor] = (torch.empty(0, 0), torch.empty(0, 0))
        config = model.config
        rule = RoutingRule.of(config) if config.num_experts is not None else RoutingRule(1, 1, 1, 1.0)
        self.size = LayersSize(
            config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim,
            config.rotary_dim, config.use_qk_norm, config.use_qkv_bias, config.use_bias, config.rms_norm_eps, rule,
            tuple(map(_feed_forward_size, model.model.layers)),
        )  # fmt: skip

    @classmethod
    def of(cls, model: BlockDiffusionLM) -> LayerStack | None:
        """Take the layers of a model.

        None where the kernel cannot stand in for them: a module is of another kind than the package's own, or experts
        are limited block by block.
        """
        if model.config.expert_capacity or not all(type(module) in OWN_KINDS for module in _called_in(model)):
            return None
        return cls(model)

    def weights(self, x: Tensor) -> Tensor | None:
        """Return all weights, for passes over tensors like ``x``; None where the modules have to be called.

        They are copied when first asked for, and again when one of them has changed.
        """
        if not all(map(is_plain, self._called)) or not self.is_complete():
            return None
        weights, beside = _present(self._weights), _present(self._beside)
        if not packable(x, *weights) or any(tensor.is_inference() for tensor in beside):
            return None
        return self._packed.copy(x.dtype, (*weights, *beside), self._make)

    def is_complete(self) -> bool:
        """Tell whether every module is where it was, and experts are not limited by now."""
        if self._model.config.expert_capacity:
            return False
        return all(place[name] is child for place, name, child in self._children)

    def angles(self, end: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the rotary angles, ``(P, R)`` each, of positions from 0 to ``end`` at least."""
        if self._angles[0].shape[0] < end:
            positions_1P = torch.arange(_ANGLES * -(-end // _ANGLES))[None]
            cos_11PR, sin_11PR = self._backbone.rotary(positions_1P)
            self._angles = cos_11PR[0, 0].contiguous(), sin_11PR[0, 0].contiguous()
        return self._angles

    def _make(self, dtype: torch.dtype) -> Tensor:
        arrays = [array for layer in self._backbone.layers for array in _arrays(layer, dtype)]
        return one_behind_the_other([*arrays, self._backbone.norm.weight])


def _called_in(model: BlockDiffusionLM) -> tuple[nn.Module, ...]:
    """List the modules that a pass through the layers calls."""
    return model, *model.model.modules()


def _present(places: Iterable[tuple[Mapping[str, Tensor | None], str]]) -> list[Tensor]:
    """List what stands at the places of a model that have anything."""
    found = (place[name] for place, name in places)
    return [tensor for tensor in found if tensor is not None]


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
    """Yield a layer's weights in the order in which the kernel reads them."""
    assert isinstance(layer, DecoderLayer)
    attention, mlp = layer.attention, layer.mlp
    yield layer.input_layernorm.weight
    yield from _linear(attention.query_key_value, dtype)
    for norm in (attention.query_layernorm, attention.key_layernorm):
        if norm is not None:
            yield norm.weight
    yield from _linear(attention.dense, dtype)
    yield layer.post_attention_layernorm.weight
    if isinstance(mlp, SparseMLP):
        yield in_panels(padded(mlp.gate.weight)[None])
        yield padded(mlp.gate.expert_bias)
        yield gate_up_panels(mlp, dtype)
        yield down_panels(mlp, dtype)
        return
    assert isinstance(mlp, SwiGLU)
    width = _feed_forward_size(layer).width
    yield gate_up_in_panels(wide_weight(mlp.gate_proj, dtype), wide_weight(mlp.up_proj, dtype), width)
    yield down_in_panels(wide_weight(mlp.down_proj, dtype), width)


def _linear(linear: nn.Linear | QuantizedLinear, dtype: torch.dtype) -> Iterator[Tensor]:
    yield in_panels(wide_weight(linear, dtype)[None])
    if linear.bias is not None:
        yield linear.bias
