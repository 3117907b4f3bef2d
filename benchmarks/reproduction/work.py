"""The steps of a reproduction: distil, train, measure. Whatever is finished is not done again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.reproduction.results import Setting
from benchmarks.reproduction.study import CAUTIOUS, GSM8K_METHODS, GSM8K_THRESHOLDS, Method, Scale, Training

from dmax.distillation import InProcess, distill, find_source, load_prompts
from dmax.engine import LLM, GenerationParams
from dmax.evaluation.answerers import LocalAnswerer, weights_hash
from dmax.evaluation.report import RESULTS_FILE, read_results, read_samples
from dmax.evaluation.runner import TaskData, evaluate
from dmax.evaluation.tasks import get_task, load_rows

TASK = "gsm-symbolic"
PROBLEM_SEED = 20_261
"""Of the problems that are answered, used for nothing else; the training data are drawn from another split."""
BATCH_SIZE = 32


class ReproductionError(ValueError):
    """A reproduction that cannot go on."""


@dataclass(frozen=True)
class Plan:
    """What a reproduction starts from."""

    base: str
    """Folder, hub id or embedded model."""
    recipe: Path
    """Of OPUT; its optimiser, batches and steps serve every training."""
    scale: Scale
    processes: int = 1
    """That train together; changes no result."""
    gsm8k: Path | None = None
    """The test set of GSM8K, to be answered too."""
    jobs: int = 1
    """Models that are trained and measured at one time, each on its share of the cores."""
    dtype: str | None = None
    """Of the arithmetic that answers problems; None for the default of the device."""


class Work:
    """The steps of one process."""

    def __init__(
        self,
        plan: Plan,
        recipe: Mapping[str, Any],
        folder: Path,
        command: Sequence[str],
        on_step: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._recipe = recipe
        self._folder = folder
        self._command = command
        self._on_step = on_step
        self._loaded: tuple[str, LLM, str] | None = None
        self._rows: dict[str, TaskData] = {}

    def distil(self) -> Path:
        """Make the base model's own right answers, by cautious decoding."""
        folder = self._folder / "distilled"
        if not (folder / "manifest.json").exists():
            self._on_step(f"distil {self._plan.scale.prompts} answers")
            source = find_source(TASK)
            params = GenerationParams(decoder="threshold", threshold=CAUTIOUS)

            def make() -> LocalAnswerer:
                return self._answerer(self._plan.base, params)

            distill(
                load_prompts(source, None, self._plan.scale.prompts),
                InProcess(make),
                folder,
                generator=make().describe(),
                gen_length=source.gen_length,
                checked=True,
                command=self._command,
            )
        return folder / "train.jsonl"

    def train(self, training: Training, seed: int, data: Path) -> None:
        """Train once, in processes of its own, taken up from the newest checkpoint."""
        name = run_name(training.name, seed)
        output = self._folder / "trained" / name
        if (output / "model" / "config.json").exists():
            return
        self._on_step(f"train {name}")
        recipe_file = self._folder / "recipes" / f"{name}.yaml"
        recipe_file.parent.mkdir(exist_ok=True)
        recipe_file.write_text(yaml.safe_dump(self._variant(training, seed, data), sort_keys=False), encoding="utf-8")
        together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self._plan.processes}"]
        launcher = [sys.executable, *(together if self._plan.processes > 1 else [])]
        arguments = ["-m", "dmax.training", str(recipe_file), "--output", str(output), "--resume"]
        messages = recipe_file.with_suffix(".log")
        with messages.open("ab") if self._plan.jobs > 1 else nullcontext() as log:
            finished = subprocess.run([*launcher, *arguments], check=False, stdout=log, stderr=log)
        if finished.returncode:
            where = "above" if log is None else f"in {messages}"
            raise ReproductionError(f"training {name} failed; its messages are {where}, and the same command goes on.")

    def _variant(self, training: Training, seed: int, data: Path) -> dict[str, Any]:
        """Return the recipe with another objective, seed and data."""
        same_kind = "kind" not in training.objective
        start = {"start_from": self._plan.base}
        amount = {"steps": self._plan.scale.steps, "accumulation": self._plan.scale.accumulation}
        alone = {"validation_rows": 0, "generate_rows": 0}  # every model is measured when it is trained
        return {
            **self._recipe,
            "name": run_name(training.name, seed),
            "seed": seed,
            "model": start,
            "tokenizer": start,
            "data": [{"source": "jsonl", "path": str(data)}],
            "objective": {**(self._recipe["objective"] if same_kind else {}), **training.objective},
            "train": self._recipe["train"] | alone | {key: value for key, value in amount.items() if value is not None},
        }

    def measure(self, method: Method, threshold: float, seed: int | None) -> Setting:
        """Measure one setting on the fresh problems."""
        place = self._folder / "measured" / method.folder_name / f"{threshold:g}"
        folder = place if seed is None else place.with_name(f"{threshold:g}-seed-{seed}")
        return self._setting(method, threshold, seed, folder, TASK)

    def measure_gsm8k(self) -> list[Setting]:
        """Measure on the real thing, however low."""
        settings = []
        for method in GSM8K_METHODS:
            threshold = GSM8K_THRESHOLDS[method.name]
            seed = None if method.training is None else self._plan.scale.seeds[0]
            folder = self._folder / "measured" / "gsm8k" / method.folder_name
            settings.append(self._setting(method, threshold, seed, folder, "gsm8k"))
        return settings

    def _setting(self, method: Method, threshold: float, seed: int | None, folder: Path, task: str) -> Setting:
        """Measure a method on a task into ``folder``, unless it is there."""
        if not (folder / RESULTS_FILE).exists():
            self._on_step(f"measure {folder.relative_to(self._folder / 'measured')}")
            answerer = self._answerer(self._model(method, seed), method.params(threshold))
            evaluate([self._data(task)], answerer, folder, seed=0, command=self._command)
        metrics = read_results(folder)["tasks"][task]["metrics"]
        return Setting(method.name, threshold, seed, metrics, tuple(read_samples(folder, task)))

    def _data(self, name: str) -> TaskData:
        if name not in self._rows:
            task = get_task(name)
            if name == TASK:
                rows = load_rows(task, None, self._plan.scale.problems, PROBLEM_SEED)
            else:
                rows = load_rows(task, self._plan.gsm8k)
            length = get_task(TASK).gen_length  # of anything that the embedded model says
            self._rows[name] = TaskData(task, list(rows), rows.source, length)
        return self._rows[name]

    def _answerer(self, model: str, params: GenerationParams) -> LocalAnswerer:
        if self._loaded is None or self._loaded[0] != model:
            dtype = None if self._plan.dtype is None else getattr(torch, self._plan.dtype)
            self._loaded = model, LLM(model, dtype=dtype, max_batch_size=BATCH_SIZE), weights_hash(model)
        name, llm, weights = self._loaded
        return LocalAnswerer(llm, params, name, weights)

    def _model(self, method: Method, seed: int | None) -> str:
        """Tell where the weights of a method are."""
        if seed is None:
            return method.embedded or self._plan.base
        return str(self._folder / "trained" / run_name(str(method.training), seed) / "model")

    def training_cost(self, training: Training, seed: int) -> dict[str, Any]:
        """Read steps and hours of a training from its metrics."""
        metrics = (self._folder / "trained" / run_name(training.name, seed) / "metrics.jsonl").read_text("utf-8")
        last = json.loads(metrics.splitlines()[-1])
        return {"steps": last["step"], "hours": round(last["hours"], 3)}


def run_name(training: str, seed: int) -> str:
    """Name the folder of a training."""
    return f"{training}-seed-{seed}"
