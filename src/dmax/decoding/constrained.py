"""Decoding under constraints: every token is chosen among those that may follow the ones before it.

Decoders settle tokens out of order, and a constraint such as a grammar can only be asked from left to right. So each
pass walks along every block: at each position it asks which tokens may follow those chosen so far, and takes the best
of them. A mask counts as no surer than the masks before it. All decoders of this package promote masks by the order of
confidence or by a bar for it, leftmost first where two are alike; so they promote a run from the left, whose tokens are
those of the walk, and the decoded part of a block is at any time the beginning of something allowed
(algorithm.md#constraints). Entropy is to ``entropy-bounded`` what confidence is to the others.

Shape suffixes: B rows, L block positions, V vocabulary, N rows at one position, k candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dmax.decoding.base import BlockState, StepResult
from dmax.decoding.drawing import Nucleus
from dmax.decoding.prediction import DecidingDecoder, Prediction, entropy, predict


class Constraint(Protocol):
    """What the tokens of one row may be. It stands behind the final ones, and goes on and back within a pass."""

    @property
    def problem(self) -> str | None:
        """Why the row cannot go on; None where it can."""
        ...

    def allowed(self) -> Tensor:
        """Return ``(V,)`` bool on the CPU, the tokens that may come next; none where nothing may."""
        ...

    def take(self, token_id: int) -> bool:
        """Go on by a token; False, and no step further, where it may not come next."""
        ...

    def back(self, count: int) -> None:
        """Take back the last ``count`` tokens."""
        ...


@dataclass(frozen=True)
class ConstrainedDecoder:
    """A decoder of this package whose rows are under constraints. Rows that have none belong into another batch."""

    decoder: DecidingDecoder
    constraints: Sequence[Constraint]
    """Of every row."""
    nuclei: Sequence[Nucleus]
    """Of every row: which of the tokens that are allowed may be drawn."""

    @property
    def name(self) -> str:
        """The decoder's."""
        return self.decoder.name

    @property
    def temperature(self) -> float:
        """The decoder's."""
        return self.decoder.temperature

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        """Apply one pass; see :meth:`Decoder.step`. Constraints stand afterwards where they stood before.

        Confidences are probabilities among the allowed tokens, and 0 at positions that no walk has reached. A row whose
        constraint allows nothing more gets a result that means nothing.
        """
        active, masked = (flags_BL.tolist() for flags_BL in (state.active, state.masked))
        found = self._nothing_found(state)
        taken = [0] * len(self.constraints)
        walking = list(range(len(self.constraints)))
        try:
            for offset in range(state.tokens.shape[1]):
                here = [row for row in walking if active[row][offset]]
                if not here:
                    continue
                self._look(logits, noise, state, found, here, offset)
                goes_on = dict.fromkeys(here, True)
                if any(masked[row][offset] for row in here):
                    promoted_B = self.decoder.decide(found, state).promoted[:, offset].tolist()
                    goes_on = {row: promoted_B[row] or not masked[row][offset] for row in here}
                for row, token_id in zip(here, found.tokens[here, offset].tolist(), strict=True):
                    if goes_on[row] and self.constraints[row].take(token_id):
                        taken[row] += 1
                    else:
                        walking.remove(row)
        finally:
            for constraint, count in zip(self.constraints, taken, strict=True):
                constraint.back(count)
        return self.decoder.decide(found, state)

    def _nothing_found(self, state: BlockState) -> Prediction:
        """Return a prediction without confidence; where entropy is read, it is infinite."""
        width = getattr(self.decoder, "num_candidates", 1)
        shape, device = state.tokens.shape, state.tokens.device
        confidence_BL = torch.zeros(shape, dtype=torch.float32, device=device)
        return Prediction(
            state.tokens.clone(),
            confidence_BL,
            state.tokens[..., None].repeat(1, 1, width),
            torch.zeros(*shape, width, dtype=torch.float32, device=device),
            torch.full_like(confidence_BL, math.inf) if self.decoder.reads_entropy else None,
        )

    def _look(
        self,
        logits_BLV: Tensor,
        noise_BLV: Tensor | None,
        state: BlockState,
        found: Prediction,
        rows: list[int],
        offset: int,
    ) -> None:
        """Write into ``found`` what the model says at one position of some rows, among the tokens allowed there."""
        rows_N = torch.tensor(rows, device=logits_BLV.device)
        masked_N = state.masked[:, offset].index_select(0, rows_N)
        allowed_NV = self._allowed(rows, state.tokens[:, offset].index_select(0, rows_N), masked_N)
        scores_NV = logits_BLV[:, offset].index_select(0, rows_N).float().masked_fill_(~allowed_NV, -math.inf)
        noise_N1V = None
        if noise_BLV is not None and self.temperature > 0:
            # Infinite noise at a token that is shut out would make its score no number.
            noise_NV = noise_BLV[:, offset].index_select(0, rows_N).masked_fill_(~allowed_NV, 0)
            for row, noise_V, scores_V in zip(rows, noise_NV, scores_NV, strict=True):
                if not self.nuclei[row].is_everything:
                    self.nuclei[row].shut_out(noise_V[None], scores_V[None], self.temperature, state.mask_token_id)
            noise_N1V = noise_NV[:, None]
        here = predict(
            scores_NV[:, None],
            state.mask_token_id,
            temperature=self.temperature,
            noise=noise_N1V,
            top_k=found.candidates.shape[-1],
        )
        if self.decoder.reads_entropy:
            here = here._replace(entropy=entropy(scores_NV, state.mask_token_id)[:, None])
        _put(here, found, state.masked, rows_N, offset)

    def _allowed(self, rows: list[int], tokens_N: Tensor, masked_N: Tensor) -> Tensor:
        """Return ``(N, V)`` bool, everything where nothing is allowed: :meth:`Constraint.take` refuses it then."""
        allowed_NV = torch.stack([self.constraints[row].allowed() for row in rows])
        allowed_NV |= ~allowed_NV.any(-1, keepdim=True)
        allowed_NV = allowed_NV.to(tokens_N.device)
        if getattr(self.decoder, "revise", False):
            return allowed_NV
        # A decoder that does not predict every decoded token anew keeps them, and what comes after must follow them.
        own_NV = torch.zeros_like(allowed_NV).scatter_(1, tokens_N[:, None], True)
        return torch.where(masked_N[:, None], allowed_NV, own_NV)


def _put(here: Prediction, found: Prediction, masked_BL: Tensor, rows_N: Tensor, offset: int) -> None:
    """Write what the model says at one position of some rows, in which each of N has one position, into ``found``.

    Masks are no surer than the least sure one before them.
    """
    if offset:
        masked_N1 = masked_BL[rows_N, offset, None]
        least_B1 = torch.where(masked_BL, found.confidence, 1.0)[:, :offset].amin(-1, keepdim=True)
        least_N1 = here.confidence.minimum(least_B1.index_select(0, rows_N))
        here = here._replace(confidence=torch.where(masked_N1, least_N1, here.confidence))
        if here.entropy is not None and found.entropy is not None:
            most_B1 = torch.where(masked_BL, found.entropy, 0.0)[:, :offset].amax(-1, keepdim=True)
            most_N1 = here.entropy.maximum(most_B1.index_select(0, rows_N))
            here = here._replace(entropy=torch.where(masked_N1, most_N1, here.entropy))
    for kept, value in zip(found, here, strict=True):
        if kept is not None and value is not None:
            kept[:, offset].index_copy_(0, rows_N, value[:, 0])
