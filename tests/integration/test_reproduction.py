"""A reproduction in small: what is finished is not done again, and the record says what was done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from benchmarks.reproduction import Plan, ReproductionError, Scale, reproduce
from benchmarks.reproduction.study import BASE, DMAX, TRAININGS

pytest.importorskip("reasoning_gym")
pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "recipes" / "gsm-symbolic" / "3-oput.yaml"
SMALL = Scale(prompts=12, problems=3, seeds=(1, 2), steps=2)
OPUT = [training for training in TRAININGS if training.name == "oput"]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["train"] |= {"rows": 2, "accumulation": 1, "compile": False, "validation_rows": 0}
    path = tmp_path / "oput.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return Plan("nano-base", path, SMALL)


def test_a_second_call_does_nothing_again(plan: Plan, tmp_path: Path) -> None:
    steps: list[str] = []
    folder = tmp_path / "work"
    results = reproduce(plan, folder, trainings=OPUT, methods=[BASE, DMAX], on_step=steps.append)
    assert [step for step in steps if step.startswith("train")] == ["train oput-seed-1", "train oput-seed-2"]
    assert sum(step.startswith("measure") for step in steps) == len(BASE.thresholds) + 2 * len(DMAX.thresholds)
    assert all(len(point.right_N) == SMALL.problems for points in results.methods.values() for point in points)
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert record["trainings"]["oput-seed-2"]["steps"] == SMALL.steps
    assert len(record["points"]) == len(BASE.thresholds) + 2 * len(DMAX.thresholds)

    (folder / "measured" / DMAX.folder_name / "0.5-seed-2" / "results.json").unlink()
    again: list[str] = []
    same = reproduce(plan, folder, trainings=OPUT, methods=[BASE, DMAX], on_step=again.append)
    assert again == ["measure DMax/0.5-seed-2"]
    assert same.point(DMAX.name, 0.5).accuracy == results.point(DMAX.name, 0.5).accuracy


def test_two_models_at_a_time_give_the_same(plan: Plan, tmp_path: Path) -> None:
    one = reproduce(plan, tmp_path / "one", trainings=OPUT, methods=[BASE, DMAX])
    two = reproduce(replace(plan, jobs=2), tmp_path / "two", trainings=OPUT, methods=[BASE, DMAX])
    assert {name: [point.of_seeds for point in points] for name, points in one.methods.items()} == {
        name: [point.of_seeds for point in points] for name, points in two.methods.items()
    }
    assert (tmp_path / "two" / "recipes" / "oput-seed-1.log").exists()


def test_a_method_needs_its_training(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ReproductionError, match="DMax needs the training oput"):
        reproduce(plan, tmp_path / "work", trainings=[], methods=[DMAX])


def test_another_recipe_is_refused(plan: Plan, tmp_path: Path) -> None:
    wrong = tmp_path / "masked.yaml"
    wrong.write_text("objective: {kind: masked}\n", encoding="utf-8")
    with pytest.raises(ReproductionError, match="give the recipe of an OPUT training"):
        reproduce(Plan("nano-base", wrong, SMALL), tmp_path / "work")
    with pytest.raises(ReproductionError, match="run this in a clone of the repository"):
        reproduce(Plan("nano-base", tmp_path / "none.yaml", SMALL), tmp_path / "work")
