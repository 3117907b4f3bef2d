"""Keys and values of every layer, in pages of one preallocated pool.

A forward runs over *spans*, one a sequence, packed one behind the other without padding: a chunk of a prompt, the block
being decoded, or that block together with the one before it, which has just become final and is stored by the same
forward (SPEC section 3.7). Keys and values of a span go into the pages of its sequence; its queries see everything the
sequence holds up to the end of their own block.

Every span is attended to by itself, over exactly the positions it may see. That costs no padding and no mask, and no
sequence's arithmetic depends on the lengths of the others.

Shape suffixes: N packed positions, K key/value heads, H query heads, T positions of a span, S positions it sees,
P positions of the pool, C head channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmax.models.attention import attend
from dmax.models.config import ModelConfig
from dmax.models.masks import block_causal_mask


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

    def span(self, pages: Sequence[int], start: int, end: int, block_length: int) -> Span:
        """Open positions ``start`` to ``end`` of the sequence that holds ``pages``, both on block boundaries.

        The span may serve any number of forwards, for as long as nothing before ``start`` changes.
        """
        length, device = self.page_length, self.keys.device
        first = pages[0] * length
        if list(pages) == list(range(pages[0], pages[0] + len(pages))):
            writes = torch.arange(first + start, first + end, device=device)
            keys, values = (memory[:, :, first : first + end] for memory in (self.keys, self.values))
            copied = False
        else:
            places = [page * length + offset for page in pages for offset in range(length)][:end]
            reads = torch.tensor(places, device=device)
            writes = reads[start:]
            keys, values = (memory.index_select(2, reads) for memory in (self.keys, self.values))
            copied = True
        mask = None
        if end - start > block_length:
            positions_1S = torch.arange(end, device=device)[None]
            mask = block_causal_mask(positions_1S[:, start:], positions_1S, block_length)[:, None]
        layers = tuple(zip(keys[:, None].unbind(), values[:, None].unbind(), strict=True))
        return Span(start, end, writes, layers, copied, mask)


@dataclass(frozen=True, eq=False)
class Span:
    """Positions of one sequence that a forward computes, and what they see."""

    start: int
    end: int
    writes: Tensor
    """``(T,)`` int64, where in the pool they go."""
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of every layer, each ``(1, K, S, C)``; views of the pool where the sequence's pages are
    neighbours, copies elsewhere."""
    copied: bool
    mask: Tensor | None
    """``(1, 1, T, S)`` bool, for a span of several blocks; None where every position sees all S."""


class PackedSpans:
    """The spans of one forward, as the model's attention asks for them."""

    def __init__(self, cache: PagedCache, spans: Sequence[Span]) -> None:
        self._cache = cache
        self._writes_N = spans[0].writes if len(spans) == 1 else torch.cat([span.writes for span in spans])
        self._spans = spans
        positions = [torch.arange(span.start, span.end, device=cache.keys.device) for span in spans]
        self.position_ids = torch.cat(positions)[None]
        """``(1, N)`` int64."""

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
            keys_1KSC, values_1KSC = span.layers[layer]
            if span.copied:
                keys_1KSC[:, :, span.start :] = k_1KNC[:, :, here]
                values_1KSC[:, :, span.start :] = v_1KNC[:, :, here]
            mixed.append(attend(q_1HNC[:, :, here], keys_1KSC, values_1KSC, span.mask))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, 2)
