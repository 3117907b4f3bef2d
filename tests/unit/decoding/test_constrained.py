"""Under a constraint the decoded part of a block is, after every pass of every decoder, the beginning of something
allowed; and a decoder whose model would say the same by itself is not disturbed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dmax.decoding import (
    BlockState,
    Decoder,
    EntropyBoundedDecoder,
    FixedStepsDecoder,
    HierarchicalDecoder,
    JointThresholdDecoder,
    JointThresholdIndelDecoder,
    RemaskDecoder,
    SoftParallelDecoder,
    ThresholdDecoder,
)
from dmax.decoding.constrained import ConstrainedDecoder
from dmax.decoding.drawing import Nucleus

VOCABULARY, MASK = 8, 1
OPEN, CLOSE, WORD, EOS = 2, 3, 4, 5
DECODERS: list[Decoder] = [
    SoftParallelDecoder(threshold=0.2, acceptance_threshold=0.6),
    SoftParallelDecoder(threshold=0, top_k=3),
    SoftParallelDecoder(threshold=0.2, contiguous=False),
    SoftParallelDecoder(threshold=0.2, revise=False),
    SoftParallelDecoder(threshold=0.2, soft=False, temperature=1.5),
    ThresholdDecoder(threshold=0.2),
    ThresholdDecoder(steps=3),
    HierarchicalDecoder(threshold=0.3, low_threshold=0.01),
    FixedStepsDecoder(steps=3),
    FixedStepsDecoder(temperature=1.0),
    JointThresholdDecoder(threshold=0.2, editing_threshold=0.1, max_post_steps=3),
    JointThresholdIndelDecoder(threshold=0.2, delete_token_id=6, insert_token_id=7),
    JointThresholdIndelDecoder(threshold=0.9, delete_token_id=6, insert_token_id=7, max_post_steps=0),
    EntropyBoundedDecoder(threshold=0.9),
    EntropyBoundedDecoder(threshold=0.2, temperature=1.0),
    RemaskDecoder(threshold=0.2, remask_threshold=0.9, max_remasks=3),
]


class Brackets:
    """Words in brackets up to three deep; EOS behind the last bracket, and nothing but EOS behind EOS."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.problem: str | None = None

    def allowed(self) -> Tensor:
        depth = self.taken.count(OPEN) - self.taken.count(CLOSE)
        allowed = torch.zeros(VOCABULARY, dtype=torch.bool)
        if self.taken and depth == 0:
            allowed[EOS] = True
        else:
            allowed[[WORD, CLOSE] if depth else [OPEN]] = True
            allowed[OPEN] = depth < 3
        return allowed

    def take(self, token_id: int) -> bool:
        if not self.allowed()[token_id]:
            self.problem = "not allowed"
            return False
        self.taken.append(token_id)
        return True

    def back(self, count: int) -> None:
        del self.taken[len(self.taken) - count :]


def under(decoder: Decoder, *constraints: Brackets, top_k: int = 0) -> ConstrainedDecoder:
    return ConstrainedDecoder(decoder, constraints, [Nucleus(top_k)] * len(constraints))  # type: ignore[arg-type]


def is_a_beginning(tokens: list[int]) -> bool:
    follower = Brackets()
    return all(follower.take(token) for token in tokens)


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_what_is_decoded_is_the_beginning_of_something_allowed(decoder: Decoder) -> None:
    rows, length, prompts = 6, 12, [0, 3, 11, 0, 7, 1]
    generator = torch.Generator().manual_seed(len(repr(decoder)))
    offsets_BL = torch.arange(length).expand(rows, length)
    active_BL = offsets_BL >= torch.tensor(prompts)[:, None]
    for spread in (0.5, 3.0, 12.0):
        constraints = [Brackets() for _ in range(rows)]
        rule = under(decoder, *constraints)
        state = BlockState.start(torch.full((rows, length), 6), active_BL, MASK)
        for _ in range(3 * length):
            noise = torch.rand(rows, length, VOCABULARY, generator=generator).log().neg().log().neg()
            logits = spread * torch.randn(rows, length, VOCABULARY, generator=generator)
            result = rule.step(logits, state, noise)
            assert not any(constraint.taken for constraint in constraints)
            for row, prompt in enumerate(prompts):
                answer = result.state.tokens[row, prompt:].tolist()
                decoded = answer[: answer.index(MASK)] if MASK in answer else answer
                assert set(answer[len(decoded) :]) <= {MASK}, "the decoded part is no prefix"
                assert is_a_beginning(decoded)
                assert not result.converged[row] or len(decoded) == len(answer)
            state = result.state
            if result.converged.all():
                break
        else:
            raise AssertionError("not converged")


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_rows_do_not_influence_one_another(decoder: Decoder) -> None:
    length = 8
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(3, length, VOCABULARY, generator=generator)
    noise = torch.rand(3, length, VOCABULARY, generator=generator).log().neg().log().neg()
    active_BL = torch.arange(length).expand(3, length) >= torch.tensor([[0], [2], [5]])
    state = BlockState.start(torch.full((3, length), 6), active_BL, MASK)
    together = under(decoder, Brackets(), Brackets(), Brackets()).step(logits, state, noise)
    for row in range(3):
        own = slice(row, row + 1)
        alone = under(decoder, Brackets()).step(
            logits[own], BlockState.start(torch.full((1, length), 6), active_BL[own], MASK), noise[own]
        )
        assert torch.equal(alone.state.tokens[0], together.state.tokens[row])
        assert torch.equal(alone.confidence[0], together.confidence[row])


@pytest.mark.parametrize("decoder", [decoder for decoder in DECODERS if decoder.temperature == 0], ids=repr)
def test_a_model_that_says_what_is_allowed_is_decoded_as_without(
    decoder: Decoder, says: Callable[..., Tensor], block: Callable[..., BlockState]
) -> None:
    # Each position is surer than the one behind it, so every decoder begins from the left by itself. The other tokens
    # get so little that it makes no difference whether they are allowed.
    words = [OPEN, WORD, OPEN, WORD, CLOSE, CLOSE, EOS, EOS]
    logits = says(*((token, 1 - 1e-7 * (at + 1)) for at, token in enumerate(words)))
    free, bound = block([MASK] * 8), block([MASK] * 8)
    for _ in range(8):
        alone, held = decoder.step(logits, free), under(decoder, Brackets()).step(logits, bound)
        assert held.state.tokens.tolist() == alone.state.tokens.tolist()
        assert held.converged.tolist() == alone.converged.tolist()
        free, bound = alone.state, held.state
    assert bound.tokens.tolist() == [words]


def test_what_can_only_be_one_token_is_certain(says: Callable[..., Tensor], block: Callable[..., BlockState]) -> None:
    result = under(SoftParallelDecoder(threshold=0.5), Brackets()).step(
        says((WORD, 0.9), (WORD, 0.6), (6, 0.9), (7, 0.9)), block([MASK] * 4)
    )
    # "(" is all that may begin; then a word, of what the model gives 0.6 and two others some of the rest; the third
    # position says nothing of what may come there.
    assert result.state.tokens.tolist() == [[OPEN, WORD, MASK, MASK]]
    first, second, third, fourth = result.confidence[0].tolist()
    assert first == 1
    assert second == pytest.approx(0.6 / (0.6 + 2 * 0.4 / 7))
    assert third == pytest.approx(1 / 3)
    assert fourth == 0  # nobody asks what may follow a mask


def test_a_mask_is_no_surer_than_the_masks_before_it(
    says: Callable[..., Tensor], block: Callable[..., BlockState]
) -> None:
    # Depth 3 is reached, so "(" is not allowed at the fourth position: of two tokens the model is sure of one.
    logits = says((OPEN, 0.9), (OPEN, 0.6), (OPEN, 0.3), (WORD, 0.99))
    alone = under(HierarchicalDecoder(threshold=0.9, low_threshold=0.1), Brackets()).step(logits, block([MASK] * 4))
    assert alone.promoted.tolist() == [[True, False, False, False]]
    quota = under(FixedStepsDecoder(steps=1), Brackets()).step(logits, block([MASK] * 4))
    assert quota.promoted.tolist() == [[True] * 4]
    assert quota.confidence[0].tolist() == sorted(quota.confidence[0].tolist(), reverse=True)


def test_a_revision_is_as_allowed_as_anything_else(
    says: Callable[..., Tensor], block: Callable[..., BlockState]
) -> None:
    before = block([OPEN, WORD, WORD, MASK])
    logits = says((WORD, 0.99), (CLOSE, 0.99), (WORD, 0.9), (WORD, 0.9))
    revised = under(SoftParallelDecoder(threshold=0.5), Brackets()).step(logits, before)
    assert revised.state.tokens.tolist() == [[OPEN, CLOSE, EOS, EOS]]
    assert revised.revised.tolist() == [[False, True, True, False]]
    # Decoders that settle tokens keep them, and what follows has to follow them.
    kept = under(JointThresholdDecoder(threshold=0.5, editing_threshold=0.5), Brackets()).step(logits, before)
    assert kept.state.tokens.tolist() == [[OPEN, WORD, WORD, WORD]]


def test_draws_are_from_what_is_allowed_and_narrowed_among_it(
    says: Callable[..., Tensor], block: Callable[..., BlockState]
) -> None:
    decoder = SoftParallelDecoder(threshold=0, temperature=1.0)
    logits, noise = says((WORD, 0.9), (EOS, 0.9)), torch.zeros(1, 2, VOCABULARY)
    noise[0, 1, CLOSE] = 40  # by far the best draw, were it not narrowed away
    drawn = under(decoder, Brackets()).step(logits, block([MASK] * 2), noise)
    assert drawn.state.tokens.tolist() == [[OPEN, CLOSE]]
    logits[0, 1, OPEN] += 1
    narrow = under(decoder, Brackets(), top_k=1).step(logits, block([MASK] * 2), noise)
    assert narrow.state.tokens.tolist() == [[OPEN, OPEN]]
    noise[0, 0, WORD] = torch.inf  # noise of what is not allowed does no harm, whatever it is
    assert under(decoder, Brackets()).step(logits, block([MASK] * 2), noise).state.tokens[0, 0] == OPEN


def test_a_row_that_cannot_go_on_says_so_and_spares_the_others(
    says: Callable[..., Tensor], block: Callable[..., BlockState]
) -> None:
    stuck, free = Brackets(), Brackets()
    stuck.allowed = lambda: torch.zeros(VOCABULARY, dtype=torch.bool)  # type: ignore[method-assign]
    logits = says((OPEN, 0.9), (WORD, 0.9), (CLOSE, 0.9)).expand(2, 3, VOCABULARY)
    tokens_BL = torch.full((2, 3), MASK)
    state = BlockState.start(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool), MASK)
    result = under(SoftParallelDecoder(threshold=0.5), stuck, free).step(logits, state)
    assert (stuck.problem, free.problem) == ("not allowed", None)
    assert result.state.tokens[1].tolist() == [OPEN, WORD, CLOSE]
