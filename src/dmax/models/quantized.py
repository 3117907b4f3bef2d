"""Weights in 8 or 4 bits: ``int8`` and ``fp8`` with a scale an output channel, ``int4`` with one a group of inputs.

Weights are widened for every product; activations and arithmetic stay as they are. Where an engine has a way that is
quicker, it is its backend's (:mod:`dmax.engine.backends`).

A quantised checkpoint says by its tensors what is quantised: beside a ``….weight`` in 8 or 4 bits lies
``….weight_scale`` (beside a stack of experts ``….gate_proj`` lies ``….gate_proj_scale``). Every other weight is stored
as usual. ``fp8`` and ``int8`` stand for the number times its channel's float32 scale. ``int4`` holds levels from 0 to
15, which stand for (level - zero point) * scale; scale and zero point of a group lie side by side in bfloat16. Of a
group's bytes, the low four bits hold the first half of its levels, the high four the second.

Shape suffixes: O output channels, I input channels, J bytes of a row, N groups of a row, G inputs of a group; weights
may have further dimensions in front.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WeightFormat = Literal["fp8", "int8", "int4"]
Part = Literal["experts", "dense", "embeddings"]

STORED_AS: dict[WeightFormat, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.uint8}
GROUPS = (32, 64)
"""Inputs that may share a scale in int4."""
LEVELS = 15
"""The largest level of int4."""
_SCALE = "_scale"
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}

_EXPERT = re.compile(r".*\.mlp\.experts\.((\d+\.)?(gate|up|down)_proj\.weight|(gate|up|down)_proj)")
_DENSE = re.compile(r".*\.(query_key_value|dense|gate_proj|up_proj|down_proj)\.weight")
_EMBEDDINGS = ("model.word_embeddings.weight", "lm_head.weight")


def part_of(name: str) -> Part | None:
    """Return what a weight belongs to, by its native or stored name; None for what is never quantised.

    The router decides close choices: it and the norms stay. Embeddings and head, which tell tokens apart, are quantised
    only where somebody asks for it.
    """
    if _EXPERT.fullmatch(name):
        return "experts"
    if name in _EMBEDDINGS:
        return "embeddings"
    return "dense" if _DENSE.fullmatch(name) else None


def scale_name(name: str) -> str:
    """Return the name of a weight's scales."""
    return f"{name}{_SCALE}"


@dataclass(frozen=True)
class Scheme:
    """How a quantised weight is stored."""

    format: WeightFormat
    group: int = 0
    """Inputs that share a scale, in int4 alone."""

    @classmethod
    def of(cls, dtype: torch.dtype, weight: tuple[int, ...], scale: tuple[int, ...]) -> Scheme | None:
        """Return the scheme of a stored weight and its scales, by their shapes; None where they are in none."""
        name = next((name for name, stored in STORED_AS.items() if stored == dtype), None)
        if name != "int4":
            return None if name is None else cls(name)
        if len(scale) < 2 or scale[-1] != 2 or not weight or not scale[-2]:
            return None
        return cls("int4", 2 * weight[-1] // scale[-2])

    @property
    def dtype(self) -> torch.dtype:
        """What the weight is stored as."""
        return STORED_AS[self.format]

    @property
    def scale_dtype(self) -> torch.dtype:
        """What its scales are stored as."""
        return torch.bfloat16 if self.group else torch.float32

    def weight_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stored shape of a weight of this shape, ``(..., O, I)``."""
        return (*shape[:-1], shape[-1] // 2) if self.group else shape

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the scales of a weight of this shape."""
        return (*shape[:-1], shape[-1] // self.group, 2) if self.group else shape[:-1]


def scales_of(weight_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32 scales ``(..., O)`` that take the largest weight of each channel to the largest 8-bit value."""
    largest_O = weight_OI.abs().amax(-1).float()
    return torch.where(largest_O > 0, largest_O / _LARGEST[dtype], 1.0)


def quantize(weight_OI: Tensor, scale_O: Tensor, dtype: torch.dtype) -> Tensor:
    """Round weights to the nearest 8-bit multiple of their scale (ties to even)."""
    scaled_OI = weight_OI.float() / scale_O[..., None]
    return scaled_OI.round().to(dtype) if dtype == torch.int8 else scaled_OI.to(dtype)


def pack(levels_ONG: Tensor) -> Tensor:
    """Put levels from 0 to 15 into bytes ``(..., O, J)``, two in each."""
    low_ONH, high_ONH = levels_ONG.to(torch.uint8).chunk(2, -1)
    return (low_ONH | high_ONH << 4).flatten(-2)


def unpack(weight_OJ: Tensor, groups: int) -> Tensor:
    """Return the levels ``(..., O, N, G)`` uint8 of :func:`pack`."""
    bytes_ONH = weight_OJ.unflatten(-1, (groups, -1))
    return torch.cat([bytes_ONH & LEVELS, bytes_ONH >> 4], -1)


def dequantize(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the weights ``(..., O, I)`` that quantised ones stand for; those without scales as they are."""
    if scale is None:
        return weight
    if weight.dtype != torch.uint8:
        return (weight.float() * scale[..., None]).to(dtype)
    scale_ON1, zero_ON1 = scale.float().split(1, -1)
    levels_ONG = unpack(weight, scale.shape[-2])
    return ((levels_ONG.float() - zero_ON1) * scale_ON1).to(dtype).flatten(-2)


def weight_scale(linear: nn.Module) -> Tensor | None:
    """Return the scales of a linear layer's weight, where it is quantised."""
    return linear.weight_scale if isinstance(linear, QuantizedLinear) else None


def wide_weight(linear: nn.Linear | QuantizedLinear, dtype: torch.dtype) -> Tensor:
    """Return a linear layer's weight, widened if it is quantised."""
    return dequantize(linear.weight, weight_scale(linear), dtype)


def keeping_dtypes(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return what ``nn.Module.to`` does to each tensor, without its change of dtype: quantised ones have theirs."""

    def moved(tensor: Tensor) -> Tensor:
        like = fn(tensor.new_empty(0))  # there and back would copy weights that are mapped from a file
        return fn(tensor) if like.dtype == tensor.dtype else tensor.to(like.device)

    return moved


class _Quantized(nn.Module):
    """A matrix in 8 or 4 bits, and its scales."""

    def __init__(self, outputs: int, inputs: int, scheme: Scheme) -> None:
        super().__init__()
        shape = (outputs, inputs)
        self.weight: Tensor
        self.weight_scale: Tensor
        self.register_buffer("weight", torch.empty(scheme.weight_shape(shape), dtype=scheme.dtype))
        self.register_buffer("weight_scale", torch.empty(scheme.scale_shape(shape), dtype=scheme.scale_dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Quantized:
        kept = keeping_dtypes(fn)

        def moved(tensor: Tensor) -> Tensor:
            return fn(tensor) if tensor is self._parameters.get("bias") else kept(tensor)

        return cast(_Quantized, super()._apply(moved, recurse))  # type: ignore[no-untyped-call]


class QuantizedLinear(_Quantized):
    """A linear layer over quantised weights; a bias stays in the model's dtype."""

    def __init__(self, outputs: int, inputs: int, scheme: Scheme, bias: bool = False) -> None:
        super().__init__(outputs, inputs, scheme)
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, wide_weight(self, x.dtype), self.bias)


class QuantizedEmbedding(_Quantized):
    """An embedding table in 8 bits, whose rows are widened to float32."""

    def forward(self, token_ids: Tensor) -> Tensor:
        return dequantize(F.embedding(token_ids, self.weight), self.weight_scale[token_ids], torch.float32)


def hold_quantized(model: nn.Module, schemes: Mapping[str, Scheme]) -> None:
    """Give a model, contents undefined, quantised weights with scales in place of some of its weights.

    Args:
        model: on the meta device.
        schemes: by native names of weights that :func:`part_of` allows.
    """
    for name, scheme in schemes.items():
        if name.endswith(".weight"):
            parent, _, child = name.removesuffix(".weight").rpartition(".")
            module = model.get_submodule(f"{parent}.{child}" if parent else child)
            assert isinstance(module, nn.Linear | nn.Embedding)
            outputs, inputs = module.weight.shape
            with module.weight.device:
                quantized = (
                    QuantizedEmbedding(outputs, inputs, scheme)
                    if isinstance(module, nn.Embedding)
                    else QuantizedLinear(outputs, inputs, scheme, module.bias is not None)
                )
            setattr(model.get_submodule(parent), child, quantized)
        else:
            parent, _, stack = name.rpartition(".")
            experts = model.get_submodule(parent)
            shape, device = tuple(experts.get_parameter(stack).shape), experts.get_parameter(stack).device
            weight = torch.empty(scheme.weight_shape(shape), dtype=scheme.dtype, device=device)
            setattr(experts, stack, nn.Parameter(weight, requires_grad=False))
            scale = torch.empty(scheme.scale_shape(shape), dtype=scheme.scale_dtype, device=device)
            setattr(experts, scale_name(stack), scale)


def widen(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model plain weights that can be trained in place of its quantised ones; undoes :func:`hold_quantized`.

    Args:
        model: changed in place; its other weights stay as they are.
        dtype: of the new weights.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _widened(module, dtype))
        else:
            scales = [(own, scale) for own, scale in module.named_buffers(recurse=False) if own.endswith(_SCALE)]
            for own, scale in scales:
                stack = own.removesuffix(_SCALE)
                setattr(module, stack, nn.Parameter(dequantize(getattr(module, stack), scale, dtype)))
                setattr(module, own, None)


def _widened(module: QuantizedLinear | QuantizedEmbedding, dtype: torch.dtype) -> nn.Module:
    weight = nn.Parameter(dequantize(module.weight, module.weight_scale, dtype))
    outputs, inputs = weight.shape
    if isinstance(module, QuantizedEmbedding):
        return nn.Embedding(outputs, inputs, _weight=weight)
    with torch.device("meta"):  # filled below
        linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight = weight
    if module.bias is not None:
        linear.bias = module.bias
    return linear
