"""How near the memory that `dmax train --dry-run` works out comes to what training takes.

Takes two optimiser steps of two passes each on the largest batch that the plan found, and compares the peak of what
tensors take: on a GPU as PyTorch's allocator counts it, on a CPU as its profiler does. Weights are fresh, whatever the
recipe starts from.

    python benchmarks/training_memory.py RECIPE [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from run_record import describe_run, parse_arguments, report
from torch.profiler import ProfilerActivity, profile

from dmax.models.transformer import BlockDiffusionLM, initialize
from dmax.training.batches import POOL, Batches
from dmax.training.data import Example, generator_for
from dmax.training.objectives.registry import get_objective
from dmax.training.predictor import Predictor
from dmax.training.recipe import Recipe, load_recipe
from dmax.training.requirements import POOLS_READ, largest_batch, requirements_of
from dmax.training.setup import Prepared, prepare
from dmax.training.trainer import RunInputs, Trainer


class Repeated:
    """The examples of one batch, again and again."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def example(self, index: int) -> Example:
        return self.examples[index % len(self.examples)]


def largest_examples(prepared: Prepared) -> list[Example]:
    """Find the examples of the largest of a run's first batches."""
    batches = Batches.of(prepared.recipe, prepared.source, prepared.config.eos_token_id)

    def size(number: int) -> tuple[int, int]:
        batch = batches.batch(number)
        return batch.layout.positions().numel(), batch.num_supervised

    indices = batches.batch(max(range(POOLS_READ * POOL), key=size)).indices
    return [prepared.source.example(i // get_objective(prepared.recipe.objective).rows_per_example) for i in indices]


def peak_of_training(recipe: Recipe, prepared: Prepared, device: torch.device) -> int:
    """Measure the bytes that tensors take at most in two steps, the model's own included."""
    source = Repeated(largest_examples(prepared))
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=device.type == "cpu") as profiler:
            model = initialize(BlockDiffusionLM(prepared.config), generator_for(recipe.seed)).to(device)
            inputs = RunInputs(
                recipe=recipe,
                predict=Predictor(model, getattr(torch, recipe.train.dtype), recompute=recipe.parallel.recompute),
                train_source=source,
                validation_source=source,
                save_companions=lambda folder: None,
                save_model=lambda trained, folder: None,
            )
            trainer = Trainer(inputs, Path(folder))
            for _ in range(2):
                trainer.train_step()
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    arguments = parse_arguments(parser)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = load_recipe(arguments.recipe)
    with tempfile.TemporaryDirectory() as folder:
        few = recipe.tokenizer.model_copy(update={"problems": 500})
        prepared = prepare(recipe.model_copy(update={"tokenizer": few}), Path(folder))
    short = prepared.recipe.train.model_copy(update={"accumulation": 2, "compile": False, "workers": 0})
    recipe = prepared.recipe.model_copy(update={"train": short})
    shape = largest_batch(Batches.of(recipe, prepared.source, prepared.config.eos_token_id))
    plan = requirements_of(recipe, prepared.config, shape, 1, device.type)
    peak = peak_of_training(recipe, prepared, device)
    result: dict[str, Any] = {
        "recipe": str(arguments.recipe),
        "device": str(device),
        "planned": {**asdict(plan.memory), "total": plan.memory.total},
        "measured": peak,
        "planned_over_measured": plan.memory.total / peak,
        "shape": asdict(plan.shape),
        "run": describe_run(),
    }
    report(result, arguments.json)


if __name__ == "__main__":
    main()
