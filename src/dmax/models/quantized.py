"""8-bit weights with one float32 scale an output channel.

Weights are widened for every product; activations and arithmetic stay as they are. Where an engine has a way that is
quicker, it is its backend's (:mod:`dmax.engine.backends`).

A quantised checkpoint says by its tensors what is quantised: beside an 8-bit ``….weight`` lies ``….weight_scale``
(beside a stack of experts ``….gate_proj`` lies ``….gate_proj_scale``). Every other weight is stored as usual.

Shape suffixes: O output channels, I input channels; weights may have further dimensions in front.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WeightFormat = Literal["fp8", "int8"]
Part = Literal["experts", "dense"]

STORED_AS: dict[WeightFormat, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}

_EXPERT = re.compile(r".*\.mlp\.experts\.((\d+\.)?(gate|up|down)_proj\.weight|(gate|up|down)_proj)")
_DENSE = re.compile(r".*\.(query_key_value|dense|gate_proj|up_proj|down_proj)\.weight")


def part_of(name: str) -> Part | None:
    """Tell what a weight belongs to, by its native or stored name; None for what is never quantised.

    The router decides close choices, the embeddings are mixed and the head tells tokens apart: they and the norms stay.
    """
    if _EXPERT.fullmatch(name):
        return "experts"
    return "dense" if _DENSE.fullmatch(name) else None


def scale_name(name: str) -> str:
    """Return the name of a weight's scales."""
    return f"{name}_scale"


def scales_of(weight_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute float32 scales ``(..., O)`` that take each output channel's largest weight to the largest 8-bit value."""
    largest_O = weight_OI.abs().amax(-1).float()
    return torch.where(largest_O > 0, largest_O / _LARGEST[dtype], 1.0)


def quantize(weight_OI: Tensor, scale_O: Tensor, dtype: torch.dtype) -> Tensor:
    """Round weights to the nearest 8-bit multiple of their scale (ties to even)."""
    scaled_OI = weight_OI.float() / scale_O[..., None]
    return scaled_OI.round().to(dtype) if dtype == torch.int8 else scaled_OI.to(dtype)


def dequantize(weight_OI: Tensor, scale_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the weights that 8-bit ones stand for; those without scales are given back as they are."""
    if scale_O is None:
        return weight_OI
    return (weight_OI.float() * scale_O[..., None]).to(dtype)


def weight_scale(linear: nn.Module) -> Tensor | None:
    """Return the scales of a linear layer's weight, where it is in 8 bits."""
    return linear.weight_scale if isinstance(linear, QuantizedLinear) else None


def wide_weight(linear: nn.Linear | QuantizedLinear, dtype: torch.dtype) -> Tensor:
    """Return A linear layer's weight, widened if it is in 8 bits."""
    return dequantize(linear.weight, weight_scale(linear), dtype)


def keeping_dtypes(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return what ``nn.Module.to`` does to each tensor, but for the dtype of 8-bit weights and scales."""

    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return result if result.dtype == tensor.dtype else result.to(tensor.dtype)

    return moved


class QuantizedLinear(nn.Module):
    """A linear layer without bias over 8-bit weights."""

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: Tensor
        self.weight_scale: Tensor
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=dtype))
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, wide_weight(self, x.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        return cast(QuantizedLinear, super()._apply(keeping_dtypes(fn), recurse))  # type: ignore[no-untyped-call]


def hold_quantized(model: nn.Module, names: Iterable[str], dtype: torch.dtype) -> None:
    """Give a model, contents undefined, 8-bit weights with scales in place of some of its weights.

    Args:
        model: on the meta device.
        names: native names of weights that :func:`part_of` allows.
        dtype: of the 8-bit weights.
    """
    for name in names:
        if name.endswith(".weight"):
            parent, _, child = name.removesuffix(".weight").rpartition(".")
            linear = model.get_submodule(f"{parent}.{child}")
            assert isinstance(linear, nn.Linear) and linear.bias is None
            with linear.weight.device:
                quantized = QuantizedLinear(linear.in_features, linear.out_features, dtype)
            setattr(model.get_submodule(parent), child, quantized)
        else:
            parent, _, stack = name.rpartition(".")
            experts = model.get_submodule(parent)
            weight = experts.get_parameter(stack)
            setattr(experts, stack, nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False))
            scale = torch.empty(weight.shape[:-1], dtype=torch.float32, device=weight.device)
            setattr(experts, scale_name(stack), scale)
