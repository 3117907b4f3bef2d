"""OPUT for models that delete and insert positions: the second loss has edits for labels (LLaDA2.2)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dmax.training.edit_labels import batch_labels
from dmax.training.layout import Batch
from dmax.training.objectives.base import LossPart, Objective, Pass, Predict
from dmax.training.objectives.oput import INDEL, OputOptions, oput_losses, sampler
from dmax.training.section import RecipeError

_DECODER = "joint-threshold-indel"


class OputIndel(Objective[OputOptions]):
    """Both losses on every row; the second asks for what the decoder is to write, which may delete or insert."""

    name = INDEL
    section = OputOptions

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        ids = where.config.decoder_defaults.get(_DECODER, {})
        if not {"delete_token_id", "insert_token_id"} <= ids.keys():
            raise RecipeError(
                "objective oput-indel needs a model with tokens that delete and insert: name them in its config.json, "
                f'as "decoder_defaults": {{"{_DECODER}": {{"delete_token_id": …, "insert_token_id": …}}}}.'
            )
        layout = batch.layout
        relabel = partial(
            batch_labels, layout=layout, delete_id=ids["delete_token_id"], insert_id=ids["insert_token_id"]
        )
        sample = sampler(self.options, where)
        mask_id, which = where.config.mask_token_id, self.options.losses
        yield from oput_losses(predict, layout, batch.hidden, mask_id, sample, which, relabel)
