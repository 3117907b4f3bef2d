"""Training examples from the endless problems of :mod:`dmax.problems`."""

from __future__ import annotations

from dmax.problems import Equation, Split, equations, problem, show_working, stress_problem, working
from dmax.training.data import ChatEncoder, Example, chat_example


class GsmSymbolic:
    """Word problems as chat examples: the question asks, the solution is the response.

    Args:
        tokenizer: of the model.
        split: which problems.
        seed: of the split.
        worked: whether equations are carried out in small steps (see :mod:`dmax.problems.working`).
    """

    def __init__(self, tokenizer: ChatEncoder, split: Split = "train", seed: int = 0, worked: bool = False) -> None:
        self.tokenizer = tokenizer
        self.split: Split = split
        self.seed = seed
        self.worked = worked

    def example(self, index: int) -> Example:
        return chat_example(self.tokenizer, *word_problem(self.split, index, self.seed, self.worked))


def word_problem(split: Split, index: int, seed: int, worked: bool) -> tuple[str, str]:
    """Question and solution of a word problem."""
    row = problem(split, index, seed)
    return row["question"], show_working(row["solution"]) if worked else row["solution"]


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
        """What is given of an equation, and what is asked for."""
        result = solution[equation.result : equation.end]
        if bare:
            steps = working(equation.expression) if self.worked else []
            return f"{equation.expression}=", "=".join([*(step.replace(" ", "") for step in steps), result]) + "\n"
        steps = equation.steps if self.worked else []
        return solution[equation.start : equation.result], " = ".join([*steps, result]) + "\n"


class ParallelStress:
    """Word lists to copy, reverse, sort, replace in or shuffle, as chat examples."""

    def __init__(self, tokenizer: ChatEncoder, split: Split = "train", seed: int = 0) -> None:
        self.tokenizer = tokenizer
        self.split: Split = split
        self.seed = seed

    def example(self, index: int) -> Example:
        return chat_example(self.tokenizer, *list_problem(self.split, index, self.seed))


def list_problem(split: Split, index: int, seed: int) -> tuple[str, str]:
    """Question and answer of a problem of the stress test."""
    row = stress_problem(split, index, seed)
    return row["question"], row["solution"]
