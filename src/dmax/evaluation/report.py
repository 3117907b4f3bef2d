"""Finished runs side by side, task by task, as Markdown and as one self-contained page of HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dmax.evaluation.metrics import ResultsError, paired_difference, right_answers
from dmax.evaluation.run_folder import by_id

RESULTS_FILE = "results.json"
FORMAT = 1
"""Format of the results files that are understood."""

CONVENTIONS = (
    "Accuracy is over all rows: a generation that failed counts as wrong. Intervals are 95 %, from 10,000 bootstrap "
    "resamples of the rows, or exact (Clopper-Pearson) where all or none are right.",
    "TPF is tokens per forward pass of the model. The prefill of the prompt counts as a forward, the EOS and what "
    "follows it are not counted as tokens. Mean: the average of each prompt's own ratio, as in the DMax paper. "
    "Pooled: all tokens over all forwards.",
    "NFE is forwards an answer, prefill included. TPS is all tokens over the wall time of the run at its batch size. "
    "Costs are over the rows that were answered.",
)

_PAIRING = (
    "Differences are paired: over the rows that both runs were asked, with a bootstrap of those rows and the exact "
    "two-sided McNemar test. p is not corrected for the number of runs compared."
)

Sample = Mapping[str, Any]

_COSTS = (
    ("TPF, mean", "tpf_mean", 2),
    ("TPF, pooled", "tpf_pooled", 2),
    ("TPS", "tps", 1),
    ("NFE", "nfe_mean", 1),
    ("Tokens", "tokens_mean", 1),
    ("Passes a block", "passes_per_block", 2),
    ("Revisions a token", "revisions_per_token", 3),
)
"""Header, metric and digits of every cost that is shown."""

MEASURES = ("Accuracy, % [95 %]", *(header for header, _, _ in _COSTS), "Rows")
"""Headers of :func:`measure_cells`."""

_NEEDED = {"n", "failed", "accuracy", "accuracy_ci95", "batch_size", *(key for _, key, _ in _COSTS)}


@dataclass(frozen=True)
class Run:
    """What one ``dmax eval`` left in its folder."""

    name: str
    """Short name that tells it from the other runs of a report."""
    folder: Path
    results: Mapping[str, Any]
    """Its ``results.json``."""
    samples: Mapping[str, Mapping[str, Sample]]
    """For every task its rows by id; empty where the samples file is gone."""

    @property
    def tasks(self) -> Mapping[str, Any]:
        """Version, data and metrics of every task."""
        return self.results["tasks"]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: bool = True
    """Whether the other columns hold figures, which are set flush right."""

    def to_markdown(self) -> str:
        """Write it as Markdown."""
        rule = ["---", *["---:" if self.numbers else "---"] * (len(self.header) - 1)]
        return "\n".join(
            "| " + " | ".join(_cell(text) for text in row) + " |" for row in (self.header, rule, *self.rows)
        )


@dataclass(frozen=True)
class TaskReport:
    """Everything about one task."""

    task: str
    warnings: list[str]
    """Reasons why the runs are not comparable as they stand."""
    measures: Table
    baseline: str
    """The run that ``against`` compares with."""
    against: Table | None
    """Paired differences; None where there is nothing to pair."""
    bars: list[tuple[str, float, float, float]]
    """Run, accuracy, lower and upper bound, all in percent, for a drawing."""


@dataclass(frozen=True)
class Report:
    """Runs compared, ready to be rendered."""

    runs: Table
    same: str
    """Settings that all runs share."""
    sections: list[TaskReport]
    notes: list[str]


def read_results(folder: Path) -> dict[str, Any]:
    """Read the ``results.json`` of a finished run.

    Raises:
        ResultsError: there is none, or it is damaged or of another format.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise ResultsError(
            f"{folder} holds no {RESULTS_FILE}; give the folder of a finished run (dmax eval writes the file last)."
        )
    damaged = ResultsError(f"{path} is damaged or no results file of dmax eval; run the evaluation again.")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        found = results["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged from error
    if found != FORMAT:
        raise ResultsError(
            f"{path} has format {found!r}, and this version of dmax reads {FORMAT}; use the version that wrote it, or "
            "run the evaluation again."
        )
    if not _is_complete(results):
        raise damaged
    return results


def _is_complete(results: Mapping[str, Any]) -> bool:
    """Tell whether a results file holds everything that a report needs."""
    try:
        _ = results["decoder"], results["params"].items(), results["hardware"].items()
        _ = [results["model"][key] for key in ("name", "dtype", "device")]
        tasks = results["tasks"].values()
        return all({"version", "data"} <= task.keys() and task["metrics"].keys() >= _NEEDED for task in tasks)
    except (KeyError, TypeError, AttributeError):
        return False


def read_samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """Read the per-sample rows of a task, in order; none where the file is gone.

    Raises:
        ResultsError: the file is damaged.
    """
    path = folder / f"samples-{task}.jsonl"
    if not path.is_file():
        return []
    try:
        # Not splitlines: answers may hold characters that it takes for the end of a line.
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        _ = [(row["id"], row["correct"], row["error"]) for row in rows]
        return sorted(rows, key=lambda row: row["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is damaged ({error}); run the evaluation again.") from error


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read finished runs, each named by as much of its path as tells it from the others.

    Raises:
        ResultsError: a folder is given twice, or holds no finished run.
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ResultsError("a run is given twice; name every folder once.")
    depth = 1
    while len(names := ["/".join(path.parts[-depth:]) for path in paths]) > len(set(names)):
        depth += 1
    runs = []
    for name, folder in zip(names, folders, strict=True):
        results = read_results(folder)
        samples = {task: by_id(read_samples(folder, task)) for task in results["tasks"]}
        runs.append(Run(name, folder, results, samples))
    return runs


def compare(runs: Sequence[Run], baseline: str | None = None) -> Report:
    """Put runs side by side, and each against one of them on the rows they share.

    Args:
        runs: one or more.
        baseline: name of the run that the others are compared with; the first if not given.

    Raises:
        ResultsError: there is no run, or none of that name.
    """
    if not runs:
        raise ResultsError("there is no run to report; give at least one folder.")
    names = [run.name for run in runs]
    if baseline is not None and baseline not in names:
        raise ResultsError(f"the baseline {baseline!r} is none of the runs; choose from {', '.join(names)}.")
    first = runs[names.index(baseline)] if baseline else runs[0]
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    table, same = _settings(runs)
    sections = [_task_report(task, [run for run in runs if task in run.tasks], first) for task in tasks]
    paired = any(section.against is not None for section in sections)
    return Report(table, same, sections, [*CONVENTIONS, *([_PAIRING] if paired else [])])


def to_markdown(report: Report) -> str:
    """Write it as Markdown."""
    parts = ["# Evaluation report", report.runs.to_markdown()]
    parts += [f"Same in all runs: {report.same}."] if report.same else []
    for section in report.sections:
        parts.append(f"## {section.task}")
        parts += [f"> **Warning:** {_cell(warning)}" for warning in section.warnings]
        parts.append(section.measures.to_markdown())
        if section.against is not None:
            parts += [f"Against {_cell(section.baseline)}, row by row:", section.against.to_markdown()]
    parts += ["---", *report.notes]
    return "\n\n".join(parts) + "\n"


def to_html(report: Report) -> str:
    """Write the report as one page that needs nothing else: light or dark as the reader's system, also on a phone."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("dmax.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(report=report)


def measure_cells(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Write the metrics of a run as cells under :data:`MEASURES`."""
    return (
        accuracy_cell(metrics),
        *(_number(metrics[key], digits) for _, key, digits in _COSTS),
        str(metrics["n"]) if not metrics["failed"] else f"{metrics['n']} ({metrics['failed']} failed)",
    )


def accuracy_cell(metrics: Mapping[str, Any]) -> str:
    """Write accuracy with its interval, in percent."""
    low, high = metrics["accuracy_ci95"]
    return f"{100 * metrics['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _number(value: float | None, digits: int) -> str:
    """Write a figure, or a dash where it is not known."""
    return "–" if value is None else f"{value:.{digits}f}"


def _task_report(task: str, runs: Sequence[Run], first: Run) -> TaskReport:
    base = next((run for run in runs if run is first), runs[0])
    others = [run for run in runs if run is not base]
    metrics = {run.name: run.tasks[task]["metrics"] for run in runs}
    pairs = {run.name: _shared_rows(base.samples[task], run.samples[task]) for run in others}
    rows = [_against_row(name, pair) for name, pair in pairs.items() if pair]
    header = ("Run", "Difference, points [95 %]", "Right only here", "Right only there", "p (McNemar)", "Shared rows")
    return TaskReport(
        task=task,
        warnings=[*_left_out(task, runs), *_differences(task, base, others), *_speed_differences(task, base, others)],
        measures=Table(("Run", *MEASURES), [(name, *measure_cells(values)) for name, values in metrics.items()]),
        baseline=base.name,
        against=Table(header, rows) if rows else None,
        bars=[
            (name, *(100 * share for share in (values["accuracy"], *values["accuracy_ci95"])))
            for name, values in metrics.items()
        ],
    )


def _shared_rows(base: Mapping[str, Sample], other: Mapping[str, Sample]) -> list[tuple[Sample, Sample]]:
    """Find rows that ask both runs the same."""
    return [(row, other[key]) for key, row in base.items() if key in other and _asks_same(row, other[key])]


def _asks_same(first: Sample, second: Sample) -> bool:
    return all(first.get(key) == second.get(key) for key in ("prompt", "reference"))


def _against_row(name: str, pairs: list[tuple[Sample, Sample]]) -> tuple[str, ...]:
    before, after = (right_answers(side) > 0 for side in zip(*pairs, strict=True))
    result = paired_difference(before.tolist(), after.tolist())
    low, high = result.ci95
    return (
        name,
        f"{100 * result.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
        str(result.gained),
        str(result.lost),
        "< 0.001" if result.p_value < 0.001 else f"{result.p_value:.3f}",
        str(result.rows),
    )


def _left_out(task: str, runs: Sequence[Run]) -> list[str]:
    """Name malformed rows that runs were told to do without."""
    counts = {run.name: len(run.tasks[task]["data"].get("left_out", ())) for run in runs}
    said = [f"{name} left out {_rows(count)} that could not be read." for name, count in counts.items() if count]
    for run in runs:
        repeated = sum(row["id"] != key for key, row in run.samples[task].items())
        if repeated:
            said.append(f"In {run.name}, {_rows(repeated)} repeat another's id; those are paired by position.")
    return said


def _differences(task: str, base: Run, others: Sequence[Run]) -> list[str]:
    """Yield what keeps the accuracies of a task from being compared."""
    warnings = []
    mine, rows = base.tasks[task], base.samples[task]
    for run in others:
        its, its_rows = run.tasks[task], run.samples[task]
        if its["version"] != mine["version"]:
            warnings.append(
                f"{run.name} ran version {its['version']} of the task and {base.name} version {mine['version']}; "
                "their accuracies are not comparable."
            )
        if _data_identity(its["data"]) != _data_identity(mine["data"]):
            warnings.append(f"{run.name} and {base.name} ran on different data.")
        if its.get("gen_length") != mine.get("gen_length"):
            warnings.append(
                f"Answers of {run.name} may have {its.get('gen_length')} tokens, those of {base.name} "
                f"{mine.get('gen_length')}."
            )
        if not rows or not its_rows:
            bare = run if not its_rows else base
            warnings.append(f"The samples of {bare.name} are not in its folder, so it cannot be compared row by row.")
            continue
        shared = rows.keys() & its_rows.keys()
        if len(shared) < max(len(rows), len(its_rows)):
            warnings.append(
                f"{run.name} has {_rows(len(its_rows))} and {base.name} has {len(rows)}; they share {len(shared)}, and "
                "only those are compared row by row."
            )
        if changed := sum(not _asks_same(rows[key], its_rows[key]) for key in shared):
            verbs = "asks or expects" if changed == 1 else "ask or expect"
            warnings.append(f"{_rows(changed)} of {run.name} {verbs} something else than in {base.name}.")
    return warnings


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _data_identity(data: Mapping[str, Any]) -> Any:
    """Return the fingerprint of the rows where there is one: a path may differ while the rows do not."""
    return data.get("digest", data)


def _speed_differences(task: str, base: Run, others: Sequence[Run]) -> list[str]:
    def conditions(run: Run) -> dict[str, Any]:
        return {
            "batch size": run.tasks[task]["metrics"]["batch_size"],
            "hardware": _machines(run),
            "device": run.results["model"]["device"],
            "dtype": run.results["model"]["dtype"],
        }

    expected = conditions(base)
    differing = {key for run in others for key, value in conditions(run).items() if value != expected[key]}
    if not differing:
        return []
    return [f"The TPS of the runs are not comparable: they differ in {', '.join(sorted(differing))}."]


def _machines(run: Run) -> list[dict[str, Any]]:
    """Tell what the run's processes ran on; several where it was taken up elsewhere."""
    machines: list[dict[str, Any]] = []
    for session in run.results.get("sessions", [run.results]):
        if session["hardware"] not in machines:
            machines.append(session["hardware"])
    return machines


def _settings(runs: Sequence[Run]) -> tuple[Table, str]:
    """Return what distinguishes the runs as a table, and what they share as a phrase."""
    given = [dict(run.results["params"]) for run in runs]
    first, *others = given
    shared = [name for name in first if others and all(params.get(name) == first[name] for params in others)]
    rows = []
    for run, params in zip(runs, given, strict=True):
        model = run.results["model"]
        own = ", ".join(f"{name} {value}" for name, value in params.items() if name not in shared)
        place = ", ".join(str(model[key]) for key in ("device", "dtype") if model[key])
        machine = " and ".join(dict.fromkeys(m.get("accelerator") or m.get("processor") or "–" for m in _machines(run)))
        cells = (run.name, model["name"], run.results["decoder"], own, place, machine)
        rows.append(tuple(str(cell or "–") for cell in cells))
    header = ("Run", "Model", "Decoder", "Settings", "Device", "Hardware")
    return Table(header, rows, numbers=False), ", ".join(f"{name} {first[name]}" for name in shared)


def _cell(text: str) -> str:
    """Escape text that could break a Markdown table or turn into markup."""
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")
    return re.sub(r"<(?=\S)", "&lt;", flat)  # "< 0.001" is no tag and stays legible
