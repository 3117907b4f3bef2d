"""Attention masks of block diffusion, as boolean tensors: True where a query may attend to a key.

Shape suffixes: B rows, T query positions, S key positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal_mask(query_positions: Tensor, key_positions: Tensor, block_length: int) -> Tensor:
    """Mask attention from every position to its own and all earlier blocks (algorithm.md#blocks-and-attention).

    Blocks are cut from absolute position 0. A negative key position marks padding.

    Args:
        query_positions: ``(B, T)`` int64, absolute positions of the queries.
        key_positions: ``(B, S)`` int64, absolute positions of the keys, -1 for padding.
        block_length: tokens in a block.

    Returns:
        ``(B, T, S)`` bool.
    """
    query_blocks_BT = query_positions // block_length
    key_blocks_BS = key_positions // block_length  # floor division keeps padding at -1
    visible_BTS = key_blocks_BS[:, None, :] <= query_blocks_BT[:, :, None]
    return visible_BTS & (key_positions >= 0)[:, None, :]


def noisy_clean_mask(
    noisy_positions: Tensor,
    clean_positions: Tensor,
    block_length: int,
    copy_ids: Tensor | None = None,
    group_starts: Tensor | None = None,
) -> Tensor:
    """Mask attention of the ``[noisy | clean]`` training layout (algorithm.md#training-layout, with groups #multitf).

    A noisy token sees its own noisy block and the clean tokens of strictly earlier blocks; a clean token sees clean
    tokens of its own and earlier blocks and never a noisy one. Either half may be a subset of the sequence: which
    positions are present does not change what the others see.

    Consecutive noisy blocks may form a group, as blocks in flight do: a noisy token then sees the noisy tokens of its
    own and earlier blocks of its group, and the clean tokens of the blocks before the group.

    Args:
        noisy_positions: ``(B, M)`` int64 absolute positions of the noisy half, -1 for padding.
        clean_positions: ``(B, N)`` int64 absolute positions of the clean half, -1 for padding.
        block_length: tokens in a block.
        copy_ids: ``(B, M)`` int64, which noisy copy of the sequence a noisy token belongs to, where one clean half
            serves several; tokens of different copies never see each other.
        group_starts: ``(B, M)`` int64, the first block of the group a noisy token's block is in; without it every
            block is a group of its own.

    Returns:
        ``(B, M + N, M + N)`` bool. Padding sees only itself, so that no softmax runs over nothing.
    """
    noisy_blocks_BM = noisy_positions // block_length
    clean_blocks_BN = clean_positions // block_length
    noisy_real_BM = noisy_positions >= 0
    clean_real_BN = clean_positions >= 0
    starts_BM = noisy_blocks_BM if group_starts is None else group_starts
    group_BMM = starts_BM[:, :, None] == starts_BM[:, None, :]
    group_BMM = group_BMM & (noisy_blocks_BM[:, None, :] <= noisy_blocks_BM[:, :, None])
    if copy_ids is not None:
        group_BMM = group_BMM & (copy_ids[:, :, None] == copy_ids[:, None, :])
    group_BMM = group_BMM & noisy_real_BM[:, None, :]
    earlier_BMN = (clean_blocks_BN[:, None, :] < starts_BM[:, :, None]) & clean_real_BN[:, None, :]
    causal_BNN = (clean_blocks_BN[:, None, :] <= clean_blocks_BN[:, :, None]) & clean_real_BN[:, None, :]
    never_BNM = torch.zeros_like(earlier_BMN).transpose(1, 2)
    mask = torch.cat([torch.cat([group_BMM, earlier_BMN], 2), torch.cat([never_BNM, causal_BNN], 2)], 1)
    return mask | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
