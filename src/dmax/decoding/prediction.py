"""What the logits say about a block: tokens, confidences and the order of confidence.

Shape suffixes: B rows, L block positions, V vocabulary, k candidates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from dmax.decoding.base import BlockState, Decoder, StepResult
from dmax.decoding.options import DecoderError, check_options


class Prediction(NamedTuple):
    """What the logits of a pass say at every position, the mask token never being chosen (algorithm.md#predict)."""

    tokens: Tensor
    """``(B, L)`` int64: the most probable token, or with a temperature the drawn one."""
    confidence: Tensor
    """``(B, L)`` float32, probability of the most probable token, drawn or not."""
    candidates: Tensor
    """``(B, L, k)`` int64, the most probable tokens, best first."""
    probabilities: Tensor
    """``(B, L, k)`` float32, theirs."""
    entropy: Tensor | None = None
    """``(B, L)`` float32, in nats, for a decoder that reads it (:attr:`DecidingDecoder.reads_entropy`)."""


class DecidingDecoder(Decoder, Protocol):
    """A decoder whose rule can be applied to a :class:`Prediction` that is made elsewhere, such as by a kernel."""

    @property
    def reads_entropy(self) -> bool:
        """Whether :meth:`decide` needs :attr:`Prediction.entropy`."""
        ...

    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block."""
        ...


class PredictedDecoder(ABC):
    """A decoder that needs no more of the logits than a :class:`Prediction`; its rule is :meth:`decide`."""

    name: ClassVar[str]
    reads_entropy: ClassVar[bool] = False
    temperature: float

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def num_candidates(self) -> int:
        """Tokens of every position that :meth:`decide` looks at."""
        return 1

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        """Apply one pass; see :meth:`Decoder.step`."""
        top_k = self.num_candidates
        prediction = predict(logits, state.mask_token_id, temperature=self.temperature, noise=noise, top_k=top_k)
        return self.decide(prediction, state)

    @abstractmethod
    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block.

        Args:
            prediction: of at least :attr:`num_candidates` candidates.
            state: the block before the pass.
        """


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
    candidates_BLk, probabilities_BLk = most_probable(logits, mask_token_id, top_k)
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


def most_probable(logits: Tensor, mask_token_id: int, top_k: int = 1) -> tuple[Tensor, Tensor]:
    """Find the k most probable tokens but for the mask, and their probabilities: ``(..., V)`` -> ``(..., k)`` each.

    ``torch.topk`` leaves the order of ties open, and bfloat16 logits tie often; ``max`` gives the lowest index.
    """
    probabilities = torch.softmax(logits, -1, dtype=torch.float32)
    probabilities.select(-1, mask_token_id).fill_(-1)
    best = [probabilities.max(-1, keepdim=True)]
    while len(best) < top_k:
        probabilities.scatter_(-1, best[-1].indices, -1)
        best.append(probabilities.max(-1, keepdim=True))
    if top_k == 1:
        return best[0].indices, best[0].values
    return torch.cat([found.indices for found in best], -1), torch.cat([found.values for found in best], -1)


def entropy(logits: Tensor, mask_token_id: int) -> Tensor:
    """Compute the entropy of the distribution over all tokens but the mask: ``(B, L, V)`` -> ``(B, L)`` float32."""
    logits_BLV = logits.to(torch.float32, copy=True)
    logits_BLV.select(-1, mask_token_id).fill_(-math.inf)
    return torch.special.entr(logits_BLV.softmax(-1)).sum(-1)


def rank_by_confidence(confidence: Tensor, among: Tensor) -> Tensor:
    """Rank the positions of every row by confidence, 0 the most confident; ties go to the leftmost.

    Args:
        confidence: ``(B, L)`` float32, at least 0.
        among: ``(B, L)`` bool; positions outside come last.

    Returns:
        ``(B, L)`` int64, a permutation of 0..L-1 in each row.
    """
    confidence_BL = torch.where(among, confidence, -1.0)
    return confidence_BL.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
