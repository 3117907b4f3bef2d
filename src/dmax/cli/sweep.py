"""``dmax sweep``: accuracy against speed, over decoders, thresholds and models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmax.cli._common.asking import AskingOptions, evaluation_errors, load_tasks, local_answerer, progress_bars
from dmax.cli._common.decoding import DecodingOptions
from dmax.cli._common.errors import CommandError, note, resumable
from dmax.cli._common.options import ModelOptions, in_panel
from dmax.cli._common.session import decoder_of, decoding_rule, own_command
from dmax.engine.params import OPTIONAL_SETTINGS

if TYPE_CHECKING:
    from dmax.evaluation.answerers import LocalAnswerer
    from dmax.evaluation.runner import TaskData
    from dmax.evaluation.sweep import Setting

_swept = in_panel("What is swept")
THRESHOLDS = "0.99,0.95,0.9,0.8,0.7,0.5,0.3,0"


def sweep(
    model: ModelOptions,
    asking: AskingOptions,
    decoding: DecodingOptions,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the sweep; the same command goes on with what is there.")
    ] = Path("runs/sweep"),
    over: Annotated[
        list[str] | None,
        _swept(
            metavar="[MODEL:]DECODER[=T,T,…]",
            help="A decoder and its thresholds, if it has any, on a model other than --model if named. Repeatable.",
        ),
    ] = None,
    thresholds: Annotated[str, _swept(help="Thresholds of decoders that name none of their own.")] = THRESHOLDS,
    tolerance: Annotated[float, _swept(help="Accuracy points that the recommended setting may lose.")] = 1.0,
) -> None:
    """Measure accuracy against tokens per forward over a range of settings.

    Writes curves, the AUP of every method and a recommended setting; goes on point by point after an interruption.
    """
    if tolerance < 0:
        raise CommandError(f"--tolerance is {tolerance:g}; it must be 0 or more accuracy points.")
    settings = _settings(over or [decoder_of(model.model, decoding)], model, decoding, thresholds)
    tasks = load_tasks(asking, decoding)
    with evaluation_errors():
        from dmax.evaluation.answerers import weights_hash
        from dmax.evaluation.sweep import run_sweep

        hashes = {name: weights_hash(name) for name in {setting.model for setting in settings}}
        settings = [replace(setting, weights=hashes[setting.model]) for setting in settings]
        with resumable(out):
            page = run_sweep(
                settings,
                out,
                _Points(tasks, model, decoding, asking.batch_size),
                shared=_shared(tasks, decoding, asking.batch_size, model),
                tolerance_points=tolerance,
                on_point=lambda setting, finished: None if finished else note(setting.folder_name),
            )
    typer.echo(page.read_text(encoding="utf-8"), nl=False)


def _settings(over: list[str], model: ModelOptions, decoding: DecodingOptions, thresholds: str) -> list[Setting]:
    """List every point, its decoder and threshold checked before anything is loaded."""
    from dmax.evaluation.sweep import Setting

    settings = []
    for given in over:
        method, _, own = given.partition("=")
        name, colon, decoder = method.rpartition(":")
        rule = decoding_rule(decoding.but(decoder=decoder))
        swept = (own or thresholds).split(",") if own or hasattr(rule.decoder, "threshold") else [None]
        for value in swept:
            threshold = None if value is None else _threshold(value, given)
            decoding_rule(decoding.but(decoder=decoder, threshold=threshold))
            settings.append(Setting(name if colon else model.model, decoder, threshold))
    return settings


def _threshold(value: str, given: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise CommandError(f"{value!r} in {given!r} is no threshold; write MODEL:DECODER=0.95,0.5.") from error


def _shared(tasks: list[TaskData], decoding: DecodingOptions, batch_size: int, model: ModelOptions) -> dict[str, Any]:
    """Return everything that is the same for all points; the length of an answer is the task's."""
    decoded = {
        name: value
        for name, value in decoding.values.items()
        if name not in ("decoder", "threshold", "gen_length", *OPTIONAL_SETTINGS)
    }
    return {
        "tasks": {data.task.name: data.identity for data in tasks},
        **decoded,
        **decoding.params().further_settings(),
        "stop": list(decoding.values["stop"]) or None,
        "decoder_option": dict(decoding.further),
        "dtype": model.dtype,
        "batch_size": batch_size,
    }


class _Points:
    """Runs one setting after another; a model stays loaded until another one is asked for."""

    def __init__(self, tasks: list[TaskData], model: ModelOptions, decoding: DecodingOptions, batch_size: int) -> None:
        self._tasks = tasks
        self._model = model
        self._decoding = decoding
        self._batch_size = batch_size
        self._answerer: LocalAnswerer | None = None

    def __call__(self, setting: Setting, folder: Path) -> None:
        from dmax.evaluation.runner import RunSettings, evaluate

        decoding = self._decoding.but(decoder=setting.decoder, threshold=setting.threshold)
        if self._answerer is None or self._answerer.name != setting.model:
            self._answerer = local_answerer(replace(self._model, model=setting.model), decoding, self._batch_size)
        self._answerer.params = decoding_rule(decoding).params
        with progress_bars() as show:
            run = RunSettings(decoding.seed, own_command())
            evaluate(self._tasks, self._answerer, folder, run, on_progress=show)
