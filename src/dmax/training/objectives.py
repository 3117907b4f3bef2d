"""Training objectives: masked block diffusion, OPUT and the baselines of the paper (algorithm.md#oput).

Each is a pure function of a batch: corrupt, lay out, predict, compare. Shape suffixes: B rows, M noisy positions,
N clean positions, D hidden, V vocabulary, S supervised positions of the batch (flattened), H masked ones of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.training.layout import Layout

ENDING = 8
"""Longer than a last number, which an EOS that is there too early would cut off."""

Predict = Callable[[Tensor, Layout], Tensor]
"""``(noisy_ids (B, M), layout) -> logits (S, V)`` float32 at the supervised noisy positions, in row order."""


@dataclass(frozen=True)
class LossPart:
    """One term of an objective, ready for its own backward pass."""

    name: str
    loss: Tensor
    """Scalar, mean cross-entropy in nats over the term's positions (plus the term's regulariser, if any)."""
    tallies: dict[str, Tensor]
    """What is reported, each as ``(2,)`` float32: a sum and the number of positions that it is over."""


def masked_loss(
    predict: Predict,
    layout: Layout,
    hidden: Tensor,
    mask_token_id: int,
    smoothing: Tensor | None = None,
) -> LossPart:
    """Cross-entropy on the masked positions only (plain masked training).

    Args:
        predict: the model.
        layout: the batch.
        hidden: ``(B, M)`` bool, the positions to mask.
        mask_token_id: token that hides them.
        smoothing: ``(B, M)`` float, the share of each label that is spread evenly over the vocabulary.
    """
    logits_SV = predict(layout.noisy_ids.masked_fill(hidden, mask_token_id), layout)
    targets_S, hidden_S = _supervised(layout, hidden)
    log_probs_HV = logits_SV[hidden_S].log_softmax(-1)
    loss_H = F.nll_loss(log_probs_HV, targets_S[hidden_S], reduction="none")
    if smoothing is not None:
        loss_H = loss_H.lerp(-log_probs_HV.mean(-1), smoothing[layout.supervised][hidden_S])
    loss = loss_H.mean()
    return LossPart("mask", loss, _tallies("mask", loss, logits_SV, targets_S, hidden_S, hidden_S))


def far_ahead(layout: Layout, hidden: Tensor, near: int, eos_token_id: int) -> Tensor:
    """The hidden positions behind the first ``near`` of their block, ``(B, M)`` bool, but for an answer's padding.

    Tokens far ahead of what is decoded are easily foretold and hard to place: where they stand depends on everything
    between. Smoothed labels keep a model from being sure of them, so that decoding by confidence begins with what is
    next. An EOS behind :data:`ENDING` others is padding wherever the answer ends.
    """
    seen = F.pad(hidden.cumsum(1), (1, 0))
    index = torch.arange(hidden.shape[1], device=hidden.device)
    before_block = seen[:, index // layout.block_length * layout.block_length]
    ends = F.pad((layout.noisy_ids == eos_token_id).cumsum(1), (ENDING + 1, 0))
    padding = ends[:, ENDING + 1 :] - ends[:, : -ENDING - 1] == ENDING + 1
    return hidden & (seen[:, 1:] - before_block > near) & ~padding


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
    targets_S, hidden_S = _supervised(layout, hidden)
    if "mask" in which:
        logits_SV = predict(masked_ids, layout)
        rollout_S = sample(logits_SV.detach())
        loss = F.cross_entropy(logits_SV, targets_S)
        yield LossPart("mask", loss, _tallies("mask", loss, logits_SV, targets_S, hidden_S))
    else:
        with torch.no_grad():
            rollout_S = sample(predict(masked_ids, layout))
    if "pred" in which:
        rollout_ids = masked_ids.masked_scatter(hidden, rollout_S[hidden_S])
        logits_SV = predict(rollout_ids, layout)
        loss = F.cross_entropy(logits_SV, targets_S)
        wrong = {"rollout_wrong": _share((rollout_S != targets_S) & hidden_S, hidden_S)}
        yield LossPart("pred", loss, _tallies("pred", loss, logits_SV, targets_S, hidden_S) | wrong)


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
    targets_S, hidden_S = _supervised(layout, hidden)
    with torch.no_grad():
        rollout_S = sample(predict(masked_ids, layout))
    rollout_ids = masked_ids.masked_scatter(hidden, rollout_S[hidden_S])
    logits_SV = predict(torch.where(revises[:, None], rollout_ids, masked_ids), layout)
    loss_S = F.cross_entropy(logits_SV, targets_S, reduction="none")
    revises_S = revises[:, None].expand_as(layout.supervised)[layout.supervised]
    right_S = logits_SV.detach().argmax(-1) == targets_S
    tallies = {"rollout_wrong": _share((rollout_S != targets_S) & hidden_S & revises_S, hidden_S & revises_S)}
    for name, rows_S in (("mask", ~revises_S), ("pred", revises_S)):
        tallies[f"loss_{name}"] = torch.stack([loss_S.detach()[rows_S].sum(), rows_S.sum().float()])
        tallies[f"accuracy_{name}"] = _share(right_S & hidden_S & rows_S, hidden_S & rows_S)
    return LossPart("mixed", loss_S.mean(), tallies)


def uniform_loss(predict: Predict, layout: Layout, hidden: Tensor, random_ids: Tensor) -> LossPart:
    """Uniform diffusion training, the paper's baseline: OPUT's second loss on random tokens instead of predictions.

    Args:
        predict: the model.
        layout: the batch.
        hidden: ``(B, M)`` bool, the positions to corrupt.
        random_ids: ``(B, M)`` int64, uniformly random tokens for them.
    """
    logits_SV = predict(torch.where(hidden, random_ids, layout.noisy_ids), layout)
    targets_S, hidden_S = _supervised(layout, hidden)
    loss = F.cross_entropy(logits_SV, targets_S)
    return LossPart("uniform", loss, _tallies("uniform", loss, logits_SV, targets_S, hidden_S))


def dparallel_loss(predict: Predict, layout: Layout, hidden: Tensor, mask_token_id: int, beta: float) -> LossPart:
    """dParallel's certainty-forcing (arXiv 2509.26488): masked cross-entropy plus ``beta`` times an entropy.

    The entropy, in nats, is the mean over the masked positions whose argmax is already right.
    """
    logits_SV = predict(layout.noisy_ids.masked_fill(hidden, mask_token_id), layout)
    targets_S, hidden_S = _supervised(layout, hidden)
    cross_entropy = F.cross_entropy(logits_SV[hidden_S], targets_S[hidden_S])
    loss = cross_entropy + beta * entropy_where_right(logits_SV[hidden_S], targets_S[hidden_S])
    return LossPart("mask", loss, _tallies("mask", loss, logits_SV, targets_S, hidden_S, hidden_S))


def entropy_where_right(logits_SV: Tensor, targets_S: Tensor) -> Tensor:
    """Mean entropy, in nats, of the distributions whose argmax is the target; 0 where none is."""
    right_S = logits_SV.argmax(-1) == targets_S
    log_probs_SV = logits_SV.log_softmax(-1)
    entropy_S = -(log_probs_SV.exp() * log_probs_SV).sum(-1)
    return (entropy_S * right_S).sum() / right_S.sum().clamp(min=1)


def _supervised(layout: Layout, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Targets, and which of them are corrupted, at the supervised positions: ``(S,)`` each."""
    return layout.noisy_ids[layout.supervised], hidden[layout.supervised]


def _tallies(
    name: str, loss: Tensor, logits_SV: Tensor, targets_S: Tensor, hidden_S: Tensor, counted_S: Tensor | None = None
) -> dict[str, Tensor]:
    """Loss over the counted positions (all of them if not given), accuracy over the corrupted ones."""
    positions = torch.tensor(float(targets_S.numel())) if counted_S is None else counted_S.sum().float()
    positions = positions.to(loss.device)
    right_S = logits_SV.detach().argmax(-1) == targets_S
    return {
        f"loss_{name}": torch.stack([loss.detach() * positions, positions]),
        f"accuracy_{name}": _share(right_S & hidden_S, hidden_S),
    }


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.stack([part.sum(), whole.sum()]).float()
