"""``python -m benchmarks.reproduction``, in a clone of the repository: the comparisons of the paper, measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dmax.cli._common.asking import evaluation_errors
from dmax.cli._common.errors import CommandError, OneLineErrors, choose, needs_extra, note, resumable
from dmax.cli._common.session import AUTO, check_placement

MODULE = "benchmarks.reproduction"
REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "recipes" / "nano" / "3-oput.yaml"

app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the study; the same command goes on with it.")]
OUT = Path("runs/reproduction")
Page = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The page that is written at the end; reproduction.md in the folder if not given."
    ),
]
Notes = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML: why a claim holds or not, by its key.", show_default=False)
]


@app.callback()
def main(
    context: typer.Context,
    out: Out = OUT,
    base: Annotated[
        str | None,
        typer.Option(
            help="The model that every training starts from; once begun, the folder has it.", show_default=False
        ),
    ] = None,
    recipe: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Of OPUT; its data, optimiser, batches and steps serve every training.",
            show_default="recipes/nano/3-oput.yaml",
        ),
    ] = RECIPE,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW", help="Train and measure this row alone; may be repeated. `status` lists rows."),
    ] = None,
    budget_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of all steps and problems, to try a study out in short.")
    ] = 1.0,
    problems: Annotated[int, typer.Option(min=2, help="That every setting is asked, of each kind.")] = 1000,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=PATH", help="Read a data set of the Hub from a file here; may be repeated."),
    ] = None,
    gsm8k: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="GSM8K's test set, to be answered too.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that train together; changes no result.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Rows at one time, each on its share of the cores.")] = 1,
    dtype: Annotated[
        str, typer.Option(help="Of the arithmetic that answers problems: float32, bfloat16, float16 or auto: float32.")
    ] = AUTO,
    page: Page = None,
    notes: Notes = None,
) -> None:
    """Reproduce the paper: train its baselines, OPUT and what may be better from one base model, measure all.

    Takes days on two CPU cores, and goes on where it stopped, also on another machine that is given the folder. At the
    end it writes a page that says of each claim whether it holds at this scale.
    """
    if context.invoked_subcommand is not None:
        return
    _, chosen = check_placement(AUTO, dtype)
    why = _notes(notes)
    with _errors():
        from benchmarks.reproduction import ROWS, Plan, Scale, read_recipe, reproduce

        for row in only or []:
            choose("row", row, ROWS)
        scale = Scale(problems, budget_share)
        files = {name: str(path) for name, path in (_file(pair) for pair in data or [])}
        dtype_of_answers = None if chosen == AUTO else chosen
        plan = Plan(read_recipe(recipe), scale, dtype_of_answers, processes, jobs, files, gsm8k)
        with resumable(out):
            reproduce(plan, out, base, only=only or (), command=_command(), on_step=note)
    _write(out, page, why)


@app.command("status")
def show_status(out: Out = OUT) -> None:
    """Tell what is done, what runs, and the hours spent and left."""
    with _errors():
        from benchmarks.reproduction.progress import status

        typer.echo(status(out))


@app.command("page")
def write(out: Out = OUT, page: Page = None, notes: Notes = None) -> None:
    """Write the page from what is measured by now."""
    _write(out, page, _notes(notes))


def _write(out: Path, page: Path | None, notes: dict[str, str]) -> None:
    with _errors():
        from benchmarks.reproduction import gather
        from benchmarks.reproduction.page import write_page

        page = out / "reproduction.md" if page is None else page
        write_page(gather(out, _command()), page, notes)
    typer.echo(page)


@contextmanager
def _errors() -> Iterator[None]:
    """Say in one sentence what the user can mend."""
    with needs_extra("train", "reproducing the paper"), evaluation_errors():
        from benchmarks.reproduction import ReproductionError

        try:
            yield
        except ReproductionError as error:
            raise CommandError(str(error)) from error


def _command() -> list[str]:
    return ["python", "-m", MODULE, *sys.argv[1:]]


def _file(pair: str) -> tuple[str, Path]:
    """Read a data set's id and the file in its place."""
    name, _, path = pair.partition("=")
    if not (name and path):
        raise CommandError(f"--data {pair!r} has no path; give it as ID=PATH, such as openai/gsm8k=train.jsonl.")
    if not Path(path).exists():
        raise CommandError(f"there is no {path}, which --data names for {name}.")
    return name, Path(path).absolute()  # trainings run in the study's folder


def _notes(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    import yaml
    from benchmarks.reproduction.claims import CLAIMS

    try:
        notes = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    known = [claim.key for claim in CLAIMS]
    if not isinstance(notes, dict) or not set(notes) <= set(known):
        raise CommandError(f"{path} must map keys of claims to sentences; the keys are {', '.join(known)}.")
    return {key: str(text) for key, text in notes.items()}


if __name__ == "__main__":
    app(prog_name=f"python -m {MODULE}")
