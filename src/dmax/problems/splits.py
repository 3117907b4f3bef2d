"""Which seeds belong to training, validation and test."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "validation", "test"]
SPLIT_SEEDS: dict[str, int] = {"train": 10**12, "validation": 2 * 10**12, "test": 3 * 10**12}
"""So far apart that no run can reach a neighbour, and far from the small seeds that people evaluate with."""
