"""From the state of a block to the model's input embeddings (algorithm.md#soft-embeddings).

Shape suffixes: B rows, L block positions, V vocabulary, D hidden, K tokens of a mix plus the mask token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.decoding.base import BlockState, SoftMix

Embeddings = Tensor | Callable[[Tensor], Tensor]
"""The input embeddings ``(V, D)`` in any float dtype; or what looks up rows of them by token ids of any shape."""

_TINY = 1e-12
"""Keeps a mean of length 0 from being divided by it."""


def input_embeddings(state: BlockState, embedding_table: Embeddings) -> Tensor:
    """Compute what the next pass reads: every position's own embedding, or its mix where the state holds one.

    Args:
        state: a block of B rows and L positions.
        embedding_table: the model's.

    Returns:
        ``(B, L, D)`` in the table's dtype.
    """
    look_up = _look_up(embedding_table)
    if state.mix is None:
        return look_up(state.tokens)
    if state.mix.renormalize and state.mix.token_ids.shape[-1] == 1:
        mix = state.mix
        of_positions = (state.tokens.flatten(), mix.where.flatten(), mix.token_ids.flatten(), mix.weights.flatten())
        embeds_ND = soften(*of_positions, embedding_table, mask_token_id=state.mask_token_id)
        return embeds_ND.view(*state.tokens.shape, -1)
    hard_BLD = look_up(state.tokens)
    soft_BLD = mix_embeddings(state.mix, embedding_table, state.mask_token_id)
    return torch.where(state.mix.where[..., None], soft_BLD.to(hard_BLD.dtype), hard_BLD)


def soften(
    tokens_N: Tensor, where_N: Tensor, candidates_N: Tensor, weights_N: Tensor, table_VD: Embeddings, *,
    mask_token_id: int,
) -> Tensor:  # fmt: skip
    """Compute what N positions read that mix one token each with the mask; :func:`mix_embeddings` in fewer steps.

    A position that reads its own token is one that mixes it with weight 1, which changes no bit of the embedding.

    Args:
        tokens_N: int64, read where there is no mix.
        where_N: bool, where there is one.
        candidates_N: int64, the tokens of the mixes.
        weights_N: float32, theirs; the rest of the weight goes to the mask embedding.
        table_VD: input embeddings.
        mask_token_id: of the model.

    Returns:
        ``(N, D)`` in the table's dtype.
    """
    weights_N1 = torch.where(where_N, weights_N, 1.0)[:, None]
    look_up = _look_up(table_VD)
    rows_ND = look_up(torch.where(where_N, candidates_N, tokens_N))
    token_ND, mask_1D = rows_ND.float(), look_up(tokens_N.new_full((1,), mask_token_id)).float()
    mean_ND = torch.lerp(mask_1D, token_ND, weights_N1)
    norm_N1 = torch.lerp(_norm(mask_1D), _norm(token_ND), weights_N1)
    return (mean_ND * (norm_N1 / _norm(mean_ND).clamp_min(_TINY))).to(rows_ND.dtype)


def _look_up(table: Embeddings) -> Callable[[Tensor], Tensor]:
    return partial(F.embedding, weight=table) if isinstance(table, Tensor) else table


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def mix_embeddings(mix: SoftMix, embedding_table: Embeddings, mask_token_id: int) -> Tensor:
    """Average the mixed tokens' embeddings and the mask embedding by weight, at every position.

    With ``renormalize`` the mean is stretched to the weighted mean of the norms: embeddings of different tokens are
    close to orthogonal, so a plain mean is much shorter than anything the model has been trained to read.

    Args:
        mix: tokens and weights; its ``where`` plays no part here.
        embedding_table: the model's.
        mask_token_id: the token that takes the weight left over.

    Returns:
        ``(B, L, D)`` float32.
    """
    token_ids_BLK = F.pad(mix.token_ids, (0, 1), value=mask_token_id)
    weights_BLK = torch.cat([mix.weights, 1 - mix.weights.sum(-1, keepdim=True)], -1)
    parts_BLKD = _look_up(embedding_table)(token_ids_BLK).float()
    mean_BLD = (weights_BLK[..., None] * parts_BLKD).sum(-2)
    if not mix.renormalize:
        return mean_BLD
    norm_BL1 = (weights_BLK[..., None] * _norm(parts_BLKD)).sum(-2)
    return mean_BLD * (norm_BL1 / _norm(mean_BLD).clamp_min(_TINY))
