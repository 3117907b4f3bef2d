"""dParallel's certainty-forcing (arXiv 2509.26488): masked cross-entropy plus an entropy.

Shape suffixes: B rows, M noisy positions, V vocabulary, S supervised positions of the batch (flattened).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dmax.training.layout import Batch, Layout
from dmax.training.objectives.base import LossPart, Objective, Pass, Predict, supervised, tallies
from dmax.training.objectives.options import CommonOptions


class DParallelOptions(CommonOptions):
    """The options of ``dparallel`` alone."""

    beta: float = Field(default=2.0, ge=0)
    """The weight of the entropy."""


class DParallel(Objective[DParallelOptions]):
    """A model is made sure of what it already gets right."""

    name = "dparallel"
    section = DParallelOptions

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        yield dparallel_loss(predict, batch.layout, batch.hidden, where.config.mask_token_id, self.options.beta)


def dparallel_loss(predict: Predict, layout: Layout, hidden: Tensor, mask_token_id: int, beta: float) -> LossPart:
    """Compute dParallel's certainty-forcing (arXiv 2509.26488): masked cross-entropy plus ``beta`` times an entropy.

    The entropy, in nats, is the mean over the masked positions whose argmax is already right.
    """
    logits_SV = predict(layout.noisy_ids.masked_fill(hidden, mask_token_id), layout)
    targets_S, hidden_S = supervised(layout, hidden)
    cross_entropy = F.cross_entropy(logits_SV[hidden_S], targets_S[hidden_S])
    loss = cross_entropy + beta * entropy_where_right(logits_SV[hidden_S], targets_S[hidden_S])
    return LossPart("mask", loss, tallies("mask", loss, logits_SV, targets_S, hidden_S, hidden_S))


def entropy_where_right(logits_SV: Tensor, targets_S: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of the distributions whose argmax is the target; 0 where none is."""
    right_S = logits_SV.argmax(-1) == targets_S
    return (entropies(logits_SV) * right_S).sum() / right_S.sum().clamp(min=1)


def entropies(logits_SV: Tensor) -> Tensor:
    """Return the entropy of each distribution, in nats: ``(S,)`` float32."""
    log_probs_SV = logits_SV.log_softmax(-1)
    return -(log_probs_SV.exp() * log_probs_SV).sum(-1)
