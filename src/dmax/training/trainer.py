"""The training loop: one recipe, on one process or several, resumable bit for bit."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dmax.models.llada2 import LLaDA2, routers
from dmax.training.batches import Batch, Batches, exact_layouts, stream
from dmax.training.data import Source, generator_for
from dmax.training.divergence import diverged
from dmax.training.flops import ForwardFlops, forwards_of_a_part, peak_flops
from dmax.training.layout import Layout
from dmax.training.metrics import MetricsLog, Progress
from dmax.training.objectives import (
    LossPart,
    dparallel_loss,
    far_ahead,
    masked_loss,
    oput_losses,
    oput_mixed_loss,
    uniform_loss,
)
from dmax.training.optim import Optimizer, learning_rate_factor
from dmax.training.parallel import barrier, passes_of_a_process, rank, sum_over_processes, world_size
from dmax.training.predictor import Predictor
from dmax.training.recipe import Recipe
from dmax.training.rollout import greedy, sampled
from dmax.training.state import CheckpointWriter, ResumeError, RunState, load_checkpoint, load_state, newest_checkpoint
from dmax.training.tally import Tally

Validate = Callable[[LLaDA2, int, int, str], dict[str, float]]
"""``(model, number of problems, block length, decoder) -> metrics`` of generated answers; injected, since answering
needs the engine."""
_ROLLOUT = 3


@dataclass(frozen=True)
class RunInputs:
    """What a recipe resolves to before the first step."""

    recipe: Recipe
    predict: Predictor
    train_source: Source
    validation_source: Source
    save_companions: Callable[[Path], None]
    """Writes a checkpoint's configuration and tokenizer into a folder of weights."""
    save_model: Callable[[LLaDA2, Path], None]
    """Writes a model in the published layout."""
    validate: Validate | None = None


class Trainer:
    """Takes optimiser steps and keeps the run's files: ``metrics.jsonl``, TensorBoard events, checkpoints."""

    def __init__(self, inputs: RunInputs, output: Path) -> None:
        self.inputs = inputs
        self.recipe = recipe = inputs.recipe
        self.predict = inputs.predict
        self.model = inputs.predict.model
        self.output = output
        self.digest = _digest(recipe)
        self.passes = passes_of_a_process(recipe.train.accumulation)
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
        self.flops_of_a_part = forwards_of_a_part(recipe.objective)
        self.routers = routers(self.model)
        for router in self.routers:
            router.load_E = torch.zeros(router.num_experts, device=self.predict.device)
        self.step = 0
        self.seconds = 0.0
        self._upcoming: Iterator[Batch] | None = None

    def resume(self) -> bool:
        """Continue from the newest complete checkpoint; False where none was ever finished.

        Raises:
            ResumeError: the checkpoint belongs to another recipe, or none of several is complete.
        """
        newest = newest_checkpoint(self.output)
        if newest is None:
            return False
        state = load_state(newest)
        if state.recipe_digest != self.digest:
            raise ResumeError(
                f"{newest} was written by a different recipe; resume with the recipe it was started with, "
                "or choose another output folder."
            )
        load_checkpoint(newest, self.model, self.optimizer.optimizers)
        self.step, self.seconds = state.step, state.seconds
        return True

    def run(self) -> None:
        """Train to the recipe's last step, then write the final weights to ``output / "model"``."""
        train = self.recipe.train
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
                if self.step % train.checkpoint_every == 0 or self.step == train.steps:
                    state = RunState(self.step, self.digest, self.seconds)
                    self.checkpoints.save(state, self.model, self.optimizer.optimizers)
        self.checkpoints.finish()
        finished = self.predict.finished_model()
        if finished is not None and shown:
            self.inputs.save_model(finished, self.output / "model")
        barrier()

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns its metrics.

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
            for part in parts:
                (part.loss / self.passes).backward()
                tally.add(part)
                seen.append((batch, part.loss.detach()))
                rows, length = batch.layout.positions().shape
                tokens += rows * length
                flops += self.flops_of_a_part * self.flops.of_pass(rows, length, batch.num_supervised)
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
        """Throughput over all processes; ``mfu`` is the share of their GPUs' peak, where that is known."""
        speed = {"tokens_per_second": tokens / elapsed, "hours": self.seconds / 3600}
        peak = peak_flops(self.predict.device)
        return speed if peak is None else speed | {"mfu": flops / elapsed / (peak * world_size())}

    def _pass(self, number: int) -> tuple[Batch, Iterator[LossPart]]:
        """The batch of a forward pass and the losses to run backward on it."""
        objective = self.recipe.objective
        mask_id = self.model.config.mask_token_id
        if self._upcoming is None:
            self._upcoming = stream(self.batches, number, world_size(), self.recipe.train.workers)
        batch = next(self._upcoming).to(self.predict.device)
        layout, hidden = batch.layout, batch.hidden
        if objective.kind == "masked":
            smoothing = None
            if objective.far_smoothing is not None:
                share, near = objective.far_smoothing.share, objective.far_smoothing.near
                smoothing = share * far_ahead(layout, hidden, near, self.model.config.eos_token_id)
            return batch, iter([masked_loss(self.predict, layout, hidden, mask_id, smoothing)])
        if objective.kind == "dparallel":
            return batch, iter([dparallel_loss(self.predict, layout, hidden, mask_id, objective.beta)])
        if objective.kind == "uniform":
            random_ids = self.batches.random_tokens(batch, self.model.config.vocab_size)
            return batch, iter([uniform_loss(self.predict, layout, hidden, random_ids)])
        sample = greedy
        if objective.rollout == "sampled":
            sample = partial(sampled, generator=generator_for(self.recipe.seed, number, _ROLLOUT))
        if objective.form == "joint":
            return batch, oput_losses(self.predict, layout, hidden, mask_id, sample, objective.losses)
        revises = torch.tensor(batch.indices, device=hidden.device) % 2 == 1
        return batch, iter([oput_mixed_loss(self.predict, layout, hidden, revises, mask_id, sample)])

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
        """Teacher-forced share of whole answers right, greedy left to right; and generated accuracy, if injected."""
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
        """Per row, which supervised tokens are the argmax when all of them are masked."""
        masked = layout.noisy_ids.masked_fill(layout.supervised, self.model.config.mask_token_id)
        right = self.predict(masked, layout).argmax(-1) == layout.noisy_ids[layout.supervised]
        return list(right.split(layout.supervised.sum(1).tolist()))


def _digest(recipe: Recipe) -> str:
    """Fingerprint of what a recipe makes; where it runs and how often it looks up is not part of it."""
    validation = {"validate_every", "validation_rows", "generate_rows", "generate_with"}
    # A run may be made longer, and by now epochs are steps.
    left_out = validation | {"checkpoint_every", "device", "workers", "epochs", "steps"}
    absent = {"lora": True} if recipe.lora is None else {}
    text = recipe.model_dump_json(
        exclude={"name": True, "train": left_out, "parallel": True, "tracking": True, **absent}
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
