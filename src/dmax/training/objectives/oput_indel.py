"""OPUT for models that delete and insert positions: the second loss has edits for labels (LLaDA2.2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from dmax.training.edit_labels import IGNORED, batch_labels
from dmax.training.layout import Batch
from dmax.training.objectives.base import LossPart, Pass, Predict, tallies
from dmax.training.objectives.options import CommonOptions
from dmax.training.objectives.oput import Oput, OputOptions, Reading, cross_entropy
from dmax.training.section import RecipeError

_DECODER = "joint-threshold-indel"


class OputIndel(Oput[OputOptions]):
    """Both losses on every row; the second asks for what the decoder is to write, which may delete or insert."""

    name = "oput-indel"
    section = OputOptions

    @classmethod
    def check(cls, section: CommonOptions) -> None:
        super().check(section)
        assert isinstance(section, OputOptions)
        if section.decodes or section.form != "joint":
            raise ValueError(f"{cls.name} has form: joint and a rollout of one pass; leave other forms and passes out")

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        ids = where.config.decoder_defaults.get(_DECODER, {})
        if not {"delete_token_id", "insert_token_id"} <= ids.keys():
            raise RecipeError(
                "objective oput-indel needs a model with tokens that delete and insert: name them in its config.json, "
                f'as "decoder_defaults": {{"{_DECODER}": {{"delete_token_id": …, "insert_token_id": …}}}}.'
            )
        layout = batch.layout

        def score(reading: Reading) -> tuple[Tensor, dict[str, Tensor]]:
            if reading.name == "mask":
                return cross_entropy(reading)
            drafts = layout.noisy_ids.masked_scatter(layout.supervised, reading.tokens_S)
            labels_S = batch_labels(drafts, layout, ids["delete_token_id"], ids["insert_token_id"])
            loss = F.cross_entropy(reading.logits_SV, labels_S, ignore_index=IGNORED)
            counted_S = labels_S != IGNORED
            hidden_S = reading.hidden_S & counted_S
            return loss, tallies("pred", loss, reading.logits_SV, labels_S, hidden_S, counted_S)

        yield from self.joint_losses(predict, batch, where, self.options.losses, score)
