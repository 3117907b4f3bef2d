"""What a decoder is: a pure rule that turns one pass's logits into the next state of a block (algorithm.md#spd).

Shape suffixes: B rows, L block positions, V vocabulary, D hidden, k tokens of a mix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class SoftMix:
    """What the next pass reads at decoded positions instead of one token's embedding (algorithm.md#soft-embeddings)."""

    token_ids: Tensor
    """``(B, L, k)`` int64, the tokens mixed, most probable first."""
    weights: Tensor
    """``(B, L, k)`` float32, their probabilities; the rest of the weight goes to the mask embedding."""
    where: Tensor
    """``(B, L)`` bool, the positions that read the mix; all others read their token's own embedding."""
    renormalize: bool
    """Whether the mix is rescaled to the weighted mean of the norms of its parts."""


@dataclass(frozen=True)
class BlockState:
    """The current block of every row, between two passes."""

    tokens: Tensor
    """``(B, L)`` int64, the mask token where nothing is decided yet."""
    active: Tensor
    """``(B, L)`` bool, positions that were masks when the block started; prompt positions never are."""
    masked: Tensor
    """``(B, L)`` bool, active positions that are still masks."""
    passes: Tensor
    """``(B,)`` int64, denoising passes this block has had."""
    mask_token_id: int
    mix: SoftMix | None = None
    """What the next pass reads at decoded positions; None where every position reads its own token."""
    fallback: Tensor | None = None
    """``(B,)`` bool, rows that turn at least one mask into a token even where none is confident; None: all rows."""
    memory: Tensor | None = None
    """``(B, M)``, whatever the decoder keeps for itself from pass to pass; None or zeros in a fresh block."""

    @classmethod
    def start(cls, tokens: Tensor, active: Tensor, mask_token_id: int) -> BlockState:
        """Make a block before its first pass: masks at the active positions, the prompt's tokens elsewhere.

        Args:
            tokens: ``(B, L)`` int64; what stands at active positions does not matter.
            active: ``(B, L)`` bool, positions to be decoded.
            mask_token_id: the id of the mask token, from the checkpoint.
        """
        return cls(
            tokens=torch.where(active, mask_token_id, tokens),
            active=active,
            masked=active.clone(),
            passes=torch.zeros(tokens.shape[0], dtype=torch.int64, device=tokens.device),
            mask_token_id=mask_token_id,
        )

    def after(self, tokens: Tensor, masked: Tensor, passes: Tensor, mix: SoftMix | None) -> BlockState:
        """Return the block after a pass; what is not given stays."""
        return BlockState(
            tokens, self.active, masked, passes, self.mask_token_id, mix=mix, fallback=self.fallback, memory=self.memory
        )

    def restart(self, rows: Tensor, tokens: Tensor, active: Tensor) -> BlockState:
        """Return the same batch with a fresh block in some rows; the others go on where they are.

        Args:
            rows: ``(B,)`` bool, the rows that begin a new block.
            tokens: ``(B, L)`` int64, read in those rows only.
            active: ``(B, L)`` bool, read in those rows only.
        """
        fresh = BlockState.start(tokens, active, self.mask_token_id)
        rows_B1 = rows[:, None]
        return BlockState(
            tokens=torch.where(rows_B1, fresh.tokens, self.tokens),
            active=torch.where(rows_B1, fresh.active, self.active),
            masked=torch.where(rows_B1, fresh.masked, self.masked),
            passes=torch.where(rows, fresh.passes, self.passes),
            mask_token_id=self.mask_token_id,
            mix=None if self.mix is None else replace(self.mix, where=self.mix.where & ~rows_B1),
            memory=None if self.memory is None else self.memory.masked_fill(rows_B1, 0),
        )


@dataclass(frozen=True)
class StepResult:
    """What one pass did to the block."""

    state: BlockState
    """The block after the pass; where a row has converged its tokens are final."""
    confidence: Tensor
    """``(B, L)`` float32, probability of the most probable token (the mask token apart)."""
    promoted: Tensor
    """``(B, L)`` bool, masks that became tokens in this pass."""
    revised: Tensor
    """``(B, L)`` bool, positions decoded earlier whose token changed in this pass."""
    converged: Tensor
    """``(B,)`` bool, rows whose block is done."""


class Decoder(Protocol):
    """A decoding rule. Rows never influence one another; nothing but tensors goes in and comes out."""

    @property
    def name(self) -> str:
        """The name it is registered under."""
        ...

    @property
    def temperature(self) -> float:
        """Above 0, tokens are drawn instead of taken, and :meth:`step` needs noise."""
        ...

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        """Apply one pass.

        A row that has converged may be stepped again, which does no harm to the others; its final tokens are those of
        the pass in which it first converged.

        Args:
            logits: ``(B, L, V)`` in any float dtype, computed from :func:`input_embeddings` of ``state``.
            state: the block before the pass.
            noise: ``(B, L, V)`` float32 Gumbel noise; needed where ``temperature`` is above 0, ignored otherwise.
        """
        ...
