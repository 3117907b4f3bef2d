"""Short word problems as people type them."""

from __future__ import annotations

from typing import ClassVar

from dmax.evaluation.tasks.base import Row
from dmax.evaluation.tasks.numeric import GsmSymbolic
from dmax.problems.everyday import everyday_problem


class Everyday(GsmSymbolic):
    """Problems from the scenarios of :mod:`dmax.problems.everyday`, by default out of a split no training reaches."""

    name = "everyday"
    version = 2
    description = (
        "Everyday word problems of one to four steps, drawn from scenarios written by hand; nothing to download."
    )
    example: ClassVar[Row] = {
        "question": "A tray holds 12 plums. I fill 3 trays and eat 4 plums. How many plums are left?",
        "answer": "32",
        "solution": "3 * 12 = 36\n36 - 4 = 32\n#### 32",
        "scenario": "plums on trays",
    }

    def generate(self, index: int, seed: int) -> Row:
        drawn = everyday_problem(self.split, index, seed)
        return {
            "question": drawn.question,
            "answer": drawn.answer,
            "solution": drawn.solution,
            "scenario": f"{drawn.theme}/{drawn.scenario}",
        }
