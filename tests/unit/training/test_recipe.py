"""Recipes are checked before anything is loaded, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dmax.training.objectives.masked import FarSmoothingSection
from dmax.training.recipe import load_recipe
from dmax.training.section import RecipeError

RECIPES = Path(__file__).parents[3] / "recipes"


def edited(folder: Path, **sections: Any) -> Path:
    values = yaml.safe_load((RECIPES / "smoke" / "oput.yaml").read_text())
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_in_the_repository_is_valid(path: Path) -> None:
    assert load_recipe(path).name


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"source": "jsonl", "pth": "x"}, "'data.0.pth'; did you mean 'path'"),
        ({"source": "hub", "path": "x", "spilt": "x"}, "'data.0.spilt'; did you mean 'split'"),
        ({"source": "gsm-symbolic", "path": "x"}, "no recipe key 'data.0.path'"),
        ({"source": "jsonl"}, "data.0.path: Field required"),
        ({"source": "json"}, "data.0: .*'jsonl'"),
        ({"source": "parallel-stress", "worked": True}, "parallel-stress has no equations to carry out"),
        ({"source": "arithmetic", "themes": ["shopping"]}, "arithmetic has no themes"),
        ({"source": "gsm-symbolic", "reworded": 0.5}, "gsm-symbolic is not reworded, everyday and conversations are"),
        ({"source": "everyday", "reworded": 2}, "data.0.reworded: .* less than or equal to 1"),
        ({"source": "everyday", "themes": ["shoping"]}, "no theme 'shoping' .*; take some of .*, shopping"),
    ],
)
def test_what_is_wrong_with_a_source_is_named(tmp_path: Path, section: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        load_recipe(edited(tmp_path, data=[section]))


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'objectives'; did you mean 'objective'"):
        load_recipe(edited(tmp_path, objectives={}))


def sized(folder: Path, form: str = "joint", **train: Any) -> Path:
    """A recipe of one JSONL source, two rows a pass and three passes a step."""
    return edited(
        folder,
        data=[{"source": "jsonl", "path": "x"}],
        objective={"kind": "oput", "form": form},
        train={"rows": 2, "accumulation": 3} | train,
    )


@pytest.mark.parametrize(("form", "steps"), [("joint", 20), ("alternate", 40)])
def test_epochs_become_steps(tmp_path: Path, form: str, steps: int) -> None:
    """60 examples twice, six rows a step; the alternate form reads every example twice an epoch."""
    recipe = load_recipe(sized(tmp_path, form, epochs=2)).of_length(60)
    assert (recipe.train.steps, recipe.train.epochs) == (steps, None)


def test_steps_stay_what_they_are(tmp_path: Path) -> None:
    assert load_recipe(sized(tmp_path, steps=7)).of_length(60).train.steps == 7


@pytest.mark.parametrize("length", [{}, {"steps": 3, "epochs": 2}, {"steps": 0}])
def test_a_recipe_has_one_length(tmp_path: Path, length: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="give either steps, at least 1, or epochs"):
        load_recipe(sized(tmp_path, **length))


def test_endless_sources_have_no_epochs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"epochs needs data of one source.*steps instead"):
        load_recipe(edited(tmp_path, train={"rows": 2, "epochs": 1}))


@pytest.mark.parametrize(("warmup", "steps"), [(20, 20), (0.03, 30), (0, 0), (1.0, 1000), (1, 1)])
def test_warmup_is_a_number_of_steps_or_a_share_of_the_run(tmp_path: Path, warmup: float, steps: int) -> None:
    recipe = load_recipe(edited(tmp_path, optimizer={"warmup": warmup}))
    assert recipe.optimizer.warmup_steps(1000) == steps


def test_far_smoothing_is_for_masked_training(tmp_path: Path) -> None:
    smoothing = {"share": 0.3, "near": 2}
    recipe = load_recipe(edited(tmp_path, objective={"kind": "masked", "far_smoothing": smoothing}))
    assert recipe.objective.far_smoothing == FarSmoothingSection(share=0.3, near=2)
    with pytest.raises(RecipeError, match="far_smoothing is for kind masked; leave it out"):
        load_recipe(edited(tmp_path, objective={"kind": "oput", "far_smoothing": smoothing}))


@pytest.mark.parametrize("objective", [{"kind": "masked"}, {"kind": "oput", "form": "alternate"}])
def test_losses_are_chosen_for_joint_oput_alone(tmp_path: Path, objective: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="losses are chosen for kind oput in the form joint"):
        load_recipe(edited(tmp_path, objective={**objective, "losses": ["pred"]}))


@pytest.mark.parametrize("key", ["noise", "mask_ratio"])
def test_intervals_rise(tmp_path: Path, key: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key} must be \[lowest, highest\]"):
        load_recipe(edited(tmp_path, objective={"kind": "oput", key: [0.9, 0.1]}))


def test_snapshots_are_steps_of_the_run(tmp_path: Path) -> None:
    recipe = load_recipe(edited(tmp_path, train={"rows": 2, "steps": 30, "snapshots": [0.5, 0.01, 0.02, 1.0]}))
    assert recipe.train.snapshot_steps() == [1, 15, 30]
    adapted = {"lora": {"rank": 2}, "model": {"start_from": "x"}, "train": {"rows": 2, "steps": 3, "snapshots": [0.5]}}
    with pytest.raises(RecipeError, match=r"train\.snapshots are of whole weights"):
        load_recipe(edited(tmp_path, **adapted))
