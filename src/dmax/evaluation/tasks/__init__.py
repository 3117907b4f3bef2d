"""The benchmarks: what is asked, which answer is right, and where the rows come from."""

from __future__ import annotations

from difflib import get_close_matches

from dmax.evaluation.tasks.asdiv import Asdiv
from dmax.evaluation.tasks.base import (
    BadRow,
    GeneratedTask,
    HubSource,
    Row,
    RowForm,
    SandboxedTask,
    Task,
    TaskError,
    Verdict,
)
from dmax.evaluation.tasks.competition import MATH500, MINERVA_ALGEBRA
from dmax.evaluation.tasks.data import Rows, load_rows, read_rows, rows_digest
from dmax.evaluation.tasks.everyday import Everyday
from dmax.evaluation.tasks.numeric import Gsm8k, GsmSymbolic
from dmax.evaluation.tasks.parallel_stress import ParallelStress
from dmax.evaluation.tasks.programming import HUMANEVAL, HUMANEVAL_PLUS, MBPP, MBPP_PLUS

__all__ = [
    "BadRow",
    "GeneratedTask",
    "HubSource",
    "Row",
    "RowForm",
    "Rows",
    "SandboxedTask",
    "Task",
    "TaskError",
    "Verdict",
    "describe",
    "get_task",
    "load_rows",
    "read_rows",
    "rows_digest",
    "task_names",
]

_ALL: tuple[Task, ...] = (
    GsmSymbolic(),
    Everyday(),
    ParallelStress(),
    Gsm8k(),
    Asdiv(),
    MATH500,
    MINERVA_ALGEBRA,
    HUMANEVAL,
    HUMANEVAL_PLUS,
    MBPP,
    MBPP_PLUS,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def task_names() -> tuple[str, ...]:
    """List the names of all tasks."""
    return tuple(TASKS)


def get_task(name: str) -> Task:
    """Find the task of a name.

    Raises:
        TaskError: there is none; the message names the nearest one and all of them.
    """
    if name in TASKS:
        return TASKS[name]
    nearest = get_close_matches(name.lower(), TASKS, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise TaskError(f"task {name!r} is unknown; choose from {', '.join(TASKS)}.{hint}")


def describe(task: Task) -> str:
    """Write what a task asks, where its rows come from and how it grades, with a prompt as an example."""
    rows = (
        "drawn here, from a seed" if task.source is None else f"{task.source} on the Hugging Face Hub, or a local file"
    )
    facts = {
        "task": f"{task.name}, version {task.version}",
        "about": task.description,
        "rows": rows,
        "graded": task.grading,
        "answers": f"up to {task.gen_length} tokens",
    }
    head = "\n".join(f"{name + ':':<9}{value}" for name, value in facts.items())
    return f"{head}\n\nAn example of a prompt:\n\n{task.prompt(task.example)}\n"
