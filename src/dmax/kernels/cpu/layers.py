"""All layers of a small model in one call on a CPU: ``layers.h``.

Between the matmuls of a pass over a block stand hundreds of small steps, and getting from Python to one of them takes
longer than doing it. Here Python is left once a pass.

Shape suffixes: N packed positions, D hidden, R rotary channels, L layers, K key/value heads, P positions of the pool,
C head channels, O outputs of a matrix, I its inputs, W words of 32 bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dmax.kernels.cpu.attention import PoolAt, SpanAttention
from dmax.kernels.cpu.library import DTYPES, LANES, Function, fields


class FeedForwardSize(NamedTuple):
    """A feed-forward as the kernel sees it: narrow parts, the first ``routed`` of which are chosen from."""

    routed: int
    """0: all parts are for every position."""
    parts: int
    width: int
    """Of a part."""


class LayersSize(NamedTuple):
    """What the kernel has to know of a model."""

    hidden: int
    heads: int
    kv_heads: int
    channels: int
    rotary: int
    head_norms: bool
    qkv_bias: bool
    bias: bool
    """Of the projection behind attention."""
    eps: float
    routing: tuple[int, int, int, float, bool, bool]
    """Groups of experts, groups kept, experts of a position, the factor of their sum; whether scores are a softmax, and
    whether weights are normalised."""
    feed_forwards: tuple[FeedForwardSize, ...]
    """One a layer."""

    @property
    def routed(self) -> int:
        """Experts that a position may be sent to; the same in all layers that have any."""
        return max(size.routed for size in self.feed_forwards)


def serves(size: LayersSize, dtype: torch.dtype) -> bool:
    """Tell whether the kernel is written for such a model, in this dtype."""
    widths = (size.hidden, size.channels, *(part.width for part in size.feed_forwards))
    return (
        dtype in DTYPES
        and all(width % LANES == 0 for width in widths)
        and {part.routed for part in size.feed_forwards} <= {0, size.routed}
    )


def padded(weight_E: Tensor) -> Tensor:
    """Pad with zeros up to a whole number of lanes, in float32."""
    missing = -weight_E.shape[0] % LANES
    return torch.cat([weight_E.float(), torch.zeros(missing, *weight_E.shape[1:])])


def one_behind_the_other(tensors: Sequence[Tensor]) -> Tensor:
    """Join the bytes of tensors."""
    return torch.cat([tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in tensors])


class PassArguments(ctypes.Structure):
    """``layers::Pass``."""

    class Sizes(ctypes.Structure):
        """``layers::Sizes``."""

        _fields_ = [
            *fields(numbers="positions layers hidden heads kv_heads channels rotary"),
            *fields(numbers="head_norms qkv_bias bias", fractions="eps"),
        ]

    class Rule(ctypes.Structure):
        """``routing::Rule``."""

        _fields_ = [
            *fields(numbers="experts groups groups_kept chosen", fractions="scale"),
            *fields(numbers="softmax normalize"),
        ]

    _fields_ = [
        ("sizes", Sizes),
        *fields(addresses="embeds out weights feed_forwards"),
        ("rule", Rule),
        *fields(addresses="cosines sines"),
        ("pool", PoolAt),
        *fields(numbers="layer_stride"),
        *fields(addresses="spans", numbers="num_spans"),
    ]


class CpuLayers:
    """The kernel.

    Args:
        path: of the compiled library.
        dtype: of embeddings, weights, keys and values.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.run = Function(path, "layers", dtype)

    def plan(
        self, size: LayersSize, weights: Tensor, num_positions: int, spans: SpanAttention,
        angles: tuple[Tensor, Tensor], pool: tuple[Tensor, Tensor],
    ) -> LayersPass:  # fmt: skip
        """Prepare what passes over the same spans call.

        Args:
            size: of the model.
            weights: layer by layer :func:`one_behind_the_other`: norm, queries, keys and values, the norms of queries
                and keys, what follows attention, norm; where there are experts to choose from, router and bias, both
                :func:`padded`; gates and ups, then downs, of all parts. Behind the last layer the final norm. Matrices
                are :func:`dmax.kernels.cpu.experts.in_panels`, each with its bias behind it where it has one.
            num_positions: of all spans.
            spans: where positions stand.
            angles: cosines and sines of the rotary angles of every position that a sequence may have, from 0 on, one
                row each of R channels, contiguous float32.
            pool: keys and values, ``(L, K, P, C)`` contiguous.
        """
        return LayersPass(self.run, size, weights, num_positions, spans, angles, pool)


class LayersPass:
    """All layers, over the same spans, in any number of passes."""

    def __init__(
        self, run: Function, size: LayersSize, weights: Tensor, num_positions: int, spans: SpanAttention,
        angles: tuple[Tensor, Tensor], pool: tuple[Tensor, Tensor],
    ) -> None:  # fmt: skip
        self._run = run
        cosines, sines = angles
        keys, values = pool
        feed_forwards = torch.tensor(size.feed_forwards)
        self._alive = (weights, spans, angles, feed_forwards, keys, values)
        self._arguments = PassArguments(
            sizes=PassArguments.Sizes(
                num_positions, len(size.feed_forwards), size.hidden, size.heads, size.kv_heads, size.channels,
                size.rotary, size.head_norms, size.qkv_bias, size.bias, size.eps,
            ),
            weights=weights.data_ptr(),
            feed_forwards=feed_forwards.data_ptr(),
            rule=PassArguments.Rule(size.routed, *size.routing),
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
            pool=spans.pool(keys[0], values[0]),
            layer_stride=keys.stride(0),
            spans=spans.address,
            num_spans=spans.num_spans,
        )  # fmt: skip

    def __call__(self, embeds_ND: Tensor) -> Tensor:
        """Compute hidden states after the final norm, ``(N, D)``, of embeddings side by side; fills the pool."""
        assert embeds_ND.dtype == self._run.dtype and embeds_ND.is_contiguous()
        out_ND = torch.empty_like(embeds_ND)
        self._arguments.embeds, self._arguments.out = embeds_ND.data_ptr(), out_ND.data_ptr()
        self._run(self._arguments)
        return out_ND
