"""Keys and values of every layer, in pages of one preallocated pool.

A forward runs over *spans*, one a sequence, packed one behind the other without padding: a chunk of a prompt, the block
being decoded, or that block together with the one before it, which has just become final and is stored by the same
forward (algorithm.md#store). Keys and values of a span go into its sequence's pages; its queries see everything the
sequence holds up to the end of their own block.

Every span is attended to by itself, over exactly the positions it may see. That costs no padding and no mask, and no
sequence's arithmetic depends on the lengths of the others. Where there is a kernel for it (see
:mod:`dmax.kernels.cpu.attention`), one call takes all spans; elsewhere each has a call of its own.

Shape suffixes: N packed positions, K key/value heads, H query heads, T positions of a span, S positions it sees,
P positions of the pool, C head channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dmax.kernels.cpu.attention import CpuAttention, SpanPlace
from dmax.kernels.cpu.layers import CpuLayers, LayersPass
from dmax.models.attention import KeyValueStore, attend
from dmax.models.config import ModelConfig
from dmax.models.masks import block_causal_mask
from dmax.models.stack import LayerStack


def page_bytes(config: ModelConfig, page_length: int, dtype: torch.dtype) -> int:
    """Memory of one page: keys and values of all layers."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * page_length * config.head_dim
    return numbers * dtype.itemsize


class PagedCache:
    """The memory of the pool.

    Args:
        config: the model's.
        pages: how many.
        page_length: positions of a page.
        device: where the model is.
        dtype: of the model.
        attention: what attends to all spans at once; None for each by itself.
    """

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        page_length: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        attention: CpuAttention | None = None,
    ) -> None:
        shape = (config.num_hidden_layers, config.num_key_value_heads, pages * page_length, config.head_dim)
        self.page_length = page_length
        self.attention = attention
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.layers = tuple(zip(self.keys[:, None].unbind(), self.values[:, None].unbind(), strict=True))
        """The same, layer by layer: ``(1, K, positions, C)`` each. Taking them apart in every pass would cost time."""

    def span(self, pages: Sequence[int], start: int, end: int, block_length: int) -> Span:
        """Open positions ``start`` to ``end`` of the sequence that holds ``pages``, both on block boundaries.

        The span may serve any number of forwards, for as long as nothing before ``start`` changes.
        """
        return Span(self, tuple(pages), start, end, block_length)

    def pack(self, spans: Sequence[Span]) -> PackedSpans | FusedSpans:
        """The spans of one forward, one behind the other."""
        return PackedSpans(self, spans) if self.attention is None else FusedSpans(self, self.attention, spans)

    def views(self, span: Span) -> SpanViews:
        """What a span sees, for attending to it by itself."""
        length, device, pages = self.page_length, self.keys.device, span.pages
        first = pages[0] * length
        if pages == tuple(range(pages[0], pages[0] + len(pages))):
            writes = torch.arange(first + span.start, first + span.end, device=device)
            keys, values = (memory[:, :, first : first + span.end] for memory in (self.keys, self.values))
            copied = False
        else:
            places = [page * length + offset for page in pages for offset in range(length)][: span.end]
            reads = torch.tensor(places, device=device)
            writes = reads[span.start :]
            keys, values = (memory.index_select(2, reads) for memory in (self.keys, self.values))
            copied = True
        mask = None
        if span.end - span.start > span.block_length:
            positions_1S = torch.arange(span.end, device=device)[None]
            mask = block_causal_mask(positions_1S[:, span.start :], positions_1S, span.block_length)[:, None]
        layers = tuple(zip(keys[:, None].unbind(), values[:, None].unbind(), strict=True))
        return SpanViews(writes, layers, copied, mask)


@dataclass(frozen=True, eq=False)
class Span:
    """Positions of one sequence that a forward computes."""

    cache: PagedCache
    pages: tuple[int, ...]
    start: int
    end: int
    block_length: int

    @cached_property
    def views(self) -> SpanViews:
        """What it sees, made when it is first attended to by itself."""
        return self.cache.views(self)


@dataclass(frozen=True, eq=False)
class SpanViews:
    """The part of the pool that a span writes to, and the part it sees."""

    writes: Tensor
    """``(T,)`` int64, where in the pool it goes."""
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of every layer, each ``(1, K, S, C)``; views of the pool where the sequence's pages are
    neighbours, copies elsewhere."""
    copied: bool
    mask: Tensor | None
    """``(1, 1, T, S)`` bool, for a span of several blocks; None where every position sees all S."""


def packed_positions(spans: Sequence[Span], device: torch.device) -> Tensor:
    """Positions in their sequences, ``(1, N)`` int64."""
    return torch.cat([torch.arange(span.start, span.end, device=device) for span in spans])[None]


class PackedSpans(KeyValueStore):
    """The spans of one forward, each attended to by itself."""

    def __init__(self, cache: PagedCache, spans: Sequence[Span]) -> None:
        self._cache = cache
        self._spans = spans
        writes = [span.views.writes for span in spans]
        self._writes_N = writes[0] if len(spans) == 1 else torch.cat(writes)
        self.position_ids = packed_positions(spans, cache.keys.device)

    def slots(self, layer: int) -> None:
        """None: :meth:`attend` stores keys and values, some of them in copies of the pool."""

    def attend(self, layer: int, q_1HNC: Tensor, k_1KNC: Tensor, v_1KNC: Tensor) -> Tensor:
        """Store keys and values, and let every span attend to what it may see: ``(1, H, N, C)``."""
        keys_1KPC, values_1KPC = self._cache.layers[layer]
        keys_1KPC.index_copy_(2, self._writes_N, k_1KNC)
        values_1KPC.index_copy_(2, self._writes_N, v_1KNC)
        mixed = []
        at = 0
        for span in self._spans:
            here = slice(at, at + span.end - span.start)
            at = here.stop
            keys_1KSC, values_1KSC = span.views.layers[layer]
            if span.views.copied:
                keys_1KSC[:, :, span.start :] = k_1KNC[:, :, here]
                values_1KSC[:, :, span.start :] = v_1KNC[:, :, here]
            mixed.append(attend(q_1HNC[:, :, here], keys_1KSC, values_1KSC, span.views.mask))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, 2)


class FusedSpans(KeyValueStore):
    """The spans of one forward, all attended to by one call a layer."""

    def __init__(self, cache: PagedCache, attention: CpuAttention, spans: Sequence[Span]) -> None:
        self._cache = cache
        self._spans = spans
        places, at = [], 0
        for span in spans:
            places.append(SpanPlace(at, span.start, span.end, span.block_length, span.pages))
            at += span.end - span.start
        self._num_positions = at
        self._attend = attention.plan(places, cache.page_length)

    @cached_property
    def position_ids(self) -> Tensor:
        """Positions in their sequences, ``(1, N)`` int64."""
        return packed_positions(self._spans, self._cache.keys.device)

    def slots(self, layer: int) -> None:
        """None: :meth:`attend` stores keys and values."""

    def attend(self, layer: int, q_1HNC: Tensor, k_1KNC: Tensor, v_1KNC: Tensor) -> Tensor:
        """Store keys and values, and let every span attend to what it may see: ``(1, H, N, C)``."""
        q_NHC, k_NKC, v_NKC = (heads[0].transpose(0, 1) for heads in (q_1HNC, k_1KNC, v_1KNC))
        keys_1KPC, values_1KPC = self._cache.layers[layer]
        return self._attend(q_NHC, k_NKC, v_NKC, keys_1KPC[0], values_1KPC[0]).transpose(0, 1)[None]

    def through(self, layers: CpuLayers, stack: LayerStack, weights: Tensor) -> LayersPass:
        """All layers over these spans in one call, with what :meth:`LayerStack.weights` gave."""
        angles = stack.angles(max(span.end for span in self._spans))
        pool = self._cache.keys, self._cache.values
        return layers.plan(stack.size, weights, self._num_positions, self._attend, angles, pool)
