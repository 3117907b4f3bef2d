"""What the masked decoders share: masks become tokens a few at a time and stay (algorithm.md#other-decoders).

Shape suffixes: B rows, L block positions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dmax.decoding.base import BlockState, StepResult
from dmax.decoding.prediction import Prediction


def pass_quota(total: int | Tensor, steps: int, passes: Tensor) -> Tensor:
    """Count tokens due in the next pass when ``steps`` passes share ``total``, the first ones taking the remainder.

    Args:
        total: tokens in all, or ``(B,)`` int64 with the number for each row.
        steps: passes to spread them over, at least 1.
        passes: ``(B,)`` int64, passes done.

    Returns:
        ``(B, 1)`` int64.
    """
    return (total // steps + (passes < total % steps))[:, None]


def commit_masks(state: BlockState, prediction: Prediction, promoted: Tensor) -> StepResult:
    """Turn masks into tokens; a row is done when it has no mask left.

    Args:
        state: the block before the pass.
        prediction: of the block.
        promoted: ``(B, L)`` bool, the masks that become tokens, all of them in ``state.masked``.
    """
    masked_BL = state.masked ^ promoted
    return StepResult(
        state=replace(
            state,
            tokens=torch.where(promoted, prediction.tokens, state.tokens),
            masked=masked_BL,
            passes=state.passes + 1,
        ),
        confidence=prediction.confidence,
        promoted=promoted,
        revised=torch.zeros_like(promoted),
        converged=~masked_BL.any(-1),
    )
