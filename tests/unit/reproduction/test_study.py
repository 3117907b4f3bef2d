"""Everything that is to be trained or measured can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from benchmarks.reproduction.study import (
    ABLATIONS,
    CAUTIOUS,
    DEFAULT,
    DMAX,
    GROUP_ABLATIONS,
    GSM8K_METHODS,
    GSM8K_THRESHOLDS,
    METHODS,
    MULTI_TF,
    TRAININGS,
    Method,
    Training,
)

from dmax.decoding import get_decoder
from dmax.training.objectives.registry import BuiltInSection

RECIPE = Path(__file__).parents[3] / "recipes" / "gsm-symbolic" / "3-oput.yaml"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.folder_name)
def test_every_method_decodes_with_options_that_exist(method: Method) -> None:
    for threshold in method.thresholds:
        params = method.params(threshold)
        get_decoder(params.decoder, **params.decoder_arguments())
    assert method.training is None or method.training in {training.name for training in TRAININGS}
    assert (DEFAULT if method.decoder == "soft-parallel" else CAUTIOUS) in method.thresholds


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.name)
def test_every_training_is_a_valid_objective(training: Training) -> None:
    recipe = {} if "kind" in training.objective else yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["objective"]
    fields = {**recipe, **training.objective}
    objective = BuiltInSection.model_validate(fields)
    assert objective.kind == fields["kind"]
    assert objective.model_fields_set == fields.keys()


def test_names_are_folders_of_their_own() -> None:
    assert len({method.folder_name for method in METHODS}) == len(METHODS)
    assert len({training.name for training in TRAININGS}) == len(TRAININGS)


def test_an_ablation_differs_from_dmax_in_one_thing() -> None:
    objectives = {training.name: training.objective for training in TRAININGS}
    dmax = objectives[str(DMAX.training)]
    for method in ABLATIONS:
        training = next(found for found in TRAININGS if found.name == method.training)
        assert training.objective.keys() >= dmax.keys()
        differences = [key for key, value in training.objective.items() if dmax.get(key) != value] + [*method.options]
        assert len(differences) == 1, method.name
        assert method.decoder == DMAX.decoder
        assert method.block_length == training.objective.get("block_length", 32)


def test_an_ablation_of_groups_differs_from_multi_tf_in_one_thing() -> None:
    groups = {training.name: training.objective.get("group", {}) for training in TRAININGS}
    for method in GROUP_ABLATIONS:
        group = groups[str(method.training)]
        assert len(group.keys() - groups[str(MULTI_TF.training)].keys()) == 1, method.name
        assert method.params(DEFAULT) == MULTI_TF.params(DEFAULT)


def test_gsm8k_is_asked_at_thresholds_that_the_method_has() -> None:
    assert all(GSM8K_THRESHOLDS[method.name] in method.thresholds for method in GSM8K_METHODS)
