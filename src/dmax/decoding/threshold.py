"""``threshold``: commit every mask the model is sure of, and a minimum a pass (algorithm.md#other-decoders; LLaDA2.0).

Shape suffixes: B rows, L block positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dmax.decoding import options
from dmax.decoding.base import BlockState, StepResult
from dmax.decoding.commit import commit_masks, pass_quota
from dmax.decoding.prediction import PredictedDecoder, Prediction, rank_by_confidence


@dataclass(frozen=True, kw_only=True)
class ThresholdDecoder(PredictedDecoder):
    """Commits masks whose confidence is above ``threshold``; committed tokens never change.

    Where fewer than the pass's quota qualify, the quota's most confident masks are committed. The quota is the block
    length spread over ``steps`` passes; None is one token a pass.
    """

    name: ClassVar[str] = "threshold"
    multi_block: ClassVar[bool] = True
    threshold: float = options.probability(0.95, "Confidence above which a mask becomes a token.")
    steps: int | None = options.whole(
        None, "Passes that a block is spread over, which sets the least tokens of a pass; none is one token a pass."
    )
    temperature: float = options.temperature()

    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block."""
        promoted_BL = confident_masks(state, prediction.confidence, self.threshold, self.steps)
        return commit_masks(state, prediction, promoted_BL)


def confident_masks(state: BlockState, confidence: Tensor, threshold: float, steps: int | None) -> Tensor:
    """Find masks above the threshold, together with the quota's most confident ones.

    The union is the rule: the masks above the threshold are the most confident ones, so whichever of the two sets is
    larger holds the other.

    Args:
        state: the block before the pass.
        confidence: ``(B, L)`` float32.
        threshold: a probability.
        steps: passes over which the block length is spread to give the quota; None for a quota of one.

    Returns:
        ``(B, L)`` bool, at least one position of every row that has a mask and falls back.
    """
    length = state.tokens.shape[1]
    quota_B1 = pass_quota(length, steps or length, state.passes)
    due_BL = rank_by_confidence(confidence, state.masked) < quota_B1
    if state.fallback is not None:
        due_BL = due_BL & state.fallback[:, None]
    return state.masked & (due_BL | (confidence > threshold))
