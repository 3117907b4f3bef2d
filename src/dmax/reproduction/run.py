"""One reproduction from its base model to its page; whatever is finished is not done again.

The folder holds ``settings.json``, ``distilled/`` (the training data), ``recipes/`` and ``trained/`` (a file and a run
for every training and seed), ``measured/`` (an evaluation for every setting) and ``results.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dmax.distillation import InProcess, distill, find_source, load_prompts
from dmax.engine import LLM, GenerationParams
from dmax.evaluation.answerers import LocalAnswerer, weights_hash
from dmax.evaluation.provenance import describe_process
from dmax.evaluation.report import RESULTS_FILE, read_results, read_samples
from dmax.evaluation.run_folder import claim, to_json, write_whole
from dmax.evaluation.runner import TaskData, evaluate
from dmax.evaluation.tasks import get_task, load_rows
from dmax.reproduction.results import Results, Setting
from dmax.reproduction.study import (
    ABLATIONS,
    CAUTIOUS,
    GSM8K_METHODS,
    GSM8K_THRESHOLDS,
    TABLE,
    TRAININGS,
    Method,
    Scale,
    Training,
)

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


def reproduce(
    plan: Plan,
    folder: Path,
    *,
    command: Sequence[str] = (),
    trainings: Sequence[Training] = TRAININGS,
    methods: Sequence[Method] = (*TABLE, *ABLATIONS),
    on_step: Callable[[str], None] = lambda step: None,
) -> Results:
    """Distil, train, measure and gather the results.

    Args:
        plan: what it starts from.
        folder: made if need be; one that holds the same reproduction is taken up where it stopped.
        command: written into the results.
        trainings: of the base model.
        methods: that are measured.
        on_step: called with what is done next.

    Raises:
        ReproductionError: the recipe cannot serve, or a training failed.
        RunFolderError: the folder belongs to something else.
    """
    recipe = _read_recipe(plan.recipe)
    settings = {
        "base": {"name": plan.base, "weights": weights_hash(plan.base)},
        "recipe": recipe,
        "scale": asdict(plan.scale),
    }
    claim(folder, json.loads(json.dumps(settings)))
    work = _Work(plan, recipe, folder, command, on_step)
    data = work.distil()
    for training in trainings:
        for seed in work.seeds(training):
            work.train(training, seed, data)
    points = [
        work.measure(method, threshold, training_seed)
        for method in methods
        for training_seed in work.seeds_of(method, trainings)
        for threshold in method.thresholds
    ]
    gsm8k = work.measure_gsm8k() if plan.gsm8k is not None else []
    record = {
        "command": list(command),
        **describe_process(),
        **settings,
        "distilled": json.loads((folder / "distilled" / "manifest.json").read_text(encoding="utf-8"))["counts"],
        "trainings": work.training_costs(trainings),
        "points": [_point_record(point) for point in points],
        "gsm8k": [_point_record(point) for point in gsm8k],
    }
    write_whole(folder / RESULTS_FILE, to_json(record))
    return Results(record, points, gsm8k)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind = recipe["objective"]["kind"]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ReproductionError(
            f"{path} is no recipe that can be read; run this in a clone of the repository, or name one with --recipe."
        ) from error
    if kind != "oput":
        raise ReproductionError(f"the objective of {path} is {kind}; give the recipe of an OPUT training.")
    return dict(recipe)


class _Work:
    """The steps, each done once."""

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

    def seeds(self, training: Training) -> tuple[int, ...]:
        seeds = self._plan.scale.seeds
        return seeds if training.every_seed else seeds[:1]

    def seeds_of(self, method: Method, trainings: Sequence[Training]) -> tuple[int | None, ...]:
        if method.training is None:
            return (None,)
        training = next((found for found in trainings if found.name == method.training), None)
        if training is None:
            raise ReproductionError(f"{method.name} needs the training {method.training}, which is left out.")
        return self.seeds(training)

    def distil(self) -> Path:
        """The base model's own right answers, by cautious decoding."""
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
        """One training in processes of its own, taken up from its newest checkpoint."""
        name = _run_name(training.name, seed)
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
        if subprocess.run([*launcher, *arguments], check=False).returncode:
            raise ReproductionError(f"training {name} failed; its messages are above, and the same command goes on.")

    def _variant(self, training: Training, seed: int, data: Path) -> dict[str, Any]:
        """The recipe with another objective, seed and data."""
        same_kind = "kind" not in training.objective
        steps = self._plan.scale.steps
        start = {"start_from": self._plan.base}
        return {
            **self._recipe,
            "name": _run_name(training.name, seed),
            "seed": seed,
            "model": start,
            "tokenizer": start,
            "data": [{"source": "jsonl", "path": str(data)}],
            "objective": {**(self._recipe["objective"] if same_kind else {}), **training.objective},
            "train": {**self._recipe["train"], **({} if steps is None else {"steps": steps})},
        }

    def measure(self, method: Method, threshold: float, seed: int | None) -> Setting:
        """One setting on the fresh problems."""
        place = self._folder / "measured" / method.folder_name / f"{threshold:g}"
        folder = place if seed is None else place.with_name(f"{threshold:g}-seed-{seed}")
        return self._setting(method, threshold, seed, folder, TASK)

    def measure_gsm8k(self) -> list[Setting]:
        """The real thing, however low."""
        settings = []
        for method in GSM8K_METHODS:
            threshold = GSM8K_THRESHOLDS[method.name]
            seed = None if method.training is None else self._plan.scale.seeds[0]
            folder = self._folder / "measured" / "gsm8k" / method.folder_name
            settings.append(self._setting(method, threshold, seed, folder, "gsm8k"))
        return settings

    def _setting(self, method: Method, threshold: float, seed: int | None, folder: Path, task: str) -> Setting:
        """A method on a task, measured into ``folder`` unless it is there."""
        if not (folder / RESULTS_FILE).exists():
            self._on_step(f"measure {folder.relative_to(self._folder / 'measured')}")
            model = self._plan.base if seed is None else self._trained(str(method.training), seed)
            answerer = self._answerer(model, method.params(threshold))
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
            self._loaded = model, LLM(model, max_batch_size=BATCH_SIZE), weights_hash(model)
        name, llm, weights = self._loaded
        return LocalAnswerer(llm, params, name, weights)

    def _trained(self, training: str, seed: int) -> str:
        return str(self._folder / "trained" / _run_name(training, seed) / "model")

    def training_costs(self, trainings: Sequence[Training]) -> dict[str, Any]:
        """Steps and hours of every training, as its metrics say."""
        costs = {}
        for training in trainings:
            for seed in self.seeds(training):
                name = _run_name(training.name, seed)
                metrics = (self._folder / "trained" / name / "metrics.jsonl").read_text(encoding="utf-8")
                last = json.loads(metrics.splitlines()[-1])
                costs[name] = {"steps": last["step"], "hours": round(last["hours"], 3)}
        return costs


def _run_name(training: str, seed: int) -> str:
    return f"{training}-seed-{seed}"


def _point_record(point: Setting) -> dict[str, Any]:
    return {key: value for key, value in asdict(replace(point, samples=())).items() if key != "samples"}
