"""What ``dmax eval`` and ``dmax sweep`` ask: tasks, rows, and how far they have come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dmax.cli._common.decoding import DecodingOptions
from dmax.cli._common.errors import CommandError, at_least, needs_extra, note, user_errors
from dmax.cli._common.options import ModelOptions, in_panel
from dmax.cli._common.session import decoding_rule, load_llm

if TYPE_CHECKING:
    from dmax.evaluation.answerers import LocalAnswerer
    from dmax.evaluation.runner import Standing, TaskData
    from dmax.evaluation.tasks import Task

_asked = in_panel("What is asked")


@dataclass(frozen=True)
class AskingOptions:
    """Which rows of which tasks, and how many at a time."""

    tasks: Annotated[str, _asked(help="Names, parted by commas.")] = "gsm-symbolic"
    limit: Annotated[int | None, _asked(help="Only the first so many rows of each task.")] = None
    data: Annotated[
        list[str] | None,
        _asked(
            metavar="[TASK=]FILE",
            help="A local file in place of the Hub's; name the task where there are several. Repeatable.",
        ),
    ] = None
    skip_bad: Annotated[bool, _asked("--skip-bad", help="Leave malformed rows out instead of stopping.")] = False
    batch_size: Annotated[int, _asked(help="Prompts in flight together.")] = 16
    unprotected: Annotated[
        bool, _asked("--unprotected", help="Run programs even where no sandbox keeps them from your files.")
    ] = False

    def __post_init__(self) -> None:
        at_least(self, limit=1, batch_size=1)


def load_tasks(asking: AskingOptions, decoding: DecodingOptions) -> list[TaskData]:
    """Load the tasks with their rows, and say what the sandbox of those whose answers are programs lacks here.

    Raises:
        CommandError: there is no such task, its rows cannot be had, or programs would run unprotected unasked.
    """
    wanted = list(dict.fromkeys(name.strip() for name in asking.tasks.split(",") if name.strip()))
    if not wanted:
        raise CommandError("--tasks names no task; give names parted by commas, such as gsm8k,math500.")
    with evaluation_errors():
        from dmax.evaluation.runner import TaskData
        from dmax.evaluation.tasks import SandboxedTask, get_task, load_rows

        tasks = [get_task(name) for name in wanted]
        paths = _paths(asking.data or [], wanted)
        asked = []
        for task in tasks:
            rows = load_rows(task, paths.get(task.name), asking.limit, decoding.seed, skip_bad=asking.skip_bad)
            for problem in rows.skipped:
                note(f"{task.name}: left out {problem}")
            source = rows.source | ({"sandbox": task.isolation()} if isinstance(task, SandboxedTask) else {})
            source |= {"left_out": list(rows.skipped)} if rows.skipped else {}
            gen_length = task.gen_length if decoding.gen_length is None else decoding.gen_length
            asked.append(TaskData(task, list(rows), source, gen_length))
    return _sandboxed(asked, unprotected=asking.unprotected)


def _sandboxed(tasks: list[TaskData], *, unprotected: bool) -> list[TaskData]:
    """Say what the sandbox lacks here before the first program runs, and refuse where it lacks everything.

    Raises:
        CommandError: programs would run unprotected, and that was not asked for.
    """
    from dmax.evaluation.sandbox import available_isolation, require_protection
    from dmax.evaluation.tasks.programming import ProgrammingTask

    if not any(isinstance(data.task, ProgrammingTask) for data in tasks):
        return tasks
    with evaluation_errors():
        if not unprotected:
            require_protection()
        for sentence in available_isolation().missing:
            note(f"Sandbox: {sentence}")
    return [
        replace(data, task=cast("Task", replace(data.task, unprotected=unprotected)))
        if isinstance(data.task, ProgrammingTask)
        else data
        for data in tasks
    ]


def _paths(files: list[str], wanted: list[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for given in files:
        name, equals, path = given.partition("=")
        if equals and name in wanted:
            paths[name] = Path(path)
        elif len(wanted) == 1:
            paths[wanted[0]] = Path(given)
        else:
            raise CommandError(f"--data {given!r} must say which of {', '.join(wanted)} it is for: TASK=FILE.")
    return paths


def local_answerer(options: ModelOptions, decoding: DecodingOptions, batch_size: int) -> LocalAnswerer:
    """Load a model as one who answers.

    Raises:
        CommandError: there is no such model, or a decoding option is out of range.
    """
    from dmax.evaluation.answerers import LocalAnswerer, weights_hash

    rule = decoding_rule(decoding)
    llm = load_llm(options, sequences=batch_size, gen_length=rule.params.gen_length)
    llm.max_batch_size = batch_size
    return LocalAnswerer(llm, rule.params, options.model, weights_hash(options.model))


@contextmanager
def evaluation_errors() -> Iterator[None]:
    """Turn bad input into one sentence, and name a missing extra."""
    with needs_extra("eval", "this"), user_errors():
        yield


@contextmanager
def progress_bars() -> Iterator[Callable[[Standing], None]]:
    """Show a bar a task, with the accuracy and the TPF so far."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[standing]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, Any] = {}

        def show(standing: Standing) -> None:
            if standing.task not in bars:
                bars[standing.task] = progress.add_task(standing.task, total=standing.total, standing="")
            text = f"{standing.right / standing.done:.1%} right" if standing.done else ""
            text += f" · {standing.tpf:.2f} TPF" if standing.tpf is not None else ""
            progress.update(bars[standing.task], completed=standing.done, standing=text)

        yield show
