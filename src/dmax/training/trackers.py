"""Where a run's numbers can be watched: TensorBoard files, wandb, trackio."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from dmax.training.recipe import Recipe, TrackerName
from dmax.training.section import RecipeError


class Tracker(Protocol):
    """Takes the metrics of one step after another."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder."""

    def __init__(self, folder: Path, step: int) -> None:
        writer = _imported("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Service:
    """A run at wandb or trackio, which have one interface; a resumed run goes on under its name.

    Args:
        name: the package.
        recipe: of the run; its values go along.
        folder: of the run.
    """

    def __init__(self, name: TrackerName, recipe: Recipe, folder: Path) -> None:
        self._package = _imported(name, name)
        settings: dict[str, Any] = {
            "project": recipe.tracking.project,
            "name": recipe.name,
            "config": recipe.model_dump(mode="json"),
            "resume": "allow",
        }
        if name == "wandb":  # a run is one by its id there, by its name at trackio
            settings |= {"dir": str(folder), "id": recipe.name}
        self._package.init(**settings)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._package.log({name: value for name, value in metrics.items() if name != "step"}, step=step)

    def close(self) -> None:
        self._package.finish()


def open_trackers(recipe: Recipe, folder: Path, step: int) -> list[Tracker]:
    """Open the trackers that a recipe names, for a run that goes on after ``step``.

    Raises:
        RecipeError: one of them is not installed.
    """
    return [
        TensorBoard(folder, step) if name == "tensorboard" else Service(name, recipe, folder)
        for name in recipe.tracking.trackers
    ]


def _imported(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        extra = "train" if name == "tensorboard" else "trackers"
        raise RecipeError(
            f"tracking.trackers names {name}, which is not installed: pip install 'dmax-llm[{extra}]', or leave it out."
        ) from error
