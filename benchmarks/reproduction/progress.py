"""What of a study is done, what runs, and how long it took and will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reproduction.run import read_plan, settings_of
from benchmarks.reproduction.study import RUNS, Run, training_of
from benchmarks.reproduction.work import Plan, is_trained, progress_of, run_name, setting_folder

from dmax.evaluation.report import RESULTS_FILE, Table, read_results

_RECENTLY = 300
"""Seconds since the last file was written within which a row counts as running."""


@dataclass(frozen=True)
class RowState:
    """How far one row has come."""

    name: str
    step: int
    steps: int
    """Of its training; 0 for the base model."""
    forwards: int
    """Of all its steps."""
    hours: float
    """Trained so far."""
    measured: int
    settings: int
    measuring: float
    """Hours so far."""
    running: bool

    @property
    def left(self) -> float:
        """Share of the training that is left."""
        return 1 - self.step / self.steps if self.steps else 0.0

    @property
    def state(self) -> str:
        if self.running:
            return "running"
        if self.left == 0 and self.measured == self.settings:
            return "done"
        return "begun" if self.step or self.measured else "waiting"


def rows_of(folder: Path) -> list[RowState]:
    """Read the state of every row, in the order in which they run.

    Raises:
        ReproductionError: the folder holds no study.
    """
    plan, _ = read_plan(folder)
    return [_state(plan, folder, row) for row in (None, *RUNS)]


def status(folder: Path) -> str:
    """Write the state of every row as a table, and below it hours spent and left."""
    rows = rows_of(folder)
    trained = sum(row.forwards * row.step / row.steps for row in rows if row.steps)
    hours = sum(row.hours for row in rows)
    measured, measuring = sum(row.measured for row in rows), sum(row.measuring for row in rows)
    per_forward = hours / trained if trained else None
    per_setting = measuring / measured if measured else None
    cells = [
        (
            row.name,
            row.state,
            f"{row.step:,} of {row.steps:,}" if row.steps else "",
            f"{row.hours:.1f}" if row.steps else "",
            _said(_times(row.forwards * row.left, per_forward)),
            f"{row.measured} of {row.settings}",
            f"{row.measuring:.1f}",
            _said(_times(row.settings - row.measured, per_setting)),
        )
        for row in rows
    ]
    header = ("Row", "State", "Steps", "Hours", "Hours left", "Settings", "Hours", "Hours left")
    left = [
        _times(sum(row.forwards * row.left for row in rows), per_forward),
        _times(sum(row.settings - row.measured for row in rows), per_setting),
    ]
    known = [amount for amount in left if amount is not None]
    rest = "unknown before the first" if len(known) < len(left) else f"{sum(known):.1f}"
    table = Table(header, _aligned(header, cells), numbers=False).to_markdown()
    return f"{table}\n\nHours of one job: {hours + measuring:.1f} spent, {rest} left."


def _state(plan: Plan, folder: Path, row: Run | None) -> RowState:
    settings = settings_of(row)
    seed = None if row is None else row[1]
    places = [folder / setting_folder(method, threshold, seed, at) for method, threshold, at in settings]
    found = [place for place in places if (place / RESULTS_FILE).exists()]
    seconds = sum(task["metrics"]["wall_seconds"] for place in found for task in read_results(place)["tasks"].values())
    watched = [file for place in places for file in place.glob("samples-*")]
    if row is None:
        running = len(found) < len(places) and _is_recent(watched)
        return RowState("base", 0, 0, 0, 0.0, len(found), len(places), seconds / 3600, running)
    training, last = training_of(row[0]), progress_of(folder, row)
    steps = plan.steps(training)
    step = steps if is_trained(folder, row) else min(steps, last["step"]) if last else 0
    watched.append(folder / "trained" / run_name(row) / "metrics.jsonl")
    hours = last["hours"] if last else 0.0
    running = len(found) < len(places) and _is_recent(watched)
    return RowState(
        run_name(row), step, steps, plan.forwards(training), hours, len(found), len(places), seconds / 3600, running
    )


def _is_recent(files: Sequence[Path]) -> bool:
    """Tell whether one of the files was written lately."""
    times = [file.stat().st_mtime for file in files if file.exists()]
    return bool(times) and time.time() - max(times) < _RECENTLY


def _times(amount: float, each: float | None) -> float | None:
    return 0.0 if amount == 0 else None if each is None else amount * each


def _said(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.1f}"


def _aligned(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Pad cells to the width of their column, for a terminal."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    return [tuple(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
