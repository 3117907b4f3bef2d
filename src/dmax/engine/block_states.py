"""Rows joining and leaving the block state of a batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dmax.decoding import BlockState, SoftMix


def select_rows(state: BlockState, rows: Tensor) -> BlockState:
    """Return the state of some rows, in the order of ``rows``, a ``(B',)`` int64 tensor of row indices."""
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


def join_rows(first: BlockState, second: BlockState) -> BlockState:
    """Join the rows of two batches of one decoder, those of ``second`` behind those of ``first``.

    A batch before its first pass has no mix and no memory; beside one that has, its rows get zeros, which is what
    decoders find in rows without a pass.
    """
    return replace(
        first,
        tokens=torch.cat([first.tokens, second.tokens]),
        active=torch.cat([first.active, second.active]),
        masked=torch.cat([first.masked, second.masked]),
        passes=torch.cat([first.passes, second.passes]),
        mix=_join_mixes(first, second),
        memory=_join(first.memory, second.memory, first.tokens.shape[0], second.tokens.shape[0]),
    )


def _join_mixes(first: BlockState, second: BlockState) -> SoftMix | None:
    known = first.mix or second.mix
    if known is None:
        return None
    counts = first.tokens.shape[0], second.tokens.shape[0]
    parts = []
    for name in ("token_ids", "weights", "where"):
        ours, theirs = (None if state.mix is None else getattr(state.mix, name) for state in (first, second))
        parts.append(_join(ours, theirs, *counts))
    token_ids, weights, where = parts
    assert token_ids is not None and weights is not None and where is not None
    return SoftMix(token_ids, weights, where, known.renormalize)


def _join(first: Tensor | None, second: Tensor | None, first_rows: int, second_rows: int) -> Tensor | None:
    """Concatenate two tensors of rows; of a single one, the other's rows become zeros."""
    known = first if first is not None else second
    if known is None:
        return None
    ours = known.new_zeros(first_rows, *known.shape[1:]) if first is None else first
    theirs = known.new_zeros(second_rows, *known.shape[1:]) if second is None else second
    return torch.cat([ours, theirs])
