"""On-Policy Uniform Training: one loss on the masked input, one on the model's own prediction of it.

Shape suffixes: B rows, M noisy positions, V vocabulary, S supervised positions of the batch (flattened).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from dmax.training.data import generator_for
from dmax.training.layout import Batch, Layout
from dmax.training.objectives.base import LossPart, Objective, Pass, Predict, share, supervised, tallies
from dmax.training.objectives.options import CommonOptions, Own
from dmax.training.rollout import DecodingRollout, RowRollout, greedy, sampled
from dmax.training.section import Share

_ROLLOUT = 3
_LOSSES = "losses are chosen for kind oput in the form joint; leave them out"
LossName = Literal["mask", "pred"]


@dataclass(frozen=True)
class Reading:
    """What the model said about one input of a batch, at the supervised positions."""

    name: LossName
    """The loss that is computed from it."""
    tokens_S: Tensor
    """``(S,)`` int64, what stood there; the mask token where nothing did."""
    logits_SV: Tensor
    """``(S, V)`` float32."""
    targets_S: Tensor
    """``(S,)`` int64."""
    hidden_S: Tensor
    """``(S,)`` bool, the corrupted positions."""


Score = Callable[[Reading], tuple[Tensor, dict[str, Tensor]]]
"""Gives the loss of a reading, a scalar, and what else is reported (as :class:`LossPart` has it)."""


def cross_entropy(reading: Reading) -> tuple[Tensor, dict[str, Tensor]]:
    """Score a reading as OPUT does: mean cross-entropy over every supervised position, corrupted or not."""
    return F.cross_entropy(reading.logits_SV, reading.targets_S), {}


class OputOptions(CommonOptions):
    """The options of ``oput`` alone."""

    losses: Annotated[tuple[LossName, ...], Field(min_length=1), Own(_LOSSES)] = ("mask", "pred")
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
    def _decoding_is_greedy_and_joint(self) -> OputOptions:
        if self.decodes and (self.rollout, self.form) != ("greedy", "joint"):
            raise ValueError("rollout_passes, rollout_states, rollout_threshold need rollout: greedy and form: joint")
        if isinstance(self.rollout_threshold, tuple) and self.rollout_threshold[0] > self.rollout_threshold[1]:
            raise ValueError("rollout_threshold must be [lowest, highest]")
        return self

    @property
    def decodes(self) -> bool:
        """Whether the rollout is more than one prediction of all masks."""
        return self.rollout_passes > 1 or self.rollout_states == "soft" or self.rollout_threshold != 0.0


Chosen = TypeVar("Chosen", bound=OputOptions)


class Oput(Objective[Chosen]):
    """Both losses on every row (``joint``), or each on every other row (``alternate``, the published form)."""

    name = "oput"
    section = OputOptions

    @classmethod
    def check(cls, section: CommonOptions) -> None:
        super().check(section)
        assert isinstance(section, OputOptions)
        if "losses" in section.model_fields_set and section.form != "joint":
            raise ValueError(_LOSSES)

    @property
    def rows_per_example(self) -> int:
        """The alternate form reads every example twice, once for each of its losses."""
        return 2 if self.options.form == "alternate" else 1

    @property
    def forwards_of_a_batch(self) -> int:
        """The alternate form rolls out in a pass of its own; the joint form reads the first loss's logits."""
        if self.options.form == "alternate":
            return 4
        losses = self.options.losses
        rollout = self.options.rollout_passes - ("mask" in losses) if "pred" in losses else 0
        return 3 * len(losses) + rollout

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        if self.options.form == "joint":
            yield from self.joint_losses(predict, batch, where, self.options.losses)
            return
        revises = torch.tensor(batch.indices, device=batch.hidden.device) % 2 == 1
        mask_id, sample = where.config.mask_token_id, sampler(self.options, where)
        yield oput_mixed_loss(predict, batch.layout, batch.hidden, revises, mask_id, sample)

    def joint_losses(
        self, predict: Predict, batch: Batch, where: Pass, which: Sequence[LossName], score: Score = cross_entropy
    ) -> Iterator[LossPart]:
        """Yield losses of the joint form, with the rollout that the options ask for."""
        layout, hidden, mask_id = batch.layout, batch.hidden, where.config.mask_token_id
        if self.options.decodes:
            rollout = DecodingRollout(layout, hidden, mask_id, [self._row(where.seed, i) for i in batch.indices])
            soft, passes = self.options.rollout_states == "soft", self.options.rollout_passes
            yield from decoding_losses(predict, layout, hidden, rollout, passes, soft, which, score)
        else:
            yield from oput_losses(predict, layout, hidden, mask_id, sampler(self.options, where), which, score)

    def _row(self, seed: int, index: int) -> RowRollout:
        """Draw how far a row is decoded, as a function of the seed and its index alone."""
        generator = generator_for(seed, index, _ROLLOUT)
        passes = 1 + int(torch.randint(self.options.rollout_passes, (), generator=generator))
        threshold = self.options.rollout_threshold
        if isinstance(threshold, tuple):
            threshold = threshold[0] + (threshold[1] - threshold[0]) * torch.rand((), generator=generator).item()
        return RowRollout(passes, threshold)


class JointOput(Oput[Chosen]):
    """An objective that has both losses of a batch at hand, and so needs the joint form."""

    @classmethod
    def check(cls, section: CommonOptions) -> None:
        super().check(section)
        assert isinstance(section, OputOptions)
        if "losses" in section.model_fields_set:
            raise ValueError(_LOSSES)
        if section.form != "joint":
            raise ValueError(f"kind {cls.name} needs form: joint")


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
    which: Sequence[LossName] = ("mask", "pred"),
    score: Score = cross_entropy,
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
        score: gives each of them.
    """
    masked_ids = layout.noisy_ids.masked_fill(hidden, mask_token_id)
    targets_S, hidden_S = supervised(layout, hidden)
    if "mask" in which:
        logits_SV = predict(masked_ids, layout)
        rollout_S = sample(logits_SV.detach())
        yield _part(Reading("mask", masked_ids[layout.supervised], logits_SV, targets_S, hidden_S), score)
    else:
        with torch.no_grad():
            rollout_S = sample(predict(masked_ids, layout))
    if "pred" in which:
        rollout_ids = masked_ids.masked_scatter(hidden, rollout_S[hidden_S])
        logits_SV = predict(rollout_ids, layout)
        yield _part(Reading("pred", rollout_ids[layout.supervised], logits_SV, targets_S, hidden_S), score)


def decoding_losses(
    predict: Predict,
    layout: Layout,
    hidden: Tensor,
    rollout: DecodingRollout,
    passes: int,
    soft: bool,
    which: Sequence[LossName] = ("mask", "pred"),
    score: Score = cross_entropy,
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
        score: gives each of them.
    """
    targets_S, hidden_S = supervised(layout, hidden)
    if "mask" in which:
        tokens = rollout.tokens()
        logits_SV = predict(tokens, layout)
        rollout.advance(logits_SV.detach())
        yield _part(Reading("mask", tokens[layout.supervised], logits_SV, targets_S, hidden_S), score)
    if "pred" in which:
        with torch.no_grad():
            for _ in range(passes - ("mask" in which)):
                rollout.advance(predict(rollout.tokens(), layout, rollout.mix() if soft else None))
        tokens = rollout.tokens()
        logits_SV = predict(tokens, layout, rollout.mix() if soft else None)
        yield _part(Reading("pred", tokens[layout.supervised], logits_SV, targets_S, hidden_S), score)


def _part(reading: Reading, score: Score) -> LossPart:
    """Score a reading, and tally what it says about the model and about the rollout that it read."""
    loss, more = score(reading)
    hidden_S, targets_S = reading.hidden_S, reading.targets_S
    if reading.name == "pred":
        more = {"rollout_wrong": share((reading.tokens_S != targets_S) & hidden_S, hidden_S), **more}
    return LossPart(reading.name, loss, tallies(reading.name, loss, reading.logits_SV, targets_S, hidden_S) | more)


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
