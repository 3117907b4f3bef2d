from __future__ import annotations

import pytest
import torch

from dmax.decoding import RemaskDecoder

MASK = 1


def flags(tensor: torch.Tensor) -> list[int]:
    return tensor[0].nonzero()[:, 0].tolist()


def test_a_doubted_token_becomes_a_mask_again(says, block) -> None:
    logits = says((6, 0.9), (3, 0.9), (4, 0.99), (5, 0.5))
    result = RemaskDecoder().step(logits, block([2, 3, MASK, MASK]))
    assert result.state.tokens.tolist() == [[MASK, 3, 4, MASK]]
    assert flags(result.state.masked) == [0, 3]
    assert flags(result.revised) == [0]
    assert flags(result.promoted) == [2]
    assert not result.converged.item()


def test_what_the_model_would_not_choose_but_does_not_doubt_stays(says, block) -> None:
    logits = torch.full((1, 2, 8), -torch.inf)
    logits[..., 2], logits[..., 3] = 0.0, -0.5  # 0.62 and 0.38
    assert flags(RemaskDecoder().step(logits, block([3, MASK])).revised) == []
    assert flags(RemaskDecoder(remask_threshold=0.4).step(logits, block([3, MASK])).revised) == [0]


def test_prompt_is_never_masked(says, block) -> None:
    result = RemaskDecoder().step(says((6, 0.99), (7, 0.99), (4, 0.4)), block([2, 3, MASK], prompt=1))
    assert result.state.tokens.tolist() == [[2, MASK, 4]]


def test_a_block_ends_with_a_pass_that_doubts_nothing(says, block) -> None:
    decoder, state = RemaskDecoder(), block([MASK, 3])
    seen = []
    for logits in (
        says((2, 0.5), (3, 0.9)),  # the last mask
        says((6, 0.9), (3, 0.9)),  # 2 is doubted
        says((6, 0.9), (3, 0.9)),  # 6 in its place
        says((6, 0.9), (3, 0.9)),
    ):
        result = decoder.step(logits, state)
        state = result.state
        seen.append((state.tokens.tolist()[0], result.converged.item()))
    assert seen == [([2, 3], False), ([MASK, 3], False), ([6, 3], False), ([6, 3], True)]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_position_is_masked_so_often_at_most(says, block, most: int) -> None:
    decoder, state, masked = RemaskDecoder(max_remasks=most), block([MASK]), 0
    for token in range(20):
        result = decoder.step(says((2 + token % 6, 0.9)), state)
        state = result.state
        masked += result.revised.sum().item()
        if result.converged.item():
            break
    assert masked == most
    assert token == 1 + 2 * most


def test_counts_begin_afresh_in_the_next_block(says, block) -> None:
    decoder, state = RemaskDecoder(), block([MASK])
    for token in (2, 3):
        state = decoder.step(says((token, 0.95)), state).state
    state = state.restart(torch.tensor([True]), torch.tensor([[0]]), torch.tensor([[True]]))
    assert [decoder.step(says((token, 0.95)), state).revised.item() for token in (2,)] == [False]
    state = decoder.step(says((2, 0.95)), state).state
    assert decoder.step(says((3, 0.95)), state).revised.item()
