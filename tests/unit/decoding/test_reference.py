"""The reference loop, with a model whose logits are made by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmax.decoding import MultiBlockRule, ReferencePass, decode, get_decoder

MASK, EOS, VOCAB, LENGTH = 1, 2, 8, 4


@dataclass
class SayingModel:
    """Is sure of the i-th token at position i, and notes what it reads."""

    tokens: list[int]
    sure: float = 20.0
    read: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)

    def __call__(self, embeds: Tensor, mask: Tensor, start: int) -> Tensor:
        self.read.append((embeds, mask, start))
        logits = torch.nn.functional.one_hot(torch.tensor(self.tokens), VOCAB) * self.sure
        return logits[None, start : embeds.shape[1]]


def run(
    model: SayingModel, prompt: list[int], gen_length: int, buffer_size: int = 1, ends: tuple[int, ...] = (EOS,)
) -> list[ReferencePass]:
    return list(
        decode(
            model,
            torch.eye(VOCAB),
            get_decoder("threshold", threshold=0.9),
            prompt,
            mask_token_id=MASK,
            eos_token_ids=ends,
            block_length=LENGTH,
            gen_length=gen_length,
            rule=MultiBlockRule(buffer_size=buffer_size, add_threshold=0.0),
        )
    )


def test_the_prompts_tail_shares_the_first_block_and_the_answer_is_cut_to_its_length() -> None:
    model = SayingModel([0] * 5 + [3, 4, 5, 6, 7, 3, 4])
    passes = run(model, [EOS] * 5, gen_length=5)
    assert [one.answer for one in passes] == [[3, 4, 5], [3, 4, 5, 6, 7]]
    assert [one.start for one in passes] == [4, 8]


def test_the_first_eos_of_the_answer_ends_it() -> None:
    passes = run(SayingModel([3, EOS, EOS, 4, 5, 5, 5, 5]), [], gen_length=8)
    assert [one.answer for one in passes] == [[3, EOS]]


def test_any_of_several_eos_ends_the_answer() -> None:
    passes = run(SayingModel([3, 4, 5, EOS, 6, 6, 6, 6]), [], gen_length=8, ends=(EOS, 5))
    assert [one.answer for one in passes] == [[3, 4, 5]]


def test_a_block_sees_itself_and_all_before_it() -> None:
    model = SayingModel([3] * 8)
    run(model, [5] * LENGTH, gen_length=LENGTH)
    [(embeds, mask, start)] = model.read
    assert start == LENGTH
    assert embeds[0].argmax(-1).tolist() == [5] * LENGTH + [MASK] * LENGTH
    assert mask[0, 0].tolist() == [True] * LENGTH + [False] * LENGTH
    assert mask[0, LENGTH].all()


def test_two_blocks_in_flight_share_a_forward() -> None:
    model = SayingModel([3] * 16, sure=1.0)
    one_by_one = run(model, [], gen_length=16)
    together = run(model, [], gen_length=16, buffer_size=2)
    assert together[-1].answer == one_by_one[-1].answer == [3] * 16
    assert max(len(one.results) for one in one_by_one) == 1
    assert max(len(one.results) for one in together) == 2
