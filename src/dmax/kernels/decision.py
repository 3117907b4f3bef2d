"""What the rule of algorithm.md#spd says of a pass, by whatever means it is computed.

Shape suffixes: B rows, L block positions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Decision(NamedTuple):
    """A pass of algorithm.md#spd over every row; ``(B, L)`` unless said otherwise."""

    tokens: Tensor
    """int64, the block after the pass."""
    masked: Tensor
    """bool, positions that are still masks."""
    passes: Tensor
    """``(B,)`` int64, passes done."""
    confidence: Tensor
    """float32, probability of the most probable token, the mask token apart."""
    candidates: Tensor
    """int64, that token."""
    promoted: Tensor
    """bool, masks that became tokens."""
    revised: Tensor
    """bool, decoded positions whose token changed."""
    mixed: Tensor
    """bool, positions that read a mix in the next pass."""
    converged: Tensor
    """``(B,)`` bool."""
