"""``fixed-steps``: a fixed number of tokens each pass, the most confident first (algorithm.md#other-decoders; LLaDA).

Shape suffixes: B rows, L block positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dmax.decoding import options
from dmax.decoding.base import BlockState, StepResult
from dmax.decoding.commit import commit_masks, pass_quota
from dmax.decoding.prediction import PredictedDecoder, Prediction, rank_by_confidence


@dataclass(frozen=True, kw_only=True)
class FixedStepsDecoder(PredictedDecoder):
    """Decodes a block in ``steps`` passes, or in one a token where the block has fewer active positions.

    The active positions are spread evenly over the passes, the first passes taking the remainder. None is one token a
    pass: the reference that stands for autoregressive decoding.
    """

    name: ClassVar[str] = "fixed-steps"
    steps: int | None = options.whole(None, "Passes that a block takes; none is one token a pass.")
    temperature: float = options.temperature()

    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block."""
        steps = self.steps or state.tokens.shape[1]
        quota_B1 = pass_quota(state.active.sum(-1), steps, state.passes)
        due_BL = rank_by_confidence(prediction.confidence, state.masked) < quota_B1
        return commit_masks(state, prediction, state.masked & due_BL)
