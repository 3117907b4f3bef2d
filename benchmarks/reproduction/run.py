"""One reproduction from its base model to its results.

The folder holds ``settings.json``, ``distilled/`` (the training data), ``recipes/`` and ``trained/`` (a file and a run
for every training and seed), ``measured/`` (an evaluation for every setting) and ``results.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.reproduction.results import Results, Setting
from benchmarks.reproduction.study import METHODS, TRAININGS, Method, Scale, Training
from benchmarks.reproduction.work import Plan, ReproductionError, Work, run_name

from dmax.environment import describe_process
from dmax.evaluation.answerers import weights_hash
from dmax.evaluation.report import RESULTS_FILE
from dmax.evaluation.run_folder import claim, to_json, write_whole

OnStep = Callable[[str], None]


def _say_nothing(step: str) -> None:
    """Say nothing; a function of the module, since processes of their own are given it."""


def reproduce(
    plan: Plan,
    folder: Path,
    *,
    command: Sequence[str] = (),
    trainings: Sequence[Training] = TRAININGS,
    methods: Sequence[Method] = METHODS,
    on_step: OnStep = _say_nothing,
) -> Results:
    """Distil, train, measure and gather the results.

    Args:
        plan: what it starts from.
        folder: made if need be; one that holds the same reproduction is taken up where it stopped.
        command: written into the results.
        trainings: of the base model.
        methods: that are measured.
        on_step: called with what is done next, in the process that does it; can be pickled if ``plan.jobs`` > 1.

    Raises:
        ReproductionError: the recipe cannot serve, or a training failed.
        RunFolderError: the folder belongs to something else.
    """
    recipe = _read_recipe(plan.recipe)
    settings = {
        "base": {"name": plan.base, "weights": weights_hash(plan.base)},
        "embedded": {name: weights_hash(name) for name in sorted({m.embedded for m in methods if m.embedded})},
        "recipe": recipe,
        "scale": asdict(plan.scale),
        "dtype": plan.dtype,
    }
    claim(folder, json.loads(json.dumps(settings)))
    work = Work(plan, recipe, folder, command, on_step)
    seeds = {method.name: _seeds_of(method, trainings, plan.scale) for method in methods}
    data = work.distil()
    one = partial(_train_and_measure, plan, recipe, folder, command, on_step, data, methods)
    runs = [(training, seed) for training in trainings for seed in _seeds(training, plan.scale)]
    _side_by_side([*(partial(one, training, seed) for training, seed in runs), partial(one, None, None)], plan.jobs)
    points = [
        work.measure(method, threshold, seed)
        for method in methods
        for seed in seeds[method.name]
        for threshold in method.thresholds
    ]
    gsm8k = work.measure_gsm8k() if plan.gsm8k is not None else []
    record = {
        "command": list(command),
        **describe_process(),
        **settings,
        "jobs": plan.jobs,
        "distilled": json.loads((folder / "distilled" / "manifest.json").read_text(encoding="utf-8"))["counts"],
        "trainings": {run_name(training.name, seed): work.training_cost(training, seed) for training, seed in runs},
        "points": [_point_record(point) for point in points],
        "gsm8k": [_point_record(point) for point in gsm8k],
    }
    write_whole(folder / RESULTS_FILE, to_json(record))
    return Results(record, points, gsm8k)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind = recipe["objective"]["kind"]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ReproductionError(
            f"{path} is no recipe that can be read; run this in a clone of the repository, or name one with --recipe."
        ) from error
    if kind != "oput":
        raise ReproductionError(f"the objective of {path} is {kind}; give the recipe of an OPUT training.")
    return dict(recipe)


def _seeds(training: Training, scale: Scale) -> tuple[int, ...]:
    return scale.seeds if training.every_seed else scale.seeds[:1]


def _seeds_of(method: Method, trainings: Sequence[Training], scale: Scale) -> tuple[int | None, ...]:
    if method.training is None:
        return (None,)
    training = next((found for found in trainings if found.name == method.training), None)
    if training is None:
        raise ReproductionError(f"{method.name} needs the training {method.training}, which is left out.")
    return _seeds(training, scale)


def _train_and_measure(
    plan: Plan,
    recipe: Mapping[str, Any],
    folder: Path,
    command: Sequence[str],
    on_step: OnStep,
    data: Path,
    methods: Sequence[Method],
    training: Training | None,
    seed: int | None,
) -> None:
    """Train one model, if it is not the base model, and measure all of its settings."""
    work = Work(plan, recipe, folder, command, on_step)
    if training is not None and seed is not None:
        work.train(training, seed, data)
    for method in methods:
        if method.training == (None if training is None else training.name):
            for threshold in method.thresholds:
                work.measure(method, threshold, seed)


def _side_by_side(tasks: Sequence[Callable[[], None]], jobs: int) -> None:
    """Run the tasks in turn, or so many at a time in processes of their own."""
    if jobs == 1:
        for task in tasks:
            task()
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _limit_threads, (threads,)) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _limit_threads(threads: int) -> None:
    """Limit the threads of this process, and of those that it starts."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _point_record(point: Setting) -> dict[str, Any]:
    return {key: value for key, value in asdict(replace(point, samples=())).items() if key != "samples"}
