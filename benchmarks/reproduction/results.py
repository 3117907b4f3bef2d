"""What was measured, averaged over training seeds problem by problem.

Suffixes of arrays: N problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from dmax.evaluation.metrics import Floats, aup, aup_intervals, bootstrap_means, interval, right_answers, tpf_of_rows


@dataclass(frozen=True)
class Setting:
    """One method at one threshold, with one training seed."""

    method: str
    threshold: float
    seed: int | None
    """None for the base model."""
    metrics: Mapping[str, Any]
    samples: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Point:
    """One method at one threshold, over all training seeds."""

    threshold: float
    right_N: Floats
    """Share of the seeds that answered the problem right."""
    tpf_N: Floats
    """Mean over the seeds; NaN where none answered."""
    tps: float
    """Tokens per second of a batch, mean over the seeds."""
    of_seeds: tuple[float, ...]
    """Accuracy of every seed, in percent."""

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.right_N.mean())

    @property
    def tpf(self) -> float:
        """Mean over problems."""
        return float(np.nanmean(self.tpf_N))

    @cached_property
    def intervals(self) -> tuple[list[float], list[float]]:
        """95 % bootstrap intervals over problems: of the accuracy in percent, and of TPF."""
        draws = bootstrap_means(np.stack([100 * self.right_N, self.tpf_N], 1), seed=0)
        return interval(draws[:, 0]), interval(draws[:, 1])


@dataclass(frozen=True)
class Area:
    """Accuracy under parallelism of one method."""

    value: float
    low: float
    high: float


class Results:
    """Points by method.

    Args:
        record: what ``results.json`` holds.
        settings: all that was measured on one set of problems.
        gsm8k: the same on GSM8K.
    """

    def __init__(self, record: Mapping[str, Any], settings: Sequence[Setting], gsm8k: Sequence[Setting] = ()) -> None:
        self.record = record
        self.methods = _by_method(settings)
        self.gsm8k = _by_method(gsm8k)

    def curve(self, method: str) -> list[Point]:
        """List all points of a method, by falling threshold."""
        return self.methods[method]

    def point(self, method: str, threshold: float) -> Point:
        """Find one point of a method."""
        return next(point for point in self.methods[method] if point.threshold == threshold)

    def accuracy_at(self, method: str, tpf: float) -> float | None:
        """Find a method's accuracy in percent at a speed, along its curve; None where it is never so fast."""
        points = sorted((point.tpf, point.accuracy) for point in self.methods[method])
        if tpf <= points[0][0]:
            return points[0][1]
        for (left, before), (right, after) in pairwise(points):
            if left <= tpf <= right:
                return before + (after - before) * (tpf - left) / (right - left) if right > left else after
        return None

    @cached_property
    def areas(self) -> dict[str, Area]:
        """AUP of every method with more than two points, the best accuracy being that of all of them."""
        curves = {name: points for name, points in self.methods.items() if len(points) > 2}
        best = max(point.accuracy for points in curves.values() for point in points)
        bounds = aup_intervals({name: [(p.right_N, p.tpf_N) for p in points] for name, points in curves.items()})
        return {
            name: Area(aup([(point.tpf, point.accuracy) for point in points], best), *bounds[name])
            for name, points in curves.items()
        }


def _by_method(settings: Sequence[Setting]) -> dict[str, list[Point]]:
    methods: dict[str, list[Point]] = {}
    for method in dict.fromkeys(setting.method for setting in settings):
        own = [setting for setting in settings if setting.method == method]
        thresholds = sorted({setting.threshold for setting in own}, reverse=True)
        methods[method] = [_point([s for s in own if s.threshold == t], t) for t in thresholds]
    return methods


def _point(settings: Sequence[Setting], threshold: float) -> Point:
    rights, speeds = [], []
    for setting in settings:
        speed = tpf_of_rows(setting.samples)
        assert speed is not None, "answers given here tell their counts"
        rights.append(right_answers(setting.samples))
        speeds.append(speed)
    known = np.isfinite(speeds)
    with np.errstate(invalid="ignore"):
        tpf_N = np.where(known, speeds, 0.0).sum(0) / known.sum(0)
    return Point(
        threshold,
        np.mean(rights, axis=0),
        tpf_N,
        float(np.mean([setting.metrics["tps"] for setting in settings])),
        tuple(100 * float(right.mean()) for right in rights),
    )
