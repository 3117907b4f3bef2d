"""Which blocks in flight may start, must promote and are final (algorithm.md#blocks-in-flight; arXiv 2606.29215).

A block is *active* from when it may start until it is final; then it is stored and leaves the front. Nothing here knows
of tensors: a pass leaves a :class:`BlockView` of every active block, and the rule answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmax.decoding import options


@dataclass(frozen=True)
class BlockView:
    """What a pass has left of an active block."""

    decoded: float
    """Share of its answer positions that are no masks any more."""
    stability: float
    """Of the positions decoded before the pass and after it, the share whose token did not change; 1 if none."""
    ended: bool
    """Whether an EOS stands among its answer positions."""
    converged: bool


@dataclass(frozen=True)
class MultiBlockRule:
    """How many blocks are in flight, and when the next one may join.

    Raises:
        DecoderError: a value is out of range.
    """

    buffer_size: int = options.whole(
        1, "Most blocks in flight; 1 decodes one after another.", served_maximum=16, label="Blocks in flight"
    )
    add_threshold: float = options.probability(0.1, "Share of the last block that is decoded before the next joins.")
    stable_threshold: float = options.probability(0.5, "Share of its tokens that have stayed as they were.")
    semi_threshold: float = options.probability(
        0.9, "Share of a block from which the one behind it promotes in every pass."
    )

    def __post_init__(self) -> None:
        options.check_options(self)

    def may_start_next(self, views: Sequence[BlockView]) -> bool:
        """Tell whether one more block may become active behind these, which are at least one."""
        last = views[-1]
        return (
            len(views) < self.buffer_size
            and last.decoded >= self.add_threshold
            and last.stability >= self.stable_threshold
            and not any(view.ended for view in views)
        )

    def may_fall_back(self, decoded: Sequence[float]) -> list[bool]:
        """Tell which active blocks promote a mask even where none is confident: the first, and those behind enough.

        Args:
            decoded: share of every active block that is decoded, first block first.
        """
        return [index == 0 or decoded[index - 1] > self.semi_threshold for index in range(len(decoded))]

    @staticmethod
    def final(views: Sequence[BlockView]) -> int:
        """Tell how many blocks, from the first, are final: converged, and every block before them too."""
        count = 0
        while count < len(views) and views[count].converged:
            count += 1
        return count
