"""``soft-parallel``: Soft Parallel Decoding, the decoder of DMax (algorithm.md#spd).

Shape suffixes: B rows, L block positions, V vocabulary, k tokens of a mix. ``a > b`` of two flags is ``a and not b``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmax.decoding import options
from dmax.decoding.base import BlockState, SoftMix, StepResult
from dmax.decoding.prediction import PredictedDecoder, Prediction, rank_by_confidence
from dmax.kernels.decision import Decision

MAX_TOP_K = 64
"""Most tokens of a mix. Each costs a search of its own through the vocabulary, for which all who share the batch wait,
and those beyond the first few carry next to no weight."""


@dataclass(frozen=True, kw_only=True)
class SoftParallelDecoder(PredictedDecoder):
    """Promotes a confident run of masks, predicts every decoded token anew, and feeds back soft embeddings.

    ``threshold`` and ``acceptance_threshold`` are the paper's. The other options switch off one part each, for
    ablations. Without ``contiguous``, a pass in which no mask is confident promotes the most confident one; without
    ``revise``, a position keeps the token, confidence and mix that it had when it was promoted.
    """

    name: ClassVar[str] = "soft-parallel"
    multi_block: ClassVar[bool] = True
    threshold: float = options.probability(0.5, "Confidence from which a mask becomes a token.")
    acceptance_threshold: float = options.probability(
        0.9, "Confidence that every position needs for the block to be accepted while its tokens still change."
    )
    top_k: int = options.whole(1, "Tokens in the mix that a decoded position feeds back.", maximum=MAX_TOP_K)
    soft: bool = options.switch(True, "Feed back a mix of token and mask; off, the hard token.")
    renormalize: bool = options.switch(True, "Stretch the mix to the length of an embedding.")
    contiguous: bool = options.switch(True, "Promote a run of confident masks from the left; off, wherever they stand.")
    revise: bool = options.switch(True, "Predict decoded tokens anew in every pass.")
    temperature: float = options.temperature()

    @property
    def num_candidates(self) -> int:
        """Tokens of every position that :meth:`decide` looks at."""
        return self.top_k if self.soft else 1

    @property
    def is_common(self) -> bool:
        """Whether no option changes the rule, which is then the one that kernels compute.

        ``renormalize`` is no part of it: the embeddings of the next pass are what it changes.
        """
        return self.temperature == 0 and self.top_k == 1 and self.soft and self.contiguous and self.revise

    def after(self, found: Decision, state: BlockState) -> StepResult:
        """Make the result of a pass over ``state`` that was decided elsewhere."""
        mix = SoftMix(found.candidates.unsqueeze(-1), found.confidence.unsqueeze(-1), found.mixed, self.renormalize)
        return StepResult(
            state=state.after(found.tokens, found.masked, found.passes, mix),
            confidence=found.confidence,
            promoted=found.promoted,
            revised=found.revised,
            converged=found.converged,
        )

    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block.

        Args:
            prediction: of at least :attr:`num_candidates` candidates.
            state: the block before the pass.
        """
        promoted_BL = self._promote(prediction.confidence >= self.threshold, prediction.confidence, state)
        masked_BL = state.masked ^ promoted_BL
        decoded_BL = state.active ^ masked_BL
        written_BL = decoded_BL if self.revise else promoted_BL
        tokens_BL = torch.where(written_BL, prediction.tokens, state.tokens)
        changed_BL = tokens_BL != state.tokens
        passes_B = state.passes + 1
        doubtful_BL = (prediction.confidence < self.acceptance_threshold) & state.active
        converged_B = self._converged(doubtful_BL, masked_BL, changed_BL, passes_B)
        mix = None
        if self.soft:
            mix = self._mix(prediction, state.mix, written_BL, decoded_BL > converged_B[:, None])
        return StepResult(
            state=state.after(tokens_BL, masked_BL, passes_B, mix),
            confidence=prediction.confidence,
            promoted=promoted_BL,
            revised=changed_BL > state.masked,
            converged=converged_B,
        )

    def _promote(self, confident_BL: Tensor, confidence_BL: Tensor, state: BlockState) -> Tensor:
        """Choose the masks that become tokens (algorithm.md#promote): at least one in every row that falls back."""
        masked_BL = state.masked
        if self.contiguous:
            promoted_BL = masked_BL & leading_run(confident_BL, masked_BL)
        else:
            promoted_BL = masked_BL & (confident_BL | (rank_by_confidence(confidence_BL, masked_BL) == 0))
        if state.fallback is not None:
            promoted_BL = promoted_BL & (confident_BL | state.fallback[:, None])
        return promoted_BL

    def _converged(self, doubtful_BL: Tensor, masked_BL: Tensor, changed_BL: Tensor, passes_B: Tensor) -> Tensor:
        """Tell which rows are done (algorithm.md#converge), none with a mask left."""
        incomplete_B = masked_BL.any(-1)
        if not self.revise:
            return ~incomplete_B  # nothing can change any more
        may_go_on_B = passes_B < masked_BL.shape[1]
        return ~(incomplete_B | (doubtful_BL.any(-1) & changed_BL.any(-1) & may_go_on_B))

    def _mix(self, prediction: Prediction, previous: SoftMix | None, written_BL: Tensor, where_BL: Tensor) -> SoftMix:
        """Mix what decoded positions feed back, hard tokens once converged (algorithm.md#soft-embeddings)."""
        token_ids_BLk, weights_BLk = prediction.candidates, prediction.probabilities
        if self.temperature > 0:
            token_ids_BLk = _led_by(prediction.tokens, token_ids_BLk)
        if not self.revise and previous is not None:
            token_ids_BLk = torch.where(written_BL[..., None], token_ids_BLk, previous.token_ids)
            weights_BLk = torch.where(written_BL[..., None], weights_BLk, previous.weights)
        return SoftMix(token_ids_BLk, weights_BLk, where_BL, self.renormalize)


def leading_run(confident_BL: Tensor, masked_BL: Tensor) -> Tensor:
    """Find the masks, from the left, up to the first that is not confident; if that is the first of all, it alone.

    Args:
        confident_BL: ``(B, L)`` bool.
        masked_BL: ``(B, L)`` bool; positions that are not masks neither break the run nor count.

    Returns:
        ``(B, L)`` bool; means nothing at positions that are not masks.
    """
    length = masked_BL.shape[1]
    # A confident mask costs 1 and another one L + 1. The sum stays at L + 1 or below along the confident run, and at
    # an unconfident mask only if that is the leftmost.
    cost_BL = torch.where(confident_BL, 1, length + 1) * masked_BL
    return cost_BL.cumsum(-1) <= length + 1


def _led_by(tokens_BL: Tensor, candidates_BLk: Tensor) -> Tensor:
    """Put the drawn token in the place of the best one, which takes the drawn one's place where it has one."""
    best_BL1, others_BLk = candidates_BLk[..., :1], candidates_BLk[..., 1:]
    drawn_BL1 = tokens_BL[..., None]
    return torch.cat([drawn_BL1, torch.where(others_BLk == drawn_BL1, best_BL1, others_BLk)], -1)
