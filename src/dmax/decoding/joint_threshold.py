"""``joint-threshold``: fill masks and correct tokens in the same pass (algorithm.md#other-decoders; LLaDA2.1).

Shape suffixes: B rows, L block positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dmax.decoding import options
from dmax.decoding.base import BlockState, StepResult
from dmax.decoding.prediction import PredictedDecoder, Prediction
from dmax.decoding.threshold import confident_masks


@dataclass(frozen=True, kw_only=True)
class JointThresholdDecoder(PredictedDecoder):
    """Commits masks as ``threshold`` does and edits tokens that the model would now replace.

    A committed token is replaced where the most probable token is another one with a probability above
    ``editing_threshold``. Once no mask is left, passes go on until one edits nothing, at most ``max_post_steps``.
    """

    name: ClassVar[str] = "joint-threshold"
    multi_block: ClassVar[bool] = True
    threshold: float = options.probability(0.95, "Confidence above which a mask becomes a token.")
    editing_threshold: float = options.probability(0.9, "Confidence above which a token is replaced by another one.")
    max_post_steps: int = options.whole(16, "Most passes once no mask is left.", minimum=0)
    steps: int | None = options.whole(
        None, "Passes that a block is spread over, which sets the least tokens of a pass; none is one token a pass."
    )
    temperature: float = options.temperature()

    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block.

        The state's memory counts the passes begun without a mask.
        """
        promoted_BL = confident_masks(state, prediction.confidence, self.threshold, self.steps)
        best_BL = prediction.candidates[..., 0]  # an edit answers to the model's best token even where tokens are drawn
        edited_BL = state.active & ~state.masked & (best_BL != state.tokens)
        edited_BL = edited_BL & (prediction.confidence > self.editing_threshold)
        tokens_BL = torch.where(edited_BL, best_BL, state.tokens)
        masked_BL = state.masked ^ promoted_BL

        post_pass_B1 = ~state.masked.any(-1, keepdim=True)
        post_passes_B1 = post_pass_B1.long() if state.memory is None else state.memory + post_pass_B1
        settled_B1 = post_pass_B1 & ~edited_BL.any(-1, keepdim=True)
        done_B1 = settled_B1 | (post_passes_B1 >= self.max_post_steps)
        return StepResult(
            state=replace(
                state,
                tokens=torch.where(promoted_BL, prediction.tokens, tokens_BL),
                masked=masked_BL,
                passes=state.passes + 1,
                memory=post_passes_B1,
            ),
            confidence=prediction.confidence,
            promoted=promoted_BL,
            revised=edited_BL,
            converged=done_B1[:, 0] & ~masked_BL.any(-1),
        )
