from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dmax.decoding import SoftParallelDecoder

MASK = 1


def flags(tensor: torch.Tensor) -> list[int]:
    """Offsets of the True positions of a one-row tensor."""
    return tensor[0].nonzero()[:, 0].tolist()


class TestPromotion:
    def test_takes_the_leading_confident_run(self, says, block) -> None:
        logits = says((2, 0.9), (3, 0.8), (4, 0.4), (5, 0.9))
        result = SoftParallelDecoder(threshold=0.5).step(logits, block([MASK] * 4))
        assert flags(result.promoted) == [0, 1]
        assert result.state.tokens.tolist() == [[2, 3, MASK, MASK]]
        assert flags(result.state.masked) == [2, 3]
        assert flags(result.revised) == []

    def test_takes_the_leftmost_alone_where_it_is_not_confident(self, says, block) -> None:
        result = SoftParallelDecoder(threshold=0.5).step(says((2, 0.3), (3, 0.9), (4, 0.9)), block([MASK] * 3))
        assert flags(result.promoted) == [0]

    def test_run_begins_after_what_is_decoded(self, says, block) -> None:
        logits = says((2, 0.1), (3, 0.9), (4, 0.9), (5, 0.1))
        result = SoftParallelDecoder(threshold=0.5).step(logits, block([2, MASK, MASK, MASK]))
        assert flags(result.promoted) == [1, 2]

    def test_run_passes_over_decoded_positions(self, says, block) -> None:
        """Holes exist where promotion was free to leave them; they neither break the run nor count."""
        logits = says((2, 0.9), (3, 0.1), (4, 0.9), (5, 0.1))
        result = SoftParallelDecoder(threshold=0.5).step(logits, block([MASK, 3, MASK, MASK]))
        assert flags(result.promoted) == [0, 2]

    def test_confidence_equal_to_the_threshold_is_enough(self, block) -> None:
        logits = torch.full((1, 2, 8), -torch.inf)
        logits[..., [2, 3]] = 0.0  # two tokens at exactly one half
        result = SoftParallelDecoder(threshold=0.5).step(logits, block([MASK, MASK]))
        assert flags(result.promoted) == [0, 1]

    def test_threshold_zero_takes_the_whole_block(self, says, block) -> None:
        result = SoftParallelDecoder(threshold=0.0).step(says((2, 0.2), (3, 0.2), (4, 0.2)), block([MASK] * 3))
        assert flags(result.promoted) == [0, 1, 2]

    def test_threshold_one_takes_one(self, says, block) -> None:
        result = SoftParallelDecoder(threshold=1.0).step(says((2, 0.99), (3, 0.99)), block([MASK] * 2))
        assert flags(result.promoted) == [0]

    def test_free_promotion_takes_every_confident_mask(self, says, block) -> None:
        logits = says((2, 0.3), (3, 0.9), (4, 0.4), (5, 0.9))
        result = SoftParallelDecoder(threshold=0.5, contiguous=False).step(logits, block([MASK] * 4))
        assert flags(result.promoted) == [1, 3]

    def test_free_promotion_falls_back_to_the_most_confident(self, says, block) -> None:
        logits = says((2, 0.2), (3, 0.4), (4, 0.3))
        result = SoftParallelDecoder(threshold=0.5, contiguous=False).step(logits, block([MASK] * 3))
        assert flags(result.promoted) == [1]


class TestRevision:
    def test_decoded_tokens_are_predicted_anew_at_any_confidence(self, says, block) -> None:
        logits = says((6, 0.2), (3, 0.9), (4, 0.3))
        result = SoftParallelDecoder(threshold=0.9).step(logits, block([2, 3, MASK]))
        assert result.state.tokens.tolist() == [[6, 3, 4]]
        assert flags(result.revised) == [0]
        assert flags(result.promoted) == [2]

    def test_prompt_is_never_touched(self, says, block) -> None:
        logits = says((6, 0.99), (6, 0.99), (4, 0.99), (5, 0.99))
        result = SoftParallelDecoder().step(logits, block([2, 3, 7, MASK], prompt=2))
        assert result.state.tokens.tolist() == [[2, 3, 4, 5]]
        assert flags(result.revised) == [2]
        assert flags(result.promoted) == [3]
        assert flags(result.state.active) == [2, 3]

    def test_off_keeps_decoded_tokens(self, says, block) -> None:
        logits = says((6, 0.99), (3, 0.99), (4, 0.1))
        result = SoftParallelDecoder(revise=False).step(logits, block([2, MASK, MASK]))
        assert result.state.tokens.tolist() == [[2, 3, MASK]]
        assert flags(result.revised) == []


class TestConvergence:
    def test_when_every_active_position_is_accepted(self, says, block) -> None:
        """In the very pass that promotes the last mask, and whatever the model thinks of the prompt."""
        decoder = SoftParallelDecoder(threshold=0.5, acceptance_threshold=0.9)
        assert decoder.step(says((7, 0.2), (3, 0.95), (4, 0.95)), block([2, 5, MASK], prompt=1)).converged.item()
        assert not decoder.step(says((7, 0.2), (3, 0.95), (4, 0.89)), block([2, 5, MASK], prompt=1)).converged.item()

    def test_confidence_equal_to_the_acceptance_threshold_is_enough(self, block) -> None:
        logits = torch.full((1, 1, 8), -torch.inf)
        logits[..., [2, 3]] = 0.0  # two tokens at exactly one half
        decoder = SoftParallelDecoder(threshold=0, acceptance_threshold=0.5)
        assert decoder.step(logits.expand(1, 2, 8), block([MASK, MASK])).converged.item()

    def test_when_no_token_changes(self, says, block) -> None:
        decoder = SoftParallelDecoder(threshold=0.5)
        assert decoder.step(says((2, 0.5), (3, 0.5)), block([2, 3])).converged.item()
        assert not decoder.step(says((2, 0.5), (4, 0.5)), block([2, 3])).converged.item()

    def test_promotion_counts_as_a_change(self, says, block) -> None:
        assert not SoftParallelDecoder(threshold=0.5).step(says((2, 0.5), (3, 0.5)), block([2, MASK])).converged.item()

    def test_never_with_a_mask_left(self, says, block) -> None:
        decoder = SoftParallelDecoder(threshold=0.95, acceptance_threshold=0.5)
        assert not decoder.step(says((2, 0.9), (3, 0.9)), block([MASK, MASK])).converged.item()

    def test_after_as_many_passes_as_positions(self, says, block) -> None:
        state, decoder = block([MASK] * 3), SoftParallelDecoder(threshold=0.0)
        converged = []
        for token in (2, 3, 4):  # every pass rewrites every token
            result = decoder.step(says((token, 0.5), (token, 0.5), (token, 0.5)), state)
            state = result.state
            converged.append(result.converged.item())
        assert converged == [False, False, True]
        assert state.passes.item() == 3

    def test_without_revision_when_no_mask_is_left(self, says, block) -> None:
        decoder = SoftParallelDecoder(threshold=0.5, revise=False)
        assert decoder.step(says((2, 0.5), (3, 0.5)), block([2, MASK])).converged.item()

    def test_of_a_row_with_nothing_to_decode(self, says, block) -> None:
        result = SoftParallelDecoder().step(says((2, 0.1), (3, 0.1)), block([5, 6], prompt=2))
        assert result.converged.item()
        assert result.state.tokens.tolist() == [[5, 6]]


class TestMix:
    def test_holds_token_and_confidence_of_decoded_positions(self, says, block) -> None:
        logits = says((7, 0.5), (2, 0.6), (3, 0.8), (4, 0.3))
        mix = SoftParallelDecoder(threshold=0.7).step(logits, block([5, 6, MASK, MASK], prompt=1)).state.mix
        assert mix is not None
        assert flags(mix.where) == [1, 2]
        assert mix.token_ids[0, 1:3, 0].tolist() == [2, 3]
        torch.testing.assert_close(mix.weights[0, 1:3, 0], torch.tensor([0.6, 0.8]))
        assert mix.renormalize

    def test_is_left_to_the_hard_tokens_of_a_converged_row(self, says, block) -> None:
        result = SoftParallelDecoder().step(says((2, 0.95), (3, 0.95)), block([MASK, MASK]))
        assert result.converged.item()
        assert result.state.mix is not None
        assert flags(result.state.mix.where) == []

    def test_of_several_tokens(self, block) -> None:
        probabilities = torch.tensor([0.1, 0.3, 0.05, 0.4, 0.15])
        mix = SoftParallelDecoder(threshold=0, top_k=3).step(probabilities.log().expand(1, 2, 5), block([MASK] * 2))
        assert mix.state.mix is not None
        assert mix.state.mix.token_ids[0, 0].tolist() == [3, 4, 0]
        torch.testing.assert_close(mix.state.mix.weights[0, 0], torch.tensor([0.4, 0.15, 0.1]))

    def test_off_feeds_back_hard_tokens(self, says, block) -> None:
        result = SoftParallelDecoder(soft=False, top_k=4).step(says((2, 0.6), (3, 0.1)), block([MASK, MASK]))
        assert result.state.mix is None

    def test_may_be_plain(self, says, block) -> None:
        mix = SoftParallelDecoder(renormalize=False).step(says((2, 0.6), (3, 0.1)), block([MASK, MASK])).state.mix
        assert mix is not None
        assert not mix.renormalize

    def test_without_revision_stays_as_it_was_promoted(self, says, block) -> None:
        decoder = SoftParallelDecoder(threshold=0.5, revise=False)
        state = decoder.step(says((2, 0.6), (3, 0.1), (4, 0.1)), block([MASK] * 3)).state
        mix = decoder.step(says((7, 0.99), (3, 0.7), (4, 0.1)), state).state.mix
        assert mix is not None
        assert mix.token_ids[0, :2, 0].tolist() == [2, 3]
        torch.testing.assert_close(mix.weights[0, :2, 0], torch.tensor([0.6, 0.7]))

    def test_follows_revision(self, says, block) -> None:
        decoder = SoftParallelDecoder(threshold=0.5)
        state = decoder.step(says((2, 0.6), (3, 0.1), (4, 0.1)), block([MASK] * 3)).state
        mix = decoder.step(says((7, 0.8), (3, 0.7), (4, 0.1)), state).state.mix
        assert mix is not None
        assert mix.token_ids[0, :2, 0].tolist() == [7, 3]
        torch.testing.assert_close(mix.weights[0, :2, 0], torch.tensor([0.8, 0.7]))


class TestTemperature:
    def test_writes_the_drawn_token_and_decides_by_the_best_one(self, says, block, noise_for) -> None:
        decoder = SoftParallelDecoder(threshold=0.5, temperature=1.0)
        result = decoder.step(says((2, 0.6), (3, 0.1)), block([MASK, MASK]), noise_for(2, 0, 6))
        assert result.state.tokens.tolist() == [[6, MASK]]
        assert result.confidence[0, 0].item() == pytest.approx(0.6)

    def test_mixes_the_drawn_token_in_the_place_of_the_best(self, block, noise_for) -> None:
        logits = torch.tensor([0.1, 0.3, 0.05, 0.4, 0.15, 0, 0, 0]).log().expand(1, 2, 8)
        decoder = SoftParallelDecoder(threshold=0.3, temperature=1.0, top_k=3)

        def mixed(drawn: int) -> list[int]:
            mix = decoder.step(logits, block([MASK, MASK]), noise_for(2, 0, drawn)).state.mix
            assert mix is not None
            torch.testing.assert_close(mix.weights[0, 0], torch.tensor([0.4, 0.15, 0.1]))
            return mix.token_ids[0, 0].tolist()

        assert mixed(3) == [3, 4, 0]
        assert mixed(4) == [4, 3, 0]
        assert mixed(2) == [2, 4, 0]


def test_state_is_left_as_it_is(says, block) -> None:
    state = block([2, MASK, MASK])
    before = replace(state, tokens=state.tokens.clone(), masked=state.masked.clone(), passes=state.passes.clone())
    SoftParallelDecoder().step(says((6, 0.9), (3, 0.9), (4, 0.9)), state)
    assert torch.equal(state.tokens, before.tokens)
    assert torch.equal(state.masked, before.masked)
    assert torch.equal(state.passes, before.passes)
