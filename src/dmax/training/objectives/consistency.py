"""OPUT whose first prediction is taught by its last one (algorithm.md#beyond-the-two-losses).

Shape suffixes: S supervised positions of the batch (flattened), H corrupted ones of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dmax.training.layout import Batch
from dmax.training.objectives.base import LossPart, Pass, Predict
from dmax.training.objectives.oput import JointOput, OputOptions, Reading, cross_entropy


class ConsistencyOptions(OputOptions):
    """The options of ``consistency`` alone."""

    consistency_weight: float = Field(default=1.0, ge=0)
    """The weight of the divergence."""


class Consistency(JointOput[ConsistencyOptions]):
    """The model learns to say of masks at once what it will say when it has read its own prediction of them.

    The last pass comes first, so that no two passes keep their graphs at a time; the first one runs again with its own.
    """

    name = "consistency"
    section = ConsistencyOptions

    @property
    def forwards_of_a_batch(self) -> int:
        return 6 + self.options.rollout_passes

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        later: list[Tensor] = []

        def remember(reading: Reading) -> tuple[Tensor, dict[str, Tensor]]:
            later.append(reading.logits_SV.detach())
            return cross_entropy(reading)

        def follow(reading: Reading) -> tuple[Tensor, dict[str, Tensor]]:
            loss, _ = cross_entropy(reading)
            divergence_H = divergence(reading.logits_SV[reading.hidden_S], later[0][reading.hidden_S])
            count = divergence_H.new_tensor(float(len(divergence_H)))
            tally = {"divergence": torch.stack([divergence_H.detach().sum(), count])}
            return loss + self.options.consistency_weight * divergence_H.sum() / count.clamp(min=1), tally

        yield from self.joint_losses(predict, batch, where, ("pred",), remember)
        yield from self.joint_losses(predict, batch, where, ("mask",), follow)


def divergence(earlier_HV: Tensor, later_HV: Tensor) -> Tensor:
    """Return how far the earlier distribution is from the later one, ``KL(later | earlier)`` in nats: ``(H,)`` float32.

    Args:
        earlier_HV: float32 logits that learn.
        later_HV: float32 logits that teach; no gradient flows into them.
    """
    later = later_HV.detach().log_softmax(-1)
    return F.kl_div(earlier_HV.log_softmax(-1), later, reduction="none", log_target=True).sum(-1)
