"""Programming problems, graded by running tests in a sandbox: HumanEval, MBPP, and the larger tests of EvalPlus."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from dmax.evaluation.sandbox import available_isolation, run_program
from dmax.evaluation.tasks.base import PAPER_LENGTH, BadRow, HubSource, Row, Verdict, text_of, texts_of
from dmax.evaluation.tasks.code_answers import called_names, complete, find_code

SHOWN_TESTS = 3
"""Assertions that an MBPP prompt shows."""

_HUMANEVAL_EXAMPLE: Row = {
    "task_id": "example",
    "prompt": 'def halve(n: int) -> int:\n    """Half of n, rounded down.\n    >>> halve(7)\n    3\n    """\n',
    "entry_point": "halve",
    "canonical_solution": "    return n // 2\n",
    "test": "def check(candidate):\n    assert candidate(7) == 3\n    assert candidate(-1) == -1\n",
}
_MBPP_EXAMPLE: Row = {
    "task_id": "example",
    "prompt": "Write a function that counts the even numbers of a list.",
    "code": "def count_even(values):\n    return sum(value % 2 == 0 for value in values)",
    "test_imports": [],
    "test_list": ["assert count_even([1, 2, 4]) == 2", "assert count_even([]) == 0", "assert count_even([3]) == 0"],
}


@dataclass(frozen=True)
class ProgrammingTask:
    """What tasks have in common whose answers are programs."""

    name: str
    description: str
    source: HubSource
    version: int = 4
    gen_length: int = PAPER_LENGTH
    unprotected: bool = False
    """Whether programs may run where nothing keeps them from this machine."""
    grading: str = (
        "The Python code of the answer (the longest part that compiles, in the last fence that defines the function "
        "asked for, or outside of fences) must pass the tests, which run in a sandbox with limits on time, memory "
        "and files."
    )

    def isolation(self) -> dict[str, Any]:
        return asdict(available_isolation())

    def verdict(self, program: str, tests: str) -> Verdict:
        """Return what the sandbox says of a program.

        Raises:
            SandboxError: this machine protects nothing, and that was not asked for.
        """
        result = run_program(program, tests, unprotected=self.unprotected)
        shown = f"code of {len(program.strip().splitlines())} lines: {result.reason}"
        return Verdict(result.passed, f"{shown}: {result.detail}" if result.detail else shown)

    def row_id(self, row: Row, index: int) -> str:
        return str(row.get("task_id") or index)


@dataclass(frozen=True)
class HumanEval(ProgrammingTask):
    """Functions to be written from their signature and docstring."""

    example: Row = field(default_factory=lambda: _HUMANEVAL_EXAMPLE)

    def prompt(self, row: Row) -> str:
        return (
            "Complete this Python function so that it does what its docstring says.\n\n"
            f"{fenced(text_of(row, 'prompt'))}\n\n"
            "Give the whole function, with every import it needs, in one ```python block."
        )

    def reference(self, row: Row) -> str:
        return fenced(text_of(row, "prompt") + text_of(row, "canonical_solution"))

    def grade(self, row: Row, text: str) -> Verdict:
        name = text_of(row, "entry_point")
        program = complete(text_of(row, "prompt"), find_code(text, (name,)), name)
        return self.verdict(program, f"{text_of(row, 'test')}\n\ncheck({name})\n")

    def check(self, row: Row) -> None:
        for column in ("prompt", "canonical_solution", "test", "entry_point"):
            text_of(row, column)
        if not re.search(rf"^(?:async )?def +{re.escape(row['entry_point'])}\b", row["prompt"], re.MULTILINE):
            raise BadRow(f"column 'prompt' does not define {row['entry_point']!r}, the entry_point")


@dataclass(frozen=True)
class Mbpp(ProgrammingTask):
    """Functions to be written from a sentence and a few assertions."""

    example: Row = field(default_factory=lambda: _MBPP_EXAMPLE)

    def prompt(self, row: Row) -> str:
        shown = "\n".join(test.strip() for test in texts_of(row, "test_list")[:SHOWN_TESTS])
        return (
            f"{text_of(row, 'prompt', 'text').strip()}\n\n"
            f"The code has to pass these assertions:\n\n{fenced(shown)}\n\n"
            "Give the complete code, with every import it needs, in one ```python block."
        )

    def reference(self, row: Row) -> str:
        return fenced(text_of(row, "code"))

    def grade(self, row: Row, text: str) -> Verdict:
        return self.verdict(find_code(text, called_names(texts_of(row, "test_list"))), self._tests(row))

    def check(self, row: Row) -> None:
        text_of(row, "prompt", "text")
        text_of(row, "code")
        texts_of(row, "test_list")
        if row.get("test_imports"):
            texts_of(row, "test_imports")

    def _tests(self, row: Row) -> str:
        """Return the one program in the column ``test``, as EvalPlus has it, else the list of assertions."""
        before = [*(row.get("test_imports") or []), row.get("test_setup_code") or ""]
        return "\n".join([*before, row.get("test") or "\n".join(texts_of(row, "test_list"))]) + "\n"


def fenced(code: str) -> str:
    """Put code into a Markdown fence."""
    return f"```python\n{code.strip(chr(10)).rstrip()}\n```"


HUMANEVAL = HumanEval(
    name="humaneval",
    description="164 Python functions to be written from their docstrings, with about eight hidden tests each.",
    source=HubSource("openai/openai_humaneval", "openai_humaneval", "test"),
)
HUMANEVAL_PLUS = HumanEval(
    name="humaneval+",
    description="The functions of HumanEval with the far larger tests of EvalPlus.",
    source=HubSource("evalplus/humanevalplus", "default", "test"),
)
MBPP = Mbpp(
    name="mbpp",
    description="Short Python functions to be written from a sentence and three assertions (the sanitized part).",
    source=HubSource("google-research-datasets/mbpp", "sanitized", "test"),
)
MBPP_PLUS = Mbpp(
    name="mbpp+",
    description="Functions of MBPP with the far larger tests of EvalPlus.",
    source=HubSource("evalplus/mbppplus", "default", "test"),
)
