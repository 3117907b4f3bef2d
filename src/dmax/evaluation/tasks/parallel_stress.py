"""Word lists to rearrange: the companion of ``gsm-symbolic`` that shows what parallel decoding costs."""

from __future__ import annotations

from typing import ClassVar

from dmax.evaluation.tasks.base import BadRow, HubSource, Row, Verdict, one_line, text_of
from dmax.problems import KINDS, Split, keeps_to_the_rule, stress_problem


class ParallelStress:
    """Copy, reverse, sort, replace, shuffle: answers whose tokens hang on one another (after arXiv 2510.04767)."""

    name = "parallel-stress"
    version = 1
    description = "Word lists to copy, reverse, sort, replace in or shuffle, drawn here; nothing to download."
    grading = (
        "The list, parted by commas, must be exactly the one asked for; a shuffled list must hold the same words in "
        "another order."
    )
    gen_length = 64
    source: HubSource | None = None
    default_rows = 500
    example: ClassVar[Row] = {
        "kind": "reverse",
        "words": "lamp boat tree",
        "question": "Write this list in reverse order: lamp, boat, tree.",
        "solution": "tree, boat, lamp",
        "old": "",
        "new": "",
    }

    def __init__(self, split: Split = "test") -> None:
        self.split: Split = split

    def generate(self, index: int, seed: int) -> Row:
        return stress_problem(self.split, index, seed)

    def prompt(self, row: Row) -> str:
        return text_of(row, "question")

    def reference(self, row: Row) -> str:
        return text_of(row, "solution")

    def grade(self, row: Row, text: str) -> Verdict:
        right = keeps_to_the_rule(dict(row), text)
        return Verdict(right, f"list {one_line(text)!r}")

    def check(self, row: Row) -> None:
        for column in ("question", "solution", "words"):
            text_of(row, column)
        if row.get("kind") not in KINDS:
            raise BadRow(f"column 'kind' must be one of {', '.join(KINDS)}")

    def row_id(self, row: Row, index: int) -> str:
        return f"{row['kind']}-{index}"
