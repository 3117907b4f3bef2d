"""Training examples from the endless problems of :mod:`dmax.problems`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from dmax.problems import Equation, Split, equations, problem, show_working, stress_problem, working
from dmax.problems.everyday import OTHER_ANSWER, everyday_problem, other_request
from dmax.problems.gsm8k_variants import Gsm8kVariants
from dmax.problems.splits import first_number
from dmax.training.data import ChatEncoder, Example, conversation_example

Turn = tuple[str, str]
"""A request and its answer."""


@dataclass(frozen=True)
class ProblemSource(ABC):
    """Conversations drawn by index, as chat examples: the last answer is the response."""

    tokenizer: ChatEncoder
    """Of the model."""
    split: Split = "train"
    """Which problems."""
    seed: int = 0
    """Of the split."""
    worked: bool = False
    """Whether equations are carried out in small steps (see :mod:`dmax.problems.working`)."""

    @abstractmethod
    def turns(self, index: int) -> Sequence[Turn]:
        """Return the turns of conversation ``index``, the last of which is trained on."""

    def example(self, index: int) -> Example:
        return conversation_example(self.tokenizer, self.turns(index))


class GsmSymbolic(ProblemSource):
    """Word problems of ``reasoning-gym``'s ``gsm_symbolic`` with their solutions."""

    def turns(self, index: int) -> Sequence[Turn]:
        return [word_problem(self.split, index, self.seed, self.worked)]


@dataclass(frozen=True)
class Everyday(ProblemSource):
    """Everyday word problems of hand-written scenarios."""

    themes: tuple[str, ...] = ()
    """Which; all if none is named."""
    reworded: float = 0.0
    """Share of problems that are told in other words."""

    def turns(self, index: int) -> Sequence[Turn]:
        return [everyday_text(self.split, index, self.seed, self.worked, self.themes, self.reworded)]


class ParallelStress(ProblemSource):
    """Word lists to copy, reverse, sort, replace in or shuffle."""

    def turns(self, index: int) -> Sequence[Turn]:
        return [list_problem(self.split, index, self.seed)]


class OtherRequests(ProblemSource):
    """What people type that is no word problem, answered by one sentence about what the model can do."""

    def turns(self, index: int) -> Sequence[Turn]:
        return [(other_request(self.split, index, self.seed), OTHER_ANSWER)]


@dataclass(frozen=True)
class ProblemConversations(ProblemSource):
    """Conversations of two or three turns, each of which asks something new."""

    themes: tuple[str, ...] = ()
    """Of everyday problems; all if none is named."""
    reworded: float = 0.0
    """Share of everyday problems that are told in other words."""

    def turns(self, index: int) -> Sequence[Turn]:
        random = Random(f"conversations {first_number(self.split, self.seed)} {index}")
        return [self._turn(random) for _ in range(2 if random.random() < 0.7 else 3)]

    def _turn(self, random: Random) -> Turn:
        kind, number = random.random(), random.randrange(10**8)
        if kind < 0.15:
            return other_request(self.split, number, self.seed), OTHER_ANSWER
        if kind < 0.35:
            return word_problem(self.split, number, self.seed, self.worked)
        return everyday_text(self.split, number, self.seed, self.worked, self.themes, self.reworded)


def word_problem(split: Split, index: int, seed: int, worked: bool) -> Turn:
    """Return question and solution of a word problem."""
    row = problem(split, index, seed)
    return row["question"], show_working(row["solution"]) if worked else row["solution"]


def everyday_text(
    split: Split, index: int, seed: int, worked: bool, chosen: tuple[str, ...] = (), reworded: float = 0.0
) -> Turn:
    """Return question and solution of an everyday problem."""
    drawn = everyday_problem(split, index, seed, worked=worked, chosen=chosen, reworded=reworded)
    return drawn.question, drawn.solution


def list_problem(split: Split, index: int, seed: int) -> Turn:
    """Return question and answer of a problem of the stress test."""
    row = stress_problem(split, index, seed)
    return row["question"], row["solution"]


@dataclass(frozen=True, kw_only=True)
class Gsm8kSource(ProblemSource):
    """Variants of GSM8K's training problems with other numbers and names; many end as GSM8K is usually asked."""

    variants: Gsm8kVariants
    """Of the rows."""

    def fingerprint(self) -> str:
        """Return a hash of all rows, 16 hexadecimal digits: other rows, another fingerprint."""
        found = hashlib.blake2b(digest_size=8)
        for index in range(self.variants.total):
            found.update(repr(sorted(self.variants.plain(index).items())).encode())
        return found.hexdigest()

    def turns(self, index: int) -> Sequence[Turn]:
        row = self.variants.problem(self.split, index, self.seed)
        solution = show_working(row["solution"]) if self.worked else row["solution"]
        asked_by_steps = Random(f"gsm8k {first_number(self.split, self.seed)} {index}").random() < STEP_BY_STEP_SHARE
        return [(row["question"] + (STEP_BY_STEP if asked_by_steps else ""), solution)]


STEP_BY_STEP = "\nLet's think step by step"
"""What GSM8K's questions end with when models are evaluated."""
STEP_BY_STEP_SHARE = 0.4


EASY_DIGITS = 3
"""An equation whose operands have no more digits than this is soon known by heart."""
EASY_KEPT = 4
"""One in so many easy equations is asked."""


class Arithmetic:
    """Drills: the equations of several worked solutions in a row, everything behind their equals signs supervised.

    The operands are distributed as the word problems use them, but for easy ones, most of which are left out. A row of
    equations costs a fraction of the tokens of the problems they come from. Every other row has no words or spaces.

    Args:
        tokenizer: of the model.
        split: whose problems.
        seed: of the split.
        max_tokens: longest row.
        worked: whether equations are carried out in small steps.
    """

    def __init__(
        self,
        tokenizer: ChatEncoder,
        split: Split = "train",
        seed: int = 1,
        max_tokens: int = 160,
        *,
        worked: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.split: Split = split
        self.seed = seed
        self.max_tokens = max_tokens
        self.worked = worked

    def example(self, index: int, problems: int = 24) -> Example:
        token_ids: list[int] = []
        supervised: list[bool] = []
        for i in range(index * problems, (index + 1) * problems):
            solution = problem(self.split, i, self.seed)["solution"]
            for place, equation in enumerate(equations(solution)):
                if sum(map(str.isdigit, equation.expression)) <= EASY_DIGITS and (i + place) % EASY_KEPT:
                    continue
                asked, answered = map(self.tokenizer.encode, self._drill(solution, equation, bare=index % 2 == 1))
                if len(token_ids) + len(asked) + len(answered) > self.max_tokens:
                    return Example(tuple(token_ids), tuple(supervised))
                token_ids += asked + answered
                supervised += [False] * len(asked) + [True] * len(answered)
        return Example(tuple(token_ids), tuple(supervised))

    def _drill(self, solution: str, equation: Equation, bare: bool) -> tuple[str, str]:
        """Tell what is given of an equation, and what is asked for."""
        result = solution[equation.result : equation.end]
        if bare:
            steps = working(equation.expression) if self.worked else []
            return f"{equation.expression}=", "=".join([*(step.replace(" ", "") for step in steps), result]) + "\n"
        steps = equation.steps if self.worked else []
        return solution[equation.start : equation.result], " = ".join([*steps, result]) + "\n"
