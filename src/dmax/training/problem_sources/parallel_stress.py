"""``parallel-stress``: lists whose words hang on one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dmax.problems import Split, stress_problem
from dmax.training.problem_sources.base import DrawnConversations, Turn


class ParallelStress(DrawnConversations):
    """Word lists to copy, reverse, sort, replace in or shuffle."""

    name = "parallel-stress"

    @classmethod
    def texts(cls, section: Any, count: int) -> Iterator[str]:
        return ("\n".join(list_problem("train", index, 0)) for index in range(count))

    def turns(self, index: int) -> Sequence[Turn]:
        return [list_problem(self.split, index, self.seed)]


def list_problem(split: Split, index: int, seed: int) -> Turn:
    """Return question and answer of a problem of the stress test."""
    row = stress_problem(split, index, seed)
    return row["question"], row["solution"]
