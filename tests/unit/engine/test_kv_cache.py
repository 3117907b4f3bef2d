"""The cache: what is written where, and who sees it."""

from __future__ import annotations

import pytest
import torch

from dmax.engine.kv_cache import KVCache
from dmax.models import LLaDA2

SLOTS, LENGTH, WIDTH = 4, 24, 4


@pytest.fixture
def cache(tiny_model: LLaDA2) -> KVCache:
    return KVCache(tiny_model.config, SLOTS, LENGTH, device=torch.device("cpu"), dtype=torch.float32)


def fresh(entries: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, entries, 2, WIDTH, 16, generator=generator)
    return keys, values


@pytest.mark.parametrize(
    ("slots", "starts"),
    [
        ([0], [0]),
        ([2], [8]),
        ([1, 1], [4, 8]),  # the commit of a single row
        ([0, 1], [8, 8]),
        ([0, 1, 2, 3], [0, 12, 4, 8]),
        ([3, 0, 1, 3], [4, 0, 12, 8]),  # a batch of which one row commits
        ([2, 2], [4, 12]),  # one slot, but not neighbours
    ],
)
def test_every_entry_reads_its_slot_with_what_all_have_just_written(
    cache: KVCache, slots: list[int], starts: list[int]
) -> None:
    end = max(starts) + WIDTH
    expected = torch.zeros(2, SLOTS, 2, LENGTH, 16)
    before = fresh(SLOTS, seed=1)
    cache.window(list(range(SLOTS)), [0] * SLOTS, WIDTH).store.update(1, *before)
    expected[:, :, :, :WIDTH] = torch.stack(before)
    written = fresh(len(slots))
    for entry, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        for kind in (0, 1):
            expected[kind, slot, :, start : start + WIDTH] = written[kind][entry]
    read = cache.window(slots, starts, WIDTH).store.update(1, *written)
    for kind in (0, 1):
        torch.testing.assert_close(read[kind], expected[kind, slots, :, :end], rtol=0, atol=0)


def test_layers_do_not_share_memory(cache: KVCache) -> None:
    window = cache.window([0], [0], WIDTH)
    window.store.update(0, *fresh(1))
    keys, values = window.store.update(1, torch.zeros(1, 2, WIDTH, 16), torch.zeros(1, 2, WIDTH, 16))
    assert not keys.any()
    assert not values.any()


def test_positions_and_mask_follow_each_entrys_own_end(cache: KVCache) -> None:
    window = cache.window([0, 1], [4, 8], WIDTH)
    assert window.position_ids.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert window.mask is not None
    assert window.mask.shape == (2, WIDTH, 12)
    assert window.mask[0, 0].tolist() == [True] * 8 + [False] * 4
    assert window.mask.sum(-1).tolist() == [[8] * 4, [12] * 4]


def test_there_is_no_mask_where_everyone_sees_everything(cache: KVCache) -> None:
    assert cache.window([0], [8], WIDTH).mask is None
    assert cache.window([0, 3], [8, 8], WIDTH).mask is None


def test_a_slot_can_be_moved(cache: KVCache) -> None:
    cache.window([3], [0], WIDTH).store.update(0, *fresh(1, seed=3))
    cache.move(3, 1, WIDTH)
    keys, values = cache.window([1], [4], WIDTH).store.update(0, *fresh(1, seed=4))
    expected_keys, expected_values = fresh(1, seed=3)
    torch.testing.assert_close(keys[:, :, :WIDTH], expected_keys, rtol=0, atol=0)
    torch.testing.assert_close(values[:, :, :WIDTH], expected_values, rtol=0, atol=0)
