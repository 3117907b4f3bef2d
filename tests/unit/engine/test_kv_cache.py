"""The pool's memory: what is written where, and who sees it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmax.decoding import get_decoder
from dmax.engine.kv_cache import KVCache, PackedSpans, page_bytes
from dmax.engine.params import GenerationParams
from dmax.engine.sequence import Sequence
from dmax.engine.span import Span
from dmax.engine.stopping import StopRule
from dmax.models import BlockDiffusionLM
from dmax.models.attention import attend
from dmax.models.masks import block_causal_mask

PAGES, LENGTH, HEADS, KV_HEADS, CHANNELS = 8, 4, 4, 2, 16
TABLES = {"neighbours": [2, 3, 4], "scattered": [6, 1, 5], "half and half": [0, 1, 7]}


@pytest.fixture
def cache(tiny_model: BlockDiffusionLM) -> KVCache:
    return KVCache(tiny_model.config, PAGES, LENGTH, device=torch.device("cpu"), dtype=torch.float32)


def span(pages: list[int], start: int, end: int, block_length: int) -> Span:
    sequence = Sequence("0", [], GenerationParams(block_length=32), StopRule((2,), 8), get_decoder("threshold"))
    return Span(sequence, tuple(pages), start, start, end, block_length)


def fresh(length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(1, heads, length, CHANNELS, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )


def attend_densely(parts: list[tuple[Tensor, Tensor, Tensor]], queries_from: int) -> Tensor:
    """Attention of the last positions, over everything a sequence has computed, by the mask alone."""
    q, k, v = (torch.cat(tensors, 2) for tensors in zip(*parts, strict=True))
    positions = torch.arange(k.shape[2])[None]
    mask = block_causal_mask(positions, positions, LENGTH)
    return attend(q, k, v, mask[:, None])[:, :, queries_from:]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_a_sequence_sees_all_of_its_own_wherever_its_pages_are(cache: KVCache, table: list[int]) -> None:
    stored, block, revised = fresh(8, 0), fresh(4, 1), fresh(4, 2)
    for layer in range(2):
        PackedSpans(cache, [span(table, 0, 8, LENGTH)]).attend(layer, *stored)
    packed = PackedSpans(cache, [span(table, 8, 12, LENGTH)])
    assert packed.position_ids.tolist() == [[8, 9, 10, 11]]
    for layer in range(2):
        torch.testing.assert_close(packed.attend(layer, *block), attend_densely([stored, block], 8))
        # A pass later the same span holds what the block has become.
        torch.testing.assert_close(packed.attend(layer, *revised), attend_densely([stored, revised], 8))


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_a_finished_block_is_stored_beside_its_successor(cache: KVCache, table: list[int]) -> None:
    prompt, draft, final, block = fresh(4, 0), fresh(4, 1), fresh(4, 2), fresh(4, 3)
    PackedSpans(cache, [span(table, 0, 4, LENGTH)]).attend(1, *prompt)
    PackedSpans(cache, [span(table, 4, 8, LENGTH)]).attend(1, *draft)
    both = tuple(torch.cat(pair, 2) for pair in zip(final, block, strict=True))
    mixed = PackedSpans(cache, [span(table, 4, 12, LENGTH)]).attend(1, *both)
    torch.testing.assert_close(mixed, attend_densely([prompt, final, block], 4))
    later = PackedSpans(cache, [span(table, 8, 12, LENGTH)]).attend(1, *block)
    torch.testing.assert_close(later, attend_densely([prompt, final, block], 8))


def test_spans_of_one_forward_do_not_see_each_other(cache: KVCache) -> None:
    first, second = fresh(8, 0), fresh(4, 1)
    packed = PackedSpans(cache, [span([3, 1], 0, 8, LENGTH), span([2], 0, 4, LENGTH)])
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]]
    together = tuple(torch.cat(pair, 2) for pair in zip(first, second, strict=True))
    mixed = packed.attend(0, *together)
    torch.testing.assert_close(mixed[:, :, :8], attend_densely([first], 0))
    torch.testing.assert_close(mixed[:, :, 8:], attend_densely([second], 0))


def test_nothing_is_written_outside_the_pages_and_the_layer(cache: KVCache) -> None:
    PackedSpans(cache, [span([5, 2], 4, 8, LENGTH)]).attend(1, *fresh(4, 0))
    written = torch.zeros_like(cache.keys, dtype=torch.bool)
    written[1, :, 2 * LENGTH : 3 * LENGTH] = True
    assert cache.keys[written].all()
    assert not cache.keys[~written].any()
    assert not cache.values[~written].any()


def test_a_page_takes_keys_and_values_of_all_layers(cache: KVCache, tiny_model: BlockDiffusionLM) -> None:
    size = page_bytes(tiny_model.config, LENGTH, torch.float32)
    assert PAGES * size == cache.keys.nbytes + cache.values.nbytes
    assert page_bytes(tiny_model.config, LENGTH, torch.bfloat16) == size // 2
