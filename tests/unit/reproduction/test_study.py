"""Everything that is to be trained or measured can be, and costs what it may."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from benchmarks.reproduction import questions
from benchmarks.reproduction.run import ROWS, read_recipe, settings_of
from benchmarks.reproduction.study import (
    BRANCH,
    BRANCHES,
    CAUTIOUS,
    CURVE_THRESHOLDS,
    CURVES,
    DECODING_ABLATIONS,
    DEFAULT,
    DMAX,
    FLATNESS,
    GSM8K_SETTINGS,
    METHODS,
    RUNS,
    SHARES,
    TRAININGS,
    Method,
    Scale,
    Training,
    seeds_of,
    training_of,
)
from benchmarks.reproduction.work import Plan

from dmax.decoding import get_decoder
from dmax.training.recipe import Recipe

RECIPE = Path(__file__).parents[3] / "recipes" / "nano" / "3-oput.yaml"
PLAN = Plan(read_recipe(RECIPE), Scale())
OPUT = TRAININGS[0]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.folder_name)
def test_every_method_decodes_with_options_that_exist(method: Method) -> None:
    for threshold in method.thresholds:
        params = method.params(threshold)
        get_decoder(params.decoder, **params.decoder_arguments())
    assert method.training is None or seeds_of(method)
    assert (DEFAULT if method.decoder == "soft-parallel" else CAUTIOUS) in method.thresholds


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.name)
def test_every_training_is_a_valid_recipe_with_the_data_of_oput(training: Training) -> None:
    written = PLAN.variant(training, 1)
    recipe = Recipe.model_validate(written)
    of_oput = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    assert written["data"] == of_oput["data"]
    assert recipe.objective.model_fields_set == written["objective"].keys()
    assert {key: written["train"][key] for key in ("rows", "accumulation", "context")} == {
        key: of_oput["train"][key] for key in ("rows", "accumulation", "context")
    }


def test_oput_is_the_recipe_itself() -> None:
    of_oput = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    written = PLAN.variant(OPUT, 1)
    assert (written["objective"], written["optimizer"]) == (of_oput["objective"], of_oput["optimizer"])
    assert written["train"]["steps"] == of_oput["train"]["steps"]


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.name)
def test_no_training_takes_more_compute_than_oput(training: Training) -> None:
    """To a step; where a step costs less than OPUT's there are as many steps."""
    whole = PLAN.forwards(OPUT) * (0.5 if training.start == "half" else 1)
    a_step = PLAN.forwards(training) / PLAN.steps(training)
    assert PLAN.forwards(training) <= whole + a_step
    if a_step >= PLAN.forwards(OPUT) / PLAN.steps(OPUT):
        assert PLAN.forwards(training) >= whole - a_step


def test_branches_go_on_from_half_of_oput_at_its_rate() -> None:
    optimizer = PLAN.recipe["optimizer"]
    steps, decay = PLAN.recipe["train"]["steps"], int(PLAN.recipe["train"]["steps"] * optimizer["decay"])
    written = PLAN.variant(training_of("half-oput"), 1)
    assert written["model"]["start_from"] == f"./trained/oput-seed-1/snapshots/step-{steps // 2:07d}"
    assert written["optimizer"]["muon_lr"] == pytest.approx(optimizer["muon_lr"] * (steps / 2) / decay)
    assert written["optimizer"]["decay"] == 1.0
    assert written["train"]["steps"] == steps / 2


def test_names_are_folders_of_their_own() -> None:
    assert len({method.folder_name for method in METHODS}) == len(METHODS)
    assert len({training.name for training in TRAININGS}) == len(TRAININGS) == len(ROWS) - 1


def test_every_training_runs_and_is_measured() -> None:
    assert {name for name, seed in RUNS if seed == 1} == {training.name for training in TRAININGS}
    assert len(set(RUNS)) == len(RUNS)
    assert {method.training for method in METHODS} == {None, *(training.name for training in TRAININGS)}
    assert [seed for name, seed in RUNS if name == "oput"] == [seed for name, seed in RUNS if name == "soft"] == [1, 2]


def test_the_course_of_a_training_is_measured_by_its_first_seed() -> None:
    followed = [(method, t, at) for method, t, at in settings_of(("oput", 1)) if at < 1]
    assert {at for _, _, at in followed} == set(SHARES)
    assert {threshold for _, threshold, _ in followed} == set(CURVE_THRESHOLDS)
    assert all(at == 1 for _, _, at in settings_of(("oput", 2)))
    assert not PLAN.variant(OPUT, 2)["train"]["snapshots"]
    assert all(set(CURVE_THRESHOLDS) <= set(method.thresholds) for method in CURVES), "the end of the course"


def test_an_ablation_differs_from_its_model_in_one_thing() -> None:
    assert all(method.training == DMAX.training and len(method.options) == 1 for method in DECODING_ABLATIONS)
    assert len({method.thresholds for method in FLATNESS}) == 1
    plain = PLAN.objective(training_of(str(BRANCH.training)))
    for method in BRANCHES:
        changed = PLAN.objective(training_of(str(method.training)))
        differing = {key for key in plain.keys() | changed.keys() if plain.get(key) != changed.get(key)}
        soft = {key for key in differing if key.startswith("rollout_")}
        assert len(differing - soft) + bool(soft) in (1, 2), method.name
        assert method.params(DEFAULT) == BRANCH.params(DEFAULT)


def test_gsm8k_is_asked_at_thresholds_that_the_method_has() -> None:
    assert all(threshold in method.thresholds for method, threshold in GSM8K_SETTINGS)


def test_every_setting_is_asked_as_many_everyday_problems_as_symbolic_ones() -> None:
    pytest.importorskip("reasoning_gym")
    written, fresh, symbolic = questions.problems(300)
    assert (written.task.name, fresh.task.name, symbolic.task.name) == tuple(questions.TASKS)
    assert len(written.rows) + len(fresh.rows) == len(symbolic.rows) == 300
    assert written.task.row_id(written.rows[0], 0) == "everyday-001"
    few = questions.problems(2)
    assert [len(data.rows) for data in few] == [1, 1, 2]
    assert set(questions.TASKS) == {task for tasks in questions.SETS.values() for task in tasks}


def test_gsm8k_is_asked_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"question": "How many are 2 and 3?", "answer": "#### 5"}\n' * 3, encoding="utf-8")
    assert len(questions.gsm8k(file, None).rows) == 3
    few = questions.gsm8k(file, 2)
    assert len(few.rows) == 2 and few.source["file"] == "test.jsonl"
