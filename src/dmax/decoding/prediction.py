"""What the model says about a block: tokens, confidences and the order of confidence.

Shape suffixes: B rows, L block positions, V vocabulary, k candidates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dmax.decoding.base import DecoderError
from dmax.kernels.steps import Steps

STEPS = Steps("predict")
"""By vocabulary, mask token and dtype of the logits."""


class Prediction(NamedTuple):
    """The model's word on every position, the mask token never being chosen (SPEC section 3.2)."""

    tokens: Tensor
    """``(B, L)`` int64: the most probable token, or with a temperature the drawn one."""
    confidence: Tensor
    """``(B, L)`` float32, probability of the most probable token, drawn or not."""
    candidates: Tensor
    """``(B, L, k)`` int64, the most probable tokens, best first."""
    probabilities: Tensor
    """``(B, L, k)`` float32, theirs."""


def predict(
    logits: Tensor, mask_token_id: int, *, temperature: float = 0.0, noise: Tensor | None = None, top_k: int = 1
) -> Prediction:
    """Read a block's logits. Ties go to the lowest token id.

    The mask token takes its share of the softmax but can neither be chosen nor lend its probability as confidence.

    Args:
        logits: ``(B, L, V)`` in any float dtype; left as they are.
        mask_token_id: the token that is never chosen.
        temperature: 0 takes the most probable token; above 0 the token is drawn by Gumbel-max.
        noise: ``(B, L, V)`` float32 standard Gumbel noise, read only with a temperature above 0.
        top_k: number of candidates.

    Raises:
        DecoderError: a temperature above 0 came without noise, or the vocabulary has no ``top_k`` tokens.
    """
    if top_k >= logits.shape[-1]:
        raise DecoderError(f"top_k is {top_k}; the vocabulary has only {logits.shape[-1] - 1} tokens beside the mask.")
    step = STEPS.at(logits.shape[-1], mask_token_id, logits.dtype)
    if top_k == 1 and step.usable(logits, logits):
        found = step(logits.flatten(0, 1))
        candidates_BLk, probabilities_BLk = (tensor_N.view(*logits.shape[:-1], 1) for tensor_N in found)
    else:
        candidates_BLk = _best_tokens(logits, mask_token_id, top_k)
        probabilities_BLk = torch.softmax(logits, -1, dtype=torch.float32).gather(-1, candidates_BLk)
    if temperature == 0:
        tokens_BL = candidates_BLk[..., 0]
    elif noise is None:
        raise DecoderError(f"temperature is {temperature}, so the step needs noise: pass one Gumbel draw a logit.")
    else:
        # Scaling the noise up, not the logits down, keeps tiny temperatures from overflowing.
        scores_BLV = torch.add(logits.float(), noise, alpha=temperature)
        scores_BLV.select(-1, mask_token_id).fill_(-math.inf)
        tokens_BL = scores_BLV.max(-1).indices
    return Prediction(tokens_BL, probabilities_BLk[..., 0], candidates_BLk, probabilities_BLk)


def most_probable(logits_NV: Tensor, *, mask_token_id: int) -> tuple[Tensor, Tensor]:
    """The most probable token but for the mask, and its probability: ``(N,)`` int64 and ``(N,)`` float32."""
    best_N1 = _best_tokens(logits_NV, mask_token_id, 1)
    return best_N1[:, 0], torch.softmax(logits_NV, -1, dtype=torch.float32).gather(-1, best_N1)[:, 0]


def _best_tokens(logits_BLV: Tensor, mask_token_id: int, top_k: int) -> Tensor:
    """The k most probable tokens but for the mask: ``(B, L, k)``.

    ``torch.topk`` leaves the order of ties open, and bfloat16 logits tie often; ``max`` gives the lowest index.
    """
    scores_BLV = logits_BLV.clone()
    scores_BLV.select(-1, mask_token_id).fill_(-math.inf)
    best = [scores_BLV.max(-1, keepdim=True).indices]
    while len(best) < top_k:
        scores_BLV.scatter_(-1, best[-1], -math.inf)
        best.append(scores_BLV.max(-1, keepdim=True).indices)
    return best[0] if top_k == 1 else torch.cat(best, -1)


def rank_by_confidence(confidence: Tensor, among: Tensor) -> Tensor:
    """Place of every position in its row's order of confidence, 0 the most confident; ties go to the leftmost.

    Args:
        confidence: ``(B, L)`` float32, at least 0.
        among: ``(B, L)`` bool; positions outside come last.

    Returns:
        ``(B, L)`` int64, a permutation of 0..L-1 in each row.
    """
    confidence_BL = torch.where(among, confidence, -1.0)
    return confidence_BL.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
