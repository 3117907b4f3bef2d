"""What a sweep's points say: the area under accuracy and speed, the front of the best, the setting to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dmax.evaluation.metrics import (
    ResultsError,
    aup,
    aup_intervals,
    aup_points,
    pareto_front,
    right_answers,
    tpf_of_rows,
)
from dmax.evaluation.report import CONVENTIONS, MEASURES, Table, accuracy_cell, measure_cells, read_samples

Speed = Literal["tpf_mean", "tps"]
"""The metric by which one setting is faster than another."""

SPEED_NAMES: Mapping[Speed, str] = {"tpf_mean": "TPF", "tps": "TPS"}

AUP_NOTE = (
    "AUP is the area under accuracy (in percent) over mean TPF, each accuracy weighted by how far it falls behind the "
    "best of all methods (d3LLM, arXiv 2601.07568). Points more than 5 accuracy points below a method's slowest one "
    "are left out of it."
)

OVERLAP_NOTE = (
    "Whether intervals overlap is a cautious test: `dmax report` on the folders of two points compares them row by row "
    "and sees smaller differences."
)


@dataclass(frozen=True)
class Point:
    """What one setting achieved on one task."""

    model: str
    decoder: str
    threshold: float | None
    """As it took effect; None for a decoder without one."""
    task: str
    metrics: Mapping[str, Any]
    """As :func:`dmax.evaluation.metrics.summarize` gives them."""
    folder: Path
    """Where ``results.json`` and the samples are."""

    @property
    def method(self) -> str:
        """Model and decoder; the points of one method make one curve."""
        return f"{self.model}, {self.decoder}"

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.metrics["accuracy"])

    def __str__(self) -> str:
        return self.method if self.threshold is None else f"{self.method}, threshold {self.threshold:g}"


@dataclass(frozen=True)
class Recommendation:
    """The fastest setting that is accurate enough."""

    point: Point
    reference: Point
    """The point whose accuracy was to be kept."""
    speed: Speed
    tolerance_points: float
    note: str
    """How sure the accuracy is."""

    def __str__(self) -> str:
        metrics = self.point.metrics
        points = "accuracy point" if self.tolerance_points == 1 else "accuracy points"
        return (
            f"{self.point} ({SPEED_NAMES[self.speed]} {metrics[self.speed]:.2f}, accuracy {accuracy_cell(metrics)}) is "
            f"the fastest setting within {self.tolerance_points:g} {points} of {self.reference}. {self.note}"
        )


def known_speed(points: Sequence[Point]) -> Speed | None:
    """Return TPF where all points have it, else TPS, else None; servers may not tell what they count."""
    speeds: tuple[Speed, ...] = ("tpf_mean", "tps")
    return next((speed for speed in speeds if all(point.metrics[speed] is not None for point in points)), None)


def recommend(
    points: Sequence[Point], tolerance_points: float, *, speed: Speed = "tpf_mean", baseline: Point | None = None
) -> Recommendation:
    """Find the fastest point of a task whose accuracy is within a tolerance of the reference's.

    Args:
        points: points of one task, all with this speed.
        tolerance_points: accuracy points that may be lost.
        speed: what makes a point fast.
        baseline: the reference; if not given, the most accurate point and, of equals, the fastest.

    Raises:
        ResultsError: the points cannot be compared, or none is within the tolerance of the baseline.
    """
    if not points or len({point.task for point in points}) != 1 or any(p.metrics[speed] is None for p in points):
        raise ResultsError(
            f"a recommendation needs points of one task with a known {SPEED_NAMES[speed]}; leave out the others."
        )
    if tolerance_points < 0:
        raise ResultsError(f"the tolerance is {tolerance_points:g} accuracy points; it must be at least 0.")
    reference = baseline or max(points, key=lambda point: (point.accuracy, point.metrics[speed]))
    bar = reference.accuracy - tolerance_points - 1e-9  # the difference of two rounded percentages is not exact
    enough = [point for point in points if point.accuracy >= bar]
    if not enough:
        raise ResultsError(
            f"no setting is within {tolerance_points:g} accuracy points of {reference}; allow a greater loss."
        )
    best = max(enough, key=lambda point: (point.metrics[speed], point.accuracy))
    faster = [point for point in points if point.metrics[speed] > best.metrics[speed]]
    missed = [point for point in faster if 100 * point.metrics["accuracy_ci95"][1] >= bar]
    note = " ".join([_certainty(best, reference, bar), *([_near_miss(missed, speed)] if missed else [])])
    return Recommendation(best, reference, speed, tolerance_points, note)


def aup_table(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Compute AUP of every method on one task, best first; empty where TPF is not known.

    Each entry has ``method``, ``aup``, ``ci95`` (None unless all points have samples of the same rows), ``points`` and
    ``left_out`` (how many were too inaccurate to count).
    """
    if any(point.metrics["tpf_mean"] is None for point in points):
        return []
    methods = by_method(points)
    best = max(point.accuracy for point in points)
    intervals = _aup_intervals(methods)
    table = []
    for method, own in methods.items():
        pairs = [(float(point.metrics["tpf_mean"]), point.accuracy) for point in own]
        entry = {"method": method, "aup": aup(pairs, best), "ci95": intervals.get(method), "points": len(pairs)}
        table.append({**entry, "left_out": len(pairs) - len(aup_points(pairs))})
    return sorted(table, key=lambda entry: -entry["aup"])


def front(points: Sequence[Point], speed: Speed) -> list[Point]:
    """List the points that no other beats in both speed and accuracy, by rising speed."""
    return [points[index] for index in pareto_front([(point.metrics[speed], point.accuracy) for point in points])]


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Group points by method, in the order in which the methods appear."""
    methods: dict[str, list[Point]] = {}
    for point in points:
        methods.setdefault(point.method, []).append(point)
    return methods


def summary(points: Sequence[Point], tolerance_points: float) -> dict[str, Any]:
    """Return everything about one task's points as plain values for ``sweep.json``."""
    speed = known_speed(points)
    choice = None if speed is None else recommend(points, tolerance_points, speed=speed)
    return {
        "points": [{**_identity(p), "folder": p.folder.name, "metrics": dict(p.metrics)} for p in points],
        "speed": speed,
        "pareto_front": [] if speed is None else [_identity(point) for point in front(points, speed)],
        "aup": aup_table(points),
        "recommendation": None if choice is None else _recommendation_record(choice),
    }


def to_markdown(
    tasks: Mapping[str, Sequence[Point]], summaries: Mapping[str, Mapping[str, Any]], pictures: Sequence[str]
) -> str:
    """Write a sweep as Markdown: for every task the recommended setting, AUP and all points; then the pictures.

    Args:
        tasks: the points of every task.
        summaries: what :func:`summary` gives for them.
        pictures: names of the PNG files without their ending.
    """
    parts = ["# Sweep"]
    for task, points in tasks.items():
        facts = summaries[task]
        parts.append(f"## {task}")
        if chosen := facts["recommendation"]:
            parts.append(f"Recommended: {chosen['text']}")
        if facts["aup"]:
            parts.append(_aup_cells(facts["aup"]).to_markdown())
        parts.append(_point_cells(points, facts["pareto_front"]).to_markdown())
    parts += [f"![Accuracy against {name.rpartition('-')[2].upper()}]({name}.png)" for name in pictures]
    return "\n\n".join([*parts, "---", *CONVENTIONS, AUP_NOTE, OVERLAP_NOTE]) + "\n"


def _aup_cells(table: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for entry in table:
        ci95 = "–" if entry["ci95"] is None else "[{:.1f}, {:.1f}]".format(*entry["ci95"])
        rows.append((entry["method"], f"{entry['aup']:.1f}", ci95, str(entry["points"]), str(entry["left_out"])))
    return Table(("Method", "AUP", "95 %", "Points", "Left out"), rows)


def _recommendation_record(choice: Recommendation) -> dict[str, Any]:
    return {
        **_identity(choice.point),
        "tolerance_points": choice.tolerance_points,
        "reference": _identity(choice.reference),
        "text": str(choice),
    }


def _point_cells(points: Sequence[Point], front_of: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            point.method,
            "–" if point.threshold is None else f"{point.threshold:g}",
            *measure_cells(point.metrics),
            "yes" if _identity(point) in front_of else "",
        )
        for point in points
    ]
    return Table(("Method", "Threshold", *MEASURES, "On the front"), rows)


def _aup_intervals(methods: Mapping[str, Sequence[Point]]) -> dict[str, list[float]]:
    """Compute intervals by method; none unless all points have the same rows and their samples are still there."""
    ids: set[tuple[str, ...]] = set()
    arrays: dict[str, list[tuple[Any, Any]]] = {}
    for method, points in methods.items():
        for point in points:
            samples = read_samples(point.folder, point.task)
            tpf = tpf_of_rows(samples)
            if tpf is None:
                return {}
            ids.add(tuple(sample["id"] for sample in samples))
            arrays.setdefault(method, []).append((right_answers(samples), tpf))
    return aup_intervals(arrays) if len(ids) == 1 else {}


def _certainty(best: Point, reference: Point, bar: float) -> str:
    """Tell what the intervals allow to be said about the loss."""
    if best is reference:
        return "It is that setting itself."
    loss, rows = reference.accuracy - best.accuracy, best.metrics["n"]
    if loss <= 0:
        return "It is no less accurate."
    low, high = (100 * bound for bound in best.metrics["accuracy_ci95"])
    found = f"It loses {loss:.1f} points"
    if high < 100 * reference.metrics["accuracy_ci95"][0]:
        return f"{found}, and the intervals do not overlap: the loss is real."
    doubt = "" if low >= bar else ", nor do they rule out a loss beyond the tolerance"
    return f"{found}; the intervals overlap, so {rows} rows do not show that anything is lost{doubt}."


def _near_miss(missed: Sequence[Point], speed: Speed) -> str:
    point = max(missed, key=lambda point: point.metrics[speed])
    return (
        f"A faster setting misses the tolerance by less than its uncertainty: {point} ({SPEED_NAMES[speed]} "
        f"{point.metrics[speed]:.2f}, accuracy {accuracy_cell(point.metrics)}); more rows would settle it."
    )


def _identity(point: Point) -> dict[str, Any]:
    return {"model": point.model, "decoder": point.decoder, "threshold": point.threshold}
