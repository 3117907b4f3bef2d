"""What a benchmark task is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Row = Mapping[str, Any]
"""One problem, with the columns of the public file it comes from."""

PAPER_LENGTH = 2048
"""``gen_length`` of the paper's measurements, in tokens (algorithm.md#settings)."""


class TaskError(ValueError):
    """A task that does not exist, or data that cannot be loaded."""


class BadRow(ValueError):
    """A row that a task cannot ask or grade; the message says which column is at fault."""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why."""

    right: bool
    reason: str
    """What was read (a number, a box, code) and, from the sandbox, why it failed."""

    def __bool__(self) -> bool:
        return self.right


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face Hub."""

    dataset: str
    config: str
    split: str

    def __str__(self) -> str:
        return f"{self.dataset} ({self.config}, {self.split})"


class RowForm(Protocol):
    """What a row has to be."""

    @property
    def name(self) -> str:
        """As the command line knows it."""
        ...

    def check(self, row: Row) -> None:
        """Make sure that a row can be used.

        Raises:
            BadRow: it cannot.
        """
        ...


class Task(RowForm, Protocol):
    """How the rows of one benchmark are asked and graded. Methods other than ``check`` take rows that it passes."""

    @property
    def version(self) -> int:
        """Rises whenever prompts or grading change: figures of different versions are not comparable."""
        ...

    @property
    def description(self) -> str:
        """One sentence."""
        ...

    @property
    def grading(self) -> str:
        """How an answer is graded, in a sentence or two."""
        ...

    @property
    def gen_length(self) -> int:
        """Longest answer in tokens, unless the user says otherwise."""
        ...

    @property
    def source(self) -> HubSource | None:
        """Where the rows are on the hub; None where they are generated here."""
        ...

    @property
    def example(self) -> Row:
        """A row made up for illustration, which passes ``check``."""
        ...

    def prompt(self, row: Row) -> str:
        """Write the text of the user turn."""
        ...

    def reference(self, row: Row) -> str:
        """Return a whole answer that must grade as right."""
        ...

    def grade(self, row: Row, text: str) -> Verdict:
        """Return whether an answer is right, and why. May be called from several threads."""
        ...

    def row_id(self, row: Row, index: int) -> str:
        """Return what a results file calls the row, which is row ``index`` of its data."""
        ...


@runtime_checkable
class GeneratedTask(Task, Protocol):
    """A task whose rows are drawn here."""

    @property
    def default_rows(self) -> int:
        """How many rows a run has, unless the user says otherwise."""
        ...

    def generate(self, index: int, seed: int) -> Row:
        """Draw row ``index`` of those of a seed; depends on nothing else.

        Raises:
            TaskError: something it needs is not installed.
        """
        ...


@runtime_checkable
class SandboxedTask(Task, Protocol):
    """A task whose answers are programs."""

    def isolation(self) -> dict[str, Any]:
        """Tell what keeps these programs in on this machine, as a results file states it.

        Raises:
            SandboxError: no sandbox can be set up here.
        """
        ...


def one_line(text: str, longest: int = 200) -> str:
    """Return a text in one line, cut to so many characters from its end."""
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else f"…{flat[-longest:]}"


def text_of(row: Row, *columns: str) -> str:
    """Read the text in the first of some columns that the row has; they name the same thing in different files.

    Raises:
        BadRow: the row has none of them, or no text there.
    """
    for column in columns:
        if row.get(column) is not None:
            value = row[column]
            if not isinstance(value, str):
                raise BadRow(f"column {column!r} must hold text, not {type(value).__name__}")
            if not value.strip():
                raise BadRow(f"column {column!r} is empty")
            return value
    wanted = " or ".join(repr(column) for column in columns)
    raise BadRow(f"there is no column {wanted}; it has {', '.join(map(str, row)) or 'none'}")


def texts_of(row: Row, column: str) -> list[str]:
    """Read the list of texts in a column, which must not be empty.

    Raises:
        BadRow: there is no such column, or something else in it.
    """
    values = row.get(column)
    if values is None:
        raise BadRow(f"there is no column {column!r}; it has {', '.join(map(str, row)) or 'none'}")
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise BadRow(f"column {column!r} must hold a list of texts, at least one")
    return values
