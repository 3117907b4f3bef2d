"""The model as objectives see it, whatever its weights have been through."""

from __future__ import annotations

import copy

import pytest
import torch

from dmax.decoding.base import BlockState, SoftMix
from dmax.decoding.mixing import input_embeddings
from dmax.models import BlockDiffusionLM
from dmax.training.data import Example
from dmax.training.layout import lay_out
from dmax.training.predictor import Predictor

LAYOUT = lay_out([Example((5, 6, 7, 8, 9, 10, 11, 12), (False,) * 3 + (True,) * 5)], 4, pad_token_id=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rollouts_see_the_weights_of_the_last_step(model: BlockDiffusionLM, dtype: torch.dtype) -> None:
    """Without gradient, too: copies of weights that inference keeps must not outlive a step."""
    predict = Predictor(model, dtype)
    with torch.no_grad():
        for _ in range(4):
            before = predict(LAYOUT.noisy_ids, LAYOUT)
            for parameter in model.parameters():
                parameter.mul_(1.1)
            after = predict(LAYOUT.noisy_ids, LAYOUT)
            fresh = Predictor(copy.deepcopy(model), dtype)(LAYOUT.noisy_ids, LAYOUT)
            torch.testing.assert_close(after, fresh)
            assert (after - before).abs().max() > 0.1


def test_recomputation_changes_no_gradient(model: BlockDiffusionLM) -> None:
    def gradients(recompute: bool) -> list[torch.Tensor]:
        learner = copy.deepcopy(model)
        logits = Predictor(learner, torch.float32, recompute=recompute)(LAYOUT.noisy_ids, LAYOUT)
        torch.nn.functional.cross_entropy(logits, LAYOUT.noisy_ids[LAYOUT.supervised]).backward()
        return [p.grad for p in learner.parameters() if p.grad is not None]

    for ours, plain in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, plain)


def test_soft_positions_read_what_decoding_reads_there(model: BlockDiffusionLM) -> None:
    mask, tokens = model.config.mask_token_id, LAYOUT.noisy_ids
    where = LAYOUT.supervised & (torch.arange(tokens.shape[1]) % 2 == 0)
    mix = SoftMix((tokens + 7)[..., None], torch.full((*tokens.shape, 1), 0.6), where, renormalize=True)
    state = BlockState(tokens, where, torch.zeros_like(where), torch.zeros(1, dtype=torch.int64), mask, mix)
    table = model.model.word_embeddings.weight
    embeds = torch.cat([input_embeddings(state, table), model.embed(LAYOUT.clean_ids)], 1)
    hidden = model(embeds, LAYOUT.positions(), LAYOUT.mask())[:, : tokens.shape[1]]
    predict = Predictor(model, torch.float32)
    torch.testing.assert_close(predict(tokens, LAYOUT, mix), model.head(hidden[LAYOUT.supervised]))
    assert (predict(tokens, LAYOUT, mix) - predict(tokens, LAYOUT)).abs().max() > 0.01
