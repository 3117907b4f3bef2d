"""Metrics against values computed by hand, and what has to hold of them for any input."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmax.evaluation.metrics import (
    ResultsError,
    accuracy_interval,
    aup,
    aup_intervals,
    aup_points,
    bootstrap_means,
    interval,
    mcnemar,
    paired_difference,
    pareto_front,
    pass_at,
    right_answers,
    summarize,
    tpf_of_rows,
)

FEW = settings(max_examples=25, deadline=None)
percent = st.floats(0, 100)
tpf = st.floats(0.5, 40)


def row(index: int = 0, correct: bool = True, **values: Any) -> dict[str, Any]:
    counts = {"num_tokens": 40, "passes": 9, "nfe": 10, "blocks": 2, "revisions": 4}
    rest = {"seconds": 1.0, "finish_reason": "stop", "error": None}
    return {"index": index, "id": str(index), "correct": correct, "text": "", **counts, **rest, **values}


def failed(index: int = 0, **values: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("num_tokens", "passes", "nfe", "blocks", "revisions", "finish_reason"))
    return row(index, False, **counts, error="RuntimeError: out of memory", **values)


def test_a_summary_by_hand() -> None:
    samples = [
        row(0, True, num_tokens=40, passes=9, nfe=10, blocks=2, revisions=4),
        row(1, False, num_tokens=10, passes=4, nfe=5, blocks=1, revisions=1, finish_reason="length"),
        row(2, True, num_tokens=60, passes=20, nfe=20, blocks=2, revisions=6),
        failed(3),
    ]
    summary = summarize(samples, wall_seconds=5.0, batch_size=4)
    low, high = summary.pop("accuracy_ci95")
    assert 0 <= low < 0.5 < high <= 1
    assert summary == {
        "n": 4,
        "failed": 1,
        "accuracy": 0.5,
        "tpf_mean": pytest.approx((4 + 2 + 3) / 3),
        "tpf_pooled": pytest.approx(110 / 35),
        "tpf_mean_without_prefill": pytest.approx((40 / 9 + 10 / 4 + 3) / 3),
        "tpf_pooled_without_prefill": pytest.approx(110 / 33),
        "nfe_mean": pytest.approx(35 / 3),
        "passes_mean": pytest.approx(11),
        "tps": pytest.approx(22),
        "tokens_mean": pytest.approx(110 / 3),
        "passes_per_block": pytest.approx(33 / 5),
        "revisions_per_token": pytest.approx(0.1),
        "finish_reasons": {"error": 1, "length": 1, "stop": 2},
        "wall_seconds": 5.0,
        "batch_size": 4,
    }
    json.dumps(summary)


def test_a_server_that_tells_tokens_only() -> None:
    silent = dict.fromkeys(("passes", "nfe", "blocks", "revisions"))
    summary = summarize([row(0, **silent), row(1, finish_reason=None, **silent)], 2.0, 8)
    known = {key for key, value in summary.items() if value is not None}
    assert {"tps", "tokens_mean", "accuracy"} <= known
    assert known.isdisjoint({"tpf_mean", "tpf_pooled", "nfe_mean", "passes_per_block", "revisions_per_token"})
    assert summary["tps"] == 40
    assert summary["finish_reasons"] == {"stop": 1, "unknown": 1}


def test_one_answer_without_counts_leaves_the_cost_unknown() -> None:
    summary = summarize([row(0), row(1, nfe=None)], 1.0, 1)
    assert summary["tpf_mean"] is None
    assert summary["tpf_mean_without_prefill"] is not None


def test_a_run_in_which_everything_failed() -> None:
    summary = summarize([failed(0), failed(1)], 1.0, 2)
    assert (summary["accuracy"], summary["accuracy_ci95"][0], summary["failed"]) == (0.0, 0.0, 2)
    assert summary["tps"] is summary["tpf_mean"] is summary["nfe_mean"] is None


def test_an_answer_that_could_not_be_graded_is_wrong_but_has_its_cost() -> None:
    summary = summarize([row(0), row(1, True, num_tokens=20, error="grading raised KeyError")], 1.0, 2)
    assert (summary["accuracy"], summary["failed"], summary["tpf_mean"]) == (0.5, 1, 3.0)


def test_an_empty_answer_has_a_tpf_of_zero() -> None:
    assert summarize([row(0, num_tokens=0, revisions=0)], 1.0, 1)["tpf_mean"] == 0
    assert summarize([row(0, num_tokens=0, revisions=0)], 1.0, 1)["revisions_per_token"] is None


def test_no_rows_are_refused() -> None:
    with pytest.raises(ResultsError, match="at least one row"):
        summarize([], 1.0, 1)


def test_the_same_seed_gives_the_same_interval() -> None:
    samples = [row(index, index % 3 > 0) for index in range(50)]
    first, second, other = (summarize(samples, 1.0, 1, seed=seed)["accuracy_ci95"] for seed in (0, 0, 1))
    assert first == second
    assert first == pytest.approx(other, abs=0.03)


def test_the_interval_is_the_binomial_one() -> None:
    """Resampling 0s and 1s is drawing from a binomial distribution, whose spread is known."""
    samples = [row(index, index < 600) for index in range(1000)]
    low, high = summarize(samples, 1.0, 1)["accuracy_ci95"]
    spread = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    assert (low, high) == (pytest.approx(0.6 - spread, abs=0.003), pytest.approx(0.6 + spread, abs=0.003))


@FEW
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_the_interval_holds_the_accuracy(right: list[bool]) -> None:
    summary = summarize([row(index, correct) for index, correct in enumerate(right)], 1.0, 1)
    low, high = summary["accuracy_ci95"]
    assert 0 <= low <= summary["accuracy"] <= high <= 1


@FEW
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 200)), min_size=1, max_size=30))
def test_both_means_lie_between_the_extremes(rows: list[tuple[int, int]]) -> None:
    samples = [row(i, num_tokens=tokens, nfe=nfe) for i, (tokens, nfe) in enumerate(rows)]
    summary = summarize(samples, 1.0, 1)
    ratios = [tokens / nfe for tokens, nfe in rows]
    for key in ("tpf_mean", "tpf_pooled"):
        assert min(ratios) - 1e-9 <= summary[key] <= max(ratios) + 1e-9


def test_bootstrap_columns_share_their_rows() -> None:
    values = np.random.default_rng(0).random((20, 1))
    draws = bootstrap_means(np.hstack([values, 2 * values + 1]), seed=3, resamples=500)
    np.testing.assert_allclose(draws[:, 1], 2 * draws[:, 0] + 1)


def test_bootstrap_does_not_depend_on_how_it_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((30, 2))
    whole = bootstrap_means(values, seed=1, resamples=100)
    monkeypatch.setattr("dmax.evaluation.metrics._CHUNK", 90)
    np.testing.assert_allclose(bootstrap_means(values, seed=1, resamples=100), whole)


def test_bootstrap_leaves_missing_values_out() -> None:
    draws = bootstrap_means([[2.0], [np.nan], [2.0]], seed=0, resamples=200)[:, 0]
    assert set(draws[np.isfinite(draws)]) == {2.0}
    assert 0 < np.isnan(draws).mean() < 0.1  # all three draws hit the missing one: 1/27


def test_right_answers_and_tpf_line_up_with_the_rows() -> None:
    samples = [row(0, num_tokens=30), failed(1), row(2, False)]
    assert right_answers(samples).tolist() == [1, 0, 0]
    np.testing.assert_array_equal(tpf_of_rows(samples), [3.0, np.nan, 4.0])
    assert tpf_of_rows([row(0, nfe=None)]) is None


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (2, 2, 1.0),  # twice the tail is 22/16, and a probability is at most 1
        (5, 15, 2 * (1 + 20 + 190 + 1140 + 4845 + 15504) / 2**20),
    ],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_mcnemar_of_thousands_of_rows() -> None:
    """Against the normal approximation with continuity correction, which is good for so many."""
    z = (200 - 1) / math.sqrt(3200)
    assert mcnemar(1500, 1700) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)


@FEW
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_a_symmetric_probability(gained: int, lost: int) -> None:
    assert 0 < mcnemar(gained, lost) == mcnemar(lost, gained) <= 1


def test_a_paired_difference_by_hand() -> None:
    first = [True] * 6 + [False] * 4
    second = [True] * 5 + [False] + [True] * 3 + [False]
    result = paired_difference(first, second)
    assert (result.rows, result.gained, result.lost, result.p_value) == (10, 3, 1, pytest.approx(2 * 5 / 16))
    assert result.difference == pytest.approx(0.2)
    assert result.ci95[0] < 0.2 < result.ci95[1]


@FEW
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_swapping_the_runs_turns_the_difference(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.difference == -back.difference
    assert there.ci95 == pytest.approx([-back.ci95[1], -back.ci95[0]])
    assert there.p_value == back.p_value


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
def test_runs_on_other_rows_are_not_paired(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ResultsError, match="same rows"):
        paired_difference(first, second)


def test_aup_by_hand() -> None:
    """Points (2, 90), (4, 87), (6, 80) with a best of 90: the last is 10 points below the first and left out."""
    points = [(6.0, 80.0), (2.0, 90.0), (4.0, 87.0)]
    assert aup_points(points) == [(2.0, 90.0), (4.0, 87.0)]
    weight = math.exp(-3 * (1 - 87 / 90))
    assert aup(points, 90.0) == pytest.approx(180 + (4 - 2) * (87 * weight + 90) / 2)
    assert aup(points, 90.0) == pytest.approx(348.7209, abs=1e-4)


def test_aup_of_published_points() -> None:
    """GSM8K points of the d3LLM leaderboard (LLaDA, data_llada.yaml), evaluated by hand from the published formula."""
    best = 74.98
    assert aup([(1.0, 74.98), (2.88, 74.39)], best) == pytest.approx(213.7564, abs=1e-4)
    assert aup([(1.0, 74.0), (5.14, 72.63)], best) == pytest.approx(358.1422, abs=1e-4)
    assert aup([(1.0, 74.02), (9.11, 73.09)], best) == pytest.approx(637.6549, abs=1e-4)


def test_aup_without_a_loss_is_the_area() -> None:
    assert aup([(2, 90), (5, 90)], 90) == pytest.approx(450)
    assert aup([(3, 80)], 95) == pytest.approx(240)  # the first point is not weighted
    assert aup([(3, 0), (5, 0)], 0) == 0


def test_aup_can_fall_where_a_point_becomes_better_or_is_added() -> None:
    """As docs/concepts/measurement.md warns."""
    assert aup([(1, 92), (5, 86)], 92) < aup([(1, 90), (5, 86)], 92)
    assert aup([(1, 90), (3, 86), (5, 90)], 90) < aup([(1, 90), (5, 90)], 90)


def test_exactly_five_points_below_still_counts() -> None:
    # 62 - 57 is more than 5 in floats: 100 * 0.57 is 56.99999999999999.
    assert len(aup_points([(1, 100 * 0.62), (2, 100 * 0.57)])) == 2
    assert len(aup_points([(1, 62), (2, 56.9)])) == 1


@pytest.mark.parametrize(
    ("points", "best", "message"),
    [
        ([], 90, "at least one point"),
        ([(1, 101)], 90, "percentage"),
        ([(-1, 90)], 90, "TPF"),
        ([(math.nan, 90)], 90, "TPF"),
        ([(1, 90)], 900, "best_accuracy"),
    ],
)
def test_what_aup_refuses(points: list[tuple[float, float]], best: float, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        aup(points, best)


@FEW
@given(st.lists(st.tuples(tpf, st.floats(90, 94)), min_size=2, max_size=8), st.data())
def test_aup_grows_with_the_accuracy_of_any_point(points: list[tuple[float, float]], data: Any) -> None:
    """Within the 5 points, where none comes or goes. Beyond them it need not: that is in the docs."""
    index = data.draw(st.integers(0, len(points) - 1))
    speed, accuracy = points[index]
    better = data.draw(st.floats(accuracy, 94))
    ordered = [p[0] for p in points]
    if ordered.count(speed) > 1:
        return  # of points with one TPF the more accurate comes first, which is another curve
    raised = [*points[:index], (speed, better), *points[index + 1 :]]
    assert aup(raised, 95) >= aup(points, 95) - 1e-9


@FEW
@given(st.lists(st.tuples(tpf, percent), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_aup_does_not_depend_on_the_order(points: list[tuple[float, float]], random: Any) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)
    assert aup(shuffled, 100) == aup(points, 100)


@FEW
@given(st.lists(st.tuples(tpf, percent), min_size=1, max_size=8), percent, percent)
def test_aup_falls_as_the_best_rises(points: list[tuple[float, float]], one: float, other: float) -> None:
    low, high = sorted((one + 1e-3, other + 1e-3))
    assert aup(points, min(high, 100)) <= aup(points, min(low, 100)) + 1e-9


def test_aup_intervals_hold_what_was_measured() -> None:
    random = np.random.default_rng(0)

    def point(share: float, speed: float) -> tuple[Any, Any]:
        return random.random(300) < share, speed + random.random(300)

    methods = {"slow": [point(0.9, 2), point(0.89, 3)], "fast": [point(0.9, 3), point(0.9, 6)]}
    intervals = aup_intervals(methods, resamples=500)
    best = max(100 * float(np.mean(right)) for points in methods.values() for right, _ in points)
    for name, points in methods.items():
        measured = aup([(float(np.mean(speed)), 100 * float(np.mean(right))) for right, speed in points], best)
        low, high = intervals[name]
        assert low < measured < high
    assert intervals["slow"][1] < intervals["fast"][0]


def test_aup_intervals_without_chance_have_no_width() -> None:
    points = [(np.ones(20), np.full(20, 2.0)), (np.ones(20), np.full(20, 5.0))]
    assert aup_intervals({"sure": points}, resamples=50) == {"sure": [pytest.approx(500), pytest.approx(500)]}


def test_aup_intervals_skip_failed_rows_and_refuse_other_rows() -> None:
    speeds = np.array([2.0, np.nan, 2.0, 2.0])
    assert aup_intervals({"a": [([1, 1, 1, 1], speeds)]}, resamples=50)["a"] == [200.0, 200.0]
    with pytest.raises(ResultsError, match="same rows"):
        aup_intervals({"a": [([1, 1], [1, 2]), ([1], [1])]})
    with pytest.raises(ResultsError, match="answered rows"):
        aup_intervals({"a": [([0, 0], [np.nan, np.nan])]}, resamples=10)


def test_a_front_by_hand() -> None:
    points = [(2, 92), (3, 92), (3, 80), (5, 91), (5, 91), (6, 40)]
    assert pareto_front(points) == [1, 3, 4, 5]
    assert pareto_front([]) == []


@FEW
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_a_front_beats_everything_else(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    kept = [points[index] for index in front]
    assert [speed for speed, _ in kept] == sorted(speed for speed, _ in kept)
    assert [accuracy for _, accuracy in kept] == sorted((accuracy for _, accuracy in kept), reverse=True)
    for index, (speed, accuracy) in enumerate(points):
        if index not in front:
            assert any(s >= speed and a >= accuracy and (s, a) != (speed, accuracy) for s, a in kept)


def test_an_interval_is_the_middle_95_percent() -> None:
    assert interval(np.arange(1001) / 1000) == pytest.approx([0.025, 0.975])


@pytest.mark.parametrize(("right", "low", "high"), [([1] * 6, 0.5407, 1.0), ([0] * 6, 0.0, 0.4593), ([1], 0.025, 1.0)])
def test_all_or_none_right_has_an_exact_interval(right: list[int], low: float, high: float) -> None:
    assert accuracy_interval(right, 0) == pytest.approx([low, high], abs=1e-4)


def test_two_runs_that_never_differ_may_differ_elsewhere() -> None:
    low, high = paired_difference([True] * 6, [True] * 6).ci95
    assert (low, high) == pytest.approx((-0.4593, 0.4593), abs=1e-4)


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer() -> None:
    right = [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]
    by_hand = [sum(any(row[i] for i in drawn) for drawn in combinations(range(4), 2)) / 6 for row in right]
    assert pass_at(right) == pytest.approx({"1": 0.5, "2": sum(by_hand) / 3, "4": 2 / 3})
