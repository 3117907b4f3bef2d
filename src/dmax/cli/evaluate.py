"""``dmax eval``: benchmarks answered, graded and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dmax.cli._common.asking import AskingOptions, evaluation_errors, load_tasks, local_answerer, progress_bars
from dmax.cli._common.decoding import DecodingOptions
from dmax.cli._common.errors import CommandError, note, resumable
from dmax.cli._common.options import ModelOptions, in_panel
from dmax.cli._common.session import decoder_of, own_command

if TYPE_CHECKING:
    from dmax.evaluation.answerers import Answerer
    from dmax.evaluation.runner import TaskData

_of_server = in_panel("A model that is served")
_FAILURES = 8
"""Answers of a server that may fail in a row."""


@dataclass(frozen=True)
class ServedOptions:
    """Which server is measured in place of a model that is loaded here."""

    base_url: Annotated[
        str | None,
        _of_server(help="Measure a server instead, such as http://localhost:8000/v1."),
    ] = None
    api_key: Annotated[str | None, _of_server(envvar="OPENAI_API_KEY", help="Its key.")] = None
    timeout: Annotated[float, _of_server(min=1, help="Seconds that it may take for one answer.")] = 600.0


@dataclass(frozen=True)
class RunOptions:
    """What a run does with rows, and with a folder that has some already."""

    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the results; the same command goes on with what is there."),
    ] = None
    describe: Annotated[
        str | None, typer.Option(metavar="TASK", help="Show a task's prompt and grading, and stop.")
    ] = None
    samples: Annotated[
        int, typer.Option(min=1, metavar="K", help="Answers a row, drawn apart (--temperature); gives pass@k.")
    ] = 1
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed/--keep-failed", help="Ask rows that failed again when a run goes on.")
    ] = True
    regrade: Annotated[bool, typer.Option("--regrade", help="Grade the stored answers of --out again; no model.")] = (
        False
    )


def evaluate(
    model: ModelOptions, asking: AskingOptions, decoding: DecodingOptions, served: ServedOptions, run: RunOptions
) -> None:
    """Measure accuracy and tokens per forward on benchmarks.

    Writes results.json and every answer into a folder, and prints a table. Ends with 1 where a task has no answer.
    """
    if run.describe is not None:
        _describe(run.describe)
        return
    if run.samples > 1 and not decoding.values["temperature"]:
        raise CommandError(f"--samples {run.samples} needs answers that differ; give a --temperature above 0.")
    tasks = [replace(data, samples=run.samples) for data in load_tasks(asking, decoding)]
    folder = Path("runs") / "eval" / _run_name(model, decoding, served) if run.out is None else run.out
    with evaluation_errors():
        from dmax.evaluation.runner import RunSettings
        from dmax.evaluation.runner import evaluate as answer_and_grade

        if run.regrade:
            _regrade(tasks, folder)
            return
        if served.base_url is None:
            answerer: Answerer = local_answerer(model, decoding, asking.batch_size)
        else:
            answerer = _server(served, model, decoding, asking.batch_size)
        settings = RunSettings(
            seed=decoding.values["seed"],
            command=own_command(),
            retry_failed=run.retry_failed,
            most_failures=None if served.base_url is None else _FAILURES,
        )
        with resumable(folder), progress_bars() as show:
            results = answer_and_grade(tasks, answerer, folder, settings, on_progress=show)
    if results is None:
        note(f"This process is done; the last one writes {folder / 'results.json'}.")
    else:
        _show(results, folder)
        if any(task["metrics"]["failed"] == task["metrics"]["n"] for task in results["tasks"].values()):
            raise typer.Exit(1)


def _show(results: dict[str, Any], folder: Path) -> None:
    Console().print(_table(results))
    for name, task in results["tasks"].items():
        if passes := task["metrics"].get("pass_at_k"):
            note(f"{name}: " + ", ".join(f"pass@{k} {share:.1%}" for k, share in passes.items()))
    for failure in _failures(results, folder):
        note(failure)
    note(f"Results and every answer: {folder}")


def _regrade(tasks: list[TaskData], folder: Path) -> None:
    from dmax.evaluation.regrade import regrade

    results = regrade(tasks, folder)
    if results is None:
        note(f"The answers in {folder} are graded again; the run is not finished, so there are no results yet.")
    else:
        _show(results, folder)


def _server(served: ServedOptions, model: ModelOptions, decoding: DecodingOptions, concurrency: int) -> Answerer:
    from dmax.evaluation.remote import RemoteAnswerer

    assert served.base_url is not None
    answerer = RemoteAnswerer(
        served.base_url,
        model.model,
        api_key=served.api_key,
        concurrency=concurrency,
        temperature=decoding.values["temperature"],
        extra=_request_fields(decoding),
        timeout=served.timeout,
    )
    answerer.check()
    return answerer


def _request_fields(decoding: DecodingOptions) -> dict[str, Any]:
    """Return the decoding options that were given, under the names that ``dmax serve`` has for them.

    Those that were not are the server's to choose, whatever their defaults here. Length and temperature are fields of
    every request already, and the seed is that of its row.
    """
    asked = decoding.given - {"gen_length", "temperature", "seed"}
    given = {name: value for name, value in decoding.values.items() if name in asked}
    given |= {"stop": list(given["stop"])} if "stop" in given else {}
    return given | ({"decoder_options": dict(decoding.further)} if decoding.further else {})


def _run_name(model: ModelOptions, decoding: DecodingOptions, served: ServedOptions) -> str:
    servers_choice = served.base_url and "decoder" not in _request_fields(decoding)
    decoder = "as-served" if servers_choice else decoder_of(model.model, decoding)
    threshold = "" if decoding.threshold is None else f"-{decoding.threshold:g}"
    return f"{'served-' if served.base_url else ''}{Path(model.model).name or 'model'}-{decoder}{threshold}"


def _describe(name: str) -> None:
    with evaluation_errors():
        from dmax.evaluation.tasks import describe, get_task

        typer.echo(describe(get_task(name)))


def _table(results: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    for heading in ("rows", "right", "95 %", "TPF", "pooled", "NFE", "tokens", "tok/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, task in results["tasks"].items():
        metrics = task["metrics"]
        low, high = metrics["accuracy_ci95"]
        table.add_row(
            name,
            str(metrics["n"]),
            f"{metrics['accuracy']:.1%}",
            f"{100 * low:.1f}–{100 * high:.1f}",
            *(_number(metrics[key]) for key in ("tpf_mean", "tpf_pooled", "nfe_mean", "tokens_mean", "tps")),
        )
    return table


def _failures(results: dict[str, Any], folder: Path) -> Iterator[str]:
    """Tell what went wrong where answers are missing, which otherwise only lowers the accuracy."""
    from dmax.evaluation.report import read_samples

    for name, task in results["tasks"].items():
        if failed := task["metrics"]["failed"]:
            errors = [(sample["error"], sample["text"]) for sample in read_samples(folder, name) if sample["error"]]
            again = " (the same command asks again)" if any(text is None for _, text in errors) else ""
            yield (
                f"{name}: {failed} of {task['metrics']['n']} answers failed and count as wrong{again}; the first: "
                f"{errors[0][0]}"
            )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
