"""OPUT with honest confidence in what it revises (algorithm.md#beyond-the-two-losses).

Shape suffixes: S supervised positions of the batch (flattened), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from dmax.training.layout import Batch
from dmax.training.objectives.base import LossPart, Pass, Predict
from dmax.training.objectives.oput import JointOput, OputOptions, Reading, cross_entropy


class CalibratedOptions(OputOptions):
    """The options of ``calibrated`` alone."""

    calibration_weight: float = Field(default=1.0, ge=0)
    """The weight of the Brier score."""


class Calibrated(JointOput[CalibratedOptions]):
    """The second loss also scores the model's confidence in the tokens that it has changed.

    Soft Parallel Decoding reads that confidence to promote a mask, to weigh a token in the next pass's mix, and to call
    a block converged. A low threshold promotes wrong tokens; what becomes of them hangs on the confidence in their
    revisions, so accuracy can only be flat over thresholds if it is honest.
    """

    name = "calibrated"
    section = CalibratedOptions

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        score = partial(self._score, mask_token_id=where.config.mask_token_id)
        yield from self.joint_losses(predict, batch, where, ("mask", "pred"), score)

    def _score(self, reading: Reading, mask_token_id: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, more = cross_entropy(reading)
        if reading.name == "mask":  # nothing is revised yet
            return loss, more
        score_S, revised_S = revision_scores(reading, mask_token_id)
        total, count = (score_S * revised_S).sum(), revised_S.sum()
        tally = {"brier_revised": torch.stack([total.detach(), count.float()])}
        return loss + self.options.calibration_weight * total / count.clamp(min=1), tally


def revision_scores(reading: Reading, mask_token_id: int) -> tuple[Tensor, Tensor]:
    """Return the Brier score of the confidence at every position, and where a token is revised: ``(S,)`` each.

    Revised is a corrupted position at which the model now predicts another token than the one that it read. That is
    known while decoding: to choose positions by their true tokens would make the score improper. A position that still
    was a mask is predicted for the first time and does not count, nor does one that is kept, of which there are so many
    that cross-entropy sees to them.

    Args:
        reading: of the second loss.
        mask_token_id: the token that is never predicted (algorithm.md#predict).
    """
    mask = torch.tensor([mask_token_id], device=reading.logits_SV.device)
    confidence_S, tokens_S = reading.logits_SV.softmax(-1).index_fill(-1, mask, -1.0).max(-1)
    revised_S = reading.hidden_S & (reading.tokens_S != mask_token_id) & (reading.tokens_S != tokens_S)
    return (confidence_S - (tokens_S == reading.targets_S).float()).square(), revised_S
