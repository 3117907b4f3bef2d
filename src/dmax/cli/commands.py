"""The ``dmax`` command and its sub-commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from dmax.cli._common.decoding import DecodingCommand
from dmax.cli._common.errors import OneLineErrors
from dmax.cli._common.options import option_groups, takes_decoding
from dmax.cli.adapt import adapt
from dmax.cli.bench import bench
from dmax.cli.chat import chat
from dmax.cli.compile import compile_model
from dmax.cli.convert import convert
from dmax.cli.distill import distill
from dmax.cli.evaluate import evaluate
from dmax.cli.generate import generate
from dmax.cli.info import info
from dmax.cli.report import report
from dmax.cli.serve import serve
from dmax.cli.sweep import sweep
from dmax.cli.train import train
from dmax.cli.visualize import visualize
from dmax.machine import wait_little

DISTRIBUTION = "dmax-llm"

app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "chat": chat,
    "visualize": visualize,
    "serve": serve,
    "info": info,
    "eval": evaluate,
    "sweep": sweep,
    "report": report,
    "bench": bench,
    "compile": compile_model,
    "convert": convert,
    "adapt": adapt,
    "train": train,
    "distill": distill,
}
for _name, _command in _COMMANDS.items():
    _kind = DecodingCommand if takes_decoding(_command) else None
    app.command(_name, cls=_kind)(option_groups(_command))


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            number = version(DISTRIBUTION)
        except PackageNotFoundError:
            number = "(not installed)"
        typer.echo(f"dmax {number}")
        raise typer.Exit


@app.callback()
def _dmax(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run DMax diffusion language models: text decoded many tokens at a time."""


def main() -> None:
    """Run the ``dmax`` console script."""
    if sys.argv[1:2] != ["train"]:
        wait_little()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows a substitute; it is no reason to fail after the work is done.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="dmax")
