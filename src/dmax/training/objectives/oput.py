"""On-Policy Uniform Training: one loss on the masked input, one on the model's own prediction of it.

Shape suffixes: B rows, M noisy positions, V vocabulary, S supervised positions of the batch (flattened).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from dmax.training.data import generator_for
from dmax.training.layout import Batch, Layout
from dmax.training.objectives.base import LossPart, Objective, Pass, Predict, share, supervised, tallies
from dmax.training.objectives.options import CommonOptions
from dmax.training.rollout import greedy, sampled

_ROLLOUT = 3


class OputOptions(CommonOptions):
    """The options of ``oput`` alone."""

    losses: Annotated[tuple[Literal["mask", "pred"], ...], Field(min_length=1)] = ("mask", "pred")
    """Of the ``joint`` form."""
    rollout: Literal["greedy", "sampled"] = "greedy"
    form: Literal["joint", "alternate"] = "joint"

    @model_validator(mode="after")
    def _losses_are_of_the_joint_form(self) -> OputOptions:
        if "losses" in self.model_fields_set and (self.kind, self.form) != (Oput.name, "joint"):
            raise ValueError("losses are chosen for kind oput in the form joint; leave them out")
        return self


class Oput(Objective[OputOptions]):
    """Both losses on every row (``joint``), or each on every other row (``alternate``, the published form)."""

    name = "oput"
    section = OputOptions

    @property
    def rows_per_example(self) -> int:
        """The alternate form reads every example twice, once for each of its losses."""
        return 2 if self.options.form == "alternate" else 1

    @property
    def forwards_of_a_loss(self) -> int:
        """The alternate form rolls out in a pass of its own; the joint form reads the first loss's logits."""
        return 4 if self.options.form == "alternate" else 3

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        sample = greedy
        if self.options.rollout == "sampled":
            sample = partial(sampled, generator=generator_for(where.seed, where.number, _ROLLOUT))
        layout, hidden, mask_id = batch.layout, batch.hidden, where.config.mask_token_id
        if self.options.form == "joint":
            yield from oput_losses(predict, layout, hidden, mask_id, sample, self.options.losses)
        else:
            revises = torch.tensor(batch.indices, device=hidden.device) % 2 == 1
            yield oput_mixed_loss(predict, layout, hidden, revises, mask_id, sample)


def oput_losses(
    predict: Predict,
    layout: Layout,
    hidden: Tensor,
    mask_token_id: int,
    sample: Callable[[Tensor], Tensor],
    which: tuple[str, ...] = ("mask", "pred"),
) -> Iterator[LossPart]:
    """On-Policy Uniform Training: one loss on the masked input, one on the model's own prediction of it.

    Both are cross-entropy over every supervised position, corrupted or not. The rollout fills the masks with what the
    current weights predict, without gradient. Nothing in the model is random, so where both losses are asked for, the
    rollout reads the logits that the first loss is computed from instead of running the same pass again.

    Args:
        predict: the model.
        layout: the batch.
        hidden: ``(B, M)`` bool, the positions to mask.
        mask_token_id: token that hides them.
        sample: turns float32 logits ``(S, V)`` into tokens ``(S,)`` (see :mod:`dmax.training.rollout`).
        which: the losses to yield, in this order; each may be run backward before the next is computed.
    """
    masked_ids = layout.noisy_ids.masked_fill(hidden, mask_token_id)
    targets_S, hidden_S = supervised(layout, hidden)
    if "mask" in which:
        logits_SV = predict(masked_ids, layout)
        rollout_S = sample(logits_SV.detach())
        loss = F.cross_entropy(logits_SV, targets_S)
        yield LossPart("mask", loss, tallies("mask", loss, logits_SV, targets_S, hidden_S))
    else:
        with torch.no_grad():
            rollout_S = sample(predict(masked_ids, layout))
    if "pred" in which:
        rollout_ids = masked_ids.masked_scatter(hidden, rollout_S[hidden_S])
        logits_SV = predict(rollout_ids, layout)
        loss = F.cross_entropy(logits_SV, targets_S)
        wrong = {"rollout_wrong": share((rollout_S != targets_S) & hidden_S, hidden_S)}
        yield LossPart("pred", loss, tallies("pred", loss, logits_SV, targets_S, hidden_S) | wrong)


def oput_mixed_loss(
    predict: Predict,
    layout: Layout,
    hidden: Tensor,
    revises: Tensor,
    mask_token_id: int,
    sample: Callable[[Tensor], Tensor],
) -> LossPart:
    """Both losses of On-Policy Uniform Training in one pass, each row taking part in one of them.

    This is the published form, which reads every example twice, once a loss. The rollout runs on all rows, whether
    they need it or not: processes that share one model have to run the same passes.

    Args:
        predict: the model.
        layout: the batch.
        hidden: ``(B, M)`` bool, the positions to mask.
        revises: ``(B,)`` bool, the rows that read the model's own prediction; the others read masks.
        mask_token_id: token that hides them.
        sample: turns float32 logits ``(S, V)`` into tokens ``(S,)``.
    """
    masked_ids = layout.noisy_ids.masked_fill(hidden, mask_token_id)
    targets_S, hidden_S = supervised(layout, hidden)
    with torch.no_grad():
        rollout_S = sample(predict(masked_ids, layout))
    rollout_ids = masked_ids.masked_scatter(hidden, rollout_S[hidden_S])
    logits_SV = predict(torch.where(revises[:, None], rollout_ids, masked_ids), layout)
    loss_S = F.cross_entropy(logits_SV, targets_S, reduction="none")
    revises_S = revises[:, None].expand_as(layout.supervised)[layout.supervised]
    right_S = logits_SV.detach().argmax(-1) == targets_S
    tallies = {"rollout_wrong": share((rollout_S != targets_S) & hidden_S & revises_S, hidden_S & revises_S)}
    for name, rows_S in (("mask", ~revises_S), ("pred", revises_S)):
        tallies[f"loss_{name}"] = torch.stack([loss_S.detach()[rows_S].sum(), rows_S.sum().float()])
        tallies[f"accuracy_{name}"] = share(right_S & hidden_S & rows_S, hidden_S & rows_S)
    return LossPart("mixed", loss_S.mean(), tallies)
