from __future__ import annotations

from dataclasses import replace

import torch

from dmax.decoding import BlockState, SoftMix

MASK = 1


def test_start_masks_active_positions_and_keeps_the_prompt() -> None:
    active = torch.tensor([[False, False, True, True]])
    state = BlockState.start(torch.tensor([[5, 6, 7, 0]]), active, MASK)
    assert state.tokens.tolist() == [[5, 6, MASK, MASK]]
    assert torch.equal(state.masked, active)
    assert state.passes.tolist() == [0]


def test_prompt_may_hold_the_mask_token() -> None:
    """What is a mask is a matter of bookkeeping, not of the token's id."""
    state = BlockState.start(torch.tensor([[MASK, 5]]), torch.tensor([[False, True]]), MASK)
    assert state.masked.tolist() == [[False, True]]


def test_restart_gives_some_rows_a_fresh_block_and_leaves_the_others() -> None:
    active = torch.ones(2, 2, dtype=torch.bool)
    running = replace(
        BlockState.start(torch.zeros(2, 2, dtype=torch.int64), active, MASK),
        tokens=torch.tensor([[3, 4], [5, 6]]),
        masked=torch.zeros(2, 2, dtype=torch.bool),
        passes=torch.tensor([3, 4]),
        mix=SoftMix(torch.zeros(2, 2, 1, dtype=torch.int64), torch.ones(2, 2, 1), active, True),
        memory=torch.tensor([[7], [8]]),
    )
    state = running.restart(
        torch.tensor([True, False]), torch.tensor([[2, 0], [0, 0]]), torch.tensor([[False, True], [True, True]])
    )
    assert state.tokens.tolist() == [[2, MASK], [5, 6]]
    assert state.active.tolist() == [[False, True], [True, True]]
    assert state.masked.tolist() == [[False, True], [False, False]]
    assert state.passes.tolist() == [0, 4]
    assert state.mix is not None
    assert state.mix.where.tolist() == [[False, False], [True, True]]
    assert state.memory is not None
    assert state.memory.tolist() == [[0], [8]]
