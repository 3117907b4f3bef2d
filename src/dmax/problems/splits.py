"""Which seeds belong to training, validation and test."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "validation", "test"]
SPLIT_SEEDS: dict[Split, int] = {"train": 10**12, "validation": 2 * 10**12, "test": 3 * 10**12}
"""The first of each split, far from the small seeds that people evaluate with."""
_PER_SEED = 10**9
"""Numbers that a seed has to itself: more than any run draws problems."""
MOST_SEEDS = 1000
"""Of a split that another one follows."""


class SeedError(ValueError):
    """A seed that a split does not have."""


def first_number(split: Split, seed: int) -> int:
    """Return the number in ``reasoning-gym`` of a split's first problem under a seed; no two of them ever meet.

    Raises:
        SeedError: the split has no such seed; only that of tests has any number of them.
    """
    if seed < 0 or (split != "test" and seed >= MOST_SEEDS):
        last = "on" if split == "test" else f"to {MOST_SEEDS - 1}"
        raise SeedError(f"the {split} split has no problems of seed {seed}; choose a seed from 0 {last}.")
    return SPLIT_SEEDS[split] + seed * _PER_SEED
