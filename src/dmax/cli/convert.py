"""``dmax convert``: a checkpoint in another layout, or in 8 or 4 bits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmax.cli._common.errors import CommandError, choose, note, user_errors
from dmax.cli._common.progress import bytes_done

if TYPE_CHECKING:
    from dmax.models.convert import WeightError


@dataclass(frozen=True)
class TargetOptions:
    """What the new checkpoint is to be like."""

    layout: Annotated[
        str | None,
        typer.Option(help="merged: one tensor for all experts of a layer; separate, as published: one each."),
    ] = None
    quantize: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="int8, fp8 (both with a scale an output channel) or int4."),
    ] = None
    parts: Annotated[
        str, typer.Option(metavar="LIST", help="With --quantize: experts, dense (all other projections), or both.")
    ] = "experts,dense"
    group: Annotated[
        int, typer.Option(metavar="N", help="With int4: inputs that share scale and zero point, 32 or 64.")
    ] = 64
    method: Annotated[
        str, typer.Option(help="With int4: nearest; or search, for the scales of the smallest error, in more time.")
    ] = "nearest"
    embeddings: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="int8: embedding table and head, too."),
    ] = None

    def __post_init__(self) -> None:
        if self.layout is None and self.quantize is None and self.embeddings is None:
            raise CommandError("There is nothing to convert: give --layout, --quantize or --embeddings.")
        choose("layout", self.layout or "merged", ("merged", "separate"))
        choose("quantize", self.quantize or "int8", ("int8", "fp8", "int4"))
        choose("embeddings", self.embeddings or "int8", ("int8",))
        choose("method", self.method, ("nearest", "search"))
        for part in self.parts.split(","):
            choose("parts", part, ("experts", "dense"))

    def quantization(self) -> dict[str, Any]:
        """Return what :class:`~dmax.models.convert.Quantization` takes."""
        return {
            "weights": self.quantize,
            "parts": tuple(self.parts.split(",")),
            "group": self.group,
            "method": self.method,
            "embeddings": self.embeddings,
        }


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint folder, or a Hugging Face id.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="A folder that does not exist yet.", show_default=False)],
    target: TargetOptions,
    errors: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the relative error of every quantised weight.")
    ] = None,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Begin although there is less memory than it needs.")
    ] = False,
) -> None:
    """Rewrite a checkpoint: experts merged or separate, bit for bit; or weights in 8 or 4 bits, and their errors.

    The same command goes on where an interrupted one stopped.
    """
    from dmax.models.convert import Quantization, convert_checkpoint, errors_by_layer

    arguments = target.quantization()
    try:
        with user_errors(), bytes_done("Converting") as show:
            found = convert_checkpoint(
                source,
                destination,
                target.layout,  # type: ignore[arg-type]  # chosen above, as are the others
                quantization=Quantization(**arguments),
                progress=show,
                ignore_memory=ignore_memory,
            )
    except KeyboardInterrupt:
        note("Stopped; the same command goes on from here.")
        raise typer.Exit(130) from None
    for error in errors_by_layer(found):
        where = "" if error.layer is None else f"layer {error.layer}"
        note(f"{where:9}  {error.part:10}  relative error {error.relative_error:.3%}")
    if errors is not None:
        with user_errors():
            errors.write_text(_report(found, arguments), encoding="utf-8")
    typer.echo(destination)


def _report(found: list[WeightError], arguments: dict[str, Any]) -> str:
    weights = [
        {"name": error.name, "part": error.part, "relative_error": error.relative_error}
        for error in sorted(found, key=lambda error: -error.relative_error)
    ]
    return json.dumps({"quantization": arguments, "weights": weights}, indent=1) + "\n"
