"""The masks, entry by entry against the rules in words (algorithm.md#blocks-and-attention, #training-layout)."""

from __future__ import annotations

import pytest
import torch

from dmax.models.masks import block_causal_mask, noisy_clean_mask


@pytest.mark.parametrize("block_length", [1, 3, 4, 32])
@pytest.mark.parametrize("length", [1, 7, 12])
def test_a_token_sees_its_own_and_all_earlier_blocks(length: int, block_length: int) -> None:
    positions = torch.arange(length)[None]
    mask = block_causal_mask(positions, positions, block_length)
    assert mask.shape == (1, length, length)
    assert mask.dtype == torch.bool
    for query in range(length):
        for key in range(length):
            assert mask[0, query, key].item() == (key // block_length <= query // block_length)


def test_rows_have_their_own_positions_and_empty_slots_are_never_seen() -> None:
    queries = torch.tensor([[4, 5], [8, 9]])
    keys = torch.tensor([[0, 4, 8, -1], [-1, 7, 8, 12]])
    mask = block_causal_mask(queries, keys, block_length=4)
    assert mask.tolist() == [
        [[True, True, False, False], [True, True, False, False]],
        [[False, True, True, False], [False, True, True, False]],
    ]


def expected_mask(tokens: list[tuple[str, int, int]], block_length: int) -> list[list[bool]]:
    """All pairs by the rule; a token always sees itself."""
    return [
        [i == j or visible(query, key, block_length) for j, key in enumerate(tokens)] for i, query in enumerate(tokens)
    ]


def visible(query: tuple[str, int, int], key: tuple[str, int, int], block_length: int) -> bool:
    """The rule of algorithm.md#training-layout for one pair; a token is (half, position, noisy copy)."""
    (query_half, query_position, query_copy), (key_half, key_position, key_copy) = query, key
    if query_position < 0 or key_position < 0:
        return False
    query_block, key_block = query_position // block_length, key_position // block_length
    if query_half == "noisy":
        if key_half == "noisy":
            return query_copy == key_copy and query_block == key_block
        return key_block < query_block
    return key_half == "clean" and key_block <= query_block


@pytest.mark.parametrize("block_length", [1, 2, 3, 8])
def test_noisy_and_clean_halves_see_what_the_rule_says(block_length: int) -> None:
    length = 7
    positions = torch.arange(length)[None]
    mask = noisy_clean_mask(positions, positions, block_length)
    tokens = [("noisy", p, 0) for p in range(length)] + [("clean", p, 0) for p in range(length)]
    assert mask[0].tolist() == expected_mask(tokens, block_length)


def test_halves_may_be_subsets_with_padding_and_several_noisy_copies() -> None:
    block_length = 2
    noisy = [(2, 0), (3, 0), (2, 1), (5, 1), (-1, 1), (-1, 1)]
    clean = [0, 1, 2, 4, -1, -1]
    mask = noisy_clean_mask(
        torch.tensor([[p for p, _ in noisy]]),
        torch.tensor([clean]),
        block_length,
        copy_ids=torch.tensor([[c for _, c in noisy]]),
    )
    tokens = [("noisy", p, c) for p, c in noisy] + [("clean", p, -1) for p in clean]
    assert mask[0].tolist() == expected_mask(tokens, block_length)


GROUPS = {2: 2, 3: 2, 4: 4, 5: 5, 6: 5, 7: 5}
"""The first block of the group of every noisy block: groups of two, of one and of three blocks."""


def visible_in_groups(query: tuple[str, int], key: tuple[str, int], block_length: int) -> bool:
    """The rules of algorithm.md#multitf for one pair; a token is (half, position)."""
    (query_half, query_position), (key_half, key_position) = query, key
    if query_position < 0 or key_position < 0:
        return False
    query_block, key_block = query_position // block_length, key_position // block_length
    if query_half == "noisy" and key_half == "noisy":
        return GROUPS[query_block] == GROUPS[key_block] and key_block <= query_block
    if query_half == "noisy":
        return key_block < GROUPS[query_block]
    return key_half == "clean" and key_block <= query_block


@pytest.mark.parametrize("block_length", [1, 3])
def test_groups_of_noisy_blocks_see_what_the_rules_say(block_length: int) -> None:
    noisy = [p for block in GROUPS for p in range(block * block_length, (block + 1) * block_length)] + [-1, -1]
    clean = [*range(6 * block_length), -1]
    starts = [GROUPS[p // block_length] if p >= 0 else -1 for p in noisy]
    mask = noisy_clean_mask(
        torch.tensor([noisy]), torch.tensor([clean]), block_length, group_starts=torch.tensor([starts])
    )
    tokens = [("noisy", p) for p in noisy] + [("clean", p) for p in clean]
    for i, query in enumerate(tokens):
        for j, key in enumerate(tokens):
            assert mask[0, i, j].item() == (i == j or visible_in_groups(query, key, block_length)), (query, key)


def test_blocks_that_are_groups_of_their_own_see_what_they_see_without_groups() -> None:
    positions = torch.arange(12)[None]
    alone = noisy_clean_mask(positions, positions, 3, group_starts=positions // 3)
    assert torch.equal(alone, noisy_clean_mask(positions, positions, 3))


def test_every_query_sees_something() -> None:
    noisy, clean = torch.tensor([[-1, -1], [0, 1]]), torch.tensor([[-1], [-1]])
    assert noisy_clean_mask(noisy, clean, 4).any(-1).all()
