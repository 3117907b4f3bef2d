"""``hierarchical``: one token of every run of masks, so that guesses lie apart (algorithm.md#other-decoders; dInfer).

Shape suffixes: B rows, L block positions (i a position, j the one it is compared with), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dmax.decoding import options
from dmax.decoding.base import BlockState, StepResult
from dmax.decoding.commit import commit_masks
from dmax.decoding.prediction import PredictedDecoder, Prediction, rank_by_confidence


@dataclass(frozen=True, kw_only=True)
class HierarchicalDecoder(PredictedDecoder):
    """Commits the most confident mask of every run if above ``low_threshold``, and every mask above ``threshold``.

    The most confident mask of all is committed in any case. Committed tokens never change.
    """

    name: ClassVar[str] = "hierarchical"
    threshold: float = options.probability(0.9, "Confidence above which any mask becomes a token.")
    low_threshold: float = options.probability(0.4, "Confidence above which the surest mask of a run becomes a token.")
    temperature: float = options.temperature()

    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block."""
        confidence_BL = prediction.confidence
        rank_BL = rank_by_confidence(confidence_BL, state.masked)
        chosen_BL = best_of_run(rank_BL, state.masked) & (confidence_BL > self.low_threshold)
        chosen_BL = chosen_BL | (confidence_BL > self.threshold) | (rank_BL == 0)
        return commit_masks(state, prediction, state.masked & chosen_BL)


def best_of_run(rank_BL: Tensor, masked_BL: Tensor) -> Tensor:
    """Find masks that no other mask of their run outranks; True means nothing at positions that are not masks.

    Args:
        rank_BL: ``(B, L)`` int64, 0 the most confident, masks before everything else.
        masked_BL: ``(B, L)`` bool.
    """
    # Masks of one run have the same number of decoded positions to their left. The decoded position that opens the
    # run shares that number but ranks behind every mask.
    run_BL = (~masked_BL).cumsum(-1)
    same_run_Bij = run_BL[:, :, None] == run_BL[:, None, :]
    outranked_Bij = rank_BL[:, None, :] < rank_BL[:, :, None]
    return ~(same_run_Bij & outranked_Bij).any(-1)
