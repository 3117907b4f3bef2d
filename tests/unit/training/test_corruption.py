from __future__ import annotations

import torch

from dmax.training.corruption import block_mask, uniform_tokens
from dmax.training.data import generator_for


def test_positions_are_hidden_at_the_ratio_supervised_ones_only() -> None:
    supervised, block_ids = torch.arange(20_000) % 2 == 0, torch.arange(20_000) // 32
    hidden = block_mask(supervised, block_ids, (0.75, 0.75), 0.0, generator_for(1))
    assert not (hidden & ~supervised).any()
    assert abs(hidden[supervised].float().mean() - 0.75) < 0.02
    assert torch.equal(hidden, block_mask(supervised, block_ids, (0.75, 0.75), 0.0, generator_for(1)))


def test_extreme_ratios_hide_all_or_nothing() -> None:
    supervised, block_ids = torch.ones(64, dtype=torch.bool), torch.arange(64) // 32
    assert block_mask(supervised, block_ids, (1.0, 1.0), 0.0, generator_for(2)).all()
    assert not block_mask(supervised, block_ids, (0.0, 0.0), 0.0, generator_for(2)).any()


def test_every_block_draws_its_own_ratio() -> None:
    block_ids = torch.arange(400 * 32) // 32
    supervised = torch.ones_like(block_ids, dtype=torch.bool)
    hidden = block_mask(supervised, block_ids, (0.2, 0.8), 0.0, generator_for(3))
    shares = hidden.view(400, 32).float().mean(1)
    assert abs(shares.mean() - 0.5) < 0.02
    assert shares.std() > 0.15  # one ratio for all would leave only the 0.09 of 32 coin flips


def test_kept_prefixes_are_contiguous_and_leave_something_to_predict() -> None:
    block_ids = torch.arange(300 * 8) // 8
    supervised = torch.rand(300 * 8, generator=generator_for(4)) < 0.7
    hidden = block_mask(supervised, block_ids, (1.0, 1.0), 1.0, generator_for(5))
    lengths = []
    for block in range(300):
        inside = block_ids == block
        flags = hidden[inside][supervised[inside]].tolist()
        if flags:
            assert flags == sorted(flags), "hidden positions must be a suffix of the supervised ones"
            assert flags[-1]
            lengths.append(flags.count(False) / len(flags))
    assert 0.3 < sum(lengths) / len(lengths) < 0.55


def test_blocks_of_one_at_full_noise_are_all_hidden() -> None:
    supervised = torch.tensor([False, True, True, False, True])
    hidden = block_mask(supervised, torch.arange(5), (1.0, 1.0), 1.0, generator_for(6))
    assert torch.equal(hidden, supervised)


def test_uniform_tokens_replace_hidden_positions_only() -> None:
    ids = torch.full((5000,), 7)
    hidden = torch.arange(5000) % 2 == 0
    replaced = uniform_tokens(hidden, ids, 10, generator_for(7))
    assert (replaced[~hidden] == 7).all()
    assert replaced[hidden].bincount(minlength=10).min() > 180
