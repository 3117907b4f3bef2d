"""An objective of another package is one file: its options, what it hides, its losses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch.nn.functional as F
import yaml

from dmax.training.layout import Batch
from dmax.training.objectives import registry
from dmax.training.objectives.base import LossPart, Objective, Pass, Predict, supervised, tallies
from dmax.training.objectives.options import CommonOptions, ObjectiveSection, Own
from dmax.training.recipe import load_recipe
from dmax.training.section import RecipeError

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "oput.yaml"


class GentleOptions(ObjectiveSection):
    softness: float = 0.1


class Gentle(Objective[GentleOptions]):
    """Masked training whose labels are all smoothed."""

    name = "gentle"
    section = GentleOptions

    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        masked_ids = batch.layout.noisy_ids.masked_fill(batch.hidden, where.config.mask_token_id)
        logits_SV = predict(masked_ids, batch.layout)
        targets_S, hidden_S = supervised(batch.layout, batch.hidden)
        loss = F.cross_entropy(logits_SV, targets_S, label_smoothing=self.options.softness)
        yield LossPart("gentle", loss, tallies("gentle", loss, logits_SV, targets_S, hidden_S))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that registers the objective, and one that is broken."""
    there = [
        EntryPoint("gentle", f"{__name__}:Gentle", registry.ENTRY_POINT_GROUP),
        EntryPoint("broken", "no_such_module:It", registry.ENTRY_POINT_GROUP),
    ]
    monkeypatch.setattr(EntryPoint, "load", lambda self: Gentle if self.name == "gentle" else __import__("no_such"))

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [entry for entry in there if entry.group == group and name in (None, entry.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def recipe(folder: Path, **objective: Any) -> Path:
    values = yaml.safe_load(SMOKE.read_text()) | {"objective": objective}
    values["train"] |= {"steps": 2, "validate_every": 2, "validation_rows": 1}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.usefixtures("installed")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_an_objective_of_one_file_trains(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    from dmax.training.run import run_recipe

    run_recipe(recipe(tmp_path, kind="gentle", block_length=16, softness=0.2), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["loss_gentle"] < rows[0]["loss_gentle"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("objective", "named"),
    [
        ({"kind": "gentle", "softnes": 1}, "'objective.softnes'; did you mean 'softness'"),
        ({"kind": "gentle", "beta": 1}, "Valid here: kind, .*group, softness"),
        ({"kind": "masked", "softness": 1}, "no recipe key 'objective.softness'"),
        ({"kind": "maskd"}, "objective.kind: Input should be 'masked', 'oput', .*'entropy-weighted', 'broken' or"),
        ({"kind": "broken"}, "objective 'broken' could not be loaded from no_such_module:It"),
    ],
)
def test_what_is_wrong_with_an_objective_is_named(tmp_path: Path, objective: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        load_recipe(recipe(tmp_path, **objective))


def test_an_objective_that_joins_the_registry_has_its_own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file and its name in the table are all it takes, and the sections of the others stay as they are."""
    monkeypatch.setitem(registry._BUILT_IN, "gentle", Gentle)
    section = load_recipe(recipe(tmp_path, kind="gentle", softness=0.2)).objective
    assert (type(section), section.model_dump()["softness"]) == (GentleOptions, 0.2)
    with pytest.raises(RecipeError, match=r"no recipe key 'objective\.softness'"):
        load_recipe(recipe(tmp_path, kind="masked", softness=0.2))


class OneOfAKindOptions(ObjectiveSection):
    beta: Annotated[float | None, Own("beta is for kind one-of-a-kind; leave it out")] = None


class OneOfAKind(Gentle):
    """It has a key that others refuse, and refuses a value that others take."""

    name = "one-of-a-kind"
    section = OneOfAKindOptions

    @classmethod
    def check(cls, section: CommonOptions) -> None:
        super().check(section)
        if section.prefix_share:
            raise ValueError("one-of-a-kind keeps no prefix; leave prefix_share out")


def test_an_objective_says_in_its_own_file_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILT_IN, "one-of-a-kind", OneOfAKind)
    with pytest.raises(RecipeError, match=r"objective: Value error, one-of-a-kind keeps no prefix; leave"):
        load_recipe(recipe(tmp_path, kind="one-of-a-kind", prefix_share=0.5))
    with pytest.raises(ValueError, match="beta is for kind one-of-a-kind; leave it out"):
        Gentle.check(OneOfAKindOptions(kind="gentle", beta=1.0))
    Gentle.check(OneOfAKindOptions(kind="gentle"))


@pytest.mark.parametrize("kind", [kind for kind in registry.objective_names() if kind != "masked"])
def test_what_only_masked_has_is_refused_by_every_other(tmp_path: Path, kind: str) -> None:
    smoothing = {"share": 0.1, "near": 1}
    with pytest.raises(RecipeError, match="objective: Value error, far_smoothing is for kind masked; leave it out"):
        load_recipe(recipe(tmp_path, kind=kind, far_smoothing=smoothing))


@pytest.mark.parametrize("kind", [kind for kind in registry.objective_names() if kind not in ("oput", "oput-indel")])
def test_losses_are_chosen_for_oput_alone(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RecipeError, match="objective: Value error, losses are chosen for kind oput in the form joint"):
        load_recipe(recipe(tmp_path, kind=kind, losses=["pred"]))


def test_the_keys_of_the_objectives_here_are_these(tmp_path: Path) -> None:
    """Their order is part of the fingerprint of every run."""
    keys = "kind, block_length, noise, prefix_share, mask_ratio, losses, rollout, form, rollout_passes, rollout_states"
    keys += ", rollout_threshold, beta, far_smoothing, group, consistency_weight, calibration_weight, entropy_power"
    with pytest.raises(RecipeError, match=f"'objective.betta'; did you mean 'beta'. Valid here: {keys}[.]"):
        load_recipe(recipe(tmp_path, kind="masked", betta=1))
    with pytest.raises(RecipeError, match=r"'objective\.far_smoothing\.shre'; did you mean 'share'"):
        load_recipe(recipe(tmp_path, kind="masked", far_smoothing={"shre": 0.1, "near": 1}))
    with pytest.raises(RecipeError, match=r"objective\.kind: Field required"):
        load_recipe(recipe(tmp_path, beta=1))
