"""``joint-threshold-indel``: fill, correct, delete and insert in one pass (algorithm.md#other-decoders; LLaDA2.2).

Shape suffixes: B rows, L block positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dmax.decoding import options
from dmax.decoding.base import BlockState, StepResult
from dmax.decoding.prediction import PredictedDecoder, Prediction, rank_by_confidence

_NONE = -1


@dataclass(frozen=True, kw_only=True)
class JointThresholdIndelDecoder(PredictedDecoder):
    """Commits masks and edits tokens; two tokens of the vocabulary delete a position, or insert a mask before it.

    The block keeps its length: masks fill it up after a deletion, and its end falls off after an insertion. While masks
    of the start are left, a pass commits one more than have been inserted since, and those above ``threshold``;
    afterwards all. Then passes go on until one writes nothing, at most ``max_post_steps``; the last one neither
    deletes nor inserts.
    """

    name: ClassVar[str] = "joint-threshold-indel"
    threshold: float = options.probability(0.5, "Confidence above which a mask becomes a token.")
    editing_threshold: float = options.probability(0.0, "Confidence above which a token is replaced by another one.")
    max_post_steps: int = options.whole(16, "Most passes once no mask of the start is left.", minimum=0)
    delete_token_id: int | None = options.whole(
        None,
        "The token that deletes its position; the checkpoint's if not given, else none.",
        minimum=0,
    )
    insert_token_id: int | None = options.whole(
        None, "The token that inserts a mask before its position; the checkpoint's if not given, else none.", minimum=0
    )
    temperature: float = options.temperature()

    @property
    def num_candidates(self) -> int:
        """Three: the best token that neither deletes nor inserts is among them."""
        return 3

    def decide(self, prediction: Prediction, state: BlockState) -> StepResult:
        """Apply one pass to what the model says about the block.

        The state's memory holds which positions are masks that were added since the block began, and behind them the
        number of passes that began without another mask.
        """
        length = state.tokens.shape[1]
        memory = state.tokens.new_zeros(state.tokens.shape[0], length + 1) if state.memory is None else state.memory
        added_BL = state.masked & memory[:, :length].bool()
        first_BL = state.masked & ~added_BL
        in_post_B1 = ~first_BL.any(-1, keepdim=True)
        post_steps_B1 = memory[:, length:] + in_post_B1
        quota_B1 = torch.where(in_post_B1, length, 1 + added_BL.sum(-1, keepdim=True))
        promoted_BL = rank_by_confidence(prediction.confidence, state.masked) < quota_B1
        promoted_BL = state.masked & (promoted_BL | (prediction.confidence > self.threshold))
        last_B1 = self._is_last(state, post_steps_B1, in_post_B1 | ~(first_BL & ~promoted_BL).any(-1, keepdim=True))

        best_BL = prediction.candidates[..., 0]
        edited_BL = state.active & ~state.masked & (best_BL != state.tokens)
        edited_BL = edited_BL & (prediction.confidence > self.editing_threshold)
        written_BL = promoted_BL | edited_BL | (state.masked & last_B1)
        wanted_BL = torch.where(state.masked, prediction.tokens, best_BL)
        wanted_BL = torch.where(last_B1, self._plain(wanted_BL, prediction.candidates), wanted_BL)
        tokens_BL = torch.where(written_BL, wanted_BL, state.tokens)
        block = self._move(tokens_BL, written_BL & ~last_B1, state, added_BL)
        masked_BL = state.active & (block.tokens == state.mask_token_id)
        return StepResult(
            state=replace(
                state,
                tokens=block.tokens,
                masked=masked_BL,
                passes=state.passes + 1,
                memory=torch.cat([block.added.long(), post_steps_B1], 1),
            ),
            confidence=prediction.confidence,
            promoted=state.masked & ~masked_BL,
            revised=state.active & ~state.masked & (block.tokens != state.tokens),
            converged=last_B1[:, 0] | ~written_BL.any(-1),
        )

    def _is_last(self, state: BlockState, post_steps_B1: Tensor, leaves_no_first_B1: Tensor) -> Tensor:
        """Tell which rows have come to their last pass; at most ``L + max_post_steps`` others are before it."""
        too_many_B1 = state.passes[:, None] >= state.tokens.shape[1] + self.max_post_steps
        if self.max_post_steps == 0:
            return leaves_no_first_B1 | too_many_B1
        return (post_steps_B1 >= self.max_post_steps) | too_many_B1

    def _plain(self, tokens_BL: Tensor, candidates_BLk: Tensor) -> Tensor:
        """Take the best token in place of one that deletes or inserts."""
        is_plain_BLk = ~self._moves(candidates_BLk)
        best_BL1 = is_plain_BLk.int().argmax(-1, keepdim=True)  # the first that is
        return torch.where(self._moves(tokens_BL), candidates_BLk.gather(-1, best_BL1)[..., 0], tokens_BL)

    def _moves(self, tokens: Tensor) -> Tensor:
        return (tokens == self._id(self.delete_token_id)) | (tokens == self._id(self.insert_token_id))

    @staticmethod
    def _id(token_id: int | None) -> int:
        return _NONE if token_id is None else token_id

    def _move(self, tokens_BL: Tensor, written_BL: Tensor, state: BlockState, added_BL: Tensor) -> _Block:
        """Carry out what was written: positions go and come, and the rest moves."""
        rows, length = tokens_BL.shape
        deletes_BL = written_BL & (tokens_BL == self._id(self.delete_token_id))
        inserts_BL = written_BL & (tokens_BL == self._id(self.insert_token_id))
        kept_BL = torch.where(inserts_BL, state.tokens, tokens_BL)
        place_BL = (1 - deletes_BL.long() + inserts_BL.long()).cumsum(-1) - 1
        place_BL = torch.where(deletes_BL, length, place_BL.clamp(max=length))  # one place more, for what goes
        moved = tokens_BL.new_full((rows, length + 1), state.mask_token_id).scatter(-1, place_BL, kept_BL)
        was_first_BL = state.masked & ~added_BL
        first = torch.zeros_like(moved, dtype=torch.bool).scatter(-1, place_BL, was_first_BL)
        tokens_BL = moved[:, :length]
        return _Block(tokens_BL, (tokens_BL == state.mask_token_id) & ~first[:, :length])


class _Block(NamedTuple):
    tokens: Tensor
    """``(B, L)`` int64."""
    added: Tensor
    """``(B, L)`` bool, masks that were not there when the block began."""
