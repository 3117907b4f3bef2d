"""Which tokens a draw may give: the part of the distribution that ``top_k``, ``top_p`` and ``min_p`` leave.

A token is shut out by noise of minus infinity, which no draw by Gumbel-max survives. So every decoder that draws is
served, those of other packages too, and each row by its own setting.

Shape suffixes: L block positions, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Nucleus:
    """The tokens that may be drawn at a position: those that pass all three tests, the most probable one always."""

    top_k: int = 0
    """Only so many of the most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability."""
    min_p: float = 0.0
    """Only tokens with at least this share of the most probable one's probability."""

    @property
    def is_everything(self) -> bool:
        """Whether every token may be drawn."""
        return self.top_k == 0 and self.top_p >= 1 and self.min_p <= 0

    def shut_out(self, noise_LV: Tensor, logits_LV: Tensor, temperature: float, mask_token_id: int) -> None:
        """Set the noise of tokens that may not be drawn to minus infinity.

        Args:
            noise_LV: ``(L, V)`` float32 Gumbel noise of one row; changed.
            logits_LV: ``(L, V)`` in any float dtype, the row's.
            temperature: above 0; probabilities are those at this temperature.
            mask_token_id: the token that is never drawn and has no part in the probabilities.
        """
        scores_LV = logits_LV.float()
        scores_LV = scores_LV.masked_fill(_is(mask_token_id, scores_LV), -math.inf)
        # The largest score goes to 0 before it is divided, or a tiny temperature would overflow.
        scores_LV = (scores_LV - scores_LV.amax(-1, keepdim=True)) / temperature
        sorted_LV, order_LV = torch.softmax(scores_LV, -1).sort(dim=-1, descending=True, stable=True)
        kept_LV = (sorted_LV.cumsum(-1) - sorted_LV < self.top_p) & (sorted_LV >= self.min_p * sorted_LV[:, :1])
        if self.top_k:
            kept_LV[:, self.top_k :] = False
        kept_LV[:, 0] = True
        allowed_LV = torch.empty_like(kept_LV).scatter_(-1, order_LV, kept_LV)
        noise_LV.masked_fill_(~allowed_LV, -math.inf)


def _is(token_id: int, of_LV: Tensor) -> Tensor:
    return torch.arange(of_LV.shape[-1], device=of_LV.device) == token_id
