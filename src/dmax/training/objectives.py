"""Training objectives: masked block diffusion, OPUT and the baselines of the paper (SPEC section 5).

Each is a pure function of a batch: corrupt, lay out, predict, compare. Shape suffixes: B rows, M noisy positions,
N clean positions, D hidden, V vocabulary, S supervised positions of the batch (flattened).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.training.layout import Layout

Predict = Callable[[Tensor, Layout], Tensor]
"""``(noisy_ids (B, M), layout) -> logits (S, V)`` float32 at the supervised noisy positions, in row order."""


@dataclass(frozen=True)
class LossPart:
    """One term of an objective, ready for its own backward pass."""

    name: str
    loss: Tensor
    """Scalar, mean cross-entropy in nats over the term's positions (plus the term's regulariser, if any)."""
    accuracy: Tensor
    """Scalar float32, share of the term's corrupted positions predicted right."""


def masked_loss(predict: Predict, layout: Layout, hidden: Tensor, mask_token_id: int) -> LossPart:
    """Cross-entropy on the masked positions only (plain masked training).

    Args:
        predict: the model.
        layout: the batch.
        hidden: ``(B, M)`` bool, the positions to mask.
        mask_token_id: token that hides them.
    """
    logits_SV = predict(layout.noisy_ids.masked_fill(hidden, mask_token_id), layout)
    targets_S, hidden_S = _supervised(layout, hidden)
    loss = F.cross_entropy(logits_SV[hidden_S], targets_S[hidden_S])
    return LossPart("mask", loss, _accuracy(logits_SV, targets_S, hidden_S))


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
        yield LossPart("mask", F.cross_entropy(logits_SV, targets_S), _accuracy(logits_SV, targets_S, hidden_S))
    else:
        with torch.no_grad():
            rollout_S = sample(predict(masked_ids, layout))
    if "pred" in which:
        rollout_ids = masked_ids.masked_scatter(hidden, rollout_S[hidden_S])
        logits_SV = predict(rollout_ids, layout)
        yield LossPart("pred", F.cross_entropy(logits_SV, targets_S), _accuracy(logits_SV, targets_S, hidden_S))


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
    return LossPart("uniform", F.cross_entropy(logits_SV, targets_S), _accuracy(logits_SV, targets_S, hidden_S))


def dparallel_loss(predict: Predict, layout: Layout, hidden: Tensor, mask_token_id: int, beta: float) -> LossPart:
    """dParallel's certainty-forcing (arXiv 2509.26488): masked cross-entropy plus ``beta`` times an entropy.

    The entropy, in nats, is the mean over the masked positions whose argmax is already right.
    """
    logits_SV = predict(layout.noisy_ids.masked_fill(hidden, mask_token_id), layout)
    targets_S, hidden_S = _supervised(layout, hidden)
    loss = F.cross_entropy(logits_SV[hidden_S], targets_S[hidden_S])
    entropy = entropy_where_right(logits_SV[hidden_S], targets_S[hidden_S])
    return LossPart("mask", loss + beta * entropy, _accuracy(logits_SV, targets_S, hidden_S))


def entropy_where_right(logits_SV: Tensor, targets_S: Tensor) -> Tensor:
    """Mean entropy, in nats, of the distributions whose argmax is the target; 0 where none is."""
    right_S = logits_SV.argmax(-1) == targets_S
    log_probs_SV = logits_SV.log_softmax(-1)
    entropy_S = -(log_probs_SV.exp() * log_probs_SV).sum(-1)
    return (entropy_S * right_S).sum() / right_S.sum().clamp(min=1)


def _supervised(layout: Layout, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Targets, and which of them are corrupted, at the supervised positions: ``(S,)`` each."""
    return layout.noisy_ids[layout.supervised], hidden[layout.supervised]


def _accuracy(logits_SV: Tensor, targets_S: Tensor, hidden_S: Tensor) -> Tensor:
    right_S = (logits_SV.detach().argmax(-1) == targets_S) & hidden_S
    return right_S.sum() / hidden_S.sum().clamp(min=1)
