"""Uniform diffusion training, the paper's baseline: random tokens in place of masks or predictions.

Shape suffixes: B rows, M noisy positions, V vocabulary, S supervised positions of the batch (flattened).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.training.corruption import uniform_tokens
from dmax.training.data import generator_for
from dmax.training.layout import Batch, Layout
from dmax.training.objectives.base import NOISE, LossPart, Objective, Pass, Predict, supervised, tallies
from dmax.training.objectives.options import CommonOptions


class Uniform(Objective[CommonOptions]):
    """OPUT's second loss on random tokens instead of predictions."""

    name = "uniform"
    section = CommonOptions

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        random_ids = random_tokens(batch, where.seed, where.config.vocab_size)
        yield uniform_loss(predict, batch.layout, batch.hidden, random_ids)


def random_tokens(batch: Batch, seed: int, vocab_size: int) -> Tensor:
    """Return the true tokens, the corrupted positions filled with uniformly random ones: ``(B, M)`` int64."""
    rows = [
        uniform_tokens(hidden, ids, vocab_size, generator_for(seed, index, NOISE, NOISE))
        for hidden, ids, index in zip(batch.hidden.cpu(), batch.layout.noisy_ids.cpu(), batch.indices, strict=True)
    ]
    return torch.stack(rows).to(batch.hidden.device)


def uniform_loss(predict: Predict, layout: Layout, hidden: Tensor, random_ids: Tensor) -> LossPart:
    """Compute the loss of uniform diffusion training, the paper's baseline: OPUT's second loss on random tokens.

    Args:
        predict: the model.
        layout: the batch.
        hidden: ``(B, M)`` bool, the positions to corrupt.
        random_ids: ``(B, M)`` int64, uniformly random tokens for them.
    """
    logits_SV = predict(torch.where(hidden, random_ids, layout.noisy_ids), layout)
    targets_S, hidden_S = supervised(layout, hidden)
    loss = F.cross_entropy(logits_SV, targets_S)
    return LossPart("uniform", loss, tallies("uniform", loss, logits_SV, targets_S, hidden_S))
