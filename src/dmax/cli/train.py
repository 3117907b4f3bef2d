"""``dmax train``: a model trained by a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dmax.cli._common.errors import CommandError, needs_extra, note, user_errors
from dmax.cli._common.plan import plan_table, row_text


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as recipes/smoke/oput.yaml.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run; runs/<name of the recipe> if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run needs and whether it fits; load no weight.")
    ] = False,
    show_rows: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Print the first N examples, which of their tokens are trained on; load no weight."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=PATH", help="Read a data set of the Hub from a file or folder here; may be repeated."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="For --dry-run: processes that are to share the model.")] = 1,
    device_memory: Annotated[
        float | None,
        typer.Option(min=0, metavar="GIB", help="For --dry-run: of each device."),
    ] = None,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Begin although there is less memory than the run needs.")
    ] = False,
) -> None:
    """Train a model by a recipe."""
    with needs_extra("train", "training"):
        from dmax.evaluation.validation import validator
        from dmax.training.run import plan_recipe, run_recipe
    if show_rows is not None:
        from dmax.training.run import show_rows as rows_of

        with user_errors():
            for number, row in enumerate(rows_of(recipe, show_rows, output, _local_data(data or [])), 1):
                typer.echo(row_text(number, row))
        return
    if dry_run:
        with user_errors():
            plan, device, available = plan_recipe(recipe, output, processes, device_memory, _local_data(data or []))
            Console().print(plan_table(plan, available))
            plan.check(available, device)
        return
    try:
        with user_errors():
            weights = run_recipe(recipe, output, resume, validator, _local_data(data or []), ignore_memory)
    except KeyboardInterrupt:
        note("Stopped; --resume goes on from the newest checkpoint.")
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":
        typer.echo(weights)


def _local_data(given: list[str]) -> dict[str, str]:
    """Read the paths that stand for data sets, by their ids."""
    pairs = [pair.partition("=") for pair in given]
    for name, equals, path in pairs:
        if not (name and equals and path):
            raise CommandError(f"--data {name!r} has no path; give it as ID=PATH, such as openai/gsm8k=train.jsonl.")
    return {name: path for name, _, path in pairs}
