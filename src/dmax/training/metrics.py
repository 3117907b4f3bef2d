"""Where a run's numbers go: ``metrics.jsonl``, trackers, the progress bar."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from dmax.training.recipe import Recipe
from dmax.training.trackers import open_trackers


class MetricsLog:
    """One JSON object a step in ``metrics.jsonl``, and the same numbers for the recipe's trackers.

    Opening it for a resumed run drops the lines of steps that will be taken again. A silent log writes nothing.
    """

    def __init__(self, recipe: Recipe, folder: Path, step: int, enabled: bool = True) -> None:
        self.recipe = recipe
        self.folder = folder
        self.step = step
        self.enabled = enabled

    def __enter__(self) -> MetricsLog:
        if not self.enabled:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self._trackers = open_trackers(self.recipe, self.folder, self.step)
        path = self.folder / "metrics.jsonl"
        kept = _lines_up_to(path, self.step) if self.step and path.exists() else []
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(kept)
        return self

    def __exit__(self, *_: object) -> None:
        if not self.enabled:
            return
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def write(self, metrics: dict[str, float]) -> None:
        """Record one step; ``metrics`` holds its number as ``step``."""
        if not self.enabled:
            return
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(metrics, int(metrics["step"]))


def _lines_up_to(path: Path, step: int) -> list[str]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        lines.append(line)
    return lines


class Progress:
    """A progress bar with the numbers one watches, on stderr."""

    def __init__(self, name: str, steps: int, step: int, enabled: bool = True) -> None:
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not enabled,
        )
        self._task = self._bar.add_task(name, total=steps, completed=step, numbers="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, metrics: dict[str, float]) -> None:
        """Show one step."""
        shown = [f"loss {metrics['loss']:.4f}"]
        shown += [
            f"{name.removeprefix('accuracy_')} acc {value:.3f}"
            for name, value in metrics.items()
            if name.startswith("accuracy_")
        ]
        shown.append(f"{metrics['tokens_per_second']:,.0f} tok/s")
        self._bar.update(self._task, completed=int(metrics["step"]), numbers="  ".join(shown))
