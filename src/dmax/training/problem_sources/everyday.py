"""``everyday``: word problems of hand-written scenarios."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dmax.problems import Split
from dmax.problems.everyday import everyday_problem
from dmax.training.problem_sources.base import DrawnConversations, Turn


@dataclass(frozen=True)
class EverydayProblems:
    """Which everyday problems are asked, and how they are told and solved."""

    worked: bool = False
    """Whether equations are carried out in small steps (see :mod:`dmax.problems.working`)."""
    themes: tuple[str, ...] = ()
    """Which; all if none is named."""
    reworded: float = 0.0
    """Share of problems that are told in other words."""

    def turn(self, split: Split, index: int, seed: int) -> Turn:
        """Return question and solution of problem ``index``."""
        drawn = everyday_problem(split, index, seed, worked=self.worked, chosen=self.themes, reworded=self.reworded)
        return drawn.question, drawn.solution


@dataclass(frozen=True)
class Everyday(DrawnConversations):
    """Everyday word problems of hand-written scenarios."""

    name = "everyday"
    keys = ("worked", "themes", "reworded")

    worked: bool = False
    themes: tuple[str, ...] = ()
    reworded: float = 0.0

    @classmethod
    def texts(cls, section: Any, count: int) -> Iterator[str]:
        problems = EverydayProblems(section.worked, section.themes, section.reworded)
        return ("\n".join(problems.turn("train", index, 0)) for index in range(count))

    @property
    def problems(self) -> EverydayProblems:
        """What is drawn from."""
        return EverydayProblems(self.worked, self.themes, self.reworded)

    def turns(self, index: int) -> Sequence[Turn]:
        return [self.problems.turn(self.split, index, self.seed)]
