from __future__ import annotations

import pytest
import torch

from dmax.training.data import DataError, Example, Mixture, conversation_example, generator_for, pad_to_block


class WordTokenizer:
    """One token a word; the chat form wraps the prompt in 100 and 101."""

    eos_token_id = 2

    def __init__(self, *closing: int) -> None:
        self.closing = closing

    def encode(self, text: str) -> list[int]:
        return [10 + len(word) for word in text.split()]

    def apply_chat_template(self, messages, add_generation_prompt=True) -> list[int]:
        prompt = [100, *self.encode(messages[0]["content"]), 101]
        return prompt if add_generation_prompt else [*prompt, *self.encode(messages[1]["content"]), *self.closing]


def test_only_the_response_and_its_eos_are_supervised() -> None:
    example = conversation_example(WordTokenizer(), [("how many", "it is four")])
    assert example.token_ids == (100, 13, 14, 101, 12, 12, 14, 2)
    assert example.supervised == (False,) * 4 + (True,) * 4


@pytest.mark.parametrize(("closing", "end"), [((), (2,)), ((2,), (2,)), ((102,), (102, 2)), ((102, 2, 9), (102, 2))])
def test_what_closes_the_rendered_turn_is_supervised(closing: tuple[int, ...], end: tuple[int, ...]) -> None:
    example = conversation_example(WordTokenizer(*closing), [("how many", "four")])
    assert example.token_ids == (100, 13, 14, 101, 14, *end)
    assert example.supervised == (False,) * 4 + (True,) * (1 + len(end))


@pytest.mark.parametrize(("length", "block", "padded"), [(5, 8, 8), (8, 8, 8), (9, 8, 16), (3, 1, 3)])
def test_padding_fills_the_last_block_with_eos(length: int, block: int, padded: int) -> None:
    example = Example((*range(10, 10 + length - 1), 2), (False,) + (True,) * (length - 1))
    result = pad_to_block(example, block, eos_token_id=2)
    assert len(result.token_ids) == len(result.supervised) == padded
    assert result.token_ids[:length] == example.token_ids
    assert set(result.token_ids[length:]) <= {2}
    assert all(result.supervised[length:])


def test_padding_beyond_one_published_block_carries_no_loss() -> None:
    result = pad_to_block(Example((5, 2), (False, True)), 64, eos_token_id=2)
    assert sum(result.supervised) == 1 + 32
    assert not any(result.supervised[2 + 32 :])


def test_padding_after_text_that_is_no_answer_is_not_supervised() -> None:
    result = pad_to_block(Example((5, 6), (False, True)), 4, eos_token_id=2)
    assert result.supervised == (False, True, False, False)


class Constant:
    def __init__(self, token: int) -> None:
        self.token = token

    def example(self, index: int) -> Example:
        return Example((self.token, index), (False, True))


def test_a_mixture_is_a_function_of_the_index_and_keeps_its_shares() -> None:
    mixture = Mixture([(Constant(1), 3.0), (Constant(2), 1.0)], seed=5)
    drawn = [mixture.example(i).token_ids[0] for i in range(2000)]
    assert drawn == [mixture.example(i).token_ids[0] for i in range(2000)]
    assert 0.72 < drawn.count(1) / 2000 < 0.78


def test_a_mixture_reads_each_of_its_sources_without_a_gap() -> None:
    mixture = Mixture([(Constant(1), 2.0), (Constant(2), 1.0)], seed=5)
    drawn = [mixture.example(i).token_ids for i in range(2500)]
    for token in (1, 2):
        positions = sorted(position for source, position in drawn if source == token)
        assert positions[: 2 * len(positions) // 3] == list(range(2 * len(positions) // 3))
        assert len(set(positions)) == len(positions)
    rounds = [sum(source == 1 for source, _ in drawn[start : start + 1000]) for start in (0, 1000)]
    assert rounds == [667, 667]


def test_a_share_too_small_for_a_round_is_refused() -> None:
    with pytest.raises(DataError, match=r"weight 1\.0 is less than"):
        Mixture([(Constant(1), 5000.0), (Constant(2), 1.0)], seed=0)


def test_a_mixture_without_weight_is_refused() -> None:
    with pytest.raises(DataError, match="weight above 0"):
        Mixture([(Constant(1), 0.0)], seed=0)


def test_generators_depend_on_every_part_of_their_key() -> None:
    def draw(*key: int) -> list[float]:
        return torch.rand(4, generator=generator_for(*key)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    streams = [draw(1, 2, 3), draw(1, 3, 2), draw(2, 1, 3), draw(1, 2), draw(1, 2, 4)]
    assert len({tuple(s) for s in streams}) == len(streams)
