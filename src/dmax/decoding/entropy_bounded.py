"""``entropy-bounded``: commit masks while what is uncertain of them all stays small (algorithm.md#other-decoders).

Shape suffixes: B rows, L block positions, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmax.decoding import options
from dmax.decoding.base import BlockState, StepResult
from dmax.decoding.commit import commit_masks
from dmax.decoding.options import check_options
from dmax.decoding.prediction import Prediction, entropy, predict


@dataclass(frozen=True, kw_only=True)
class EntropyBoundedDecoder:
    """Commits the most certain masks while their summed entropy is below ``threshold``, and the most certain one.

    The entropy, in nats, is that of the model's distribution over all tokens but the mask token. Committed tokens
    never change.
    """

    name: ClassVar[str] = "entropy-bounded"
    multi_block: ClassVar[bool] = True
    reads_entropy: ClassVar[bool] = True
    threshold: float = options.probability(0.1, "Summed entropy in nats below which masks become tokens.")
    temperature: float = options.temperature()

    def __post_init__(self) -> None:
        check_options(self)

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        """Apply one pass; see :meth:`Decoder.step`."""
        prediction = predict(logits, state.mask_token_id, temperature=self.temperature, noise=noise)
        return self.decide(prediction._replace(entropy=entropy(logits, state.mask_token_id)), state)

    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block, and to how uncertain it is of each position."""
        assert prediction.entropy is not None
        entropy_BL = torch.where(state.masked, prediction.entropy, math.inf)
        sorted_BL, order_BL = entropy_BL.sort(dim=-1, stable=True)
        due_BL = sorted_BL.cumsum(-1) < self.threshold
        due_BL[:, 0] |= True if state.fallback is None else state.fallback
        return commit_masks(state, prediction, state.masked & torch.zeros_like(due_BL).scatter(-1, order_BL, due_BL))
