"""The training loop: one recipe, on one process or several, resumable bit for bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dmax.models.transformer import BlockDiffusionLM, routers
from dmax.training.batches import Batches, exact_layouts, stream
from dmax.training.checkpointing import (
    CheckpointWriter,
    ResumeError,
    RunState,
    load_checkpoint,
    load_state,
    newest_checkpoint,
    snapshot_folder,
)
from dmax.training.data import Source
from dmax.training.distributed import barrier, passes_of_a_process, rank, sum_over_processes, world_size
from dmax.training.divergence import diverged
from dmax.training.flops import ForwardFlops, peak_flops
from dmax.training.identity import differing_keys, recipe_digest, recipe_text
from dmax.training.layout import Batch, Layout
from dmax.training.metrics import MetricsLog, Progress
from dmax.training.objectives.base import LossPart, Pass
from dmax.training.objectives.registry import get_objective
from dmax.training.optim import Optimizer, learning_rate_factor
from dmax.training.predictor import Predictor
from dmax.training.recipe import Recipe
from dmax.training.tally import Tally

Validate = Callable[[BlockDiffusionLM, int, int, str], dict[str, float]]
"""``(model, number of problems, block length, decoder) -> metrics`` of generated answers; injected, since answering
needs the engine."""


@dataclass(frozen=True)
class RunInputs:
    """What a recipe resolves to before the first step."""

    recipe: Recipe
    predict: Predictor
    train_source: Source
    validation_source: Source
    save_companions: Callable[[Path], None]
    """Writes a checkpoint's configuration and tokenizer into a folder of weights."""
    save_model: Callable[[BlockDiffusionLM, Path], None]
    """Writes a model in the published layout."""
    validate: Validate | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the finite sources, by their keys in the recipe."""


class Trainer:
    """Takes optimiser steps and keeps the run's files: ``metrics.jsonl``, TensorBoard events, checkpoints."""

    def __init__(self, inputs: RunInputs, output: Path) -> None:
        self.inputs = inputs
        self.recipe = recipe = inputs.recipe
        self.predict = inputs.predict
        self.model = inputs.predict.model
        self.output = output
        self.digest = recipe_digest(recipe)
        self.passes = passes_of_a_process(recipe.train.accumulation)
        self.objective = get_objective(recipe.objective)
        self.batches = Batches.of(recipe, inputs.train_source, self.model.config.eos_token_id)
        settings = recipe.optimizer
        self.optimizer = Optimizer(
            self.model,
            adamw_lr=settings.adamw_lr,
            muon_lr=settings.muon_lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
        )
        self.checkpoints = CheckpointWriter(
            output, inputs.save_companions, asynchronous=recipe.parallel.asynchronous_checkpoints
        )
        self.flops = ForwardFlops.of(self.model.config)
        self.routers = routers(self.model)
        for router in self.routers:
            router.load_E = torch.zeros(router.num_experts, device=self.predict.device)
        self.step = 0
        self.seconds = 0.0
        self._upcoming: Iterator[Batch] | None = None

    def resume(self) -> bool:
        """Continue from the newest complete checkpoint; False where none was ever finished.

        Raises:
            ResumeError: the checkpoint belongs to another recipe or other data, or none of several is complete.
        """
        newest = newest_checkpoint(self.output)
        if newest is None:
            return False
        state = load_state(newest)
        if state.recipe_digest != self.digest:
            differing = "" if state.recipe is None else f": {', '.join(differing_keys(self.recipe, state.recipe))}"
            raise ResumeError(
                f"{newest} was written by a different recipe{differing}; resume with the recipe it was started with, "
                "or choose another output folder."
            )
        changed = [name for name, mark in state.data.items() if self.inputs.data.get(name) != mark]
        if changed:
            raise ResumeError(
                f"the rows of {' and '.join(changed)} are not those that {newest} was trained on; resume with the "
                "data it was started with, or choose another output folder."
            )
        load_checkpoint(newest, self.model, self.optimizer.optimizers)
        self.step, self.seconds = state.step, state.seconds
        return True

    def run(self) -> None:
        """Train to the recipe's last step, then write the final weights to ``output / "model"``."""
        train = self.recipe.train
        snapshots = train.snapshot_steps()
        shown = rank() == 0
        with (
            MetricsLog(self.recipe, self.output, self.step, shown) as log,
            Progress(self.recipe.name, train.steps, self.step, shown) as progress,
        ):
            while self.step < train.steps:
                started = time.perf_counter()
                metrics = self.train_step()
                elapsed = time.perf_counter() - started
                self.seconds += elapsed
                metrics |= self._speed(metrics.pop("tokens"), metrics.pop("flops"), elapsed)
                if self.step % train.validate_every == 0 or self.step == train.steps:
                    with torch.compiler.set_stance("force_eager"):  # other shapes, seldom: not worth compiling for
                        metrics |= self.validation_metrics()
                log.write(metrics)
                progress.update(metrics)
                if self.step in snapshots:  # before the checkpoint: a run that resumes from that would never keep it
                    self._save(snapshot_folder(self.output, self.step))
                if self.step % train.checkpoint_every == 0 or self.step == train.steps:
                    state = RunState(
                        self.step, self.digest, self.seconds, json.loads(recipe_text(self.recipe)), self.inputs.data
                    )
                    self.checkpoints.save(state, self.model, self.optimizer.optimizers)
        self.checkpoints.finish()
        self._save(self.output / "model", finished=True)

    def _save(self, folder: Path, *, finished: bool = False) -> None:
        """Write the weights, adapters merged once the run is finished; to be called in all processes."""
        model = self.predict.finished_model() if finished else self.predict.whole_model()
        if model is not None and rank() == 0:
            self.inputs.save_model(model, folder)
        barrier()

    def train_step(self) -> dict[str, float]:
        """Take one optimiser step and return its metrics.

        Raises:
            TrainingDiverged: a loss or the gradient is not finite; the weights are those before the step.
        """
        recipe = self.recipe
        self.model.train()
        tally = Tally(recipe.train.accumulation)
        tokens, flops = 0, 0.0
        seen: list[tuple[Batch, torch.Tensor]] = []
        for micro in range(self.passes):
            number = self.step * recipe.train.accumulation + micro * world_size() + rank()
            batch, parts = self._pass(number)
            rows, length = batch.layout.positions().shape
            flops += self.objective.forwards_of_a_batch * self.flops.of_pass(rows, length, batch.num_supervised)
            for part in parts:
                (part.loss / self.passes).backward()
                tally.add(part)
                seen.append((batch, part.loss.detach()))
                tokens += rows * length
        metrics = tally.totals(tokens=tokens, flops=flops)
        norm = self.optimizer.clip()
        if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
            raise diverged(self.output, self.step + 1, metrics["loss"], norm, seen)
        settings, steps = recipe.optimizer, recipe.train.steps
        warmup = settings.warmup_steps(steps)
        factor = learning_rate_factor(self.step, steps, warmup, settings.schedule, settings.decay)
        self.optimizer.step(factor)
        metrics |= self._balance_routers()
        self.step += 1
        return {"step": self.step, **metrics, "grad_norm": norm, "lr_factor": factor}

    def _speed(self, tokens: float, flops: float, elapsed: float) -> dict[str, float]:
        """Measure throughput over all processes; ``mfu`` is the share of their GPUs' peak, where that is known."""
        speed = {"tokens_per_second": tokens / elapsed, "hours": self.seconds / 3600}
        peak = peak_flops(self.predict.device)
        return speed if peak is None else speed | {"mfu": flops / elapsed / (peak * world_size())}

    def _pass(self, number: int) -> tuple[Batch, Iterator[LossPart]]:
        """Return the batch of a forward pass and the losses to run backward on it."""
        if self._upcoming is None:
            self._upcoming = stream(self.batches, number, world_size(), self.recipe.train.workers)
        batch = next(self._upcoming).to(self.predict.device)
        where = Pass(number, self.recipe.seed, self.model.config)
        return batch, self.objective.losses(self.predict, batch, where)

    def _balance_routers(self) -> dict[str, float]:
        """Report how unevenly experts are used and, if asked to, move their biases against it (arXiv 2408.15664)."""
        if not self.routers:
            return {}
        loads = [router.load_E for router in self.routers if router.load_E is not None]
        load_LE = sum_over_processes(torch.stack(loads))
        for router, load_E in zip(self.routers, load_LE, strict=True):
            assert router.load_E is not None
            router.expert_bias += self.recipe.optimizer.router_bias_rate * torch.sign(load_E.mean() - load_E)
            router.load_E.zero_()
        share_LE = load_LE / load_LE.mean(1, keepdim=True).clamp(min=1)
        busiest, idle = share_LE.max(1).values.mean(), (share_LE == 0).float().mean()
        return {"expert_load_busiest": float(busiest), "experts_idle": float(idle)}

    @torch.no_grad()
    def validation_metrics(self) -> dict[str, float]:
        """Measure the share of whole answers right, greedy left to right, and generated accuracy, if injected."""
        train = self.recipe.train
        self.model.eval()
        examples = [self.inputs.validation_source.example(i) for i in range(train.validation_rows)]
        right = [
            bool(row.all())
            for layout in exact_layouts(examples, train.rows, self.model.config.eos_token_id)
            for row in self._rows_right(layout.to(self.predict.device))
        ]
        metrics = {"validation_exact": sum(right) / len(right)} if right else {}
        if self.inputs.validate is not None and train.generate_rows:
            whole = self.predict.whole_model()
            if whole is not None and rank() == 0:
                block_length = max(self.recipe.objective.block_lengths_at(self.step))
                whole.to(self.predict.device)
                metrics |= self.inputs.validate(whole, train.generate_rows, block_length, train.generate_with)
        return metrics

    def _rows_right(self, layout: Layout) -> list[torch.Tensor]:
        """Tell per row which supervised tokens are the argmax when all of them are masked."""
        masked = layout.noisy_ids.masked_fill(layout.supervised, self.model.config.mask_token_id)
        right = self.predict(masked, layout).argmax(-1) == layout.noisy_ids[layout.supervised]
        return list(right.split(layout.supervised.sum(1).tolist()))
