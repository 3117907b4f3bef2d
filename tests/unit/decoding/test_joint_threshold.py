from __future__ import annotations

import torch

from dmax.decoding import JointThresholdDecoder

MASK = 1


def flags(tensor: torch.Tensor) -> list[int]:
    return tensor[0].nonzero()[:, 0].tolist()


def test_fills_masks_and_edits_tokens_in_one_pass(says, block) -> None:
    logits = says((6, 0.95), (7, 0.85), (4, 0.99), (5, 0.5))
    result = JointThresholdDecoder().step(logits, block([2, 3, MASK, MASK]))
    assert result.state.tokens.tolist() == [[6, 3, 4, MASK]]
    assert flags(result.revised) == [0]
    assert flags(result.promoted) == [2]


def test_fills_the_most_confident_mask_where_none_is_above(says, block) -> None:
    assert flags(JointThresholdDecoder().step(says((2, 0.3), (3, 0.4)), block([MASK, MASK])).promoted) == [1]


def test_steps_set_the_quota_of_a_pass(says, block) -> None:
    logits = says((2, 0.3), (3, 0.4), (4, 0.2), (5, 0.5))
    assert flags(JointThresholdDecoder(steps=2).step(logits, block([MASK] * 4)).promoted) == [1, 3]


def test_an_edit_needs_more_than_the_threshold(block) -> None:
    logits = torch.full((1, 1, 8), -torch.inf)
    logits[..., [2, 3]] = 0.0
    assert flags(JointThresholdDecoder(editing_threshold=0.5).step(logits, block([4])).revised) == []
    assert flags(JointThresholdDecoder(editing_threshold=0.49).step(logits, block([4])).revised) == [0]


def test_a_token_the_model_agrees_with_is_no_edit(says, block) -> None:
    result = JointThresholdDecoder().step(says((2, 0.99), (3, 0.4)), block([2, MASK]))
    assert flags(result.revised) == []


def test_prompt_is_never_edited(says, block) -> None:
    result = JointThresholdDecoder().step(says((6, 0.99), (7, 0.99), (4, 0.4)), block([2, 3, MASK], prompt=1))
    assert result.state.tokens.tolist() == [[2, 7, 4]]


def test_goes_on_after_the_last_mask_until_nothing_is_edited(says, block) -> None:
    decoder, state = JointThresholdDecoder(), block([MASK, 3])
    results = []
    for logits in (says((2, 0.5), (3, 0.5)), says((6, 0.95), (3, 0.5)), says((6, 0.5), (7, 0.95))):
        results.append(decoder.step(logits, state))
        state = results[-1].state
    results.append(decoder.step(says((5, 0.8), (4, 0.8)), state))
    assert [result.converged.item() for result in results] == [False, False, False, True]
    assert results[-1].state.tokens.tolist() == [[6, 7]]


def test_editing_ends_after_max_post_steps(says, block) -> None:
    decoder, state = JointThresholdDecoder(max_post_steps=3), block([MASK, 3])
    converged = []
    for token in (2, 4, 5, 6):  # the last mask, then an edit in every pass
        result = decoder.step(says((token, 0.95), (token, 0.95)), state)
        state = result.state
        converged.append(result.converged.item())
    assert converged == [False, False, False, True]


def test_without_post_steps_the_last_mask_ends_the_block(says, block) -> None:
    assert JointThresholdDecoder(max_post_steps=0).step(says((2, 0.5), (3, 0.5)), block([MASK, 3])).converged.item()


def test_post_steps_are_counted_afresh_in_the_next_block(says, block) -> None:
    decoder, state = JointThresholdDecoder(max_post_steps=1), block([MASK])
    for token in (2, 3):
        state = decoder.step(says((token, 0.95)), state).state
    state = state.restart(torch.tensor([True]), torch.tensor([[0]]), torch.tensor([[True]]))
    converged = []
    for token in (2, 3):
        result = decoder.step(says((token, 0.95)), state)
        state = result.state
        converged.append(result.converged.item())
    assert converged == [False, True]


def test_edits_take_the_best_token_where_tokens_are_drawn(says, block, noise_for) -> None:
    decoder = JointThresholdDecoder(temperature=1.0)
    result = decoder.step(says((6, 0.95), (3, 0.2)), block([2, MASK]), noise_for(2, 0, 7))
    assert result.state.tokens.tolist() == [[6, 3]]
