"""Sweeps over settings whose results are made by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmax.evaluation.metrics import ResultsError, aup, summarize
from dmax.evaluation.sweep import Setting, is_finished, read_points, run_sweep, write_sweep
from dmax.evaluation.tradeoff import Point, aup_table, front, known_speed, recommend

TASK = "gsm-symbolic"
SHARED = {"tasks": [TASK], "limit": 20}
BASE = [Setting("base", "threshold", t) for t in (0.95, 0.5)]
NANO = [Setting("nano", "soft-parallel", t) for t in (0.9, 0.5)]
MEASURED = {
    ("base", 0.95): (2, 18),
    ("base", 0.5): (5, 8),
    ("nano", 0.9): (4, 18),
    ("nano", 0.5): (6, 17),
}
"""TPF and right answers of 20."""


class Runner:
    """Writes what an evaluation would; ``asked`` lists the settings it was called with."""

    def __init__(self, tasks: Sequence[str] = (TASK,), **counts: Any) -> None:
        self.tasks = tasks
        self.counts = counts
        self.asked: list[Setting] = []

    def __call__(self, setting: Setting, folder: Path) -> None:
        self.asked.append(setting)
        tpf, right = MEASURED[setting.model, setting.threshold or 0.5]
        counts = {"num_tokens": 10 * tpf, "passes": 9, "nfe": 10, "blocks": 2, "revisions": 0, **self.counts}
        same = {**counts, "finish_reason": "stop", "error": None}
        rows = [{"index": i, "id": str(i), "correct": i < right, **same} for i in range(20)]
        folder.mkdir(parents=True)
        for task in self.tasks:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"samples-{task}.jsonl").write_text(lines, encoding="utf-8")
        values = {"version": 1, "data": {}, "metrics": summarize(rows, 10 / tpf, 4)}
        threshold = 0.5 if setting.threshold is None else setting.threshold
        results = {
            "format": 1, "hardware": {},
            "model": {"name": setting.model, "hash": "sha256:1", "dtype": None, "device": None},
            "decoder": setting.decoder, "params": {"threshold": threshold}, "tasks": dict.fromkeys(self.tasks, values),
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for drawing, which has its own tests; lists the pictures asked for."""
    names: list[str] = []
    monkeypatch.setattr("dmax.evaluation.sweep.draw_tradeoff", lambda panels, stem, label: names.append(stem.name))
    return names


def test_a_sweep_from_start_to_end(tmp_path: Path) -> None:
    folder, seen = tmp_path / "sweep", []
    runner = Runner()
    report = run_sweep(
        BASE + NANO, folder, runner, shared=SHARED, on_point=lambda setting, done: seen.append((setting, done))
    )
    assert runner.asked == BASE + NANO
    assert seen[:2] == [(BASE[0], False), (BASE[0], True)]
    assert report == folder / "sweep.md"
    files = {path.name for path in folder.iterdir() if path.is_file()}
    pictures = {f"accuracy-{speed}.{ending}" for speed in ("tpf", "tps") for ending in ("png", "svg")}
    assert files == {"plan.json", "sweep.json", "sweep.md", *pictures}
    written = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert list(written["runs"]) == [setting.folder_name for setting in BASE + NANO]
    assert all(run["params"]["threshold"] is not None and "tasks" not in run for run in written["runs"].values())
    facts = written["tasks"][TASK]
    assert [(p["model"], p["threshold"]) for p in facts["pareto_front"]] == [("nano", 0.9), ("nano", 0.5)]
    assert [entry["method"] for entry in facts["aup"]] == ["nano, soft-parallel", "base, threshold"]
    assert facts["recommendation"]["threshold"] == 0.9
    text = report.read_text(encoding="utf-8")
    assert "Recommended: nano, soft-parallel, threshold 0.9 (TPF 4.00, accuracy 90.0 [" in text
    assert "![Accuracy against TPF](accuracy-tpf.png)" in text
    assert text.count("| yes |") == 2
    assert "prefill" in text


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Interrupted(Runner):
        def __call__(self, setting: Setting, folder: Path) -> None:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            super().__call__(setting, folder)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(BASE + NANO, tmp_path / "s", Interrupted(), shared=SHARED)
    runner = Runner()
    run_sweep(BASE + NANO, tmp_path / "s", runner, shared=SHARED)
    assert runner.asked == NANO


@pytest.mark.usefixtures("no_pictures")
def test_further_settings_are_added(tmp_path: Path) -> None:
    run_sweep(BASE, tmp_path, Runner(), shared=SHARED)
    runner = Runner()
    run_sweep(NANO, tmp_path, runner, shared={"limit": 20, "tasks": (TASK,)})  # equal as JSON
    assert runner.asked == NANO
    assert [(point.model, point.threshold) for point in read_points(tmp_path)] == list(MEASURED)


@pytest.mark.usefixtures("no_pictures")
def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    run_sweep(BASE, tmp_path / "sweep", Runner(), shared=SHARED)
    with pytest.raises(ResultsError, match="holds a sweep with another limit; choose another folder"):
        run_sweep(BASE, tmp_path / "sweep", Runner(), shared={**SHARED, "limit": 30})
    with pytest.raises(ResultsError, match="holds other files and no sweep"):
        run_sweep(BASE, tmp_path, Runner(), shared=SHARED)
    (tmp_path / "sweep" / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"plan\.json is damaged"):
        run_sweep(BASE, tmp_path / "sweep", Runner(), shared=SHARED)
    (tmp_path / "sweep" / "plan.json").write_text('{"format": 9}', encoding="utf-8")
    with pytest.raises(ResultsError, match="has format 9"):
        read_points(tmp_path / "sweep")


def test_a_point_of_another_setting_is_refused(tmp_path: Path) -> None:
    Runner()(BASE[0], tmp_path / "point")
    assert is_finished(tmp_path / "point", BASE[0])
    assert is_finished(tmp_path / "point", Setting("base", "threshold"))  # None: whatever is the default
    assert not is_finished(tmp_path / "elsewhere", BASE[0])
    for other in (BASE[1], Setting("base", "hierarchical", 0.95), Setting("nano", "threshold", 0.95)):
        with pytest.raises(ResultsError, match=r"was measured with base--threshold--0\.95"):
            is_finished(tmp_path / "point", other)
    assert is_finished(tmp_path / "point", replace(BASE[0], weights="sha256:1"))
    with pytest.raises(ResultsError, match="was measured with other weights of base"):
        is_finished(tmp_path / "point", replace(BASE[0], weights="sha256:2"))


@pytest.mark.usefixtures("no_pictures")
def test_settings_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    for bad, problem in (([], "there is none"), ([BASE[0], BASE[0]], "base--threshold--0.95 is there twice")):
        with pytest.raises(ResultsError, match=problem):
            run_sweep(bad, tmp_path / "s", Runner(), shared=SHARED)
    assert not (tmp_path / "s").exists()
    run = run_sweep([Setting("nano", "soft-parallel")], tmp_path / "s", Runner(), shared=SHARED)
    assert run.exists()
    with pytest.raises(ResultsError, match="belongs to another setting"):
        run_sweep([Setting("nano/", "soft-parallel")], tmp_path / "s", Runner(), shared=SHARED)


def test_folder_names_are_plain() -> None:
    assert (
        Setting("Zigeng/DMax-Math-16B", "soft-parallel", 0.65).folder_name
        == "Zigeng-DMax-Math-16B--soft-parallel--0.65"
    )
    assert Setting("../runs/x/", "threshold").folder_name == "runs-x--threshold"


@pytest.mark.usefixtures("no_pictures")
def test_points_of_several_tasks(tmp_path: Path) -> None:
    run_sweep(BASE + NANO, tmp_path, Runner([TASK, "asdiv"]), shared=SHARED)
    points = read_points(tmp_path)
    assert [point.task for point in points[:2]] == [TASK, "asdiv"]
    text = (tmp_path / "sweep.md").read_text(encoding="utf-8")
    assert f"## {TASK}" in text
    assert "## asdiv" in text


def test_a_server_that_does_not_tell_its_forwards(tmp_path: Path, no_pictures: list[str]) -> None:
    silent = dict.fromkeys(("passes", "nfe", "blocks", "revisions"))
    run_sweep(BASE + NANO, tmp_path, Runner(**silent), shared=SHARED)
    facts = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["tasks"][TASK]
    assert (facts["speed"], facts["aup"]) == ("tps", [])
    assert facts["recommendation"]["threshold"] == 0.9
    assert no_pictures == ["accuracy-tps"]


def test_a_server_that_tells_nothing(tmp_path: Path, no_pictures: list[str]) -> None:
    silent = dict.fromkeys(("num_tokens", "passes", "nfe", "blocks", "revisions"))
    run_sweep(BASE, tmp_path, Runner(**silent), shared=SHARED)
    facts = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["tasks"][TASK]
    assert (facts["speed"], facts["recommendation"], facts["pareto_front"]) == (None, None, [])
    assert no_pictures == []


def test_nothing_runs_where_pictures_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    runner = Runner()
    with pytest.raises(ResultsError, match=r"dmax-llm\[eval\]"):
        run_sweep(BASE, tmp_path / "s", runner, shared=SHARED)
    assert runner.asked == []


@pytest.mark.usefixtures("no_pictures")
def test_unfinished_sweeps_can_be_summed_up_but_not_empty_ones(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no sweep"):
        write_sweep(tmp_path)
    run_sweep(BASE, tmp_path, Runner(), shared=SHARED)
    (tmp_path / BASE[0].folder_name / "results.json").unlink()
    write_sweep(tmp_path)
    assert len(read_points(tmp_path)) == 1
    (tmp_path / BASE[1].folder_name / "results.json").unlink()
    with pytest.raises(ResultsError, match="no finished point"):
        write_sweep(tmp_path)


def point(tpf: float | None, right: int, rows: int = 100, threshold: float | None = None, **changes: Any) -> Point:
    share = right / rows
    spread = 1.96 * (share * (1 - share) / rows) ** 0.5
    interval = [max(0.0, share - spread), min(1.0, share + spread)]
    metrics = {"n": rows, "failed": 0, "accuracy": share, "accuracy_ci95": interval, "tpf_mean": tpf, "tps": tpf}
    given = {"model": "nano", "decoder": "soft-parallel", "task": TASK, "folder": Path("nowhere"), **changes}
    return Point(threshold=threshold, metrics=metrics, **given)


def test_the_fastest_within_the_tolerance() -> None:
    points = [point(2, 92), point(4, 91), point(6, 80)]
    assert recommend(points, 1.0).point is points[1]
    assert recommend(points, 0.5).point is points[0]
    assert recommend(points, 12).point is points[2]
    assert recommend(points, 1.0).reference is points[0]
    assert recommend(points, 1.0, speed="tps").point is points[1]
    assert recommend([point(2, 62), point(3, 57)], 5).point.metrics["tpf_mean"] == 3  # exactly the tolerance


def test_of_equals_the_faster_is_the_reference() -> None:
    points = [point(2, 92), point(5, 92)]
    assert recommend(points, 0).reference is points[1]


def test_a_baseline_replaces_the_best() -> None:
    points = [point(2, 95), point(4, 91), point(6, 85)]
    assert recommend(points, 1, baseline=points[1]).point is points[1]
    with pytest.raises(ResultsError, match="allow a greater loss"):
        recommend(points[1:], 1, baseline=points[0])


@pytest.mark.parametrize(
    ("points", "tolerance", "note"),
    [
        ([point(4, 92)], 1, "It is that setting itself."),
        ([point(2, 92), point(4, 91)], 1, "so 100 rows do not show that anything is lost, nor do they"),
        ([point(2, 92), point(4, 91)], 20, "100 rows do not show that anything is lost."),
        ([point(2, 92), point(4, 60)], 40, "the intervals do not overlap: the loss is real."),
        ([point(2, 92), point(4, 89, threshold=0.25)], 1, "its uncertainty: nano, soft-parallel, threshold 0.25"),
    ],
)
def test_the_note_says_how_sure_it_is(points: list[Point], tolerance: float, note: str) -> None:
    assert note in recommend(points, tolerance).note


def test_a_faster_baseline_loses_nothing() -> None:
    points = [point(2, 90), point(4, 91)]
    assert recommend(points, 1, baseline=points[0]).note == "It is no less accurate."


@pytest.mark.parametrize(
    ("points", "tolerance", "message"),
    [
        ([], 1, "points of one task"),
        ([point(2, 90), point(3, 90, task="asdiv")], 1, "points of one task"),
        ([point(None, 90)], 1, "known TPF"),
        ([point(2, 90)], -1, "at least 0"),
    ],
)
def test_what_recommend_refuses(points: list[Point], tolerance: float, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        recommend(points, tolerance)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 100)), min_size=1, max_size=10),
    st.floats(0, 30),
    st.floats(0, 30),
)
def test_a_greater_tolerance_is_never_slower(pairs: list[tuple[int, int]], one: float, other: float) -> None:
    points = [point(tpf, right) for tpf, right in pairs]
    strict, loose = (recommend(points, tolerance).point for tolerance in sorted((one, other)))
    assert loose.metrics["tpf_mean"] >= strict.metrics["tpf_mean"]
    assert strict.accuracy >= max(p.accuracy for p in points) - min(one, other) - 1e-6


def test_aup_of_methods_by_hand() -> None:
    """Best of all methods is 92; the second method's faster point is 30 points below its slower one."""
    slow, fast = [point(2, 92), point(3, 90)], [point(2, 90, model="base"), point(5, 60, model="base")]
    first, second = aup_table(slow + fast)
    assert (first["method"], first["points"], first["left_out"], first["ci95"]) == ("nano, soft-parallel", 2, 0, None)
    assert first["aup"] == pytest.approx(aup([(2, 92), (3, 90)], 92))
    assert (second["method"], second["aup"], second["left_out"]) == ("base, soft-parallel", pytest.approx(180), 1)
    assert aup_table([point(2, 92), point(None, 90)]) == []


@pytest.mark.usefixtures("no_pictures")
def test_aup_intervals_come_from_the_samples(tmp_path: Path) -> None:
    run_sweep(BASE + NANO, tmp_path, Runner(), shared=SHARED)
    best, other = aup_table(read_points(tmp_path))
    assert best["ci95"][0] < best["aup"] < best["ci95"][1]
    assert other["left_out"] == 1
    (tmp_path / BASE[0].folder_name / f"samples-{TASK}.jsonl").unlink()
    assert [entry["ci95"] for entry in aup_table(read_points(tmp_path))] == [None, None]


def test_front_and_speed() -> None:
    points = [point(2, 92), point(4, 91), point(3, 90)]
    assert front(points, "tpf_mean") == points[:2]
    assert known_speed(points) == "tpf_mean"
    assert known_speed([*points, point(None, 92)]) is None
