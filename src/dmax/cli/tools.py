"""``dmax convert`` and ``dmax train``: the command line of work done elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from dmax.cli.errors import CommandError, choose, needs_extra, note, user_errors
from dmax.cli.plan import plan_table, row_text


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint folder, or a Hugging Face id.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="A folder that does not exist yet.", show_default=False)],
    layout: Annotated[
        str | None,
        typer.Option(help="merged: one tensor for all experts of a layer; separate, as published: one each."),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="fp8 or int8: 8-bit weights, with one scale an output channel."),
    ] = None,
    parts: Annotated[
        str, typer.Option(metavar="LIST", help="With --quantize: experts, dense (all other projections), or both.")
    ] = "experts,dense",
) -> None:
    """Rewrite a checkpoint: experts merged or separate, bit for bit; or weights in 8 bits, with each layer's error."""
    if layout is None and quantize is None:
        raise CommandError("There is nothing to convert: give --layout, --quantize or both.")
    choose("layout", layout or "separate", ("merged", "separate"))
    choose("quantize", quantize or "fp8", ("fp8", "int8"))
    for part in parts.split(","):
        choose("parts", part, ("experts", "dense"))
    from dmax.models.convert import ExpertLayout, convert_checkpoint
    from dmax.models.quantized import Part, WeightFormat

    console = Console(stderr=True)
    columns = (TextColumn("Converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(written: int, total: int) -> None:
            progress.update(task, completed=written, total=total)

        with user_errors():
            errors = convert_checkpoint(
                source,
                destination,
                cast(ExpertLayout, layout or "separate"),
                weights=cast(WeightFormat | None, quantize),
                parts=cast(list[Part], parts.split(",")),
                progress=show,
            )
    for error in errors:
        note(f"layer {error.layer:3}  {error.part:7}  relative error {error.relative_error:.3%}")
    typer.echo(destination)


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
) -> None:
    """Train a model by a recipe."""
    with needs_extra("train", "training"):
        from dmax.evaluation.word_problems import validator
        from dmax.training.run import plan_recipe, run_recipe
    if show_rows is not None:
        from dmax.training.run import show_rows as rows_of

        with user_errors():
            for number, row in enumerate(rows_of(recipe, show_rows, output, _local_data(data or [])), 1):
                typer.echo(row_text(number, row))
        return
    if dry_run:
        with user_errors():
            plan, available = plan_recipe(recipe, output, processes, device_memory)
            Console().print(plan_table(plan, available))
            plan.check(available)
        return
    try:
        with user_errors():
            weights = run_recipe(recipe, output, resume, validator, _local_data(data or []))
    except KeyboardInterrupt:
        note("Stopped; --resume goes on from the newest checkpoint.")
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":
        typer.echo(weights)


def _local_data(given: list[str]) -> dict[str, str]:
    """The paths that stand for data sets, by their ids."""
    pairs = [pair.partition("=") for pair in given]
    for name, equals, path in pairs:
        if not (name and equals and path):
            raise CommandError(f"--data {name!r} has no path; give it as ID=PATH, such as openai/gsm8k=train.jsonl.")
    return {name: path for name, _, path in pairs}
