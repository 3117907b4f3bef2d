"""From the state of a block to the model's input embeddings (SPEC section 3.6).

Shape suffixes: B rows, L block positions, V vocabulary, D hidden, K tokens of a mix plus the mask token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmax import kernels
from dmax.decoding.base import BlockState, SoftMix
from dmax.kernels.steps import Steps

STEPS = Steps("soften")
"""By shape of the embedding table, mask token and dtype."""


def input_embeddings(state: BlockState, embedding_table: Tensor) -> Tensor:
    """What the next pass reads: every position's own embedding, or its mix where the state holds one.

    Args:
        state: a block of B rows and L positions.
        embedding_table: ``(V, D)`` in any float dtype, the model's input embeddings.

    Returns:
        ``(B, L, D)`` in the table's dtype.
    """
    if state.mix is not None and kernels.usable(embedding_table):
        return _mix_by_kernel(state, state.mix, embedding_table)
    if state.mix is None:
        return F.embedding(state.tokens, embedding_table)
    if state.mix.renormalize and state.mix.token_ids.shape[-1] == 1:
        step = STEPS.at(embedding_table.shape, state.mask_token_id, embedding_table.dtype)
        if state.tokens.numel() > 1 and step.usable(embedding_table, embedding_table):
            per_position = (state.tokens, state.mix.where, state.mix.token_ids, state.mix.weights)
            [embeds_ND] = step(*(tensor.flatten() for tensor in per_position), embedding_table)
            return embeds_ND.view(*state.tokens.shape, -1)
    return _mix_or_token(state.tokens, state.mix, embedding_table, state.mask_token_id)


def soften(
    tokens_N: Tensor, where_N: Tensor, candidates_N: Tensor, weights_N: Tensor, table_VD: Tensor, *, mask_token_id: int
) -> Tensor:
    """What N positions read that mix one token each with the mask: ``(N, D)``; see :class:`SoftMix`."""
    mix = SoftMix(candidates_N[:, None], weights_N[:, None], where_N, renormalize=True)
    return _mix_or_token(tokens_N, mix, table_VD, mask_token_id)


def _mix_or_token(tokens: Tensor, mix: SoftMix, embedding_table: Tensor, mask_token_id: int) -> Tensor:
    """The mix where there is one, the token's own embedding elsewhere: ``(..., D)`` in the table's dtype."""
    hard = F.embedding(tokens, embedding_table)
    soft = mix_embeddings(mix, embedding_table, mask_token_id)
    return torch.where(mix.where[..., None], soft.to(hard.dtype), hard)


def mix_embeddings(mix: SoftMix, embedding_table: Tensor, mask_token_id: int) -> Tensor:
    """The weighted mean of the mixed tokens' embeddings and the mask embedding, at every position.

    With ``renormalize`` the mean is stretched to the weighted mean of the norms: embeddings of different tokens are
    close to orthogonal, so a plain mean is much shorter than anything the model has been trained to read.

    Args:
        mix: tokens and weights; its ``where`` plays no part here.
        embedding_table: ``(V, D)`` in any float dtype.
        mask_token_id: the token that takes the weight left over.

    Returns:
        ``(B, L, D)`` float32.
    """
    token_ids_BLK = F.pad(mix.token_ids, (0, 1), value=mask_token_id)
    weights_BLK = torch.cat([mix.weights, 1 - mix.weights.sum(-1, keepdim=True)], -1)
    parts_BLKD = F.embedding(token_ids_BLK, embedding_table).float()
    mean_BLD = (weights_BLK[..., None] * parts_BLKD).sum(-2)
    if not mix.renormalize:
        return mean_BLD
    norm_BL1 = (weights_BLK * torch.linalg.vector_norm(parts_BLKD, dim=-1)).sum(-1, keepdim=True)
    return F.normalize(mean_BLD, dim=-1) * norm_BL1


def _mix_by_kernel(state: BlockState, mix: SoftMix, embedding_table: Tensor) -> Tensor:
    from dmax.kernels.soft_parallel import soft_embeddings  # here, because it imports Triton

    return soft_embeddings(
        state.tokens, mix.where, mix.token_ids, mix.weights, embedding_table,
        mask_token_id=state.mask_token_id, renormalize=mix.renormalize,
    )  # fmt: skip
