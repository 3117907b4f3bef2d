"""Rounding weights to 8 or 4 bits, a few rows at a time, and what that costs.

Shape suffixes: O output channels, I input channels, N groups of a row, G inputs of a group.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dmax.models.quantized import LEVELS, Scheme, pack, scales_of

Method = Literal["nearest", "search"]

_ROUNDS = 8
"""Of the search; the error hardly falls after that."""


class Rounded(NamedTuple):
    """Quantised rows of a weight."""

    weight: Tensor
    scale: Tensor
    error_squares: float
    """Sum of the squared differences to the weights."""
    weight_squares: float

    @property
    def is_finite(self) -> bool:
        """Whether all the weights were."""
        return math.isfinite(self.weight_squares)


def round_rows(weight_OI: Tensor, scheme: Scheme, method: Method = "nearest") -> Rounded:
    """Quantise rows of a weight.

    Args:
        weight_OI: in any float dtype; left as it is.
        scheme: what they become.
        method: of int4. ``nearest`` lets a group's scale and zero point span its smallest and largest weight.
            ``search`` goes on from there: weights are rounded to the levels of a scale and a zero point, and these
            fitted to the levels by least squares, in turn; what had the smallest error is kept. That is Lloyd's
            algorithm (1982) with evenly spaced levels, and HQQ (Badri and Shaji, 2023) without its shrinkage.

    Returns:
        The stored weight and its scales, and the error.
    """
    # A copy of what may be mapped from a file: everything below works in place.
    wide_OI = weight_OI.to(torch.float32, copy=True)
    return _in_groups(wide_OI, scheme.group, method) if scheme.group else _in_channels(wide_OI, scheme.dtype)


def _in_channels(weight_OI: Tensor, dtype: torch.dtype) -> Rounded:
    scale_O = scales_of(weight_OI, dtype)
    scaled_OI = weight_OI.div_(scale_O[:, None])
    weight_squares = _squares(scaled_OI, scale_O)
    if dtype == torch.int8:
        rounded_OI = scaled_OI.round()
        stored_OI = rounded_OI.to(dtype)
    else:
        stored_OI = scaled_OI.to(dtype)
        # Looked up, which is several times as fast as widening.
        every_value = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        rounded_OI = every_value.index_select(0, stored_OI.view(torch.uint8).flatten().int()).view_as(scaled_OI)
    return Rounded(stored_OI, scale_O, _squares(rounded_OI.sub_(scaled_OI), scale_O), weight_squares)


def _squares(scaled_OI: Tensor, scale_O: Tensor) -> float:
    """Sum up the squares of rows times their scales."""
    norm_O = torch.linalg.vector_norm(scaled_OI, dim=-1).double() * scale_O
    return float(norm_O.dot(norm_O))


class _Fit(NamedTuple):
    """What levels of some groups stand for, and the squared errors."""

    scale: Tensor
    zero: Tensor
    error: Tensor


def _in_groups(weight_OI: Tensor, group: int, method: Method) -> Rounded:
    weight_ONG = weight_OI.unflatten(-1, (-1, group))
    # Zero is among what a group spans, so that its zero point is a level like any other.
    low_ON1, high_ON1 = weight_ONG.amin(-1, keepdim=True).clamp_max_(0), weight_ONG.amax(-1, keepdim=True).clamp_min_(0)
    scale_ON1 = _stored(high_ON1.sub_(low_ON1).div_(LEVELS))
    scale_ON1 = torch.where(scale_ON1 == 0, 1.0, scale_ON1)
    zero_ON1 = _stored(low_ON1.neg_().div_(scale_ON1))
    levels_ONG, error_ON1 = _levels(weight_ONG, scale_ON1, zero_ON1)
    if method == "search":
        best = _Fit(scale_ON1, zero_ON1, error_ON1)
        for _ in range(_ROUNDS):
            scale_ON1, zero_ON1 = _fit(weight_ONG, levels_ONG, scale_ON1)
            levels_ONG, error_ON1 = _levels(weight_ONG, scale_ON1, zero_ON1)
            better_ON1 = error_ON1 < best.error
            found = scale_ON1, zero_ON1, error_ON1
            best = _Fit(*(torch.where(better_ON1, new, old) for new, old in zip(found, best, strict=True)))
        scale_ON1, zero_ON1, _ = best
        levels_ONG, error_ON1 = _levels(weight_ONG, scale_ON1, zero_ON1)
    scales_ON2 = torch.cat([scale_ON1, zero_ON1], -1).bfloat16()
    weight_squares = float(torch.linalg.vector_norm(weight_OI, dim=-1).double().square().sum())
    return Rounded(pack(levels_ONG), scales_ON2, float(error_ON1.sum(dtype=torch.float64)), weight_squares)


def _levels(weight_ONG: Tensor, scale_ON1: Tensor, zero_ON1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest levels, as floats, and each group's sum of squared errors."""
    exact_ONG = (weight_ONG / scale_ON1).add_(zero_ON1)
    levels_ONG = exact_ONG.round().clamp_(0, LEVELS)
    norm_ON1 = torch.linalg.vector_norm(exact_ONG.sub_(levels_ONG), dim=-1, keepdim=True)
    return levels_ONG, (norm_ON1 * scale_ON1).square_()


def _fit(weight_ONG: Tensor, levels_ONG: Tensor, scale_ON1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point that stand for levels with the smallest squared error."""
    level_ON1, weight_ON1 = levels_ONG.mean(-1, keepdim=True), weight_ONG.mean(-1, keepdim=True)
    apart_ONG = levels_ONG - level_ON1
    spread_ON1 = apart_ONG.square().sum(-1, keepdim=True)
    common_ON1 = apart_ONG.mul_(weight_ONG).sum(-1, keepdim=True)
    fitted_ON1 = _stored(common_ON1 / spread_ON1)
    scale_ON1 = torch.where((spread_ON1 > 0) & (fitted_ON1 > 0), fitted_ON1, scale_ON1)
    return scale_ON1, _stored(level_ON1.sub_(weight_ON1 / scale_ON1))


def _stored(x: Tensor) -> Tensor:
    """Round to what scales are stored as; whatever follows sees what a reader will see."""
    return x.bfloat16().float()
