"""A study in small: what is finished is not done again, on any machine, and the page says how far it has come."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from benchmarks.reproduction import Plan, Scale, gather, read_recipe, reproduce, run
from benchmarks.reproduction.page import to_markdown
from benchmarks.reproduction.progress import rows_of, status
from benchmarks.reproduction.study import BASE, BRANCH, CURVE_THRESHOLDS, DMAX, SHARES

from dmax.training.run import run_recipe

pytest.importorskip("reasoning_gym")
pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"
SHARE = 0.002
THRESHOLDS = len(CURVE_THRESHOLDS)
ONLY = ("base", "oput", "half-oput")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few thousand parameters."""
    folder = tmp_path_factory.mktemp("base")
    recipe = yaml.safe_load((RECIPES / "smoke" / "oput.yaml").read_text(encoding="utf-8"))
    recipe["model"]["config"]["max_position_embeddings"] = 1024
    recipe["train"] |= {"steps": 1, "validation_rows": 0}
    (folder / "base.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return run_recipe(folder / "base.yaml", folder / "run")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """OPUT's own recipe on fewer rows, without the data that are not here; three methods are measured."""
    recipe = read_recipe(RECIPES / "nano" / "3-oput.yaml")
    recipe["train"] |= {"rows": 2, "compile": False}
    recipe["data"] = [section for section in recipe["data"] if section["source"] != "gsm8k-variants"]
    base, dmax, branch = (replace(method, thresholds=CURVE_THRESHOLDS) for method in (BASE, DMAX, BRANCH))
    monkeypatch.setattr(run, "METHODS", (base, dmax, branch))
    monkeypatch.setattr(run, "CURVES", (dmax,))
    return Plan(recipe, Scale(share=SHARE))


def test_a_study_is_taken_up_wherever_its_folder_is(plan: Plan, base: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    done: list[str] = []

    def stop_at_the_branch(step: str) -> None:
        if step == "train half-oput-seed-1":
            raise KeyboardInterrupt
        done.append(step)

    with pytest.raises(KeyboardInterrupt):
        reproduce(plan, here, str(base), only=ONLY, on_step=stop_at_the_branch)
    course = [step for step in done if "-at-" in step]
    assert len(course) == len(SHARES) * THRESHOLDS
    assert sum(step.startswith("measure") for step in done) == (1 + 2 + len(SHARES)) * THRESHOLDS
    assert [row.state for row in rows_of(here) if row.name == "half-oput-seed-1"] == ["waiting"]
    text = to_markdown(gather(here), {})
    assert "**Tried out with 0.2% of all steps and problems.**" in text
    assert "| base | 0.95 |" in text and "OPUT to the end" not in text

    # Only weights are left, of shares of the training those that others start from.
    output = here / "trained" / "oput-seed-1"
    assert (output / "model" / "model.safetensors").exists()
    assert not (output / "checkpoints").exists()
    assert [folder.name for folder in (output / "snapshots").iterdir()] == ["step-0000002"]

    here.rename(there)
    again: list[str] = []
    reproduce(plan, there, only=ONLY, on_step=again.append)
    assert again == ["train half-oput-seed-1", *(f"measure OPUT-to-the-end/{t:g}-seed-1" for t in CURVE_THRESHOLDS)]
    nothing: list[str] = []
    reproduce(plan, there, only=ONLY, on_step=nothing.append)
    assert nothing == []

    (there / "measured" / DMAX.folder_name / "0.5-seed-2" / "results.json").unlink()
    before = gather(there).on("everyday").methods[DMAX.name][0].of_seeds
    reproduce(plan, there, only=ONLY, on_step=nothing.append)
    assert nothing == ["measure DMax/0.5-seed-2"]
    study = gather(there, ["python", "-m", "benchmarks.reproduction"])
    assert study.on("everyday").methods[DMAX.name][0].of_seeds == before
    record = json.loads((there / "results.json").read_text(encoding="utf-8"))
    assert record["trainings"]["oput-seed-2"]["steps"] == record["trainings"]["oput-seed-2"]["of"] == 5
    assert len(record["points"]) == (1 + 2 + len(SHARES) + 1) * THRESHOLDS

    states = {row.name: row.state for row in rows_of(there)}
    assert states["base"] == states["oput-seed-2"] == states["half-oput-seed-1"] == "done"
    assert states["soft-seed-1"] == "waiting"
    assert "spent" in status(there) and "| half-oput-seed-1" in status(there)


def test_rows_side_by_side_wait_for_what_they_start_from(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class AtOnce:
        """A pool whose only worker finishes a row before the next is given."""

        def __init__(self, *arguments: object) -> None:
            pass

        def __enter__(self) -> AtOnce:
            return self

        def __exit__(self, *arguments: object) -> None:
            pass

        def submit(self, todo: object, row: run.Run | None) -> run.Future[None]:
            order.append("base" if row is None else f"{row[0]}-seed-{row[1]}")
            if row is not None:
                (tmp_path / "trained" / order[-1]).mkdir(parents=True)
                (tmp_path / "trained" / order[-1] / "finished").touch()
            future: run.Future[None] = run.Future()
            future.set_result(None)
            return future

    monkeypatch.setattr(run, "ProcessPoolExecutor", AtOnce)
    run._side_by_side(lambda row: None, [("multi-tf", 1), ("half-oput", 1), ("soft", 1), ("oput", 1)], tmp_path, 2)
    assert order == ["soft-seed-1", "oput-seed-1", "multi-tf-seed-1", "half-oput-seed-1"]
