r"""Competition mathematics, answered in ``\boxed{}``: MATH500 and the algebra part of MATH."""

from __future__ import annotations

from dataclasses import dataclass, field

from dmax.evaluation.grading import boxed
from dmax.evaluation.grading.said import said
from dmax.evaluation.tasks.base import PAPER_LENGTH, BadRow, HubSource, Row, Verdict, one_line, text_of
from dmax.evaluation.tasks.math_verifier import MathVerifier

INSTRUCTION = r"Work through it step by step and write the final answer inside \boxed{}."

_VERIFIER = MathVerifier()
"""Serves all tasks, so that they start one process."""

_EXAMPLE: Row = {
    "problem": "What is the sum of the solutions of $x^2 - 7x + 10 = 0$?",
    "solution": r"The left side is $(x - 2)(x - 5)$, so the solutions add up to $2 + 5 = \boxed{7}$.",
    "answer": "7",
}


@dataclass(frozen=True)
class CompetitionMath:
    """A part of MATH, in the layout of the hub or of a file with whole prompts and answers."""

    name: str
    description: str
    source: HubSource
    version: int = 4
    gen_length: int = PAPER_LENGTH
    example: Row = field(default_factory=lambda: _EXAMPLE)
    grading: str = (
        r"The last \boxed{} of the answer, else its last expression, must equal the reference by math-verify, which "
        "compares by value and symbolically; numbers that it rounds to the same are compared again, exactly. "
        "Punctuation, degrees, currency and the letter of a choice do not count."
    )
    _verifier: MathVerifier = field(default=_VERIFIER, repr=False, compare=False)

    def prompt(self, row: Row) -> str:
        if row.get("problem") is None:
            return text_of(row, "problem", "prompt")  # a whole prompt, which has its own instruction
        return f"{text_of(row, 'problem').strip()}\n{INSTRUCTION}"

    def reference(self, row: Row) -> str:
        solution = row.get("solution")
        return solution if isinstance(solution, str) and boxed(solution) else self._gold(row)

    def grade(self, row: Row, text: str) -> Verdict:
        boxes = boxed(said(text))
        read = f"box {one_line(boxes[-1])!r}" if boxes else f"no box; the end of the answer, {one_line(text)[-80:]!r}"
        return Verdict(self._verifier.same(self._gold(row), text), read)

    def check(self, row: Row) -> None:
        self._verifier.require()
        text_of(row, "problem", "prompt")
        self._gold(row)

    def row_id(self, row: Row, index: int) -> str:
        return str(row.get("unique_id") or index)

    def _gold(self, row: Row) -> str:
        if row.get("answer") is not None:
            return rf"\boxed{{{text_of(row, 'answer')}}}"
        found = boxed(text_of(row, "answer", "solution"))
        if not found:
            raise BadRow(r"column 'solution' has no \boxed{} answer")
        return rf"\boxed{{{found[-1]}}}"


MATH500 = CompetitionMath(
    name="math500",
    description="500 problems of school mathematics competitions; the answers are LaTeX expressions.",
    source=HubSource("HuggingFaceH4/MATH-500", "default", "test"),
)
MINERVA_ALGEBRA = CompetitionMath(
    name="minerva-algebra",
    description="The algebra problems of MATH's test split; the answers are LaTeX expressions.",
    source=HubSource("EleutherAI/hendrycks_math", "algebra", "test"),
)
