"""One study, row by row, from its base model to what is known of it.

The folder holds ``settings.json``, ``base/`` (the model that all trainings start from), ``recipes/`` and ``trained/``
(a file and a run for every training and seed), ``measured/`` (an evaluation for every setting) and ``results.json``. It
is all that another machine needs to go on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.reproduction.study import (
    CURVE_THRESHOLDS,
    CURVES,
    GSM8K_SETTINGS,
    HALF,
    METHODS,
    RUNS,
    SHARES,
    TRAININGS,
    Method,
    Run,
    Scale,
    seeds_of,
    training_of,
)
from benchmarks.reproduction.work import Plan, ReproductionError, Work, is_trained

from dmax.evaluation.answerers import weights_hash
from dmax.evaluation.run_folder import SETTINGS_FILE, claim
from dmax.models.source import resolve

OnStep = Callable[[str], None]
BASE_ROW = "base"
OPUT_RUN: Run = (TRAININGS[0].name, 1)
ROWS = (BASE_ROW, *(training.name for training in TRAININGS))


def _say_nothing(step: str) -> None:
    """Say nothing; a function of the module, since processes of their own are given it."""


def reproduce(
    plan: Plan,
    folder: Path,
    base: str | None = None,
    *,
    only: Collection[str] = (),
    command: Sequence[str] = (),
    on_step: OnStep = _say_nothing,
) -> None:
    """Train and measure what the folder does not hold yet.

    Args:
        plan: of the study.
        folder: made if need be; one that holds the same study is taken up where it stopped.
        base: the model that all trainings start from: a folder, hub id or embedded model; None where the folder has it.
        only: rows, of :data:`ROWS`; all if empty.
        command: written into the results.
        on_step: called with what is done next, in the process that does it; can be pickled if ``plan.jobs`` > 1.

    Raises:
        ReproductionError: a row needs one that is left out, or a training failed.
        RunFolderError: the folder belongs to something else.
    """
    claim(folder, json.loads(json.dumps(_settings(plan, folder, base))))
    if base is not None and not (folder / "base").exists():
        shutil.copytree(resolve(base), folder / "base.partial", dirs_exist_ok=True)
        (folder / "base.partial").rename(folder / "base")
    rows: list[Run | None] = [None, *RUNS]
    waiting = [row for row in rows if not only or (BASE_ROW if row is None else row[0]) in only]
    for row in waiting:
        if _needs(row) is not None and _needs(row) not in waiting and not is_trained(folder, OPUT_RUN):
            raise ReproductionError(
                f"{row and row[0]} starts from {OPUT_RUN[0]}, which is not trained yet: add --only {OPUT_RUN[0]}."
            )
    todo = partial(do_row, plan, folder, command, on_step)
    if plan.jobs == 1:
        for row in waiting:
            todo(row)
    else:
        _side_by_side(todo, waiting, folder, plan.jobs)


def _settings(plan: Plan, folder: Path, base: str | None) -> dict[str, Any]:
    """Return what makes a study the one that it is; where its files lie does not."""
    source = folder / "base" if base is None else base
    if base is None and not (folder / "base").exists():
        raise ReproductionError(f"{folder} holds no study yet: name its base model with --base.")
    return {"base": weights_hash(source), "recipe": plan.recipe, "scale": asdict(plan.scale), "dtype": plan.dtype}


def read_plan(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """Read a study's plan, and its settings, from its folder.

    Raises:
        ReproductionError: it holds none.
    """
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        return Plan(settings["recipe"], Scale(**settings["scale"]), settings["dtype"]), settings
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReproductionError(f"{folder} holds no study; name its folder with --out.") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the recipe that serves every training.

    Raises:
        ReproductionError: it cannot be read, or is of another objective.
    """
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


def settings_of(row: Run | None) -> list[tuple[Method, float, float]]:
    """List what is measured of a row: method, threshold and share of the training, the whole of it first."""
    own = [method for method in METHODS if method.training == (None if row is None else row[0])]
    ends = [(method, threshold, 1.0) for method in own for threshold in method.thresholds]
    if row is None or row[1] != 1:
        return ends
    followed = [method for method in own if method in CURVES]
    return ends + [(method, t, share) for share in SHARES for method in followed for t in CURVE_THRESHOLDS]


def do_row(plan: Plan, folder: Path, command: Sequence[str], on_step: OnStep, row: Run | None) -> None:
    """Train one model, if it is not the base model, and measure all of its settings."""
    work = Work(plan, folder, command, on_step)
    if row is not None:
        work.train(row)
    seed = None if row is None else row[1]
    for method, threshold, at in settings_of(row):
        work.measure(method, threshold, seed, at)
    for method, threshold in GSM8K_SETTINGS:
        if method.training == (None if row is None else row[0]) and seed == seeds_of(method)[0]:
            work.measure_gsm8k(method, threshold)
    if row is not None and training_of(row[0]).start != "half":
        work.forget_snapshots(row, kept=[HALF] if row == OPUT_RUN else [])


def _needs(row: Run | None) -> Run | None:
    """Tell which training a row starts from."""
    return None if row is None or training_of(row[0]).start == "base" else OPUT_RUN


def _side_by_side(todo: Callable[[Run | None], None], rows: Sequence[Run | None], folder: Path, jobs: int) -> None:
    """Do so many rows at a time, in processes of their own, in their order as far as one does not wait for another."""
    waiting, running = list(rows), dict[Future[None], Run | None]()
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _limit_threads, (threads,)) as pool:
        try:
            while waiting or running:
                ready = [row for row in waiting if _needs(row) is None or is_trained(folder, OPUT_RUN)]
                for row in ready[: jobs - len(running)]:
                    waiting.remove(row)
                    running[pool.submit(todo, row)] = row
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _limit_threads(threads: int) -> None:
    """Limit the threads of this process, and of those that it starts."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
