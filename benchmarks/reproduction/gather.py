"""All that a study's folder holds by now: settings measured, trainings, and the record of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reproduction.questions import REAL, SETS, TASKS
from benchmarks.reproduction.results import END, Answers, Results, Setting
from benchmarks.reproduction.run import read_plan, settings_of
from benchmarks.reproduction.study import GSM8K_SETTINGS, RUNS, SHARES, training_of
from benchmarks.reproduction.work import gsm8k_folder, progress_of, run_name, setting_folder

from dmax.environment import describe_process
from dmax.evaluation.report import RESULTS_FILE, read_results, read_samples
from dmax.evaluation.run_folder import to_json, write_whole


class Study:
    """What is known by now.

    Args:
        record: what ``results.json`` holds.
        settings: all that was measured but GSM8K.
        gsm8k: and that.
    """

    def __init__(self, record: Mapping[str, Any], settings: Sequence[Setting], gsm8k: Sequence[Setting] = ()) -> None:
        self.record = record
        self.settings = settings
        self.gsm8k = gsm8k
        self._sets: dict[tuple[str, float], Results] = {}

    def on(self, name: str, at: float = END) -> Results:
        """Return the results on one of the sets of problems, at a share of every training."""
        # Kept, since every claim asks for them and a bootstrap takes seconds.
        if (name, at) not in self._sets:
            self._sets[name, at] = Results(self.settings, SETS[name], at)
        return self._sets[name, at]

    def course(self, name: str) -> dict[float, Results]:
        """Return the results on one of the sets of problems at all shares of training, rising."""
        return {share: self.on(name, share) for share in (*SHARES, END)}

    def on_task(self, task: str) -> Results:
        """Return the results on the problems of one task."""
        return Results(self.settings, (task,))

    def on_gsm8k(self) -> Results:
        """Return the results on GSM8K."""
        return Results(self.gsm8k, (REAL,))


def gather(folder: Path, command: Sequence[str] = ()) -> Study:
    """Read a study, and write its ``results.json``.

    Raises:
        ReproductionError: the folder holds none.
    """
    plan, settings = read_plan(folder)
    points = list(_points(folder))
    known = [setting for setting, _ in points]
    gsm8k, real = [], []
    for method, threshold in GSM8K_SETTINGS:
        if (found := _read(folder / gsm8k_folder(method, threshold), (REAL,))) is not None:
            answers, metrics = found
            gsm8k.append(Setting(method.name, threshold, None if method.training is None else 1, END, answers))
            real.append({"method": method.name, "threshold": threshold, "metrics": metrics})
    trainings = {}
    for run in RUNS:
        if (last := progress_of(folder, run)) is not None:
            training = training_of(run[0])
            cost = {"steps": last["step"], "of": plan.steps(training), "hours": round(last["hours"], 3)}
            trainings[run_name(run)] = {"start": training.start, **cost, "forwards": plan.forwards(training)}
    record = {
        "command": list(command),
        **describe_process(),
        **settings,
        "trainings": trainings,
        "points": [record for _, record in points],
        "gsm8k": real,
    }
    write_whole(folder / RESULTS_FILE, to_json(record))
    return Study(record, known, gsm8k)


def _points(folder: Path) -> Iterator[tuple[Setting, dict[str, Any]]]:
    """Yield what is measured of every row, each with its entry of the record."""
    for row in (None, *RUNS):
        seed = None if row is None else row[1]
        for method, threshold, at in settings_of(row):
            found = _read(folder / setting_folder(method, threshold, seed, at), tuple(TASKS))
            if found is not None:
                entry = {"method": method.name, "threshold": threshold, "seed": seed, "at": at, "metrics": found[1]}
                yield Setting(method.name, threshold, seed, at, found[0]), entry


def _read(folder: Path, tasks: Sequence[str]) -> tuple[dict[str, Answers], dict[str, Any]] | None:
    """Read a finished measurement: answers and metrics by task; None where it is not finished."""
    if not (folder / RESULTS_FILE).exists():
        return None
    metrics = {task: found["metrics"] for task, found in read_results(folder)["tasks"].items()}
    answers = {task: Answers.of(read_samples(folder, task), metrics[task]["wall_seconds"]) for task in tasks}
    return answers, metrics
