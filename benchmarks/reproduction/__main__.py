"""``python -m benchmarks.reproduction``, in a clone of the repository: the comparisons of the paper, measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmax.cli._common.asking import evaluation_errors
from dmax.cli._common.errors import CommandError, OneLineErrors, needs_extra, note, resumable
from dmax.cli._common.session import AUTO, check_placement

if TYPE_CHECKING:
    from benchmarks.reproduction import Scale

MODULE = "benchmarks.reproduction"
REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "recipes" / "gsm-symbolic" / "3-oput.yaml"

app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    subcommand_metavar="",
)


class ScaleName(StrEnum):
    """The scales there are."""

    NANO = "nano"


@app.callback()
def main(
    scale: Annotated[ScaleName, typer.Option(help="nano: hours on two CPU cores.")] = ScaleName.NANO,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the work; the same command goes on with what is there.")
    ] = Path("runs/reproduction"),
    page: Annotated[Path, typer.Option(metavar="FILE", help="The page that is written at the end.")] = Path(
        "docs/results/reproduction.md"
    ),
    base: Annotated[str, typer.Option(help="The model that every training starts from.")] = "nano-base",
    recipe: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Of OPUT; its optimiser and batches serve every training.",
            show_default="recipes/gsm-symbolic/3-oput.yaml",
        ),
    ] = RECIPE,
    gsm8k: Annotated[
        Path | None, typer.Option(metavar="FILE", help="GSM8K's test set, to be answered too.", show_default=False)
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML: why a claim holds or not, by its key.", show_default=False),
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Answers to train on; the scale's if not given.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="Problems a setting; the scale's if not given.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Training seeds; the scale's if not given.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps a training; the scale's if not given.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that train together; changes no result.")] = 1,
    jobs: Annotated[
        int, typer.Option(min=1, help="Models trained and measured at one time, each on its share of the cores.")
    ] = 1,
    dtype: Annotated[
        str, typer.Option(help="Of the arithmetic that answers problems: float32, bfloat16, float16 or auto: float32.")
    ] = AUTO,
) -> None:
    """Reproduce the paper: train the baselines, OPUT and its ablations from one base model, measure all, write a page.

    Takes hours, and goes on where it stopped. The page says of each claim of the paper whether it holds at this scale.
    """
    _, chosen = check_placement(AUTO, dtype)
    with needs_extra("train", "reproducing the paper"), evaluation_errors():
        from benchmarks.reproduction import NANO, Plan, ReproductionError, reproduce
        from benchmarks.reproduction.page import write_page

        amount = _amount(NANO, prompts, problems, seeds, steps)
        why = {} if notes is None else _notes(notes)
        plan = Plan(base, recipe, amount, processes, gsm8k, jobs, None if chosen == AUTO else chosen)
        try:
            with resumable(out):
                results = reproduce(plan, out, command=["python", "-m", MODULE, *sys.argv[1:]], on_step=note)
        except ReproductionError as error:
            raise CommandError(str(error)) from error
        write_page(results, page, why)
    typer.echo(page)


def _amount(scale: Scale, prompts: int | None, problems: int | None, seeds: int | None, steps: int | None) -> Scale:
    return replace(
        scale,
        prompts=prompts or scale.prompts,
        problems=problems or scale.problems,
        seeds=scale.seeds if seeds is None else tuple(range(1, seeds + 1)),
        steps=steps or scale.steps,
    )


def _notes(path: Path) -> dict[str, str]:
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
