"""Keys and values of every layer, in pages of one preallocated pool.

A pass runs over *spans* (:class:`~dmax.engine.span.Span`), at most one a sequence, packed one behind the other without
padding. Keys and values of a span go into the pages of its sequence; its queries see everything the sequence holds up
to the end of their own block.

Every span is attended to by itself, over exactly the positions it may see. That costs no padding and no mask, and no
sequence's arithmetic depends on the lengths of the others.

Shape suffixes: N packed positions, K key/value heads, H query heads, T positions of a span, S positions it sees,
P positions of the pool, C head channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dmax.engine.span import Span
from dmax.models.attention import KeyValueStore, attend
from dmax.models.config import ModelConfig
from dmax.models.masks import block_causal_mask


def page_bytes(config: ModelConfig, page_length: int, dtype: torch.dtype) -> int:
    """Return the memory of one page in bytes: keys and values of all layers."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * page_length * config.head_dim
    return numbers * dtype.itemsize


def page_length_for(block_length: int) -> int:
    """Return the positions of a page for blocks of a length: whole blocks, and at least 32, lest pages become many."""
    return block_length * max(1, -(-32 // block_length))


class KVCache:
    """The memory of the pool.

    Args:
        config: the model's.
        pages: how many.
        page_length: positions of a page.
        device: where the model is.
        dtype: of the model.
    """

    def __init__(
        self, config: ModelConfig, pages: int, page_length: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, config.num_key_value_heads, pages * page_length, config.head_dim)
        self.page_length = page_length
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.layers = tuple(zip(self.keys[:, None].unbind(), self.values[:, None].unbind(), strict=True))
        """The same, layer by layer: ``(1, K, positions, C)`` each. Taking them apart in every pass would cost time."""
        self._views: dict[Span, SpanViews] = {}

    def views(self, spans: Sequence[Span]) -> list[SpanViews]:
        """Return what each span of a pass sees.

        A span of the pass before is seen as it was then: nothing before its start has changed.
        """
        self._views = {span: self._views.get(span) or self._view(span) for span in spans}
        return list(self._views.values())

    def _view(self, span: Span) -> SpanViews:
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
        if span.num_positions > span.block_length:
            positions_1S = torch.arange(span.end, device=device)[None]
            mask = block_causal_mask(positions_1S[:, span.start :], positions_1S, span.block_length)[:, None]
        layers = tuple(zip(keys[:, None].unbind(), values[:, None].unbind(), strict=True))
        return SpanViews(writes, layers, copied, mask)


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
    """Return the positions in their sequences, ``(1, N)`` int64."""
    return torch.cat([torch.arange(span.start, span.end, device=device) for span in spans])[None]


class SpanStore(KeyValueStore, Protocol):
    """The spans of one pass, as the model's attention sees them."""

    position_ids: Tensor
    """Positions in their sequences, ``(1, N)`` int64."""


class PackedSpans(SpanStore):
    """The spans of one pass, each attended to by itself."""

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        self._cache = cache
        self._spans = list(zip(spans, cache.views(spans), strict=True))
        writes = [views.writes for _, views in self._spans]
        self._writes_N = writes[0] if len(spans) == 1 else torch.cat(writes)
        self.position_ids = packed_positions(spans, cache.keys.device)

    def attend(self, layer: int, q_1HNC: Tensor, k_1KNC: Tensor, v_1KNC: Tensor) -> Tensor:
        """Store keys and values, and let every span attend to what it may see: ``(1, H, N, C)``."""
        keys_1KPC, values_1KPC = self._cache.layers[layer]
        keys_1KPC.index_copy_(2, self._writes_N, k_1KNC)
        values_1KPC.index_copy_(2, self._writes_N, v_1KNC)
        mixed = []
        at = 0
        for span, views in self._spans:
            here = slice(at, at + span.num_positions)
            at = here.stop
            keys_1KSC, values_1KSC = views.layers[layer]
            if views.copied:
                keys_1KSC[:, :, span.start :] = k_1KNC[:, :, here]
                values_1KSC[:, :, span.start :] = v_1KNC[:, :, here]
            mixed.append(attend(q_1HNC[:, :, here], keys_1KSC, values_1KSC, views.mask))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, 2)
