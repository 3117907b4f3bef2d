"""Grading stored samples again, with the graders as they are now, without asking a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from dmax.evaluation.answerers import Answer
from dmax.evaluation.report import RESULTS_FILE, read_results
from dmax.evaluation.run_folder import SETTINGS_FILE, RunFolderError, to_json, write_whole
from dmax.evaluation.runner import TaskData, grade_answer, read_samples, task_metrics

_GRADING_FAILED = "grading raised "


def regrade(tasks: Sequence[TaskData], folder: Path) -> dict[str, Any] | None:
    """Grade every stored answer of a run again, and write samples and results anew.

    Args:
        tasks: the tasks and rows that the run was asked; a task's version may have risen since.
        folder: of the run, finished or not.

    Returns:
        What stands in ``results.json`` then; None where the run is not finished.

    Raises:
        RunFolderError: the folder holds no run, or one of other tasks or rows.
    """
    path = folder / SETTINGS_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        stored = dict(settings["tasks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder} holds no run to grade again; name its folder with --out.") from error
    for data in tasks:
        held = stored.get(data.task.name)
        if held is None or {**held, "version": data.task.version} != data.identity:
            raise RunFolderError(
                f"the run in {folder} was asked other rows of {data.task.name}; give the --tasks, --data, --limit, "
                "--seed, --samples and --gen-length that it was made with."
            )
    for data in tasks:
        for part in sorted(folder.glob(f"samples-{data.task.name}*.jsonl")):
            if part.name == f"samples-{data.task.name}.jsonl" or "-of-" in part.name:
                samples = _graded(data, read_samples(part))
                write_whole(part, "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
        stored[data.task.name] = data.identity
    write_whole(path, to_json({**settings, "tasks": stored}))
    if not (folder / RESULTS_FILE).exists():
        return None
    results = read_results(folder)
    for data in tasks:
        entry = results["tasks"][data.task.name]
        world = settings["processes"]
        metrics = task_metrics(folder, data, settings["batch_size"], world, settings["seed"])
        entry |= {"version": data.task.version, "metrics": metrics}
    write_whole(folder / RESULTS_FILE, to_json(results))
    return results


def _graded(data: TaskData, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = [field.name for field in fields(Answer)]

    def grade(sample: dict[str, Any]) -> dict[str, Any]:
        answer = Answer(**{name: sample[name] for name in names})
        if (answer.error or "").startswith(_GRADING_FAILED):
            answer = Answer(**{**{name: sample[name] for name in names}, "error": None})
        answer, verdict = grade_answer(data.task, data.row(sample["index"]), answer)
        return {**sample, "correct": verdict.right, "reason": verdict.reason, "error": answer.error}

    with ThreadPoolExecutor() as pool:
        return list(pool.map(grade, samples))
