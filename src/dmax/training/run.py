"""From a recipe file to a finished run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from dmax.models.checkpoint import load_model, save_companions, save_model
from dmax.models.config import ModelConfig
from dmax.models.quantized import widen
from dmax.models.tokenizer import Tokenizer
from dmax.models.transformer import BlockDiffusionLM, initialize
from dmax.training.batches import Batches
from dmax.training.data import generator_for
from dmax.training.distributed import local_rank, local_world_size, process_group, rank, world_size
from dmax.training.identity import only_run_in
from dmax.training.predictor import Predictor
from dmax.training.problem_sources.gsm_symbolic import GsmSymbolic
from dmax.training.provenance import write_provenance
from dmax.training.recipe import LoraSection, ProblemSection, Recipe, load_recipe
from dmax.training.requirements import Requirements, device_memory, largest_batch, requirements_of
from dmax.training.section import RecipeError
from dmax.training.setup import HeldOut, Prepared, prepare
from dmax.training.starts import record_start
from dmax.training.trainer import RunInputs, Trainer, Validate

ANSWERS_FILE = "validation.jsonl"
MakeValidator = Callable[[Tokenizer, HeldOut | None, Path], Validate]
"""From a run's tokenizer, the rows it keeps for validation and a file for answers to what generates and grades them."""
_INITIALIZATION, _ADAPTERS = 4, 6


def run_recipe(
    recipe_path: Path,
    output: Path | None = None,
    resume: bool = False,
    validator: MakeValidator | None = None,
    data: Mapping[str, str] | None = None,
    ignore_memory: bool = False,
) -> Path:
    """Run a recipe to its end.

    Args:
        recipe_path: the YAML file.
        output: folder of the run's files; ``runs/<recipe name>`` by default.
        resume: continue from the newest complete checkpoint in ``output`` (from the start where there is none).
        validator: gives what measures generated answers where the recipe asks for it.
        data: files or folders to read in place of the data sets of the Hub whose ids they stand under.
        ignore_memory: whether to begin although there is less memory than the run needs.

    Returns:
        The folder of the final weights, ``output / "model"``.

    Raises:
        RecipeError: the recipe cannot be run, or ``output`` holds another run.
        DoesNotFit: there is less memory than it needs; no weight has been read then.
    """
    recipe = load_recipe(recipe_path)
    if recipe.train.generate_rows and validator is None:
        raise RecipeError(
            "generate_rows needs the engine, which this command does without; run the recipe by `dmax train` (several "
            "processes: `torchrun --no-python … dmax train`), or set generate_rows to 0."
        )
    output = Path("runs") / recipe.name if output is None else output
    if not resume and (output / "metrics.jsonl").exists():
        raise RecipeError(f"{output} holds a run already: continue it with --resume, or choose another --output.")
    device = _device(recipe.train.device)
    with process_group(device), only_run_in(output):
        _run(recipe, output, device, resume, validator, data, ignore_memory)
    return output / "model"


_PROBLEMS_OF_A_PLAN = 500
"""A tokenizer trained on so many problems cuts texts into nearly as many tokens as the run's own."""


def plan_recipe(
    recipe_path: Path,
    output: Path | None = None,
    processes: int = 1,
    memory: float | None = None,
    data: Mapping[str, str] | None = None,
) -> tuple[Requirements, torch.device, int]:
    """Work out what a recipe needs, without reading a weight.

    Args:
        recipe_path: the YAML file.
        output: folder of the run; its tokenizer is taken from there, if it is there.
        processes: that are to share the model.
        memory: GiB of a device; this machine's if not given.
        data: as for :func:`run_recipe`.

    Returns:
        What each process needs, its device, and the bytes that it has there.

    Raises:
        RecipeError: the recipe cannot be run.
    """
    recipe = load_recipe(recipe_path)
    device = _device(recipe.train.device)
    plan = _plan(_prepared_to_look_at(recipe, output, data), processes, device)
    return plan, device, device_memory(device, processes) if memory is None else int(memory * 2**30)


def _plan(prepared: Prepared, processes: int, device: torch.device) -> Requirements:
    batches = Batches.of(prepared.recipe, prepared.source, prepared.config.eos_token_id)
    return requirements_of(prepared.recipe, prepared.config, largest_batch(batches), processes, device.type)


def show_rows(
    recipe_path: Path, count: int, output: Path | None = None, data: Mapping[str, str] | None = None
) -> list[list[tuple[str, bool]]]:
    """Read a run's first examples, without reading a weight.

    Args:
        recipe_path: the YAML file.
        count: of examples.
        output: folder of the run; its tokenizer is taken from there, if it is there.
        data: as for :func:`run_recipe`.

    Returns:
        Of each example its tokens, as text, and whether they are supervised.

    Raises:
        RecipeError: the recipe cannot be run.
    """
    prepared = _prepared_to_look_at(load_recipe(recipe_path), output, data)
    examples = [prepared.source.example(index) for index in range(count)]
    pipeline = prepared.tokenizer.pipeline
    return [
        [
            (pipeline.decode([token], skip_special_tokens=False), flag)
            for token, flag in zip(example.token_ids, example.supervised, strict=True)
        ]
        for example in examples
    ]


def _prepared_to_look_at(recipe: Recipe, output: Path | None, data: Mapping[str, str] | None) -> Prepared:
    """Prepare what a recipe names, with a tokenizer of the run's folder or a quickly trained one."""
    folder = (Path("runs") / recipe.name if output is None else output) / "tokenizer"
    with tempfile.TemporaryDirectory() as scratch:
        if not (folder / "tokenizer.json").exists():
            few = recipe.tokenizer.model_copy(update={"problems": _PROBLEMS_OF_A_PLAN})
            folder, recipe = Path(scratch), recipe.model_copy(update={"tokenizer": few})
        return prepare(recipe, folder, data)


def _run(
    recipe: Recipe,
    output: Path,
    device: torch.device,
    resume: bool,
    validator: MakeValidator | None,
    data: Mapping[str, str] | None,
    ignore_memory: bool,
) -> None:
    prepared = prepare(recipe, output / "tokenizer", data)
    if not ignore_memory:
        _plan(prepared, world_size(), device).check(device_memory(device, local_world_size()), device)
    recipe, tokenizer = prepared.recipe, prepared.tokenizer
    config = replace(prepared.config, block_length=max(recipe.objective.block_lengths_at(recipe.train.steps)))
    if prepared.counts and rank() == 0:
        output.mkdir(parents=True, exist_ok=True)
        (output / "data.json").write_text(json.dumps(prepared.counts, indent=1) + "\n", encoding="utf-8")
    inputs = RunInputs(
        recipe=recipe,
        predict=_predictor(recipe, config, device),
        train_source=prepared.source,
        validation_source=prepared.held_out or GsmSymbolic(tokenizer, "validation", worked=_is_worked(recipe)),
        data=prepared.fingerprints,
        save_companions=lambda folder: save_companions(config, folder, tokenizer),
        save_model=lambda trained, folder: save_model(trained, folder, tokenizer=tokenizer, overwrite=True),
        validate=None if validator is None else validator(tokenizer, prepared.held_out, output / ANSWERS_FILE),
    )
    trainer = Trainer(inputs, output)
    if resume:
        trainer.resume()
    if rank() == 0:
        record_start(output, trainer.step)
    trainer.run()
    if rank() == 0:
        write_provenance(recipe, output, prepared.fingerprints)


def _is_worked(recipe: Recipe) -> bool:
    """Tell whether the model is taught to carry out equations in small steps."""
    return any(
        isinstance(section, ProblemSection) and section.source == "gsm-symbolic" and section.worked
        for section in recipe.data
    )


def _predictor(recipe: Recipe, config: ModelConfig, device: torch.device) -> Predictor:
    """Make the model, whole or cut over the processes; only the first of them reads or draws the weights."""
    dtype, recompute = getattr(torch, recipe.train.dtype), recipe.parallel.recompute
    if recipe.lora is not None:
        return _adapted_predictor(recipe, recipe.lora, config, device)
    if not dist.is_initialized():
        return Predictor(_weights(recipe, config).to(device), dtype, recipe.train.compile, recompute)
    if config.tie_word_embeddings:
        raise RecipeError("a model with tie_word_embeddings cannot be cut over processes: train it without torchrun.")
    with torch.device("meta"):
        model = BlockDiffusionLM(config)
    predict = Predictor(model, dtype, recipe.train.compile, recompute)
    predict.shard(recipe.parallel, device, _weights(recipe, config) if rank() == 0 else None)
    return predict


def _adapted_predictor(recipe: Recipe, section: LoraSection, config: ModelConfig, device: torch.device) -> Predictor:
    """Make a model in the dtype of the computation, with adapters to train."""
    if dist.is_initialized():
        raise RecipeError("lora trains in one process: start the run with dmax train, without torchrun.")
    from dmax.training.adapters import Adapters

    dtype = getattr(torch, recipe.train.dtype)
    model = _weights(recipe, config, dtype).to(device)
    adapters = Adapters(model, section, generator_for(recipe.seed, _ADAPTERS))
    return Predictor(model, dtype, recompute=recipe.parallel.recompute, adapters=adapters)


def _weights(recipe: Recipe, config: ModelConfig, dtype: torch.dtype = torch.float32) -> BlockDiffusionLM:
    if recipe.model.start_from is not None:
        model = load_model(recipe.model.start_from, dtype=dtype)
        model.config = config
        widen(model, dtype)
        return model
    return initialize(BlockDiffusionLM(config), generator_for(recipe.seed, _INITIALIZATION))


def _device(asked: str) -> torch.device:
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda":
        if not torch.cuda.is_available():
            raise RecipeError("train.device is cuda, but PyTorch sees no GPU here: choose auto or cpu.")
        return torch.device("cuda", local_rank())
    return torch.device(asked)
