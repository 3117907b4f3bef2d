"""``threshold``, ``hierarchical`` and ``fixed-steps``: tokens are committed once and stay."""

from __future__ import annotations

import pytest
import torch

from dmax.decoding import Decoder, FixedStepsDecoder, HierarchicalDecoder, ThresholdDecoder

MASK = 1
ALL = [ThresholdDecoder(), HierarchicalDecoder(), FixedStepsDecoder()]


def flags(tensor: torch.Tensor) -> list[int]:
    return tensor[0].nonzero()[:, 0].tolist()


def committed_each_pass(decoder: Decoder, logits: torch.Tensor, state) -> list[list[int]]:
    """Offsets promoted in each pass when the model says the same every time."""
    passes = []
    for _ in range(state.tokens.shape[1]):
        result = decoder.step(logits, state)
        state = result.state
        passes.append(flags(result.promoted))
        if result.converged.item():
            return passes
    raise AssertionError("not converged after as many passes as positions")


class TestThreshold:
    def test_commits_every_mask_above(self, says, block) -> None:
        logits = says((2, 0.5), (3, 0.97), (4, 0.6), (5, 0.99))
        result = ThresholdDecoder(threshold=0.95).step(logits, block([MASK] * 4))
        assert flags(result.promoted) == [1, 3]
        assert result.state.tokens.tolist() == [[MASK, 3, MASK, 5]]

    def test_commits_the_most_confident_where_none_is_above(self, says, block) -> None:
        result = ThresholdDecoder().step(says((2, 0.5), (3, 0.7), (4, 0.6)), block([MASK] * 3))
        assert flags(result.promoted) == [1]

    def test_confidence_equal_to_the_threshold_is_not_enough(self, block) -> None:
        logits = torch.full((1, 2, 8), -torch.inf)
        logits[..., [2, 3]] = 0.0
        assert flags(ThresholdDecoder(threshold=0.5).step(logits, block([MASK, MASK])).promoted) == [0]

    def test_confidence_of_decoded_and_prompt_positions_plays_no_part(self, says, block) -> None:
        logits = says((7, 0.99), (6, 0.99), (4, 0.3), (5, 0.4))
        result = ThresholdDecoder().step(logits, block([2, 3, MASK, MASK], prompt=1))
        assert result.state.tokens.tolist() == [[2, 3, MASK, 5]]

    def test_steps_set_the_quota_of_a_pass(self, says, block) -> None:
        logits = says((2, 0.5), (3, 0.7), (4, 0.6), (5, 0.3), (6, 0.2))
        assert committed_each_pass(ThresholdDecoder(steps=2), logits, block([MASK] * 5)) == [[0, 1, 2], [3, 4]]

    def test_more_than_the_quota_may_be_above(self, says, block) -> None:
        logits = says((2, 0.97), (3, 0.97), (4, 0.97), (5, 0.3))
        assert flags(ThresholdDecoder(steps=2).step(logits, block([MASK] * 4)).promoted) == [0, 1, 2]

    def test_more_steps_than_positions_still_commit_one_a_pass(self, says, block) -> None:
        logits = says((2, 0.5), (3, 0.7), (4, 0.6))
        assert committed_each_pass(ThresholdDecoder(steps=9), logits, block([MASK] * 3)) == [[1], [2], [0]]


class TestHierarchical:
    def test_commits_the_best_of_every_run(self, says, block) -> None:
        logits = says((2, 0.5), (3, 0.6), (4, 0.99), (5, 0.7), (6, 0.45))
        result = HierarchicalDecoder().step(logits, block([MASK, MASK, 4, MASK, MASK]))
        assert flags(result.promoted) == [1, 3]

    def test_leaves_a_run_whose_best_is_below_the_low_threshold(self, says, block) -> None:
        logits = says((2, 0.3), (3, 0.35), (4, 0.99), (5, 0.7), (6, 0.45))
        result = HierarchicalDecoder().step(logits, block([MASK, MASK, 4, MASK, MASK]))
        assert flags(result.promoted) == [3]

    def test_commits_every_mask_above_the_threshold(self, says, block) -> None:
        result = HierarchicalDecoder().step(says((2, 0.92), (3, 0.95), (4, 0.89)), block([MASK] * 3))
        assert flags(result.promoted) == [0, 1]

    def test_commits_the_best_of_all_in_any_case(self, says, block) -> None:
        result = HierarchicalDecoder().step(says((2, 0.2), (3, 0.3), (4, 0.3)), block([MASK] * 3))
        assert flags(result.promoted) == [1]

    def test_confidence_equal_to_a_threshold_is_not_enough(self, block) -> None:
        logits = torch.full((1, 3, 8), -torch.inf)
        logits[..., [2, 3]] = 0.0  # two tokens at exactly one half
        state = block([MASK, 4, MASK])
        for low_threshold, promoted in ((0.5, [0]), (0.49, [0, 2])):
            decoder = HierarchicalDecoder(low_threshold=low_threshold)
            assert flags(decoder.step(logits, state).promoted) == promoted
        for threshold, promoted in ((0.5, [0]), (0.49, [0, 2])):
            decoder = HierarchicalDecoder(threshold=threshold, low_threshold=1.0)
            assert flags(decoder.step(logits, state).promoted) == promoted

    def test_prompt_bounds_a_run_but_belongs_to_none(self, says, block) -> None:
        logits = says((7, 0.99), (3, 0.6), (4, 0.5))
        assert flags(HierarchicalDecoder().step(logits, block([2, MASK, MASK], prompt=1)).promoted) == [1]

    def test_one_of_equals_in_a_run_is_enough(self, block) -> None:
        logits = torch.zeros(1, 3, 8)
        logits[..., 4] = 3.0
        assert flags(HierarchicalDecoder().step(logits, block([MASK] * 3)).promoted) == [0]


class TestFixedSteps:
    def test_by_default_commits_the_most_confident_one_a_pass(self, says, block) -> None:
        logits = says((2, 0.5), (3, 0.99), (4, 0.99), (5, 0.9))
        assert committed_each_pass(FixedStepsDecoder(), logits, block([MASK] * 4)) == [[1], [2], [3], [0]]

    def test_first_passes_take_the_remainder(self, says, block) -> None:
        logits = says((2, 0.8), (3, 0.7), (4, 0.6), (5, 0.5), (6, 0.4), (7, 0.3), (2, 0.2), (3, 0.15))
        committed = committed_each_pass(FixedStepsDecoder(steps=3), logits, block([MASK] * 8))
        assert committed == [[0, 1, 2], [3, 4, 5], [6, 7]]

    def test_counts_active_positions_only(self, says, block) -> None:
        logits = says((7, 0.99), (7, 0.99), (4, 0.6), (5, 0.5), (6, 0.4))
        committed = committed_each_pass(FixedStepsDecoder(steps=2), logits, block([2, 3, MASK, MASK, MASK], prompt=2))
        assert committed == [[2, 3], [4]]

    def test_fewer_active_positions_than_steps_take_a_pass_each(self, says, block) -> None:
        logits = says((7, 0.99), (7, 0.99), (4, 0.6), (5, 0.5))
        committed = committed_each_pass(FixedStepsDecoder(steps=4), logits, block([2, 3, MASK, MASK], prompt=2))
        assert committed == [[2], [3]]


@pytest.mark.parametrize("decoder", ALL, ids=lambda decoder: decoder.name)
class TestAll:
    def test_committed_tokens_never_change(self, decoder: Decoder, says, block) -> None:
        result = decoder.step(says((7, 0.99), (6, 0.99), (4, 0.3)), block([2, 3, MASK], prompt=1))
        assert result.state.tokens.tolist() == [[2, 3, 4]]
        assert flags(result.revised) == []

    def test_converges_with_the_last_mask(self, decoder: Decoder, says, block) -> None:
        logits = says((2, 0.5), (3, 0.4))
        assert decoder.step(logits, block([2, MASK])).converged.item()
        assert not decoder.step(says((2, 0.3), (3, 0.2)), block([MASK, MASK])).converged.item()

    def test_reads_no_mix(self, decoder: Decoder, says, block) -> None:
        assert decoder.step(says((2, 0.5), (3, 0.4)), block([MASK, MASK])).state.mix is None

    def test_writes_the_drawn_token(self, decoder: Decoder, says, block, noise_for) -> None:
        drawing = type(decoder)(temperature=1.0)
        result = drawing.step(says((2, 0.7), (3, 0.1)), block([MASK, MASK]), noise_for(2, 0, 6))
        assert result.state.tokens.tolist() == [[6, MASK]]
        assert result.confidence[0, 0].item() == pytest.approx(0.7)
