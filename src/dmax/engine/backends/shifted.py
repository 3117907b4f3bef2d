"""What tokens are read from in a model whose logits are shifted by one (algorithm.md#shifted-logits).

The token at a position is read from the hidden state of the position before. For the first one of the blocks in flight
that is the last stored position, which only the pass that stored it computes: its state is kept, slot by slot, until
blocks behind it are decoded.

Shape suffixes: S slots, N packed positions, M positions in flight, D hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmax.engine.backends.page_table import to_device
from dmax.engine.span import Span
from dmax.models.transformer import BlockDiffusionLM


class Run(NamedTuple):
    """A span, and where in a forward its positions are."""

    span: Span
    stored_at: int
    """Of the first position that is stored."""
    flight_at: int
    """Of the first position in flight."""


class PreviousStates:
    """Hidden states of the last stored positions.

    Args:
        slots: most sequences at a time.
        hidden: channels.
        device: of the model.
        dtype: of the model.
    """

    def __init__(self, slots: int, hidden: int, device: torch.device, dtype: torch.dtype) -> None:
        self._kept_SD = torch.zeros((slots, hidden), device=device, dtype=dtype)
        self._planned: tuple[list[Run], tuple[Tensor, Tensor, Tensor]] | None = None

    @classmethod
    def of(cls, model: BlockDiffusionLM, slots: int) -> PreviousStates | None:
        """Provide for a model; None where its tokens are read from their own positions."""
        config = model.config
        return cls(slots, config.hidden_size, model.device, model.dtype) if config.shift_logits else None

    def read(self, hidden_ND: Tensor, runs: list[Run]) -> Tensor:
        """Return what the tokens of the blocks in flight are read from.

        Args:
            hidden_ND: of a forward.
            runs: its spans.

        Returns:
            ``(M, D)``, span by span, in memory of its own.
        """
        if self._planned is None or self._planned[0] != runs:
            self._planned = runs, self._plan(runs)
        slots, last, sources_M = self._planned[1]
        self._kept_SD.index_copy_(0, slots, hidden_ND[last])
        return torch.cat([self._kept_SD, hidden_ND])[sources_M]

    def _plan(self, runs: list[Run]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slots whose states are kept, where those are, and what is read, counted from the first slot's."""
        slots: list[int] = []
        last: list[int] = []
        sources: list[int] = []
        kept = self._kept_SD.shape[0]
        for span, stored_at, flight_at in runs:
            slot = span.sequence.slot
            assert slot is not None
            if span.start < span.blocks_start:
                slots.append(slot)
                last.append(stored_at + span.blocks_start - span.start - 1)
            if span.blocks_start < span.end:
                # Nothing stands before position 0: its token is read from its own state.
                sources.append(slot if span.blocks_start else kept + flight_at)
                sources += range(kept + flight_at, kept + flight_at + span.end - span.blocks_start - 1)
        device = self._kept_SD.device
        on_device = [to_device(indices, torch.int64, device) for indices in (slots, last, sources)]
        return on_device[0], on_device[1], on_device[2]
