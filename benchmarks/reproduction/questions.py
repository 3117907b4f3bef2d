"""The problems that every setting is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dmax.evaluation.runner import TaskData
from dmax.evaluation.tasks import HubSource, Row, get_task, load_rows, read_rows
from dmax.evaluation.tasks.everyday import Everyday

QUESTIONS_FILE = Path(__file__).parents[1] / "data" / "everyday_questions.jsonl"
FRESH_SEED = 20_261
"""Of the drawn problems, used for nothing else; training data are drawn from another split."""


class EverydayQuestions(Everyday):
    """The questions by which models are developed, written by hand apart from the scenarios of ``everyday``."""

    name = "everyday-questions"
    description = "Everyday word problems written by hand, apart from the scenarios of `everyday`."
    source: HubSource | None = None

    def row_id(self, row: Row, index: int) -> str:
        return str(row["id"])


WRITTEN, FRESH, SYMBOLIC, REAL = "everyday-questions", "everyday", "gsm-symbolic", "gsm8k"
SETS: Mapping[str, tuple[str, ...]] = {"everyday": (WRITTEN, FRESH), "gsm-symbolic": (SYMBOLIC,)}
"""On which claims are decided, each of as many problems as the scale says."""
TASKS: Mapping[str, str] = {
    WRITTEN: "everyday, written by hand",
    FRESH: "everyday, drawn",
    SYMBOLIC: "gsm-symbolic",
}
"""By the names of tasks, what is reported apart."""


def problems(asked: int) -> list[TaskData]:
    """Return so many everyday problems, the written ones first, and as many of gsm-symbolic."""
    form = EverydayQuestions()
    written = read_rows(form, QUESTIONS_FILE)
    written_asked = min(len(written), asked // 4 + 1)
    return [
        TaskData(form, written[:written_asked], {"file": QUESTIONS_FILE.name}, form.gen_length),
        *(_drawn(name, count) for name, count in ((FRESH, asked - written_asked), (SYMBOLIC, asked))),
    ]


def gsm8k(file: Path, asked: int | None) -> TaskData:
    """Return the first problems of GSM8K's test set; all of them where ``asked`` is None."""
    task = get_task(REAL)
    rows = load_rows(task, file, asked)
    return TaskData(task, list(rows), rows.source | {"file": file.name}, get_task(SYMBOLIC).gen_length)


def _drawn(name: str, count: int) -> TaskData:
    task = get_task(name)
    rows = load_rows(task, None, count, FRESH_SEED)
    return TaskData(task, list(rows), rows.source, task.gen_length)
