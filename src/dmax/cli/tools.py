"""``dmax convert`` and ``dmax train``: the command line of work done elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from dmax.cli.errors import choose, needs_extra, note, user_errors


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint folder, or a Hugging Face id.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="A folder that does not exist yet.", show_default=False)],
    layout: Annotated[
        str, typer.Option(help="merged: one tensor for all experts of a layer; separate, as published: one each.")
    ],
) -> None:
    """Rewrite a checkpoint with its experts merged or separate, bit for bit."""
    choose("layout", layout, ("merged", "separate"))
    from dmax.models.convert import ExpertLayout, convert_checkpoint

    console = Console(stderr=True)
    columns = (TextColumn("Converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(written: int, total: int) -> None:
            progress.update(task, completed=written, total=total)

        with user_errors():
            convert_checkpoint(source, destination, cast(ExpertLayout, layout), progress=show)
    typer.echo(destination)


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as recipes/smoke/oput.yaml.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run; runs/<name of the recipe> if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")] = False,
) -> None:
    """Train a model by a recipe."""
    with needs_extra("train", "training"):
        from dmax.evaluation.word_problems import validator
        from dmax.training.run import run_recipe
    try:
        with user_errors():
            weights = run_recipe(recipe, output, resume, validator)
    except KeyboardInterrupt:
        note("Stopped; --resume goes on from the newest checkpoint.")
        raise typer.Exit(130) from None
    typer.echo(weights)
