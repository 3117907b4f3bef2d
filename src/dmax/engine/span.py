"""Positions of a sequence in one pass."""

from __future__ import annotations

from typing import NamedTuple

from dmax.engine.sequence import Sequence


class Span(NamedTuple):
    """Positions of one sequence that a pass computes, all on block boundaries.

    A chunk of a prompt, the blocks in flight, or those together with the ones before them, which have just become final
    and are stored by the same pass (algorithm.md#store). Two spans are equal where they compute the same positions over
    the same pages.
    """

    sequence: Sequence
    pages: tuple[int, ...]
    """Those of the sequence, from its first position to ``end``."""
    start: int
    blocks_start: int
    """Where the blocks in flight begin; what comes before them are final tokens, whose keys and values are stored."""
    end: int
    block_length: int

    @classmethod
    def of(cls, sequence: Sequence, start: int, blocks_start: int, end: int, page_length: int) -> Span:
        """Take these positions of a sequence that holds pages for them."""
        pages = tuple(sequence.pages[: -(-end // page_length)])
        return cls(sequence, pages, start, blocks_start, end, sequence.block_length)

    @property
    def num_positions(self) -> int:
        """How many positions are computed."""
        return self.end - self.start
