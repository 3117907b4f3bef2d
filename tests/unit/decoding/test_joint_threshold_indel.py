from __future__ import annotations

from typing import Any

import pytest
import torch

from dmax.decoding import JointThresholdIndelDecoder, StepResult

MASK, DELETE, INSERT = 1, 6, 7


def decoder(**options: Any) -> JointThresholdIndelDecoder:
    return JointThresholdIndelDecoder(delete_token_id=DELETE, insert_token_id=INSERT, **options)


def flags(tensor: torch.Tensor) -> list[int]:
    return tensor[0].nonzero()[:, 0].tolist()


def tokens(result: StepResult) -> list[int]:
    return result.state.tokens[0].tolist()


def added(result: StepResult) -> list[int]:
    assert result.state.memory is not None
    return result.state.memory[0, :-1].nonzero()[:, 0].tolist()


def test_a_deleted_position_goes_and_the_rest_moves_up(says, block) -> None:
    logits = says((2, 0.9), (DELETE, 0.9), (4, 0.9), (5, 0.9))
    result = decoder().step(logits, block([2, 3, 4, 5]))
    assert tokens(result) == [2, 4, 5, MASK]
    assert flags(result.state.masked) == added(result) == [3]
    assert flags(result.revised) == [1, 2, 3]
    assert not result.converged.item()


def test_a_mask_is_inserted_before_a_position_and_the_end_falls_off(says, block) -> None:
    logits = says((2, 0.9), (INSERT, 0.9), (4, 0.9), (5, 0.9))
    result = decoder().step(logits, block([2, 3, 4, 5]))
    assert tokens(result) == [2, MASK, 3, 4]
    assert added(result) == [1]


def test_both_at_once_and_an_edit(says, block) -> None:
    logits = says((INSERT, 0.9), (3, 0.9), (DELETE, 0.9), (2, 0.9))
    result = decoder().step(logits, block([2, 3, 4, 5]))
    assert tokens(result) == [MASK, 2, 3, 2]


def test_a_mask_may_be_deleted_or_have_one_put_before_it(says, block) -> None:
    state = block([2, MASK, MASK, 5])
    result = decoder().step(says((2, 0.9), (DELETE, 0.9), (4, 0.2), (5, 0.9)), state)
    assert tokens(result) == [2, MASK, 5, MASK]
    assert added(result) == [3], "the other was there when the block began"
    result = decoder().step(says((2, 0.9), (INSERT, 0.9), (4, 0.2), (5, 0.9)), state)
    assert tokens(result) == [2, MASK, MASK, MASK]
    assert added(result) == [1]


def test_prompt_is_never_touched(says, block) -> None:
    logits = says((DELETE, 0.9), (INSERT, 0.9), (4, 0.9))
    assert tokens(decoder().step(logits, block([2, 3, MASK], prompt=2))) == [2, 3, 4]


def test_one_mask_more_than_were_added_is_committed_at_least(says, block) -> None:
    first = decoder().step(says((DELETE, 0.9), (2, 0.2), (3, 0.3), (4, 0.4)), block([5, MASK, MASK, MASK]))
    assert tokens(first) == [MASK, MASK, 4, MASK]
    assert added(first) == [3]
    second = decoder().step(says((2, 0.2), (3, 0.3), (4, 0.9), (5, 0.25)), first.state)
    assert tokens(second) == [MASK, 3, 4, 5], "two of the three"


def test_all_are_committed_once_none_of_the_start_is_left(says, block) -> None:
    first = decoder().step(says((INSERT, 0.9), (INSERT, 0.9), (3, 0.9), (4, 0.9)), block([2, 3, 4, 5]))
    assert tokens(first) == [MASK, 2, MASK, 3]
    second = decoder().step(says((4, 0.2), (2, 0.9), (5, 0.2), (3, 0.9)), first.state)
    assert (tokens(second), second.converged.item()) == ([4, 2, 5, 3], False)
    third = decoder().step(says((4, 0.2), (2, 0.9), (5, 0.2), (3, 0.9)), second.state)
    assert (tokens(third), third.converged.item()) == ([4, 2, 5, 3], True)


def test_an_edit_needs_more_than_the_threshold(says, block) -> None:
    logits = says((DELETE, 0.6), (5, 0.6))
    assert tokens(decoder(editing_threshold=0.7).step(logits, block([2, 3]))) == [2, 3]
    assert tokens(decoder(editing_threshold=0.5).step(logits, block([2, 3]))) == [5, MASK]


@pytest.mark.parametrize("most", [1, 3])
def test_the_last_pass_neither_deletes_nor_inserts(says, block, most: int) -> None:
    state, passes = block([2, 3]), []
    for _ in range(most):
        logits = says((INSERT, 0.6), (DELETE, 0.9))
        logits[0, :, 5] += 0.5  # the best of the others
        result = decoder(max_post_steps=most).step(logits, state)
        state = result.state
        passes.append(result.converged.item())
    assert passes == [False] * (most - 1) + [True]
    assert tokens(result) == [5, 5]
    assert not state.masked.any()


def test_without_post_steps_the_last_mask_of_the_start_ends_the_block(says, block) -> None:
    logits = says((2, 0.9), (INSERT, 0.9))
    logits[0, :, 4] += 0.5
    result = decoder(max_post_steps=0).step(logits, block([2, MASK]))
    assert (tokens(result), result.converged.item()) == ([2, 4], True)


def test_insertions_without_end_are_cut_short(says, block) -> None:
    state, passes = block([MASK] * 4), 0
    while passes < 100:
        passes += 1
        logits = says((INSERT, 0.3), *[(2, 0.2)] * 3)  # the first mask gets a mask before it, for ever
        result = decoder(max_post_steps=2).step(logits, state)
        state = result.state
        if result.converged.item():
            break
    assert passes <= 4 + 2 + 1
    assert not (state.tokens == INSERT).any()


def test_without_the_two_tokens_nothing_moves(says, block) -> None:
    logits = says((DELETE, 0.9), (INSERT, 0.9), (4, 0.9))
    assert tokens(JointThresholdIndelDecoder().step(logits, block([2, 3, MASK]))) == [DELETE, INSERT, 4]
