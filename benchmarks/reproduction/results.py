"""What was measured: answers by setting, and averages over training seeds problem by problem.

Suffixes of arrays: N problems.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from benchmarks.reproduction.study import CURVES, METHODS, TABLE, Method

from dmax.evaluation.metrics import Floats, aup, aup_intervals, bootstrap_means, interval, right_answers, tpf_of_rows

END = 1.0


class NotMeasured(LookupError):
    """A setting that nothing is known of yet."""


@dataclass(frozen=True)
class Answers:
    """What is counted of the answers to one task, or to several."""

    right_N: Floats
    """1 for a right answer, else 0."""
    tpf_N: Floats
    """NaN where there was no answer."""
    tokens: int
    seconds: float
    """Wall time of the batches."""

    @classmethod
    def of(cls, samples: Sequence[Mapping[str, Any]], seconds: float) -> Answers:
        """Count samples as an evaluation stores them."""
        speed = tpf_of_rows(samples)
        assert speed is not None, "answers given here tell their counts"
        tokens = sum(sample["num_tokens"] or 0 for sample in samples)
        return cls(right_answers(samples), speed, tokens, seconds)

    @classmethod
    def together(cls, parts: Sequence[Answers]) -> Answers:
        """Put the answers to several tasks behind one another."""
        right_N, tpf_N = (np.concatenate([getattr(part, name) for part in parts]) for name in ("right_N", "tpf_N"))
        return cls(right_N, tpf_N, sum(part.tokens for part in parts), sum(part.seconds for part in parts))


@dataclass(frozen=True)
class Setting:
    """One method at one threshold, with one training seed, at one time of its training."""

    method: str
    threshold: float
    seed: int | None
    """None for the base model."""
    at: float
    """Share of the training's steps."""
    answers: Mapping[str, Answers]
    """By the name of the task."""


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

    @classmethod
    def of(cls, threshold: float, seeds: Sequence[Answers]) -> Point:
        """Average over seeds, problem by problem."""
        speeds = np.stack([answers.tpf_N for answers in seeds])
        known = np.isfinite(speeds)
        with np.errstate(invalid="ignore"):
            tpf_N = np.where(known, speeds, 0.0).sum(0) / known.sum(0)
        return cls(
            threshold,
            np.mean([answers.right_N for answers in seeds], axis=0),
            tpf_N,
            float(np.mean([answers.tokens / answers.seconds for answers in seeds])),
            tuple(100 * float(answers.right_N.mean()) for answers in seeds),
        )

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
    """Points by method, on one set of problems.

    Args:
        settings: all that was measured.
        tasks: whose problems make the set.
        at: share of the training; of less than all of it, only methods of the first seed whose training is followed are
            known, and those of the base model.
    """

    def __init__(self, settings: Sequence[Setting], tasks: Collection[str], at: float = END) -> None:
        untrained = {method.name for method in METHODS if method.training is None}
        followed = {method.name for method in CURVES}
        here = [
            setting for setting in settings
            if setting.method in untrained or (setting.at == at and (at == END or setting.method in followed))
        ]  # fmt: skip
        self.methods: dict[str, list[Point]] = {}
        for method in dict.fromkeys(setting.method for setting in here):
            own = [setting for setting in here if setting.method == method]
            self.methods[method] = [
                Point.of(
                    threshold,
                    [
                        Answers.together([setting.answers[task] for task in tasks])
                        for setting in own
                        if setting.threshold == threshold
                    ],
                )
                for threshold in sorted({setting.threshold for setting in own}, reverse=True)
            ]

    def curve(self, method: Method) -> list[Point]:
        """List the points of a method, by falling threshold.

        Raises:
            NotMeasured: one is missing.
        """
        points = self.methods.get(method.name, [])
        if [point.threshold for point in points] != list(method.thresholds):
            raise NotMeasured(method.name)
        return points

    def point(self, method: Method, threshold: float) -> Point:
        """Find one point of a method.

        Raises:
            NotMeasured: it is missing.
        """
        for point in self.methods.get(method.name, []):
            if point.threshold == threshold:
                return point
        raise NotMeasured(f"{method.name} at {threshold:g}")

    def accuracy_at(self, method: Method, tpf: float) -> float | None:
        """Find a method's accuracy in percent at a speed, along its curve; None where it is never so fast."""
        points = sorted((point.tpf, point.accuracy) for point in self.curve(method))
        if tpf <= points[0][0]:
            return points[0][1]
        for (left, before), (right, after) in pairwise(points):
            if left <= tpf <= right:
                return before + (after - before) * (tpf - left) / (right - left) if right > left else after
        return None

    def tpf_at(self, method: Method, accuracy: float) -> float | None:
        """Find the greatest speed at which a method is so accurate, in percent, along its curve; None if never."""
        points = sorted((point.tpf, point.accuracy) for point in self.curve(method))
        fastest = max((tpf for tpf, known in points if known >= accuracy), default=None)
        for (left, before), (right, after) in pairwise(points):
            if left == fastest and after < accuracy:
                return left + (right - left) * (before - accuracy) / (before - after)
        return fastest

    def area(self, method: Method) -> Area:
        """Return the AUP of a method of the table, the best accuracy being that of all whose curves are complete.

        Raises:
            NotMeasured: its curve is not.
        """
        self.curve(method)
        return self._areas[method.name]

    @cached_property
    def _areas(self) -> dict[str, Area]:
        known = {method.name: self.methods.get(method.name, []) for method in TABLE}
        curves = {m.name: known[m.name] for m in TABLE if len(known[m.name]) == len(m.thresholds)}
        best = max(point.accuracy for points in curves.values() for point in points)
        bounds = aup_intervals({name: [(p.right_N, p.tpf_N) for p in points] for name, points in curves.items()})
        return {
            name: Area(aup([(point.tpf, point.accuracy) for point in points], best), *bounds[name])
            for name, points in curves.items()
        }
