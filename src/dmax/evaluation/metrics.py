"""What per-sample rows add up to: accuracy with its interval, what the answers cost, and how two runs compare.

Pure arithmetic on plain values; ``docs/concepts/measurement.md`` states every convention in words.
Suffixes of arrays: N rows, K columns, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
"""Bootstrap resamples of every interval."""

AUP_PENALTY = 3.0
AUP_TOLERANCE = 5.0
"""Accuracy points below the slowest setting from which a point earns nothing."""

Floats = NDArray[np.float64]

_CHUNK = 2**18
"""Row numbers drawn at a time; bounds the memory of a bootstrap and does not change what is drawn."""


class ResultsError(ValueError):
    """Samples, results or a sweep from which nothing can be computed."""


def summarize(
    samples: Sequence[Mapping[str, Any]], wall_seconds: float, batch_size: int, seed: int = 0
) -> dict[str, Any]:
    """Compute metrics of one task from its per-sample rows, as plain values for a results file.

    Accuracy is over all rows: one that raised counts as wrong. Costs are over the rows that were answered; a cost is
    None where one of those lacks the counts, as with a server that does not tell them. Of the two means of TPF,
    ``mean`` averages each prompt's own ratio (the paper's convention) and ``pooled`` divides all tokens by all
    forwards; the prefill counts as a forward unless the name says otherwise, and the EOS is never a token.

    Args:
        samples: rows with the keys of ``samples-<task>.jsonl``.
        wall_seconds: time that answering all rows took, for the throughput.
        batch_size: rows answered together in that time.
        seed: of the bootstrap.

    Raises:
        ResultsError: there are no rows.
    """
    if not samples:
        raise ResultsError("there are no samples to summarize; a task needs at least one row.")
    right = right_answers(samples)
    drawn = _by_row(samples, right)
    answered = [sample for sample in samples if _was_answered(sample)]
    tokens, nfe, passes, blocks, revisions = (
        _column(answered, key) for key in ("num_tokens", "nfe", "passes", "blocks", "revisions")
    )
    return {
        "n": len(samples),
        "failed": sum(sample["error"] is not None for sample in samples),
        "accuracy": float(right.mean()),
        "accuracy_ci95": accuracy_interval(right if drawn is None else drawn.mean(axis=1), seed),
        **({} if drawn is None else {"rows": len(drawn), "samples": drawn.shape[1], "pass_at_k": pass_at(drawn)}),
        "tpf_mean": _mean_of_ratios(tokens, nfe),
        "tpf_pooled": _pooled_ratio(tokens, nfe),
        "tpf_mean_without_prefill": _mean_of_ratios(tokens, passes),
        "tpf_pooled_without_prefill": _pooled_ratio(tokens, passes),
        "nfe_mean": _mean(nfe),
        "passes_mean": _mean(passes),
        "tps": None if tokens is None or wall_seconds <= 0 else float(tokens.sum()) / wall_seconds,
        "tokens_mean": _mean(tokens),
        "passes_per_block": _pooled_ratio(passes, blocks),
        "revisions_per_token": _pooled_ratio(revisions, tokens),
        "finish_reasons": dict(sorted(Counter(_finish_reason(sample) for sample in samples).items())),
        "wall_seconds": wall_seconds,
        "batch_size": batch_size,
    }


def right_answers(samples: Sequence[Mapping[str, Any]]) -> Floats:
    """Return 1 for every row that was answered right and 0 for every other, failed ones included."""
    return np.array([float(bool(s["correct"]) and s["error"] is None) for s in samples])


def tpf_of_rows(samples: Sequence[Mapping[str, Any]]) -> Floats | None:
    """Compute every row's own TPF, NaN where it was not answered; None where an answer lacks the counts."""
    answered = np.array([_was_answered(sample) for sample in samples], dtype=bool)
    rows = [sample for sample in samples if _was_answered(sample)]
    tokens, nfe = _column(rows, "num_tokens"), _column(rows, "nfe")
    if tokens is None or nfe is None:
        return None
    values = np.full(len(samples), np.nan)
    values[answered] = _ratios(tokens, nfe)
    return values


def bootstrap_means(values_NK: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Compute means of every column over rows drawn with replacement, shape (resamples, K).

    All columns of a resample see the same rows, so that differences between columns are paired. NaN is left out of a
    mean; a column of which a resample drew nothing else is NaN there.
    """
    values_NK = np.asarray(values_NK, dtype=np.float64)
    rows = len(values_NK)
    known_NK = np.isfinite(values_NK)
    filled_NK = np.where(known_NK, values_NK, 0.0)
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // rows)
    chunks = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn_RN = generator.integers(0, rows, (count, rows)) + rows * np.arange(count)[:, None]
        times_RN = np.bincount(drawn_RN.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)
        with np.errstate(invalid="ignore"):
            chunks.append((times_RN @ filled_NK) / (times_RN @ known_NK))
    return np.concatenate(chunks)


def interval(draws_R: ArrayLike) -> list[float]:
    """Find the middle 95 % of bootstrap draws: lower and upper bound."""
    return [float(bound) for bound in np.quantile(np.asarray(draws_R, dtype=np.float64), (0.025, 0.975))]


def accuracy_interval(right: ArrayLike, seed: int) -> list[float]:
    """Return the 95 % interval of an accuracy from the shares of right answers, one a row.

    By bootstrap of the rows; where all or none are right, which no resample can change, the exact binomial one of
    Clopper and Pearson.
    """
    right_N = np.asarray(right, dtype=np.float64)
    tail = 0.025 ** (1 / len(right_N))
    if (right_N == 1).all():
        return [tail, 1.0]
    if (right_N == 0).all():
        return [0.0, 1 - tail]
    return interval(bootstrap_means(right_N[:, None], seed)[:, 0])


def pass_at(right_NK: ArrayLike) -> dict[str, float]:
    """Return the chance that at least one of k answers to a row is right, for k of 1, 2, 5, 10, … and of all.

    The unbiased estimator of Chen et al. (arXiv 2107.03374): 1 - C(n - c, k) / C(n, k) over the rows, of which c of n
    answers are right.
    """
    counts = [int(row.sum()) for row in np.asarray(right_NK, dtype=np.float64)]
    samples = np.asarray(right_NK).shape[1]
    wanted = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500) if k < samples] + [samples]
    return {
        str(k): math.fsum(1 - math.comb(samples - c, k) / math.comb(samples, k) for c in counts) / len(counts)
        for k in wanted
    }


def _by_row(samples: Sequence[Mapping[str, Any]], right: Floats) -> Floats | None:
    """Tell which answers to every row are right, shape (rows, answers); None where every row has one."""
    if "row" not in samples[0]:
        return None
    rows: dict[int, list[float]] = {}
    for sample, value in zip(samples, right.tolist(), strict=True):
        rows.setdefault(sample["row"], []).append(value)
    return np.array(list(rows.values()))


@dataclass(frozen=True)
class PairedDifference:
    """How a second run differs from a first on the same rows."""

    rows: int
    difference: float
    """Accuracy of the second minus that of the first, a share."""
    ci95: list[float]
    """Paired bootstrap interval of the difference."""
    gained: int
    """Rows that only the second run answers right."""
    lost: int
    """Rows that only the first run answers right."""
    p_value: float
    """Exact two-sided McNemar test."""


def paired_difference(first: Sequence[bool], second: Sequence[bool], seed: int = 0) -> PairedDifference:
    """Compare the right answers of two runs, row by row.

    Raises:
        ResultsError: the runs differ in rows, or have none.
    """
    if len(first) != len(second) or not first:
        raise ResultsError(
            f"a paired comparison needs the same rows from both runs; they have {len(first)} and {len(second)}."
        )
    change = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    # Where no row differs, as many rows as these would show a difference of more than this in 97.5 % of draws.
    most = 1 - 0.025 ** (1 / len(first))
    ci95 = interval(bootstrap_means(change[:, None], seed)[:, 0]) if gained or lost else [-most, most]
    return PairedDifference(len(first), float(change.mean()), ci95, gained, lost, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Compute the exact two-sided McNemar p-value: how likely ``gained + lost`` fair coins split as unevenly."""
    discordant, smaller = gained + lost, min(gained, lost)
    term = tail = 1
    for i in range(smaller):
        term = term * (discordant - i) // (i + 1)
        tail += term
    # Integers of any size divide correctly rounded, where the terms as floats would overflow.
    return min(1.0, 2 * tail / 2**discordant)


def aup(points: Sequence[tuple[float, float]], best_accuracy: float) -> float:
    """Compute accuracy under parallelism of one method's sweep (d3LLM, arXiv 2601.07568; algorithm.md#aup).

    The area under accuracy over TPF, in percent times tokens per forward, each accuracy weighted by how far it falls
    behind the best.

    Args:
        points: (TPF, accuracy in percent) of every setting, in any order.
        best_accuracy: highest accuracy in percent of all methods compared.

    Raises:
        ResultsError: there are no points, or one is outside its range.
    """
    kept = aup_points(points)
    if not 0 <= best_accuracy <= 100:
        raise ResultsError(f"best_accuracy is {best_accuracy}; it must be a percentage, 0 to 100.")
    tpf, accuracy = kept[0]
    area = tpf * accuracy
    for (left, before), (right, after) in pairwise(kept):
        area += (right - left) * (_worth(after, best_accuracy) + _worth(before, best_accuracy)) / 2
    return area


def aup_points(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """List the points that AUP counts, by rising TPF: those at most 5 accuracy points below the slowest.

    Of points with one TPF the most accurate comes first, so that their order in ``points`` does not matter.

    Raises:
        ResultsError: there are no points, or one is outside its range.
    """
    if not points:
        raise ResultsError("AUP needs at least one point; there is none.")
    for tpf, accuracy in points:
        if not (math.isfinite(tpf) and tpf >= 0 and 0 <= accuracy <= 100):
            raise ResultsError(
                f"the point (TPF {tpf}, accuracy {accuracy}) is out of range; TPF is at least 0 and accuracy a "
                "percentage, 0 to 100."
            )
    ordered = sorted(points, key=lambda point: (point[0], -point[1]))
    # Exactly 5 points below counts, also where the difference of two rounded percentages comes out as a hair more.
    lowest = ordered[0][1] - AUP_TOLERANCE - 1e-9
    return [point for point in ordered if point[1] >= lowest]


def aup_intervals(
    methods: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """Compute 95 % bootstrap intervals of every method's AUP.

    Rows are drawn once for all points of all methods, and the best accuracy is taken anew in every resample, so the
    interval holds everything that another draw of test rows would change.

    Args:
        methods: for each method its points, a point as (right: 0 or 1 a row, TPF a row or NaN where it failed), all
            on the same rows.

    Raises:
        ResultsError: the points differ in rows, or there are none.
    """
    names = [name for name, points in methods.items() for _ in points]
    columns = [column for points in methods.values() for point in points for column in point]
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if len({len(values) for values in arrays}) != 1 or not len(arrays[0]):
        raise ResultsError("an AUP interval needs at least one point, and all points on the same rows.")
    draws_RK = bootstrap_means(np.stack(arrays, axis=1), seed, resamples)
    draws_RK = draws_RK[np.isfinite(draws_RK).all(axis=1)]
    if not len(draws_RK):
        raise ResultsError("an AUP interval needs points with answered rows; one has none.")
    areas: dict[str, list[float]] = {name: [] for name in methods}
    for draw in draws_RK.tolist():
        accuracies = [100 * right for right in draw[0::2]]
        points: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for name, tpf, accuracy in zip(names, draw[1::2], accuracies, strict=True):
            points[name].append((tpf, accuracy))
        for name in methods:
            areas[name].append(aup(points[name], max(accuracies)))
    return {name: interval(values) for name, values in areas.items()}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the (speed, accuracy) points that no other beats in both: indices, by rising speed; equal points stay."""
    front = [
        index
        for index, (speed, accuracy) in enumerate(points)
        if not any(s >= speed and a >= accuracy and (s > speed or a > accuracy) for s, a in points)
    ]
    return sorted(front, key=lambda index: points[index][0])


def _worth(accuracy: float, best: float) -> float:
    """Weigh an accuracy; all are 0 where the best is."""
    return accuracy * math.exp(min(0.0, -AUP_PENALTY * (1 - accuracy / best))) if best else 0.0


def _was_answered(sample: Mapping[str, Any]) -> bool:
    # An answer that could not be graded carries an error too, but its cost is known and counts.
    return sample["error"] is None or sample["num_tokens"] is not None


def _finish_reason(sample: Mapping[str, Any]) -> str:
    if not _was_answered(sample):
        return "error"
    return sample["finish_reason"] or "unknown"


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> Floats | None:
    values = [row[key] for row in rows]
    if not values or any(value is None for value in values):
        return None
    return np.array(values, dtype=np.float64)


def _ratios(numerator: Floats, denominator: Floats) -> Floats:
    """Divide row by row; 0 where a row took no forward, as it has no token either."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _mean(values: Floats | None) -> float | None:
    return None if values is None else float(values.mean())


def _mean_of_ratios(numerator: Floats | None, denominator: Floats | None) -> float | None:
    return None if numerator is None or denominator is None else float(_ratios(numerator, denominator).mean())


def _pooled_ratio(numerator: Floats | None, denominator: Floats | None) -> float | None:
    if numerator is None or denominator is None or not denominator.sum():
        return None
    return float(numerator.sum() / denominator.sum())
