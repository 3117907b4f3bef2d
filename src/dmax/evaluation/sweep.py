"""A sweep of settings: measured point by point, resumed point by point, summed up in tables and pictures.

A sweep's folder holds ``plan.json`` (what is swept), a sub-folder a point as the evaluation of that setting leaves it
and, written anew from the finished points, ``sweep.json``, ``sweep.md``, and ``accuracy-tpf`` and ``accuracy-tps`` as
``.png`` and ``.svg``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmax.evaluation.metrics import ResultsError
from dmax.evaluation.plots import Curve, Spot, draw_tradeoff, require_matplotlib
from dmax.evaluation.report import RESULTS_FILE, read_results
from dmax.evaluation.run_folder import to_json, write_whole
from dmax.evaluation.tradeoff import Point, Speed, by_method, summary, to_markdown

PLAN_FILE = "plan.json"
FORMAT = 1


@dataclass(frozen=True)
class Setting:
    """What one point of a sweep runs with; everything else is the same for all points."""

    model: str
    decoder: str
    threshold: float | None = None
    """None for the decoder's own default, or for a decoder without one."""
    weights: str | None = None
    """Fingerprint of the model's weights; None takes the results of whatever weights bear the model's name."""

    @property
    def folder_name(self) -> str:
        """Name of the point's sub-folder."""
        parts = [self.model, self.decoder, *([] if self.threshold is None else [f"{self.threshold:g}"])]
        return "--".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts)


def run_sweep(
    settings: Sequence[Setting],
    folder: Path,
    run_point: Callable[[Setting, Path], None],
    *,
    shared: Mapping[str, Any],
    tolerance_points: float = 1.0,
    on_point: Callable[[Setting, bool], None] = lambda setting, finished: None,
) -> Path:
    """Measure every setting that the folder does not hold yet, then write the tables and pictures.

    The same call again goes on where an interrupted one stopped; a call with further settings adds them.

    Args:
        settings: the points, in the order in which they run.
        folder: made if need be.
        run_point: evaluates one setting into a folder; ``results.json`` is there once it returns.
        shared: everything that is the same for all points (tasks, rows, lengths, seed …), as JSON values; a folder
            whose points were measured with something else is refused.
        tolerance_points: accuracy points below the best that the recommended setting may lose.
        on_point: called before a setting runs and after, with whether its results are there.

    Returns:
        The path of ``sweep.md``.

    Raises:
        ResultsError: the settings are none or not distinct, the folder belongs to something else, or pictures
            cannot be drawn (which is found out before anything runs).
    """
    names = [setting.folder_name for setting in settings]
    if not settings or len(set(names)) < len(names):
        problem = f"{max(names, key=names.count)} is there twice" if settings else "there is none"
        raise ResultsError(f"a sweep needs settings that differ, and {problem}; name every setting once.")
    require_matplotlib()
    _claim(folder, settings, shared)
    for setting in settings:
        place = folder / setting.folder_name
        if not is_finished(place, setting):
            on_point(setting, False)
            run_point(setting, place)
        on_point(setting, is_finished(place, setting))
    return write_sweep(folder, tolerance_points)


def is_finished(folder: Path, setting: Setting) -> bool:
    """Tell whether a point's folder holds the results of its setting.

    Raises:
        ResultsError: it holds those of another setting, or damaged ones.
    """
    return _finished_results(folder, setting) is not None


def _finished_results(folder: Path, setting: Setting) -> dict[str, Any] | None:
    """Read what a point's folder holds, once that is the results of its setting; see :func:`is_finished`."""
    if not (folder / RESULTS_FILE).is_file():
        return None
    results = read_results(folder)
    threshold = results["params"].get("threshold")
    if setting.weights not in (None, results["model"]["hash"]):
        raise ResultsError(
            f"{folder / RESULTS_FILE} was measured with other weights of {setting.model}; choose another folder for "
            "the sweep, or move that one away and run the sweep again."
        )
    measured = Setting(results["model"]["name"], results["decoder"], threshold)
    asked = Setting(setting.model, setting.decoder, threshold if setting.threshold is None else setting.threshold)
    if measured != asked:
        raise ResultsError(
            f"{folder / RESULTS_FILE} was measured with {measured.folder_name}; move that folder away and run the "
            "sweep again."
        )
    return results


def read_points(folder: Path) -> list[Point]:
    """Read the finished points of a sweep, one for each task of every setting, in the order of the plan.

    Raises:
        ResultsError: the folder holds no sweep, or none of its points is finished.
    """
    points = []
    for setting in _read_plan(folder)[0]:
        place = folder / setting.folder_name
        results = _finished_results(place, setting)
        if results is not None:
            threshold = results["params"].get("threshold")
            points += [
                Point(setting.model, setting.decoder, threshold, task, values["metrics"], place)
                for task, values in results["tasks"].items()
            ]
    if not points:
        raise ResultsError(f"{folder} holds no finished point yet; let the sweep run on.")
    return points


def write_sweep(folder: Path, tolerance_points: float = 1.0) -> Path:
    """Write ``sweep.json``, ``sweep.md`` and the pictures from the points that are finished.

    Returns:
        The path of ``sweep.md``.

    Raises:
        ResultsError: there is no finished point, or pictures cannot be drawn.
    """
    points = read_points(folder)
    tasks = {task: [p for p in points if p.task == task] for task in dict.fromkeys(point.task for point in points)}
    summaries = {task: summary(own, tolerance_points) for task, own in tasks.items()}
    folders = dict.fromkeys(point.folder for point in points)
    runs = {place.name: _origin(read_results(place)) for place in folders}
    write_whole(folder / "sweep.json", to_json({"format": FORMAT, "tasks": summaries, "runs": runs}))
    batch = "/".join(str(size) for size in sorted({point.metrics["batch_size"] for point in points}))
    axes: dict[Speed, tuple[str, str]] = {
        "tpf_mean": ("accuracy-tpf", "tokens per forward (TPF), mean over prompts"),
        "tps": ("accuracy-tps", f"tokens per second (TPS), batch size {batch}"),
    }
    drawn = [name for speed, (name, label) in axes.items() if _draw(tasks, folder / name, speed, label)]
    report = folder / "sweep.md"
    report.write_text(to_markdown(tasks, summaries, drawn), encoding="utf-8")
    return report


def _origin(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a point's results say beside its figures: command, machine, versions, model, params."""
    return {key: value for key, value in results.items() if key not in ("format", "tasks")}


def _draw(tasks: Mapping[str, Sequence[Point]], stem: Path, speed: Speed, label: str) -> bool:
    """Draw, and tell whether there was anything to draw: points whose speed is not known are left out."""
    panels = {}
    for task, points in tasks.items():
        known = [point for point in points if point.metrics[speed] is not None]
        if known:
            methods = by_method(known).items()
            panels[task] = [Curve(name, tuple(_spot(point, speed) for point in _joined(own))) for name, own in methods]
    if panels:
        draw_tradeoff(panels, stem, label)
    return bool(panels)


def _joined(points: Sequence[Point]) -> list[Point]:
    """Join points by falling threshold, however the sweep came to them."""
    return sorted(points, key=lambda point: -1.0 if point.threshold is None else point.threshold, reverse=True)


def _spot(point: Point, speed: Speed) -> Spot:
    low, high = (100 * bound for bound in point.metrics["accuracy_ci95"])
    threshold = "" if point.threshold is None else f"{point.threshold:g}"
    return Spot(float(point.metrics[speed]), point.accuracy, low, high, threshold)


def _claim(folder: Path, settings: Sequence[Setting], shared: Mapping[str, Any]) -> None:
    """Make the folder this sweep's, or make sure that it is, and note what is to be measured in it."""
    wanted: dict[str, Any] = json.loads(json.dumps(shared))  # as it will be read back
    planned: list[Setting] = []
    if (folder / PLAN_FILE).is_file():
        planned, held = _read_plan(folder)
        differing = [key for key in wanted | held if wanted.get(key) != held.get(key)]
        if differing:
            raise ResultsError(
                f"{folder} holds a sweep with another {' and '.join(differing)}; choose another folder, or give the "
                "settings of that sweep to go on with it."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ResultsError(f"{folder} holds other files and no sweep; choose another folder.")
    merged = {setting.folder_name: setting for setting in planned}
    for setting in settings:
        if merged.setdefault(setting.folder_name, setting) != setting:
            raise ResultsError(f"{folder / setting.folder_name} belongs to another setting; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"format": FORMAT, "shared": wanted, "settings": [asdict(setting) for setting in merged.values()]}
    write_whole(folder / PLAN_FILE, to_json(plan))


def _read_plan(folder: Path) -> tuple[list[Setting], dict[str, Any]]:
    path = folder / PLAN_FILE
    if not path.is_file():
        raise ResultsError(f"{folder} holds no sweep; give the folder that dmax sweep wrote.")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["format"] == FORMAT:
            return [Setting(**setting) for setting in plan["settings"]], dict(plan["shared"])
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is damaged; choose another folder for the sweep.") from error
    raise ResultsError(
        f"{path} has format {plan['format']!r}, and this version of dmax reads {FORMAT}; use the version that wrote it."
    )
