"""``gsm-symbolic``: word problems of ``reasoning-gym`` with their solutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dmax.problems import Split, problem, show_working
from dmax.training.problem_sources.base import DrawnConversations, Turn


@dataclass(frozen=True)
class GsmSymbolic(DrawnConversations):
    """Word problems of ``reasoning-gym``'s ``gsm_symbolic`` with their solutions."""

    name = "gsm-symbolic"
    keys = ("worked",)

    worked: bool = False
    """Whether equations are carried out in small steps (see :mod:`dmax.problems.working`)."""

    @classmethod
    def texts(cls, section: Any, count: int) -> Iterator[str]:
        return ("\n".join(word_problem("train", index, 0, section.worked)) for index in range(count))

    def turns(self, index: int) -> Sequence[Turn]:
        return [word_problem(self.split, index, self.seed, self.worked)]


def word_problem(split: Split, index: int, seed: int, worked: bool) -> Turn:
    """Return question and solution of a word problem."""
    row = problem(split, index, seed)
    return row["question"], show_working(row["solution"]) if worked else row["solution"]
