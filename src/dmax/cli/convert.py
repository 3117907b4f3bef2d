"""``dmax convert``: a checkpoint in another layout, or in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from dmax.cli._common.errors import CommandError, choose, note, user_errors


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
