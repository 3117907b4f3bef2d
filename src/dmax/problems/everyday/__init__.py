"""Everyday word problems without end: hand-written scenarios with free slots, and what else people type.

``python -m dmax.problems.everyday [THEME ...]`` checks and shows them.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from random import Random

from dmax.problems.everyday.draw import Problem, draw
from dmax.problems.everyday.scenario import Scenario, ScenarioError, parse, scenarios, themes
from dmax.problems.splits import Split, first_number

OTHER_ANSWER = "I am a small model that only solves short word problems with numbers. Please ask me one."
"""What the embedded model says to everything that is no word problem."""

__all__ = [
    "OTHER_ANSWER",
    "Problem",
    "Scenario",
    "ScenarioError",
    "draw",
    "everyday_problem",
    "other_request",
    "parse",
    "scenarios",
    "themes",
]


def everyday_problem(
    split: Split,
    index: int,
    seed: int = 0,
    *,
    worked: bool = False,
    chosen: tuple[str, ...] = (),
    reworded: float = 0.0,
) -> Problem:
    """Draw problem ``index`` of a split; every run of as many problems as there are scenarios holds each once.

    Args:
        split: which problems.
        index: of the problem.
        seed: of the split.
        worked: carry equations out in small steps.
        chosen: themes to draw from; all if none is named.
        reworded: share of problems that are told in other words (see :mod:`dmax.problems.everyday.rewording`).

    Raises:
        SeedError: the split has no such seed.
    """
    number = first_number(split, seed)
    drawn_from = scenarios(*chosen)
    epoch, place = divmod(index, len(drawn_from))
    at = _order(number, epoch, len(drawn_from))[place]
    return draw(drawn_from[at], Random(f"everyday {number} {index}"), worked=worked, reworded=reworded)


@cache
def _requests() -> tuple[str, ...]:
    text = files(__package__).joinpath("other_requests.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


def other_request(split: Split, index: int, seed: int = 0) -> str:
    """Draw something that people type and that is no word problem."""
    random = Random(f"other requests {first_number(split, seed)} {index}")
    request = random.choice(_requests())
    if random.random() < 0.15:
        request = request.lower()
    if random.random() < 0.15:
        request = request.rstrip("?.!")
    return request


@cache
def _order(number: int, epoch: int, count: int) -> tuple[int, ...]:
    order = list(range(count))
    Random(f"everyday order {number} {epoch}").shuffle(order)
    return tuple(order)
