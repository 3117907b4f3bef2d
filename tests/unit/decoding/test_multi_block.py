"""The rules of several blocks in flight, from hand-made views (algorithm.md#blocks-in-flight)."""

from __future__ import annotations

import pytest
import torch

from dmax.decoding import BlockState, BlockView, DecoderError, MultiBlockRule, get_decoder

MASK = 1
HALF_DONE = BlockView(decoded=0.5, stability=1.0, ended=False, converged=False)
DONE = BlockView(decoded=1.0, stability=1.0, ended=False, converged=True)


def view(**changes: object) -> BlockView:
    return BlockView(**{**HALF_DONE.__dict__, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("views", "starts"),
    [
        ([view(decoded=0.10)], True),
        ([view(decoded=0.09)], False),
        ([view(stability=0.5)], True),
        ([view(stability=0.49)], False),
        ([view(ended=True)], False),
        ([HALF_DONE, view(decoded=0.05)], False),  # the last one decides
        ([view(decoded=0.0), HALF_DONE], True),
        ([view(ended=True), HALF_DONE], False),  # an EOS in any of them
        ([HALF_DONE, view(ended=True)], False),
        ([HALF_DONE] * 3, False),  # the buffer is full
    ],
)
def test_the_next_block_joins_when_the_last_one_is_far_and_calm_enough(views: list[BlockView], starts: bool) -> None:
    assert MultiBlockRule(buffer_size=3).may_start_next(views) is starts


def test_one_block_at_a_time_never_starts_another() -> None:
    assert not MultiBlockRule().may_start_next([DONE])


def test_a_follower_falls_back_only_behind_a_block_that_is_nearly_done() -> None:
    rule = MultiBlockRule(buffer_size=4)
    assert rule.may_fall_back([0.0]) == [True]
    assert rule.may_fall_back([0.9, 0.95, 0.2, 0.0]) == [True, False, True, False]
    assert MultiBlockRule(4, semi_threshold=0.0).may_fall_back([0.1, 0.0, 0.5]) == [True, True, False]


def test_final_are_the_converged_ones_in_front() -> None:
    rule = MultiBlockRule(buffer_size=4)
    assert rule.final([HALF_DONE, DONE]) == 0, "a converged block waits for those before it"
    assert rule.final([DONE, HALF_DONE, DONE]) == 1
    assert rule.final([DONE, DONE]) == 2


@pytest.mark.parametrize("values", [{"buffer_size": 0}, {"add_threshold": 1.1}, {"semi_threshold": -0.1}])
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(DecoderError, match=next(iter(values))):
        MultiBlockRule(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"), [("soft-parallel", {}), ("soft-parallel", {"contiguous": False}), ("threshold", {}),
                          ("joint-threshold", {}), ("entropy-bounded", {})],
)  # fmt: skip
def test_a_row_that_does_not_fall_back_promotes_by_threshold_only(name: str, options: dict[str, bool]) -> None:
    logits = torch.zeros(3, 4, 16)
    logits[0, 2, 7] = 20.0  # one confident mask, not the leftmost
    logits[1, 0, 7] = 20.0  # the leftmost is confident
    state = BlockState.start(torch.full((3, 4), MASK), torch.ones(3, 4, dtype=torch.bool), MASK)
    decoder = get_decoder(name, threshold=0.9, **options)
    free = decoder.step(logits, state)
    assert free.promoted.any(-1).tolist() == [True] * 3
    held = decoder.step(logits, BlockState(**{**state.__dict__, "fallback": torch.tensor([False, False, False])}))
    confident = torch.zeros(3, 4, dtype=torch.bool)
    confident[1, 0] = True
    if name != "soft-parallel" or options:
        confident[0, 2] = True
    assert torch.equal(held.promoted, confident)
    assert held.converged.tolist() == [False] * 3
    mixed = decoder.step(logits, BlockState(**{**state.__dict__, "fallback": torch.tensor([True, False, True])}))
    assert torch.equal(mixed.promoted[[0, 2]], free.promoted[[0, 2]])
    assert torch.equal(mixed.promoted[1], held.promoted[1])
