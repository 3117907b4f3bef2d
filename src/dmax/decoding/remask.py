"""``remask``: a token whose probability has become small becomes a mask again (algorithm.md#other-decoders; T2M).

Shape suffixes: B rows, L block positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dmax.decoding import options
from dmax.decoding.base import BlockState, StepResult
from dmax.decoding.options import check_options
from dmax.decoding.prediction import Prediction, predict
from dmax.decoding.threshold import confident_masks


@dataclass(frozen=True, kw_only=True)
class RemaskDecoder:
    """Commits masks as ``threshold`` does, and turns tokens back into masks whose probability has become small.

    A pass commits one mask at least. A token goes where the model, which sees it, gives it less than
    ``remask_threshold``; each position ``max_remasks`` times at most. A block ends with the first pass that begins
    without a mask and doubts nothing.
    """

    name: ClassVar[str] = "remask"
    reads_entropy: ClassVar[bool] = False
    threshold: float = options.probability(0.95, "Confidence above which a mask becomes a token.")
    remask_threshold: float = options.probability(0.3, "Probability of a token below which it becomes a mask again.")
    max_remasks: int = options.whole(1, "Most times that a position becomes a mask again.", minimum=0, maximum=16)
    temperature: float = options.temperature()

    def __post_init__(self) -> None:
        check_options(self)

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        """Apply one pass; see :meth:`Decoder.step`. The state's memory counts how often positions were masked again."""
        prediction = predict(logits, state.mask_token_id, temperature=self.temperature, noise=noise)
        own_BL = torch.softmax(logits, -1, dtype=torch.float32).gather(-1, state.tokens[..., None])[..., 0]
        return self._decide(prediction, own_BL, state)

    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block, as if it doubted no token."""
        return self._decide(prediction, torch.ones_like(prediction.confidence), state)

    def _decide(self, prediction: Prediction, own_BL: Tensor, state: BlockState) -> StepResult:
        promoted_BL = confident_masks(state, prediction.confidence, self.threshold, steps=None)
        remasks_BL = torch.zeros_like(state.tokens) if state.memory is None else state.memory
        doubted_BL = state.active & ~state.masked & (own_BL < self.remask_threshold) & (remasks_BL < self.max_remasks)
        tokens_BL = torch.where(promoted_BL, prediction.tokens, state.tokens)
        return StepResult(
            state=replace(
                state,
                tokens=torch.where(doubted_BL, state.mask_token_id, tokens_BL),
                masked=state.masked ^ promoted_BL | doubted_BL,
                passes=state.passes + 1,
                memory=remasks_BL + doubted_BL,
            ),
            confidence=prediction.confidence,
            promoted=promoted_BL,
            revised=doubted_BL,
            converged=~(state.masked | doubted_BL).any(-1),
        )
