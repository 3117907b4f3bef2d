"""Plain masked training: cross-entropy on the masked positions only.

Shape suffixes: B rows, M noisy positions, V vocabulary, S supervised positions of the batch, H masked ones of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dmax.training.layout import Batch, Layout
from dmax.training.objectives.base import LossPart, Objective, Pass, Predict, supervised, tallies
from dmax.training.objectives.options import CommonOptions, Own
from dmax.training.section import Section, Share

ENDING = 8
"""Longer than a last number, which an EOS that is there too early would cut off."""


class FarSmoothingSection(Section):
    """Smoothed labels for masked positions that are not next (see :func:`far_ahead`)."""

    share: Share
    """Spread evenly over the vocabulary."""
    near: int = Field(ge=0)
    """Masked positions of a block that keep their labels, the first ones."""


class MaskedOptions(CommonOptions):
    """The options of ``masked`` alone."""

    far_smoothing: Annotated[FarSmoothingSection | None, Own("far_smoothing is for kind masked; leave it out")] = None


class Masked(Objective[MaskedOptions]):
    """Each block has a mask ratio of its own; a block of one token is always masked, or it would teach nothing."""

    name = "masked"
    section = MaskedOptions

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        smoothing, settings = None, self.options.far_smoothing
        if settings is not None:
            far = far_ahead(batch.layout, batch.hidden, settings.near, where.config.eos_token_id)
            smoothing = settings.share * far
        yield masked_loss(predict, batch.layout, batch.hidden, where.config.mask_token_id, smoothing)

    def _hide(self, layout: Layout, row: int, seed: int, index: int) -> Tensor:
        return layout.supervised[row] if layout.block_length == 1 else super()._hide(layout, row, seed, index)

    def _noise(self, generator: torch.Generator) -> tuple[float, float]:
        return self.options.noise


def masked_loss(
    predict: Predict,
    layout: Layout,
    hidden: Tensor,
    mask_token_id: int,
    smoothing: Tensor | None = None,
) -> LossPart:
    """Compute cross-entropy on the masked positions only (plain masked training).

    Args:
        predict: the model.
        layout: the batch.
        hidden: ``(B, M)`` bool, the positions to mask.
        mask_token_id: token that hides them.
        smoothing: ``(B, M)`` float, the share of each label that is spread evenly over the vocabulary.
    """
    logits_SV = predict(layout.noisy_ids.masked_fill(hidden, mask_token_id), layout)
    targets_S, hidden_S = supervised(layout, hidden)
    log_probs_HV = logits_SV[hidden_S].log_softmax(-1)
    loss_H = F.nll_loss(log_probs_HV, targets_S[hidden_S], reduction="none")
    if smoothing is not None:
        loss_H = loss_H.lerp(-log_probs_HV.mean(-1), smoothing[layout.supervised][hidden_S])
    loss = loss_H.mean()
    return LossPart("mask", loss, tallies("mask", loss, logits_SV, targets_S, hidden_S, hidden_S))


def far_ahead(layout: Layout, hidden: Tensor, near: int, eos_token_id: int) -> Tensor:
    """Find hidden positions behind the first ``near`` of their block, ``(B, M)`` bool, but for an answer's padding.

    Tokens far ahead of what is decoded are easily foretold and hard to place: where they stand depends on everything
    between. Smoothed labels keep a model from being sure of them, so that decoding by confidence begins with what is
    next. An EOS behind :data:`ENDING` others is padding wherever the answer ends.
    """
    seen = F.pad(hidden.cumsum(1), (1, 0))
    index = torch.arange(hidden.shape[1], device=hidden.device)
    before_block = seen[:, index // layout.block_length * layout.block_length]
    ends = F.pad((layout.noisy_ids == eos_token_id).cumsum(1), (ENDING + 1, 0))
    padding = ends[:, ENDING + 1 :] - ends[:, : -ENDING - 1] == ENDING + 1
    return hidden & (seen[:, 1:] - before_block > near) & ~padding
