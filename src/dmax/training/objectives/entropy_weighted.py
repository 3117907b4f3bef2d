"""OPUT whose losses count uncertain positions more (algorithm.md#beyond-the-two-losses).

Shape suffixes: S supervised positions of the batch (flattened), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dmax.training.layout import Batch
from dmax.training.objectives.base import LossPart, Pass, Predict
from dmax.training.objectives.dparallel import entropies
from dmax.training.objectives.oput import JointOput, OputOptions, Reading


class EntropyWeightedOptions(OputOptions):
    """The options of ``entropy-weighted`` alone."""

    entropy_power: float = Field(default=1.0, ge=0)
    """Of ``1 + entropy`` in a position's weight; 0 is OPUT."""


class EntropyWeighted(JointOput[EntropyWeightedOptions]):
    """Both losses, each position weighed by how unsure the model is of it.

    Most positions of a rollout are right and certain. Weights of mean 1 move the losses to the others and leave their
    scale, so that learning rates mean the same.
    """

    name = "entropy-weighted"
    section = EntropyWeightedOptions

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        yield from self.joint_losses(predict, batch, where, ("mask", "pred"), self._score)

    def _score(self, reading: Reading) -> tuple[Tensor, dict[str, Tensor]]:
        weights_S = entropy_weights(reading.logits_SV, self.options.entropy_power)
        return (weights_S * F.cross_entropy(reading.logits_SV, reading.targets_S, reduction="none")).mean(), {}


def entropy_weights(logits_SV: Tensor, power: float) -> Tensor:
    """Return ``(1 + entropy in nats) ** power`` over its mean, without gradient: ``(S,)`` float32.

    This is MiLe's weight (arXiv 2310.19531). GIFT (arXiv 2509.20863), for diffusion models, takes the square root of
    the entropy itself; here 1 is added because OPUT's losses are also over right tokens, which have to stay as they
    are.
    """
    weights_S = (1 + entropies(logits_SV.detach())) ** power
    return weights_S / weights_S.mean()
