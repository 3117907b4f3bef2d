"""Seeded, pure corruption: which supervised tokens of an example the model has to produce.

Every function takes the supervised positions of one sequence and a :class:`torch.Generator`, and returns a boolean
tensor of the same length: True where the token is hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_mask(
    supervised: Tensor,
    block_ids: Tensor,
    noise_range: tuple[float, float],
    prefix_share: float,
    generator: torch.Generator,
) -> Tensor:
    """Hide positions independently of one another, each block with a mask ratio of its own drawn from ``noise_range``.

    A range of a single ratio is the corruption of OPUT (algorithm.md#corrupt). A share of the blocks
    keeps a contiguous prefix of random length, as a block looks while it is decoded from left to right; behind the
    prefix its mask ratio applies.

    Args:
        supervised: ``(T,)`` bool.
        block_ids: ``(T,)`` int64, non-decreasing.
        noise_range: lowest and highest mask ratio.
        prefix_share: probability that a block keeps a prefix.
        generator: source of randomness.

    Returns:
        ``(T,)`` bool.
    """
    low, high = noise_range
    _, block_of_position = torch.unique_consecutive(block_ids, return_inverse=True)
    num_blocks = int(block_of_position[-1]) + 1
    ratio = low + (high - low) * torch.rand(num_blocks, generator=generator)
    keeps_prefix = torch.rand(num_blocks, generator=generator) < prefix_share
    counts = torch.zeros(num_blocks).index_add(0, block_of_position, supervised.float())
    prefix = (torch.rand(num_blocks, generator=generator) * counts).floor() * keeps_prefix
    before_block = counts.cumsum(0) - counts
    rank = supervised.cumsum(0) - 1 - before_block[block_of_position]
    hidden = torch.rand(supervised.shape, generator=generator) < ratio[block_of_position]
    return supervised & hidden & (rank >= prefix[block_of_position])


def uniform_tokens(hidden: Tensor, token_ids: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Replace hidden tokens by uniformly random ones (uniform diffusion training, algorithm.md#baselines)."""
    return torch.where(hidden, torch.randint(vocab_size, token_ids.shape, generator=generator), token_ids)
