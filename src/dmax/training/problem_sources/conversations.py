"""``conversations``: problems and other requests, two or three in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dmax.problems.splits import first_number
from dmax.training.problem_sources.base import Turn
from dmax.training.problem_sources.everyday import Everyday, everyday_turn
from dmax.training.problem_sources.gsm_symbolic import word_problem
from dmax.training.problem_sources.other_requests import request_turn


@dataclass(frozen=True)
class ProblemConversations(Everyday):
    """Conversations of two or three turns, each of which asks something new."""

    name = "conversations"

    @classmethod
    def texts(cls, section: Any, count: int) -> Iterator[str]:
        return iter(())

    def turns(self, index: int) -> Sequence[Turn]:
        random = Random(f"conversations {first_number(self.split, self.seed)} {index}")
        return [self._turn(random) for _ in range(2 if random.random() < 0.7 else 3)]

    def _turn(self, random: Random) -> Turn:
        kind, number = random.random(), random.randrange(10**8)
        if kind < 0.15:
            return request_turn(self.split, number, self.seed)
        if kind < 0.35:
            return word_problem(self.split, number, self.seed, self.worked)
        return everyday_turn(self, self.split, number, self.seed)
