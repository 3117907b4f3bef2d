"""What OPUT's second loss reads: the model's own predictions, as tokens or as decoding shows them to the model.

Shape suffixes: B rows, M noisy positions, S supervised positions of the batch, N blocks of a row, L positions of a
block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.decoding.base import BlockState, SoftMix
from dmax.decoding.prediction import Prediction
from dmax.decoding.prediction import predict as read_logits
from dmax.decoding.soft_parallel import SoftParallelDecoder
from dmax.training.layout import Layout


def greedy(logits: Tensor) -> Tensor:
    """Take the most probable token, as the published code does: ``(S, V)`` -> ``(S,)`` int64."""
    return logits.argmax(-1)


def sampled(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from the predictive distribution (Eq. 4 of the paper): ``(S, V)`` float32 -> ``(S,)`` int64."""
    waiting_times = torch.empty(logits.shape).exponential_(generator=generator).to(logits.device)
    return (logits - waiting_times.log()).argmax(-1)


@dataclass(frozen=True)
class RowRollout:
    """How far one row is decoded before the second loss reads it."""

    passes: int
    """Of Soft Parallel Decoding, at least 1."""
    threshold: float
    """Confidence from which a mask becomes a token; 0 fills all of them in the first pass."""


class DecodingRollout:
    """The blocks of a batch while Soft Parallel Decoding fills their hidden positions, some passes long.

    What is not hidden stays as it is, as in OPUT's own rollout. All rows go through the same number of passes, whatever
    they ask for, since processes that share one model have to run the same ones.

    Args:
        layout: the batch.
        hidden: ``(B, M)`` bool, the positions to decode.
        mask_token_id: token that hides them.
        rows: how far each row is decoded.
    """

    def __init__(self, layout: Layout, hidden: Tensor, mask_token_id: int, rows: Sequence[RowRollout]) -> None:
        self._layout = layout
        self._rows = rows
        self._passes = 0
        hidden_BNL, ids_BNL = self._to_blocks(hidden), self._to_blocks(layout.noisy_ids)
        self._states = [
            BlockState.start(ids_NL, hidden_NL, mask_token_id)
            for ids_NL, hidden_NL in zip(ids_BNL, hidden_BNL, strict=True)
        ]

    def advance(self, logits_SV: Tensor) -> None:
        """Take one pass, in the rows that have not had theirs.

        Args:
            logits_SV: float32, of what :meth:`tokens` and :meth:`mix` make the model read.
        """
        mask_token_id = self._states[0].mask_token_id
        found = read_logits(logits_SV[None], mask_token_id)
        prediction = Prediction(*(self._spread(field[0]) for field in found if field is not None))
        for row, (how, state) in enumerate(zip(self._rows, self._states, strict=True)):
            if self._passes < how.passes:
                decoder = SoftParallelDecoder(threshold=how.threshold)
                of_row = Prediction(*(field[row] for field in prediction if field is not None))
                after = decoder.decide(of_row, state).state
                assert after.mix is not None
                # A block that has converged is read once more, by the loss: as soft as its last pass left it.
                self._states[row] = replace(after, mix=replace(after.mix, where=after.active & ~after.masked))
        self._passes += 1

    def tokens(self) -> Tensor:
        """Return the tokens by now, ``(B, M)`` int64; the mask token where a position is still hidden."""
        return self._to_positions([state.tokens for state in self._states])

    def mix(self) -> SoftMix | None:
        """Return what decoded positions read instead of their tokens, ``(B, M)``; None before the first pass."""
        mixes = [state.mix for state in self._states if state.mix is not None]
        if not mixes:
            return None
        return SoftMix(
            self._to_positions([mix.token_ids for mix in mixes]),
            self._to_positions([mix.weights for mix in mixes]),
            self._to_positions([mix.where for mix in mixes]),
            renormalize=True,
        )

    def _spread(self, values_S: Tensor) -> Tensor:
        """Put values of the supervised positions in their places: ``(S, ...)`` -> ``(B, N, L, ...)``, else 0."""
        supervised = self._layout.supervised
        values_BM = values_S.new_zeros(*supervised.shape, *values_S.shape[1:])
        values_BM[supervised] = values_S
        return self._to_blocks(values_BM)

    def _to_blocks(self, values_BM: Tensor) -> Tensor:
        """Cut into blocks: ``(B, M, ...)`` -> ``(B, N, L, ...)``, filled up to whole blocks with zeros."""
        length = self._layout.block_length
        missing = -values_BM.shape[1] % length
        padding = [0, 0] * (values_BM.ndim - 2) + [0, missing]
        return F.pad(values_BM, padding).unflatten(1, (-1, length))

    def _to_positions(self, values_BNL: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values_BNL)).flatten(1, 2)[:, : self._layout.noisy_ids.shape[1]]
