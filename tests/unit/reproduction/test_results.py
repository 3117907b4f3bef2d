"""Averages over seeds, verdicts on claims and the page, from answers made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.reproduction.claims import CLAIMS
from benchmarks.reproduction.page import to_markdown, write_page
from benchmarks.reproduction.results import Results, Setting
from benchmarks.reproduction.study import (
    ABLATIONS,
    BASE,
    DMAX,
    EMBEDDED,
    METHODS,
    NANO_ALONE,
    NANO_HARD,
    NANO_TWO_BLOCKS,
    TRAINED,
    TWO_BLOCKS,
    Repaired,
)

from dmax.evaluation.metrics import summarize

ROWS = 40
RECORD: dict[str, Any] = {
    "command": ["python", "-m", "benchmarks.reproduction"],
    "hardware": {"processor": "a processor", "cores": 2},
    "versions": {"torch": "2.13.0"},
    "base": {"name": "nano-base", "weights": "0"},
    "scale": {"prompts": 10, "problems": ROWS, "seeds": [1, 2], "steps": None},
    "distilled": {"kept": 9},
    "dtype": None,
    "jobs": 2,
    "trainings": {"oput-seed-1": {"steps": 3, "hours": 0.5}},
    "points": [{"metrics": {"wall_seconds": 1800.0}}] * 3,
}


def setting(method: str, threshold: float, seed: int | None, right: int, tpf: float, failed: int = 0) -> Setting:
    samples = []
    for index in range(ROWS):
        counts = {"num_tokens": round(20 * tpf), "nfe": 20, "passes": 19, "blocks": 4, "revisions": 0}
        error = "it raised" if index < failed else None
        known = counts if error is None else dict.fromkeys(counts)
        correct = error is None and index >= ROWS - right
        samples.append({"id": str(index), "correct": correct, "error": error, "finish_reason": "stop", **known})
    return Setting(method, threshold, seed, summarize(samples, 2.0, 32), tuple(samples))


def study(
    right: dict[str, int] | None = None, tpf: dict[str, float] | None = None, falls: dict[str, int] | None = None
) -> Results:
    """Every method at all its thresholds: as many right answers (30) and as fast (2) as named at the most cautious.

    Each threshold below is a tenth faster, and loses as many answers as ``falls`` says (none).
    """
    settings = []
    for method in METHODS:
        for seed in (None,) if method.training is None else (1, 2):
            for place, threshold in enumerate(method.thresholds):
                speed = (tpf or {}).get(method.name, 2.0) * (1 + place / 10)
                answers = (right or {}).get(method.name, 30) - place * (falls or {}).get(method.name, 0)
                settings.append(setting(method.name, threshold, seed, answers, speed))
    return Results(RECORD, settings)


def test_problems_are_averaged_over_seeds() -> None:
    results = Results(RECORD, [setting("x", 0.5, 1, 10, 2.0), setting("x", 0.5, 2, 30, 4.0, failed=5)])
    point = results.point("x", 0.5)
    assert point.accuracy == pytest.approx(50.0)
    assert point.of_seeds == (25.0, 75.0)
    assert point.tpf_N[0] == pytest.approx(2.0), "what one seed failed at is the other's"
    assert point.tpf_N[-1] == pytest.approx(3.0)
    (low, high), _ = point.intervals
    assert low < 50 < high


def test_a_curve_is_read_between_its_points_and_not_beyond() -> None:
    results = Results(RECORD, [setting("x", 0.9, None, 40, 2.0), setting("x", 0.5, None, 20, 4.0)])
    assert results.accuracy_at("x", 3.0) == pytest.approx(75.0)
    assert results.accuracy_at("x", 1.0) == pytest.approx(100.0)
    assert results.accuracy_at("x", 5.0) is None


def test_areas_rank_by_speed_where_accuracy_is_the_same() -> None:
    areas = study(tpf={DMAX.name: 6.0}).areas
    assert areas[DMAX.name].value == max(area.value for area in areas.values())
    assert areas[DMAX.name].low <= areas[DMAX.name].value <= areas[DMAX.name].high
    assert not {method.name for method in ABLATIONS} & set(areas), "two points make no curve"


def verdicts(results: Results, model: Repaired = TRAINED) -> dict[str, bool]:
    claims = [claim for claim in CLAIMS if claim.of_any_model or model is TRAINED]
    return {claim.key: claim.decide(results, model).holds for claim in claims}


def test_claims_hold_where_the_figures_are_as_the_papers() -> None:
    right = {
        "SPD alone": 2, "hard states": 25, "promotion anywhere": 28, "uniform training": 20, TWO_BLOCKS.name: 29,
    }  # fmt: skip
    tpf = {DMAX.name: 6.0, "dParallel SFT": 3.0, "base, hierarchical": 2.4, TWO_BLOCKS.name: 8.0}
    assert all(verdicts(study(right, tpf, falls={BASE.name: 4})).values())


def test_the_embedded_model_decides_for_itself_what_is_about_decoding() -> None:
    right = {NANO_HARD.name: 25, NANO_TWO_BLOCKS.name: 29}
    results = study(right, {NANO_ALONE.name: 6.0, NANO_TWO_BLOCKS.name: 8.0}, falls={BASE.name: 4})
    embedded = verdicts(results, EMBEDDED)
    assert all(embedded.values())
    assert len(embedded) > 1
    trained = verdicts(results)
    assert [key for key in embedded if trained[key]] == ["collapse", "flat"], "nothing else is"


def test_claims_fail_where_nothing_differs() -> None:
    assert {key for key, holds in verdicts(study()).items() if holds} == {"flat"}


def test_the_page_states_every_claim_method_and_note(tmp_path: Path) -> None:
    results = study(tpf={DMAX.name: 6.0})
    text = to_markdown(results, {"flat": "Because it is."})
    for claim in CLAIMS:
        assert claim.text in text
    for method in METHODS:
        assert method.name in text
    assert "Because it is." in text
    assert "(0.5 hours), 3 settings" in text
    assert "(1.5 hours), 2 at a time" in text
    assert "does not hold" in text
    assert "\\*" not in text, "markup that a cell would show as it is"
    page = tmp_path / "docs" / "reproduction.md"
    write_page(results, page)
    assert (page.parent / "assets" / "reproduction.png").exists()
    assert "](assets/reproduction.png)" in page.read_text(encoding="utf-8")
