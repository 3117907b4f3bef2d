"""How a row becomes a prompt, and how its answer is graded where it can be.

A source goes to other processes by its name, so it holds nothing that cannot be pickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from dmax.evaluation.tasks import BadRow, Row, RowForm, Task, TaskError, get_task
from dmax.evaluation.tasks.base import PAPER_LENGTH
from dmax.evaluation.tasks.everyday import Everyday
from dmax.evaluation.tasks.numeric import GsmSymbolic
from dmax.evaluation.tasks.parallel_stress import ParallelStress
from dmax.models.tokenizer import text_of
from dmax.problems import SPLIT_SEEDS, first_number

Turns = list[dict[str, str]]
"""A conversation: ``role`` and ``content`` of each turn."""

PROMPT_COLUMNS = ("messages", "prompt", "question", "problem", "instruction", "input")
"""Where a prompt is looked for, in this order, unless a column is named."""

GYM_PREFIX = "reasoning-gym:"
_CHUNK = 1024
"""Rows per underlying ``reasoning-gym`` data set."""
_TRAINING_TASKS: dict[str, GsmSymbolic | ParallelStress] = {
    task.name: task for task in (GsmSymbolic("train"), Everyday("train"), ParallelStress("train"))
}
"""Tasks that are drawn: not from the split that they are evaluated on."""
_FINAL = re.compile(r"####(?P<line>[^\n]*)|<answer>(?P<tag>.*?)</answer>", re.DOTALL)


class PromptSource(RowForm, Protocol):
    """Turns rows into prompts. Methods other than ``check`` take rows that it passes."""

    @property
    def version(self) -> int:
        """Rises whenever prompts or grading change."""
        ...

    @property
    def gen_length(self) -> int:
        """Longest answer in tokens, unless the user says otherwise."""
        ...

    def turns(self, row: Row) -> Turns:
        """Return the conversation that the model is to answer; its last turn is the user's."""
        ...

    def row_id(self, row: Row, index: int) -> str:
        """Tell what the training set calls the row, which is row ``index`` of its data."""
        ...


@runtime_checkable
class GradedSource(PromptSource, Protocol):
    """A source whose answers can be graded."""

    def grade(self, row: Row, text: str) -> bool:
        """Tell whether an answer is right. May be called from several threads."""
        ...


@runtime_checkable
class DrawnSource(PromptSource, Protocol):
    """A source whose rows can be drawn here."""

    def generate(self, index: int, seed: int) -> Row:
        """Draw row ``index`` of those of a seed, none of which any evaluation reaches.

        Raises:
            TaskError: something it needs is not installed.
        """
        ...


@dataclass(frozen=True)
class PlainPrompts:
    """Rows that hold a text, or the messages of a conversation."""

    column: str | None = None
    """Where; the first of :data:`PROMPT_COLUMNS` that a row has, if not given."""
    name: str = "prompts"
    version: int = 1
    gen_length: int = PAPER_LENGTH

    def turns(self, row: Row) -> Turns:
        value = self._value(row)
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        turns = [{"role": turn["role"], "content": text_of(turn["content"])} for turn in value]
        while turns[-1]["role"] == "assistant":  # somebody else's answer, in whose place the model's own is wanted
            turns.pop()
        return turns

    def check(self, row: Row) -> None:
        value = self._value(row)
        if isinstance(value, str):
            if not value.strip():
                raise BadRow("the prompt is empty")
        elif not isinstance(value, list) or not all(_is_turn(turn) for turn in value):
            raise BadRow("the prompt must be text, or a list of turns with role and content, texts or text parts")
        elif not any(turn["role"] == "user" for turn in value):
            raise BadRow("the conversation has no user's turn")

    def row_id(self, row: Row, index: int) -> str:
        found = row.get("id")
        return str(index if found is None else found)

    def _value(self, row: Row) -> Any:
        columns = (self.column,) if self.column else PROMPT_COLUMNS
        for column in columns:
            if row.get(column) is not None:
                return row[column]
        wanted = " or ".join(repr(column) for column in columns)
        raise BadRow(f"there is no column {wanted}; it has {', '.join(map(str, row)) or 'none'}")


@dataclass(frozen=True)
class TaskPrompts:
    """Rows in the layout of a benchmark task, asked and graded as the task does."""

    name: str

    @property
    def task(self) -> Task:
        return _TRAINING_TASKS.get(self.name) or get_task(self.name)

    @property
    def version(self) -> int:
        return self.task.version

    @property
    def gen_length(self) -> int:
        return self.task.gen_length

    def turns(self, row: Row) -> Turns:
        return [{"role": "user", "content": self.task.prompt(row)}]

    def grade(self, row: Row, text: str) -> bool:
        return self.task.grade(row, text).right

    def check(self, row: Row) -> None:
        self.task.check(row)

    def row_id(self, row: Row, index: int) -> str:
        return self.task.row_id(row, index)


@dataclass(frozen=True)
class DrawnTask(TaskPrompts):
    """A task whose rows are drawn here, out of the split for training."""

    def generate(self, index: int, seed: int) -> Row:
        return _TRAINING_TASKS[self.name].generate(index, seed)


@dataclass(frozen=True)
class ReasoningGym:
    """Any data set of ``reasoning-gym``, graded by its own scorer.

    The answer is what follows the last ``####`` or stands in the last ``<answer>`` tag, else the whole text.
    """

    dataset: str
    version: int = 1
    gen_length: int = PAPER_LENGTH

    @property
    def name(self) -> str:
        return f"{GYM_PREFIX}{self.dataset}"

    def generate(self, index: int, seed: int) -> Row:
        first = first_number("train", seed) + index // _CHUNK * _CHUNK
        return dict(_gym(self.dataset, first)[index % _CHUNK])

    def turns(self, row: Row) -> Turns:
        return [{"role": "user", "content": row["question"]}]

    def grade(self, row: Row, text: str) -> bool:
        final = [match["line"] or match["tag"] or "" for match in _FINAL.finditer(text)]
        score = _gym(self.dataset, SPLIT_SEEDS["train"]).score_answer((final or [text])[-1].strip(), row)
        return bool(score >= 1)

    def check(self, row: Row) -> None:
        if not isinstance(row.get("question"), str) or not isinstance(row.get("metadata"), Mapping):
            raise BadRow("columns 'question' and 'metadata' must be as reasoning-gym gives them")

    def row_id(self, row: Row, index: int) -> str:
        return str(index)


def find_source(name: str | None, column: str | None = None) -> PromptSource:
    """Find the source of a name.

    Args:
        name: of a task, or of a ``reasoning-gym`` data set with ``reasoning-gym:`` before it; None for plain prompts.
        column: of plain prompts.

    Raises:
        TaskError: there is none, or the column has no use.
    """
    if name is None:
        return PlainPrompts(column)
    if column is not None:
        raise TaskError(f"a column is for plain prompts, and {name} has columns of its own; leave one of them out.")
    if name.startswith(GYM_PREFIX):
        dataset = name.removeprefix(GYM_PREFIX)
        _gym(dataset, SPLIT_SEEDS["train"])
        return ReasoningGym(dataset)
    return DrawnTask(name) if name in _TRAINING_TASKS else TaskPrompts(get_task(name).name)


@lru_cache(maxsize=8)
def _gym(dataset: str, seed: int) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise TaskError(f"{GYM_PREFIX}{dataset} needs reasoning-gym: pip install 'dmax-llm[train]'.") from error
    try:
        return reasoning_gym.create_dataset(dataset, seed=seed, size=_CHUNK)
    except ValueError as error:
        raise TaskError(f"{GYM_PREFIX}{dataset}: {error}; give the name of a reasoning-gym data set.") from error


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or turn.get("content") is None:
        return False
    try:
        text_of(turn["content"])
    except ValueError:
        return False
    return True
