"""Word problems whose answers are numbers: GSM8K and GSM-Symbolic."""

from __future__ import annotations

from typing import ClassVar

from dmax.evaluation.grading import final_number, read_number
from dmax.evaluation.tasks.base import PAPER_LENGTH, BadRow, HubSource, Row, TaskError, Verdict, text_of
from dmax.problems import Split, problem

STEP_BY_STEP = "Let's think step by step"


class _NumericTask:
    """What word problems with one number for an answer have in common."""

    grading = (
        r"The last \boxed{} behind the last ####, else what stands directly behind ####, else the last \boxed{}, else "
        "the last number of the answer must equal the reference's exactly. The whole statement counts (10^6 is a "
        "million, 12 or 13 is no number); currency signs, thousands separators, units and punctuation do not."
    )

    def reference(self, row: Row) -> str:
        return text_of(row, "answer")

    def grade(self, row: Row, text: str) -> Verdict:
        reading = read_number(text)
        if reading is None:
            return Verdict(False, "no number in the answer")
        right = reading.value is not None and reading.value == final_number(self.reference(row))
        return Verdict(right, str(reading))

    def check(self, row: Row) -> None:
        text_of(row, "question")
        if final_number(text_of(row, "answer")) is None:
            raise BadRow("column 'answer' holds no number")

    def row_id(self, row: Row, index: int) -> str:
        return str(index)


class Gsm8k(_NumericTask):
    """Grade-school word problems, with worked solutions that end in ``#### number``."""

    name = "gsm8k"
    version = 4
    description = "Grade-school word problems in natural language; the answer is one number."
    gen_length = PAPER_LENGTH
    source = HubSource("openai/gsm8k", "main", "test")
    example: ClassVar[Row] = {
        "question": "A tray holds 12 plums. Nora fills 3 trays and eats 4 plums. How many plums are left on the trays?",
        "answer": "3 trays hold 3 * 12 = <<3*12=36>>36 plums.\nAfter eating, 36 - 4 = <<36-4=32>>32 are left.\n#### 32",
    }

    def prompt(self, row: Row) -> str:
        return f"{text_of(row, 'question').strip()}\n{STEP_BY_STEP}"


class GsmSymbolic(_NumericTask):
    """Problems from the templates of ``reasoning-gym``, by default out of the split that no training reaches."""

    name = "gsm-symbolic"
    version = 4
    description = "Grade-school word problems drawn from templates with fresh names and numbers; nothing to download."
    gen_length = 448
    """Tokens of the embedded model; its solutions are shorter."""
    source: HubSource | None = None
    default_rows = 500
    example: ClassVar[Row] = {**Gsm8k.example, "answer": "32", "solution": "3 * 12 = 36\n36 - 4 = 32\n#### 32"}

    def __init__(self, split: Split = "test") -> None:
        self.split: Split = split

    def generate(self, index: int, seed: int) -> Row:
        try:
            return problem(self.split, index, seed)
        except ImportError as error:
            raise TaskError(str(error)) from error

    def prompt(self, row: Row) -> str:
        return text_of(row, "question")

    def reference(self, row: Row) -> str:
        solution, answer = row.get("solution") or "", text_of(row, "answer")
        # A file of one's own may keep the worked solution in the column "answer", as GSM8K does.
        return answer if "####" in answer else f"{solution.partition('####')[0].rstrip()}\n#### {answer}".lstrip()

    def check(self, row: Row) -> None:
        super().check(row)
        if not isinstance(row.get("solution", ""), str | None):
            raise BadRow("column 'solution' must be text, where there is one")
