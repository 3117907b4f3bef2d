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
from dmax.training.edit_labels import IGNORED
from dmax.training.layout import Batch, Layout
from dmax.training.objectives.base import LossPart, Objective, Pass, Predict, share, supervised, tallies
from dmax.training.objectives.options import CommonOptions
from dmax.training.rollout import DecodingRollout, RowRollout, greedy, sampled
from dmax.training.section import Share

_ROLLOUT = 3
INDEL = "oput-indel"


class OputOptions(CommonOptions):
    """The options of ``oput`` alone."""

    losses: Annotated[tuple[Literal["mask", "pred"], ...], Field(min_length=1)] = ("mask", "pred")
    """Of the ``joint`` form."""
    rollout: Literal["greedy", "sampled"] = "greedy"
    form: Literal["joint", "alternate"] = "joint"
    rollout_passes: int = Field(default=1, ge=1, le=8)
    """Most passes of decoding before the second loss; each row draws from 1 to this."""
    rollout_states: Literal["hard", "soft"] = "hard"
    """Whether the second loss reads decoded positions as tokens, or as the soft embeddings of decoding."""
    rollout_threshold: Share | tuple[Share, Share] = 0.0
    """Confidence from which a mask becomes a token in the rollout; lowest and highest of one drawn per row. 0 fills
    every mask in the first pass, as published."""

    @model_validator(mode="after")
    def _losses_are_of_the_joint_form(self) -> OputOptions:
        kinds = (Oput.name, INDEL)
        if "losses" in self.model_fields_set and (self.kind not in kinds or self.form != "joint"):
            raise ValueError("losses are chosen for kind oput in the form joint; leave them out")
        return self

    @model_validator(mode="after")
    def _decoding_is_greedy_and_joint(self) -> OputOptions:
        if self.decodes and (self.rollout, self.form) != ("greedy", "joint"):
            raise ValueError("rollout_passes, rollout_states, rollout_threshold need rollout: greedy and form: joint")
        if isinstance(self.rollout_threshold, tuple) and self.rollout_threshold[0] > self.rollout_threshold[1]:
            raise ValueError("rollout_threshold must be [lowest, highest]")
        return self

    @model_validator(mode="after")
    def _edits_are_of_one_prediction(self) -> OputOptions:
        if self.kind == INDEL and (self.decodes or self.form != "joint"):
            raise ValueError(f"{INDEL} has form: joint and a rollout of one pass; leave other forms and passes out")
        return self

    @property
    def decodes(self) -> bool:
        """Whether the rollout is more than one prediction of all masks."""
        return self.rollout_passes > 1 or self.rollout_states == "soft" or self.rollout_threshold != 0.0


class Oput(Objective[OputOptions]):
    """Both losses on every row (``joint``), or each on every other row (``alternate``, the published form)."""

    name = "oput"
    section = OputOptions

    @property
    def rows_per_example(self) -> int:
        """The alternate form reads every example twice, once for each of its losses."""
        return 2 if self.options.form == "alternate" else 1

    @property
    def forwards_of_a_loss(self) -> float:
        """The alternate form rolls out in a pass of its own; the joint form reads the first loss's logits."""
        if self.options.form == "alternate":
            return 4
        return 3 + (self.options.rollout_passes - 1) / len(self.options.losses)

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        sample = sampler(self.options, where)
        layout, hidden, mask_id = batch.layout, batch.hidden, where.config.mask_token_id
        if self.options.decodes:
            rows = [self._row(where.seed, index) for index in batch.indices]
            soft = self.options.rollout_states == "soft"
            rollout = DecodingRollout(layout, hidden, mask_id, rows)
            yield from decoding_losses(
                predict, layout, hidden, rollout, self.options.rollout_passes, soft, self.options.losses
            )
        elif self.options.form == "joint":
            yield from oput_losses(predict, layout, hidden, mask_id, sample, self.options.losses)
        else:
            revises = torch.tensor(batch.indices, device=hidden.device) % 2 == 1
            yield oput_mixed_loss(predict, layout, hidden, revises, mask_id, sample)

    def _row(self, seed: int, index: int) -> RowRollout:
        """Draw how far a row is decoded, as a function of the seed and its index alone."""
        generator = generator_for(seed, index, _ROLLOUT)
        passes = 1 + int(torch.randint(self.options.rollout_passes, (), generator=generator))
        threshold = self.options.rollout_threshold
        if isinstance(threshold, tuple):
            threshold = threshold[0] + (threshold[1] - threshold[0]) * torch.rand((), generator=generator).item()
        return RowRollout(passes, threshold)


def sampler(options: OputOptions, where: Pass) -> Callable[[Tensor], Tensor]:
    """Return what turns float32 logits ``(S, V)`` of a pass into tokens ``(S,)``."""
    if options.rollout == "greedy":
        return greedy
    return partial(sampled, generator=generator_for(where.seed, where.number, _ROLLOUT))


def oput_losses(
    predict: Predict,
    layout: Layout,
    hidden: Tensor,
    mask_token_id: int,
    sample: Callable[[Tensor], Tensor],
    which: tuple[str, ...] = ("mask", "pred"),
    relabel: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[LossPart]:
    """Compute the losses of OPUT: one on the masked input, one on the model's own prediction of it.

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
        relabel: turns the filled tokens ``(B, M)`` into the second loss's labels ``(S,)``, of which
            :data:`~dmax.training.edit_labels.IGNORED` carry none; the true tokens if not given.
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
        labels_S = targets_S if relabel is None else relabel(rollout_ids)
        counted_S = labels_S != IGNORED
        logits_SV = predict(rollout_ids, layout)
        loss = F.cross_entropy(logits_SV, labels_S, ignore_index=IGNORED)
        wrong = {"rollout_wrong": share((rollout_S != targets_S) & hidden_S, hidden_S)}
        yield LossPart(
            "pred", loss, tallies("pred", loss, logits_SV, labels_S, hidden_S & counted_S, counted_S) | wrong
        )


def decoding_losses(
    predict: Predict,
    layout: Layout,
    hidden: Tensor,
    rollout: DecodingRollout,
    passes: int,
    soft: bool,
    which: tuple[str, ...] = ("mask", "pred"),
) -> Iterator[LossPart]:
    """Compute OPUT's losses with a rollout of several passes of Soft Parallel Decoding.

    The published rollout shows the model its first prediction of every mask. Decoding shows it more: blocks that are
    partly decoded, tokens revised several times, and mixes of token and mask. One pass with threshold 0 and hard states
    is the published rollout.

    Args:
        predict: the model.
        layout: the batch.
        hidden: ``(B, M)`` bool, the positions to mask.
        rollout: of the batch, before its first pass.
        passes: to run without gradient; the first reads the logits of the first loss, where that is asked for.
        soft: whether the model reads mixes, in the rollout and in the second loss, or tokens.
        which: the losses to yield, in this order; each may be run backward before the next is computed.
    """
    targets_S, hidden_S = supervised(layout, hidden)
    if "mask" in which:
        logits_SV = predict(rollout.tokens(), layout)
        rollout.advance(logits_SV.detach())
        loss = F.cross_entropy(logits_SV, targets_S)
        yield LossPart("mask", loss, tallies("mask", loss, logits_SV, targets_S, hidden_S))
    with torch.no_grad():
        for _ in range(passes - ("mask" in which)):
            rollout.advance(predict(rollout.tokens(), layout, rollout.mix() if soft else None))
    if "pred" in which:
        tokens = rollout.tokens()
        logits_SV = predict(tokens, layout, rollout.mix() if soft else None)
        loss = F.cross_entropy(logits_SV, targets_S)
        wrong = {"rollout_wrong": share((tokens[layout.supervised] != targets_S) & hidden_S, hidden_S)}
        yield LossPart("pred", loss, tallies("pred", loss, logits_SV, targets_S, hidden_S) | wrong)


def oput_mixed_loss(
    predict: Predict,
    layout: Layout,
    hidden: Tensor,
    revises: Tensor,
    mask_token_id: int,
    sample: Callable[[Tensor], Tensor],
) -> LossPart:
    """Compute both losses of OPUT in one pass, each row taking part in one of them.

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
