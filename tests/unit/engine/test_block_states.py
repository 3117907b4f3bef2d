"""Rows join and leave a batch's state without touching each other."""

from __future__ import annotations

import torch

from dmax.decoding import BlockState, SoftMix
from dmax.engine.block_states import join_rows, select_rows

MASK = 1


def started(rows: int) -> BlockState:
    return BlockState.start(torch.full((rows, 4), 9), torch.tensor([[False, True, True, True]] * rows), MASK)


def refined(rows: int) -> BlockState:
    """A state after some passes, every row different."""
    row_numbers = torch.arange(rows)
    mix = SoftMix(
        token_ids=row_numbers[:, None, None].expand(rows, 4, 2) + 20,
        weights=torch.full((rows, 4, 2), 0.25) * (row_numbers + 1)[:, None, None],
        where=torch.tensor([[False, True, True, False]]).expand(rows, 4),
        renormalize=True,
    )
    return BlockState(
        tokens=row_numbers[:, None] * 10 + torch.arange(4),
        active=torch.tensor([[True] * 4] * rows),
        masked=torch.tensor([[False, False, False, True]] * rows),
        passes=row_numbers + 3,
        mask_token_id=MASK,
        mix=mix,
        memory=row_numbers[:, None] + 100,
    )


def assert_same(left: BlockState, right: BlockState) -> None:
    for name in ("tokens", "active", "masked", "passes", "memory"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=0, atol=0)
    assert (left.mix is None) == (right.mix is None)
    if left.mix is not None and right.mix is not None:
        for name in ("token_ids", "weights", "where"):
            torch.testing.assert_close(getattr(left.mix, name), getattr(right.mix, name), rtol=0, atol=0)
        assert left.mix.renormalize == right.mix.renormalize


def test_selected_rows_come_in_the_order_asked() -> None:
    selected = select_rows(refined(3), torch.tensor([2, 0]))
    assert selected.tokens[:, 0].tolist() == [20, 0]
    assert selected.passes.tolist() == [5, 3]
    assert selected.memory is not None
    assert selected.memory.tolist() == [[102], [100]]
    assert selected.mix is not None
    assert selected.mix.token_ids[:, 0, 0].tolist() == [22, 20]
    assert selected.mix.weights[:, 0, 0].tolist() == [0.75, 0.25]


def test_rows_that_join_leave_the_running_ones_as_they_are() -> None:
    joined = join_rows(refined(2), started(2))
    assert_same(select_rows(joined, torch.tensor([0, 1])), refined(2))


def test_rows_that_join_are_fresh() -> None:
    fresh = select_rows(join_rows(refined(2), started(1)), torch.tensor([2]))
    assert fresh.tokens.tolist() == [[9, MASK, MASK, MASK]]
    assert fresh.masked.tolist() == [[False, True, True, True]]
    assert fresh.passes.tolist() == [0]
    assert fresh.mix is not None
    assert not fresh.mix.where.any()
    assert fresh.memory is not None
    assert fresh.memory.tolist() == [[0]]


def test_a_state_without_mix_and_memory_stays_so() -> None:
    joined = join_rows(started(1), started(2))
    assert joined.tokens.shape == (3, 4)
    assert joined.mix is None
    assert joined.memory is None
    assert select_rows(joined, torch.tensor([1])).mix is None
