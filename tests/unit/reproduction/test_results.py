"""Averages over seeds, verdicts on claims, the course of training and the page, from answers made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.reproduction.claims import CLAIMS, OURS, PAPER, begins_to_hold
from benchmarks.reproduction.gather import Study
from benchmarks.reproduction.page import to_markdown, write_page
from benchmarks.reproduction.questions import SETS, TASKS
from benchmarks.reproduction.results import Answers, NotMeasured, Results, Setting
from benchmarks.reproduction.study import (
    BASE,
    CURVE_THRESHOLDS,
    CURVES,
    DMAX,
    METHODS,
    MULTI_TF,
    SHARES,
    SOFT,
    TABLE,
    TWO_BLOCKS,
    Method,
    seeds_of,
)

ROWS = 100
METRICS = {task: {"wall_seconds": 600.0} for task in TASKS}
RECORD: dict[str, Any] = {
    "command": ["python", "-m", "benchmarks.reproduction"],
    "hardware": {"processor": "a processor", "cores": 2},
    "versions": {"torch": "2.13.0"},
    "base": "sha256:0123456789abcdef",
    "recipe": {"name": "nano-3-oput"},
    "scale": {"problems": ROWS, "share": 1.0},
    "dtype": None,
    "trainings": {"oput-seed-1": {"start": "base", "steps": 3, "of": 4, "forwards": 48, "hours": 0.5}},
    "points": [{"metrics": METRICS}] * 3,
    "gsm8k": [],
}


def answers(right: int, tpf: float, failed: int = 0) -> Answers:
    """``ROWS`` answers of 20 forwards each, the last ones right; the first ones failed."""
    samples = []
    for index in range(ROWS):
        lost = index < failed
        tokens, nfe = (None, None) if lost else (round(20 * tpf), 20)
        error = "it raised" if lost else None
        samples.append({"correct": index >= ROWS - right, "error": error, "num_tokens": tokens, "nfe": nfe})
    return Answers.of(samples, seconds=2.0)


def setting(method: str, threshold: float, seed: int | None, found: Answers, at: float = 1.0) -> Setting:
    return Setting(method, threshold, seed, at, dict.fromkeys(TASKS, found))


def study(
    right: dict[str, int] | None = None,
    tpf: dict[str, float] | None = None,
    falls: dict[str, float] | None = None,
    early: dict[float, int] | None = None,
) -> Study:
    """Every method at all its thresholds: as many right answers (70) and as fast (2) as named at the most cautious.

    Each threshold below is a tenth faster, and loses as many answers as ``falls`` says (none). ``early`` says how many
    answers every followed method has right after a share of its training.
    """
    settings = []
    for method in METHODS:
        for seed in seeds_of(method):
            for place, threshold in enumerate(method.thresholds):
                speed = (tpf or {}).get(method.name, 2.0) * (1 + place / 10)
                known = (right or {}).get(method.name, 70) - int(place * (falls or {}).get(method.name, 0))
                settings.append(setting(method.name, threshold, seed, answers(known, speed)))
    for share, known in (early or {}).items():
        for method in CURVES:
            speed = (tpf or {}).get(method.name, 2.0)
            settings += [setting(method.name, t, 1, answers(known, speed), share) for t in CURVE_THRESHOLDS]
    return Study(RECORD, settings)


AS_HOPED: dict[str, Any] = {
    "right": {
        DMAX.name: 71, "SPD alone": 2, "hard states": 60, "promotion anywhere": 60, "uniform training": 50,
        TWO_BLOCKS.name: 68, MULTI_TF.name: 70,
        **dict.fromkeys((SOFT.name, "consistency", "calibrated", "entropy-weighted"), 71),
    },
    "tpf": {
        DMAX.name: 9, "dParallel SFT": 3, "base, hierarchical": 2.4, TWO_BLOCKS.name: 10, SOFT.name: 20,
        "OPUT alone": 3,
        **dict.fromkeys(("consistency", "calibrated", "entropy-weighted"), 9),
    },
    "falls": {BASE.name: 6, DMAX.name: 0.67},
}  # fmt: skip


def verdicts(known: Study, name: str) -> dict[str, bool]:
    found = {claim.key: claim.finding(known.on(name)) for claim in CLAIMS}
    return {key: finding.holds for key, finding in found.items() if finding is not None}


def test_problems_are_averaged_over_seeds() -> None:
    settings = [setting("x", 0.5, 1, answers(25, 2.0)), setting("x", 0.5, 2, answers(75, 4.0, failed=5))]
    point = Results(settings, ("gsm-symbolic",)).point(Method("x", "oput", "threshold", (0.5,)), 0.5)
    assert point.accuracy == pytest.approx(50.0)
    assert point.of_seeds == (25.0, 75.0)
    assert point.tpf_N[0] == pytest.approx(2.0), "what one seed failed at is the other's"
    assert point.tpf_N[-1] == pytest.approx(3.0)
    assert point.tps == pytest.approx((40 * 100 + 80 * 95) / 2 / 2.0)
    (low, high), _ = point.intervals
    assert low < 50 < high


def test_tasks_of_a_set_are_put_together() -> None:
    one, two = answers(20, 2.0), answers(60, 4.0)
    known = [Setting("base", 0.95, None, 1.0, {"everyday-questions": one, "everyday": two, "gsm-symbolic": one})]
    everyday = Study(RECORD, known).on("everyday").point(BASE, 0.95)
    assert everyday.accuracy == pytest.approx(40.0)
    assert len(everyday.right_N) == 2 * ROWS
    assert np.isclose(everyday.tpf, 3.0)
    assert Study(RECORD, known).on_task("everyday").point(BASE, 0.95).accuracy == pytest.approx(60.0)


def test_a_curve_is_read_between_its_points_and_not_beyond() -> None:
    line = Method("x", None, "threshold", (0.9, 0.7, 0.5))
    points = zip(line.thresholds, (80, 80, 40), (2.0, 3.0, 5.0), strict=True)
    results = Results([setting("x", t, None, answers(right, tpf)) for t, right, tpf in points], ("everyday",))
    assert results.accuracy_at(line, 4.0) == pytest.approx(60.0)
    assert results.accuracy_at(line, 1.0) == pytest.approx(80.0)
    assert results.accuracy_at(line, 6.0) is None
    assert results.tpf_at(line, 60.0) == pytest.approx(4.0)
    assert results.tpf_at(line, 40.0) == pytest.approx(5.0)
    assert results.tpf_at(line, 81.0) is None


def test_areas_rank_by_speed_where_accuracy_is_the_same() -> None:
    results = study(tpf={DMAX.name: 6.0}).on("everyday")
    areas = {method.name: results.area(method) for method in TABLE}
    assert areas[DMAX.name].value == max(area.value for area in areas.values())
    assert areas[DMAX.name].low <= areas[DMAX.name].value <= areas[DMAX.name].high


@pytest.mark.parametrize("name", SETS)
def test_claims_hold_where_the_figures_are_as_hoped(name: str) -> None:
    assert verdicts(study(**AS_HOPED), name) == dict.fromkeys((claim.key for claim in CLAIMS), True)


def test_claims_fail_where_nothing_differs() -> None:
    holding = {key for key, holds in verdicts(study(), "everyday").items() if holds}
    assert holding == {"flat", "oput-half", "soft-flat", "soft-half"}


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("soft-aim", {"right": {SOFT.name: 67}}),
        ("soft-aim", {"tpf": {SOFT.name: 7}}),
        ("soft-half", {"falls": {SOFT.name: 1}}),
        ("soft-half", {"right": {SOFT.name: 60}}),
        ("soft-flatter", {"falls": {SOFT.name: 0.67}}),
        ("soft-equal", {"right": {SOFT.name: 67}}),
        ("soft-aup", {"tpf": {SOFT.name: 9}}),
        ("oput-aim", {"tpf": {DMAX.name: 7}}),
        ("dparallel", {"right": {"dParallel SFT": 60}}),
        ("calibrated", {"tpf": {"calibrated": 8}}),
        ("consistency", {"right": {"consistency": 70}}),
    ],
)
def test_one_figure_that_is_not_as_hoped_decides_a_claim(key: str, changes: dict[str, Any]) -> None:
    figures = {part: {**AS_HOPED[part], **changes.get(part, {})} for part in AS_HOPED}
    claim = next(claim for claim in CLAIMS if claim.key == key)
    finding = claim.finding(study(**figures).on("gsm-symbolic"))
    assert finding is not None and not finding.holds


def test_what_is_not_measured_decides_nothing() -> None:
    known = Study(RECORD, [setting(BASE.name, t, None, answers(70, 2.0)) for t in BASE.thresholds])
    assert verdicts(known, "everyday") == {}
    with pytest.raises(NotMeasured):
        known.on("everyday").point(DMAX, 0.5)
    text = to_markdown(known, {})
    assert text.count("not measured yet") >= len(CLAIMS)
    assert "| base | 2.00" in text


def test_a_claim_begins_to_hold_where_it_does_until_the_end() -> None:
    early = dict(zip(SHARES, (71, 40, 71, 71), strict=True))
    known = study(**AS_HOPED, early=early)
    aim = next(claim for claim in CLAIMS if claim.key == "soft-aim")
    assert begins_to_hold(aim, known.course("everyday")) == 0.25
    never = study(right={SOFT.name: 10}, early=early)
    assert begins_to_hold(aim, never.course("everyday")) is None
    # At a share of the training nothing is known of methods that are not followed.
    with pytest.raises(NotMeasured):
        known.on("everyday", 0.05).point(next(m for m in METHODS if m.name == "hard states"), 0.5)


@pytest.mark.slow
def test_the_page_states_every_claim_method_and_note(tmp_path: Path) -> None:
    known = study(**AS_HOPED, early=dict.fromkeys(SHARES, 50))
    text = to_markdown(known, {"flat": "Because it is."})
    for claim in CLAIMS:
        assert claim.text in text
    for method in METHODS:
        assert method.name in text
    assert len(PAPER) + len(OURS) == len({claim.key for claim in CLAIMS})
    assert "Because it is." in text
    assert "1 trainings (0.5 hours) and 3 settings (1.5 hours)" in text
    assert "does not hold" not in text
    assert "3 of 4" in text, "steps of a training that is not finished"
    assert "\\*" not in text, "markup that a cell would show as it is"
    page = tmp_path / "docs" / "reproduction.md"
    write_page(known, page)
    for picture in ("reproduction", "reproduction-training"):
        assert (page.parent / "assets" / f"{picture}.png").exists()
        assert f"](assets/{picture}.png)" in page.read_text(encoding="utf-8")
