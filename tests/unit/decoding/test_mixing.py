from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dmax.decoding import BlockState, SoftMix, input_embeddings

MASK = 1


def state_with(mix: SoftMix | None, tokens: list[int]) -> BlockState:
    start = BlockState.start(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.bool), MASK)
    return replace(start, tokens=torch.tensor([tokens]), mix=mix)


def mix_of(token_ids: list[list[int]], weights: list[list[float]], where: list[bool], renormalize: bool) -> SoftMix:
    return SoftMix(torch.tensor([token_ids]), torch.tensor([weights]), torch.tensor([where]), renormalize)


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def test_without_a_mix_every_position_reads_its_token(table: torch.Tensor) -> None:
    embeds = input_embeddings(state_with(None, [3, MASK, 5]), table)
    assert torch.equal(embeds, table[[3, MASK, 5]][None])


def test_mix_of_one_token_follows_the_formula(table: torch.Tensor) -> None:
    p, e, e_mask = 0.7, table[4], table[MASK]
    embeds = input_embeddings(state_with(mix_of([[4]], [[p]], [True], True), [4]), table)
    mean = p * e + (1 - p) * e_mask
    expected = mean * (p * e.norm() + (1 - p) * e_mask.norm()) / mean.norm()
    torch.testing.assert_close(embeds[0, 0], expected)


def test_mix_of_several_tokens_gives_the_mask_what_is_left(table: torch.Tensor) -> None:
    weights = torch.tensor([0.5, 0.2, 0.1])
    embeds = input_embeddings(state_with(mix_of([[4, 2, 6]], [weights.tolist()], [True], True), [4]), table)
    parts, shares = table[[4, 2, 6, MASK]], torch.tensor([0.5, 0.2, 0.1, 0.2])
    mean = shares @ parts
    torch.testing.assert_close(embeds[0, 0], mean * (shares @ parts.norm(dim=1)) / mean.norm())


def test_plain_mix_keeps_the_length_of_the_mean(table: torch.Tensor) -> None:
    embeds = input_embeddings(state_with(mix_of([[4]], [[0.5]], [True], False), [4]), table)
    torch.testing.assert_close(embeds[0, 0], (table[4] + table[MASK]) / 2)


def test_only_marked_positions_read_the_mix(table: torch.Tensor) -> None:
    mix = mix_of([[4], [4], [4]], [[0.5], [0.5], [0.5]], [False, True, False], True)
    embeds = input_embeddings(state_with(mix, [3, 4, MASK]), table)
    assert torch.equal(embeds[0, [0, 2]], table[[3, MASK]])
    assert not torch.equal(embeds[0, 1], table[4])


def test_certainty_reads_the_token_itself(table: torch.Tensor) -> None:
    embeds = input_embeddings(state_with(mix_of([[4]], [[1.0]], [True], True), [4]), table)
    torch.testing.assert_close(embeds[0, 0], table[4])


def test_parts_that_cancel_give_zero_not_nan() -> None:
    table = torch.zeros(8, 4)
    table[4], table[MASK] = 1.0, -1.0
    embeds = input_embeddings(state_with(mix_of([[4]], [[0.5]], [True], True), [4]), table)
    assert torch.equal(embeds, torch.zeros(1, 1, 4))


def test_low_precision_tables_are_mixed_in_float32(table: torch.Tensor) -> None:
    low = table.bfloat16()
    mix = mix_of([[4]], [[0.7]], [True], True)
    embeds = input_embeddings(state_with(mix, [4]), low)
    exact = input_embeddings(state_with(mix, [4]), low.float())
    assert embeds.dtype == torch.bfloat16
    assert torch.equal(embeds, exact.bfloat16())
