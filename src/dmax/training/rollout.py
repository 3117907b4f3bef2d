"""How OPUT's rollout turns the model's predictions into tokens (algorithm.md#roll-out)."""

from __future__ import annotations

import torch
from torch import Tensor


def greedy(logits: Tensor) -> Tensor:
    """The most probable token, as the published code does: ``(S, V)`` -> ``(S,)`` int64."""
    return logits.argmax(-1)


def sampled(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from the predictive distribution (Eq. 4 of the paper): ``(S, V)`` float32 -> ``(S,)`` int64."""
    waiting_times = torch.empty(logits.shape).exponential_(generator=generator).to(logits.device)
    return (logits - waiting_times.log()).argmax(-1)
