"""``dmax distill``: training data from a model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dmax.cli._common.asking import evaluation_errors, local_answerer
from dmax.cli._common.decoding import DecodingOptions
from dmax.cli._common.errors import CommandError, at_least, needs_extra, note, resumable
from dmax.cli._common.options import ModelOptions, in_panel
from dmax.cli._common.session import decoding_rule, own_command

if TYPE_CHECKING:
    from dmax.distillation import Prompts, Workers
    from dmax.distillation.run import Standing
    from dmax.evaluation.tasks import HubSource

_of_prompts = in_panel("What is asked")
_of_work = in_panel("How the work is done")


@dataclass(frozen=True)
class AnswerOptions(DecodingOptions):
    """Decoding as the paper made its training data: ``threshold``, at that decoder's own 0.95."""

    defaults: ClassVar[Mapping[str, Any]] = {**DecodingOptions.defaults, "decoder": "threshold"}
    helps: ClassVar[Mapping[str, str]] = {
        "decoder": "threshold, or any other that dmax generate takes.",
        "gen_length": "Most tokens of the answer; 2048, or the task's own, if not given.",
    }


@dataclass(frozen=True)
class PromptOptions:
    """Where prompts come from."""

    task: Annotated[
        str | None,
        _of_prompts(
            help="gsm-symbolic, everyday or parallel-stress, whose training rows are drawn; reasoning-gym:NAME; or a "
            "task of dmax eval, for rows in its layout. Left out, rows are plain prompts."
        ),
    ] = None
    data: Annotated[
        Path | None,
        _of_prompts(metavar="FILE", help="Rows: .jsonl, .json, .csv or .parquet."),
    ] = None
    hub: Annotated[
        str | None,
        _of_prompts(
            metavar="OWNER/NAME[:CONFIG[:SPLIT]]", help="Rows of a data set on the Hub; default and train if not given."
        ),
    ] = None
    column: Annotated[
        str | None,
        _of_prompts(
            help="Where plain prompts stand; messages, prompt, question, problem, instruction or input if not given."
        ),
    ] = None
    limit: Annotated[int | None, _of_prompts(help="Only the first so many rows.")] = None
    skip_bad: Annotated[bool, _of_prompts("--skip-bad", help="Leave malformed rows out instead of stopping.")] = False
    check: Annotated[bool, _of_prompts("--check", help="Drop answers that the task grades as wrong.")] = False


@dataclass(frozen=True)
class WorkOptions:
    """How many answers at a time, and who gives them."""

    batch_size: Annotated[int, _of_work(help="Prompts in flight together.")] = 32
    shard_size: Annotated[
        int,
        _of_work(help="Prompts that are written, and lost by an interruption, together."),
    ] = 256
    ray_actors: Annotated[
        int,
        _of_work(help="Actors of Ray Data, each with the model; 0 works in this process."),
    ] = 0
    gpus_per_actor: Annotated[
        float | None,
        _of_work(help="1 where the Ray cluster has GPUs, if not given."),
    ] = None

    def __post_init__(self) -> None:
        at_least(self, batch_size=1, shard_size=1, ray_actors=0)


def distill(
    model: ModelOptions,
    asking: PromptOptions,
    decoding: AnswerOptions,
    work: WorkOptions,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the set; the same command goes on with what is there.")
    ],
) -> None:
    """Make training data of a model's own answers.

    Answers prompts, drops what is unfinished, empty or (with --check) wrong, and writes train.jsonl and manifest.json.
    """
    prompts = _prompts(asking, decoding)
    with evaluation_errors():
        from dmax.distillation import DistillationSettings
        from dmax.distillation import distill as run

        with resumable(out), _progress_bar() as show:
            workers = _workers(model, decoding, work)
            settings = DistillationSettings(
                generator=_generator(model, decoding),
                gen_length=decoding.gen_length or prompts.source.gen_length,
                seed=decoding.seed,
                checked=asking.check,
                shard_size=work.shard_size,
                command=own_command(),
            )
            manifest = run(prompts, workers, out, settings, on_progress=show)
    if manifest is None:
        note(f"This process is done; the last one writes {out / 'train.jsonl'}.")
    else:
        note(_summary(manifest["counts"]))
        typer.echo(out / manifest["output"]["file"])


def _prompts(asking: PromptOptions, decoding: DecodingOptions) -> Prompts:
    if asking.data is not None and asking.hub is not None:
        raise CommandError("--data and --hub are two places for the same rows; give one of them.")
    if asking.limit is not None and asking.limit < 1:
        raise CommandError(f"--limit is {asking.limit}; it must be at least 1.")
    with evaluation_errors():
        from dmax.distillation import GradedSource, find_source, load_prompts

        source = find_source(asking.task, asking.column)
        if asking.check and not isinstance(source, GradedSource):
            raise CommandError("--check needs a grader, and plain prompts have none; name a task with --task.")
        place = asking.data if asking.hub is None else _hub_source(asking.hub)
        prompts = load_prompts(source, place, asking.limit, decoding.seed, skip_bad=asking.skip_bad)
    for problem in prompts.malformed:
        note(f"Left out {problem}")
    return prompts


def _hub_source(given: str) -> HubSource:
    from dmax.evaluation.tasks import HubSource

    name, *rest = given.split(":")
    config, split = [*rest, *("default", "train")[len(rest) :]][:2]
    if name.count("/") != 1 or len(rest) > 2 or not all((name, config, split)):
        raise CommandError(
            f"--hub {given!r} must have the form OWNER/NAME, OWNER/NAME:CONFIG or OWNER/NAME:CONFIG:SPLIT."
        )
    return HubSource(name, config, split)


def _workers(model: ModelOptions, decoding: DecodingOptions, work: WorkOptions) -> Workers:
    from dmax.distillation import InProcess, RayActors

    make = partial(local_answerer, model, decoding, work.batch_size)
    if not work.ray_actors:
        return InProcess(make)
    with needs_extra("ray", "--ray-actors"):
        import_module("ray.data")
    return RayActors(make, work.ray_actors, work.gpus_per_actor)


def _generator(model: ModelOptions, decoding: DecodingOptions) -> dict[str, Any]:
    """Tell who answers, and how, without loading the weights."""
    from dmax.engine.requests import decoder_settings
    from dmax.evaluation.answerers import weights_hash

    rule = decoding_rule(decoding).on(model.model)
    return {
        "model": {"name": model.model, "hash": weights_hash(model.model), "dtype": model.dtype},
        "decoder": rule.params.decoder,
        "params": decoder_settings(rule.decoder, rule.params),
    }


def _summary(counts: dict[str, Any]) -> str:
    dropped = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items() if count)
    return f"Kept {counts['kept']} of {counts['prompts']} prompts" + (f"; dropped: {dropped}." if dropped else ".")


@contextmanager
def _progress_bar() -> Iterator[Callable[[Standing], None]]:
    console = Console(stderr=True)
    columns = (
        TextColumn("Answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[kept]} kept"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=None, kept=0)

        def show(standing: Standing) -> None:
            progress.update(bar, completed=standing.done, total=standing.total, kept=standing.kept)

        yield show
