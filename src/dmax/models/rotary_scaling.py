"""Rotary frequencies of models that were stretched to longer contexts: ``linear``, ``llama3``, ``yarn``.

Names and numbers are those of ``rope_parameters`` in transformers' configurations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmax.models.families import ConfigError

_NUMBERS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""A kind of scaling -> the numbers that it cannot do without."""


def check_scaling(scaling: Mapping[str, Any]) -> None:
    """Refuse a scaling that is not known or not complete.

    Raises:
        ConfigError: with what is wrong.
    """
    kind = scaling.get("rope_type")
    if kind not in _NUMBERS:
        raise ConfigError(f"rotary embedding of rope_type {kind!r} is not supported; only {', '.join(_NUMBERS)} are.")
    for name in _NUMBERS[kind]:
        value = scaling.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"rope_type {kind!r} needs {name}, a number above 0; it is {value!r}.")


def scaled_frequencies(
    frequencies: Tensor, rotary_dim: int, theta: float, scaling: Mapping[str, Any]
) -> tuple[Tensor, float]:
    """Stretch plain rotary frequencies.

    Args:
        frequencies: ``(rotary_dim / 2,)`` float32, the plain ones.
        rotary_dim: channels that turn.
        theta: their base.
        scaling: :func:`check_scaling` has been through it.

    Returns:
        The frequencies, and the factor of cosines and sines.
    """
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"], 1.0
    if scaling["rope_type"] == "llama3":
        return _by_wavelength(frequencies, scaling), 1.0
    return _yarn(frequencies, rotary_dim, theta, scaling), _yarn_factor(scaling)


def _by_wavelength(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Leave short waves, stretch long ones, and blend between (Llama 3.1)."""
    factor, low, high = (scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


def _yarn(frequencies: Tensor, rotary_dim: int, theta: float, scaling: Mapping[str, Any]) -> Tensor:
    """Leave channels that turn often within the original context, stretch slow ones (arXiv 2309.00071)."""

    def channel(turns: float) -> float:
        length = scaling["original_max_position_embeddings"]
        return rotary_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = channel(scaling.get("beta_fast") or 32), channel(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    at = torch.arange(rotary_dim // 2, dtype=torch.float32, device=frequencies.device)
    stretched = ((at - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequencies / scaling["factor"] * stretched + frequencies * (1 - stretched)


def _yarn_factor(scaling: Mapping[str, Any]) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def logarithm(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    mscale, of_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return logarithm(mscale) / logarithm(of_all) if mscale and of_all else logarithm(1.0)
