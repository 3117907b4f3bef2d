"""``dmax report``: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmax.cli._common.errors import note, user_errors
from dmax.cli._common.files import check_writable, write_text


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders that dmax eval wrote.", show_default=False)
    ],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run that the others are compared with; the first if not given."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as one web page too.")] = None,
) -> None:
    """Compare finished runs: accuracy, cost, and what is more than chance, as Markdown."""
    if html is not None:
        check_writable(html)
    from dmax.evaluation.report import compare, read_runs, to_html, to_markdown

    with user_errors():
        comparison = compare(read_runs(runs), baseline)
    typer.echo(to_markdown(comparison), nl=False)
    if html is not None:
        write_text(html, to_html(comparison))
        note(f"Wrote {html}.")
