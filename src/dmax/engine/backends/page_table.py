"""Which pages every slot holds, on the device, where a captured forward reads it.

Shape suffixes: R rows, P pages.
"""

from __future__ import annotations

from collections import abc

import torch
from torch import Tensor

from dmax.engine.span import Span


class PageTable:
    """A row of page numbers for every slot; the last row leads to the dummy page.

    Args:
        slots: most sequences at a time.
        pages: size of the pool. Page number ``pages`` is the dummy page.
        device: where forwards run.
    """

    def __init__(self, slots: int, pages: int, device: torch.device) -> None:
        self.tables_RP = torch.full((slots + 1, pages), pages, dtype=torch.int32, device=device)
        self.dummy_row = slots
        self._known: list[tuple[int, ...]] = [()] * slots
        self._changes: list[tuple[int, int]] = []

    def row(self, span: Span) -> int:
        """Return the row of a span's slot, whose pages are noted for :meth:`update`."""
        slot, pages = span.sequence.slot, span.pages
        assert slot is not None
        known = self._known[slot]
        if known[: len(pages)] != pages:
            first = slot * self.tables_RP.shape[1]
            self._changes += [
                (first + place, page) for place, page in enumerate(pages) if place >= len(known) or known[place] != page
            ]
            self._known[slot] = pages
        return slot

    def update(self) -> None:
        """Bring the device up to date."""
        if self._changes:
            changes = to_device(self._changes, torch.int64, self.tables_RP.device)
            self.tables_RP.view(-1).index_copy_(0, changes[:, 0], changes[:, 1].int())
            self._changes = []


def to_device(
    values: abc.Sequence[int] | abc.Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Make a tensor of numbers, on a GPU without waiting for what it is doing."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
