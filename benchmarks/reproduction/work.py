"""One training or one measurement of a study, in its folder. Whatever is finished is not done again.

Paths in files are relative to the folder, so that it can be carried to another machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.reproduction import questions
from benchmarks.reproduction.study import HALF, SHARES, TRAININGS, Method, Run, Scale, Training, training_of

from dmax.engine import LLM
from dmax.evaluation.answerers import LocalAnswerer, weights_hash
from dmax.evaluation.report import RESULTS_FILE
from dmax.evaluation.runner import RunSettings, TaskData, evaluate
from dmax.training.checkpointing import snapshot_folder
from dmax.training.objectives.registry import get_objective, section_of
from dmax.training.optim import learning_rate_factor
from dmax.training.recipe import Recipe

REPOSITORY = Path(__file__).parents[2]
GROUPS = REPOSITORY / "recipes" / "nano" / "multi-tf.yaml"
"""Whose objective is that of the trainings for blocks in flight."""
BATCH_SIZE = 32
END = 1.0
_MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456"
)
ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "20000", "GLIBC_TUNABLES": _MALLOC}
"""As ``recipes/nano/train.sh`` has it: products of many shapes are compiled once, memory is kept."""


class ReproductionError(ValueError):
    """A reproduction that cannot go on."""


@dataclass(frozen=True)
class Plan:
    """What a study is, and how its steps run here."""

    recipe: Mapping[str, Any]
    """Of OPUT; its data, optimiser, batches and steps serve every training."""
    scale: Scale
    dtype: str | None = None
    """Of the arithmetic that answers problems; None for the default of the device."""
    processes: int = 1
    """That train together; changes no result."""
    jobs: int = 1
    """Rows at one time, each on its share of the cores."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Files in place of data sets of the Hub, by their ids."""
    gsm8k: Path | None = None
    """The test set of GSM8K, to be answered too."""

    def steps(self, training: Training) -> int:
        """Count the steps of a training: the recipe's, or fewer where a step costs more forwards than OPUT's."""
        full = self.recipe["train"]["steps"] * (HALF if training.start == "half" else 1)
        return self.scale.steps(full * min(1.0, self._forwards(TRAININGS[0]) / self._forwards(training)))

    def forwards(self, training: Training) -> int:
        """Count the forwards of a whole training, a backward pass as two."""
        return self.steps(training) * self.recipe["train"].get("accumulation", 1) * self._forwards(training)

    def _forwards(self, training: Training) -> int:
        values = self.objective(training)
        return get_objective(section_of(values["kind"]).model_validate(values)).forwards_of_a_batch

    def objective(self, training: Training) -> dict[str, Any]:
        """Return a training's ``objective`` section."""
        of_recipe = _groups() if training.groups else self.recipe["objective"]
        return {**of_recipe, **training.changes}

    def variant(self, training: Training, seed: int) -> dict[str, Any]:
        """Return the recipe of a training."""
        steps = self.steps(training)
        start = {"start_from": self.start(training)}
        followed = seed == 1 and training.start != "half"
        own = {"steps": steps, "snapshots": list(SHARES) if followed else []}
        own |= {"validation_rows": 0, "generate_rows": 0}  # every model is measured when it is trained
        optimizer = self._second_half() if training.start == "half" else self.recipe.get("optimizer", {})
        return {
            **self.recipe,
            "name": run_name((training.name, seed)),
            "seed": seed if training.start == "base" else seed + 1000,  # not the noise that its start has seen
            "model": start,
            "tokenizer": start,
            "objective": self.objective(training),
            "optimizer": optimizer,
            "train": {**self.recipe["train"], **own},
        }

    def _second_half(self) -> dict[str, Any]:
        """Return an optimiser that begins at the rate of the half-trained model, and falls to zero as its own does."""
        settings = Recipe.model_validate(self.recipe).optimizer
        steps = self.scale.steps(self.recipe["train"]["steps"])
        factor = learning_rate_factor(
            round(HALF * steps), steps, settings.warmup_steps(steps), settings.schedule, settings.decay
        )
        rates = {"muon_lr": settings.muon_lr * factor, "adamw_lr": settings.adamw_lr * factor}
        return {**self.recipe.get("optimizer", {}), **rates, "schedule": "wsd", "decay": 1.0}

    def start(self, training: Training) -> str:
        """Return where the weights are that a training starts from, within the folder."""
        if training.start == "base":
            return "./base"
        output = _output((TRAININGS[0].name, 1))
        return f"./{output / 'model' if training.start == 'oput' else self.snapshot(TRAININGS[0], 1, HALF)}"

    def snapshot(self, training: Training, seed: int, share: float) -> Path:
        """Return where the weights of a share of a training are, within the folder."""
        step = max(1, round(share * self.steps(training)))
        return snapshot_folder(_output((training.name, seed)), step)


@cache
def _groups() -> dict[str, Any]:
    return dict(yaml.safe_load(GROUPS.read_text(encoding="utf-8"))["objective"])


def run_name(run: Run) -> str:
    """Name the folder of a training."""
    return f"{run[0]}-seed-{run[1]}"


def is_trained(folder: Path, run: Run) -> bool:
    """Tell whether a training has ended."""
    return (folder / _output(run) / "finished").exists()


def progress_of(folder: Path, run: Run) -> dict[str, Any] | None:
    """Return the last metrics of a training; None before its first step."""
    path = folder / _output(run) / "metrics.jsonl"
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in reversed(lines):
        try:
            return dict(json.loads(line))
        except ValueError:  # broken off, or being written
            continue
    return None


def setting_folder(method: Method, threshold: float, seed: int | None, at: float = END) -> Path:
    """Return where a measurement is, within the folder."""
    name = f"{threshold:g}{'' if seed is None else f'-seed-{seed}'}{'' if at == END else f'-at-{100 * at:g}'}"
    return Path("measured", method.folder_name, name)


def gsm8k_folder(method: Method, threshold: float) -> Path:
    """Return where a measurement on GSM8K is, within the folder."""
    return Path("measured", "gsm8k", f"{method.folder_name}-{threshold:g}")


def _output(run: Run) -> Path:
    return Path("trained", run_name(run))


class Work:
    """The steps of one process.

    Args:
        plan: of the study.
        folder: of the study.
        command: written into results.
        on_step: called with what is done next.
    """

    def __init__(self, plan: Plan, folder: Path, command: Sequence[str], on_step: Callable[[str], None]) -> None:
        self._plan = plan
        self._folder = folder
        self._command = command
        self._on_step = on_step
        self._loaded: tuple[Path, LLM, str] | None = None
        self._problems: list[TaskData] | None = None

    def train(self, run: Run) -> None:
        """Train once, in processes of its own, taken up from the newest checkpoint; only weights are kept."""
        output = self._folder / _output(run)
        if not is_trained(self._folder, run):
            self._loaded = None  # the memory is the training's
            self._on_step(f"train {run_name(run)}")
            self._run(run)
            (output / "finished").touch()
        for part in ("checkpoints", "tensorboard"):
            shutil.rmtree(output / part, ignore_errors=True)

    def _run(self, run: Run) -> None:
        training, name = training_of(run[0]), run_name(run)
        recipe = Path("recipes", f"{name}.yaml")
        (self._folder / "recipes").mkdir(exist_ok=True)
        text = yaml.safe_dump(self._plan.variant(training, run[1]), sort_keys=False)
        (self._folder / recipe).write_text(text, encoding="utf-8")
        together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self._plan.processes}"]
        launcher = [sys.executable, *(together if self._plan.processes > 1 else [])]
        data = [f"--data={name}={path}" for name, path in self._plan.data.items()]
        command = [*launcher, "-m", "dmax", "train", str(recipe), "--output", str(_output(run)), "--resume", *data]
        messages = (self._folder / recipe).with_suffix(".log")
        with messages.open("ab") as log:
            finished = subprocess.run(
                command, cwd=self._folder, env=ENVIRONMENT | os.environ, check=False, stdout=log, stderr=log
            )
        if finished.returncode:
            raise ReproductionError(
                f"training {name} stopped ({finished.returncode}); its messages are in {messages}, and the same "
                "command goes on."
            )

    def measure(self, method: Method, threshold: float, seed: int | None, at: float = END) -> None:
        """Measure one setting on all problems but GSM8K's, unless it is there."""
        folder = setting_folder(method, threshold, seed, at)
        if not (self._folder / folder / RESULTS_FILE).exists():
            if self._problems is None:
                self._problems = questions.problems(self._plan.scale.asked)
            self._answer(method, threshold, self._model(method, seed, at), folder, self._problems)

    def measure_gsm8k(self, method: Method, threshold: float) -> None:
        """Measure on the real thing, however low, if its file is given."""
        folder = gsm8k_folder(method, threshold)
        if self._plan.gsm8k is not None and not (self._folder / folder / RESULTS_FILE).exists():
            asked = None if self._plan.scale.share == 1 else self._plan.scale.asked
            data = questions.gsm8k(self._plan.gsm8k, asked)
            self._answer(method, threshold, self._model(method, 1, END), folder, [data])

    def forget_snapshots(self, run: Run, kept: Iterable[float]) -> None:
        """Remove the weights of shares of a training that nothing needs any more."""
        plan, training = self._plan, training_of(run[0])
        needed = {plan.snapshot(training, run[1], share) for share in kept}
        for share in SHARES:
            if (folder := plan.snapshot(training, run[1], share)) not in needed:
                shutil.rmtree(self._folder / folder, ignore_errors=True)

    def _model(self, method: Method, seed: int | None, at: float) -> Path:
        """Tell where the weights of a method are, within the folder."""
        if method.training is None or seed is None:
            return Path("base")
        if at == END:
            return _output((method.training, seed)) / "model"
        return self._plan.snapshot(training_of(method.training), seed, at)

    def _answer(self, method: Method, threshold: float, model: Path, folder: Path, data: Sequence[TaskData]) -> None:
        self._on_step(f"measure {folder.relative_to('measured')}")
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None
            dtype = None if self._plan.dtype is None else getattr(torch, self._plan.dtype)
            place = self._folder / model
            self._loaded = model, LLM(place, dtype=dtype, max_batch_size=BATCH_SIZE), weights_hash(place)
        _, llm, weights = self._loaded
        answerer = LocalAnswerer(llm, method.params(threshold), str(model), weights)
        evaluate(data, answerer, self._folder / folder, RunSettings(0, self._command))
