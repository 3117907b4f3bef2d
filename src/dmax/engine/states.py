"""Rows joining and leaving the block state of a batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dmax.decoding import BlockState, SoftMix


def select_rows(state: BlockState, rows: Tensor) -> BlockState:
    """The state of some rows, in the order of ``rows``, a ``(B',)`` int64 tensor of row indices."""
    mix = state.mix
    if mix is not None:
        mix = SoftMix(mix.token_ids[rows], mix.weights[rows], mix.where[rows], mix.renormalize)
    return replace(
        state,
        tokens=state.tokens[rows],
        active=state.active[rows],
        masked=state.masked[rows],
        passes=state.passes[rows],
        mix=mix,
        memory=None if state.memory is None else state.memory[rows],
    )


def join_rows(running: BlockState, fresh: BlockState) -> BlockState:
    """The running rows with rows behind them that have not had a pass yet."""
    count = fresh.tokens.shape[0]
    mix = running.mix
    if mix is not None:
        mix = SoftMix(
            _extend(mix.token_ids, count), _extend(mix.weights, count), _extend(mix.where, count), mix.renormalize
        )
    return replace(
        running,
        tokens=torch.cat([running.tokens, fresh.tokens]),
        active=torch.cat([running.active, fresh.active]),
        masked=torch.cat([running.masked, fresh.masked]),
        passes=torch.cat([running.passes, fresh.passes]),
        mix=mix,
        memory=None if running.memory is None else _extend(running.memory, count),
    )


def _extend(x: Tensor, count: int) -> Tensor:
    """Append ``count`` rows of zeros, which is what decoders find in rows without a pass."""
    return torch.cat([x, x.new_zeros(count, *x.shape[1:])])
