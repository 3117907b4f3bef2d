from __future__ import annotations

import math

import pytest
import torch

from dmax.decoding import EntropyBoundedDecoder
from dmax.decoding.prediction import entropy

MASK = 1


def flags(tensor: torch.Tensor) -> list[int]:
    return tensor[0].nonzero()[:, 0].tolist()


def coins(*shares: float) -> torch.Tensor:
    """Logits of positions that give token 2 a share and token 3 the rest, and so have the entropy of a coin."""
    logits = torch.full((1, len(shares), 8), -math.inf)
    for position, share in enumerate(shares):
        logits[0, position, 2:4] = torch.tensor([share, 1 - share]).log()
    return logits


def test_entropy_is_that_of_what_can_be_chosen() -> None:
    logits = coins(0.5, 0.9, 1.0)
    expected = [math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.1), 0.0]
    assert entropy(logits, MASK)[0].tolist() == pytest.approx(expected, abs=1e-6)
    before = logits.clone()
    logits[..., MASK] = 30.0  # the mask token lends no certainty
    assert entropy(logits, MASK)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(logits[..., 2:], before[..., 2:])


def test_commits_the_most_certain_while_their_sum_stays_below(block) -> None:
    logits = coins(0.95, 0.5, 0.97, 0.96)  # entropies 0.199, 0.693, 0.135, 0.168
    state = block([MASK] * 4)
    assert flags(EntropyBoundedDecoder(threshold=0.32).step(logits, state).promoted) == [2, 3]
    assert flags(EntropyBoundedDecoder(threshold=0.30).step(logits, state).promoted) == [2]
    result = EntropyBoundedDecoder(threshold=0.51).step(logits, state)
    assert flags(result.promoted) == [0, 2, 3]
    assert result.state.tokens.tolist() == [[2, MASK, 2, 2]]


def test_commits_the_most_certain_in_any_case(block) -> None:
    assert flags(EntropyBoundedDecoder(threshold=0.0).step(coins(0.5, 0.6, 0.6), block([MASK] * 3)).promoted) == [1]


def test_tokens_count_for_nothing_and_stay(block) -> None:
    result = EntropyBoundedDecoder(threshold=0.2).step(coins(0.5, 0.5, 0.97), block([4, 5, MASK], prompt=1))
    assert result.state.tokens.tolist() == [[4, 5, 2]]
    assert flags(result.revised) == []
    assert result.converged.item()
