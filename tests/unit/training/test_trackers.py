"""What reaches the trackers, and what is said where one is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dmax.training.metrics import MetricsLog
from dmax.training.recipe import Recipe
from dmax.training.section import RecipeError

STEPS = [{"step": step, "loss": 5.0 - step, "grad_norm": 1.0} for step in (1, 2, 3)]


def recipe(*trackers: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tracked",
            "seed": 1,
            "model": {"config": {}},
            "tokenizer": {"vocab_size": 300},
            "data": [{"source": "arithmetic"}],
            "objective": {"kind": "masked"},
            "train": {"steps": 3, "rows": 1},
            "tracking": {"trackers": list(trackers), "project": "tests"},
        }
    )


class Recorder(ModuleType):
    """Stands in for wandb or trackio."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []

    def init(self, **settings: Any) -> None:
        self.calls.append(("init", settings))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append(("log", (step, metrics)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_gets_every_step_and_the_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Recorder(name)
    monkeypatch.setitem(sys.modules, name, service)
    with MetricsLog(recipe(name), tmp_path, 0) as log:
        for metrics in STEPS:
            log.write(metrics)
    (_, settings), *logged, last = service.calls
    assert (settings["project"], settings["name"], settings["resume"]) == ("tests", "tracked", "allow")
    assert settings["config"]["train"]["steps"] == 3
    expected = [(m["step"], {"loss": m["loss"], "grad_norm": 1.0}) for m in STEPS]  # "step" is a name of their own
    assert logged == [("log", step_and_values) for step_and_values in expected]
    assert last == ("finish", None)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == STEPS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_every_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(recipe("tensorboard"), tmp_path, 0) as log:
        for metrics in STEPS:
            log.write(metrics)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 4.0), (2, 3.0), (3, 2.0)]


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RecipeError, match=r"wandb, which is not installed: pip install 'dmax-llm\[trackers\]'"):
        MetricsLog(recipe("wandb"), tmp_path, 0).__enter__()
