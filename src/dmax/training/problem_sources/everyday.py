"""``everyday``: word problems of hand-written scenarios."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dmax.problems import Split
from dmax.problems.everyday import everyday_problem
from dmax.training.problem_sources.base import DrawnConversations, Turn


class Told(Protocol):
    """How everyday problems are told and solved: a source of them, or its section of a recipe."""

    @property
    def worked(self) -> bool: ...
    @property
    def themes(self) -> tuple[str, ...]: ...
    @property
    def reworded(self) -> float: ...


def everyday_turn(told: Told, split: Split, index: int, seed: int) -> Turn:
    """Return question and solution of everyday problem ``index``."""
    drawn = everyday_problem(split, index, seed, worked=told.worked, chosen=told.themes, reworded=told.reworded)
    return drawn.question, drawn.solution


@dataclass(frozen=True)
class Everyday(DrawnConversations):
    """Everyday word problems of hand-written scenarios."""

    name = "everyday"
    keys = ("worked", "themes", "reworded")

    worked: bool = False
    """Whether equations are carried out in small steps (see :mod:`dmax.problems.working`)."""
    themes: tuple[str, ...] = ()
    """Which; all if none is named."""
    reworded: float = 0.0
    """Share of problems that are told in other words."""

    @classmethod
    def texts(cls, section: Any, count: int) -> Iterator[str]:
        return ("\n".join(everyday_turn(section, "train", index, 0)) for index in range(count))

    def turns(self, index: int) -> Sequence[Turn]:
        return [everyday_turn(self, self.split, index, self.seed)]
