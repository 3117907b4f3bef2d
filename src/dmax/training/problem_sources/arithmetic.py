"""``arithmetic``: drills of the equations that word problems use."""

from __future__ import annotations

from dmax.problems import Equation, Split, equations, problem, working
from dmax.training.data import ChatEncoder, Example
from dmax.training.problem_sources.base import ProblemSource

EASY_DIGITS = 3
"""An equation whose operands have no more digits than this is soon known by heart."""
EASY_KEPT = 4
"""One in so many easy equations is asked."""


class Arithmetic(ProblemSource):
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

    name = "arithmetic"
    keys = ("worked",)

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
