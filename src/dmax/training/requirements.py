"""What a run needs of a device's memory, worked out before any weight is loaded.

Weights, gradients and optimiser state follow from shapes. Activations are what a training pass keeps for its backward
pass, added up operation by operation from the model's definition. Shapes are those of the largest batch among the
run's first ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from dmax.models.config import ModelConfig
from dmax.models.memory import available_memory, refuse
from dmax.models.transformer import BlockDiffusionLM
from dmax.training.activations import BatchShape, loss_bytes, saved_bytes, working_bytes
from dmax.training.batches import POOL, Batches
from dmax.training.optim import split_parameters
from dmax.training.recipe import LoraSection, Recipe
from dmax.training.section import RecipeError

POOLS_READ = 2
"""Pools of batches in which the largest is sought."""


@dataclass(frozen=True)
class Memory:
    """Of one device, in bytes."""

    weights: int
    """In float32 where they are trained; this process's share."""
    copies: int
    """Weights in the dtype of the computation, as far as they are there at one time."""
    gradients: int
    optimizer: int
    activations: int
    """Kept for the backward pass, and the loss's own."""
    update: int
    """What the optimiser's step needs for a while, when copies and activations are gone."""

    @property
    def total(self) -> int:
        """The peak: in the backward pass, or in the optimiser's step."""
        return self.weights + self.gradients + self.optimizer + max(self.copies + self.activations, self.update)


@dataclass(frozen=True)
class Requirements:
    """What a run is, and what each of its processes needs."""

    parameters: int
    trained: int
    steps: int
    processes: int
    shape: BatchShape
    """Of the largest batch."""
    memory: Memory

    def check(self, available: int, device: torch.device) -> None:
        """Refuse what cannot fit.

        Args:
            available: bytes that each process has of its device.
            device: of one of them.

        Raises:
            DoesNotFit: with what could help.
        """
        memory = self.memory
        if memory.total > available:
            needed = {
                "weights": memory.weights,
                "gradients": memory.gradients,
                "optimizer": memory.optimizer,
                "passes": memory.total - memory.weights - memory.gradients - memory.optimizer,
            }
            mends = "use more processes, fewer train.rows, parallel.recompute, parallel.cpu_offload or lora"
            refuse("Each process of the run", needed, available, device, mends)


def largest_batch(batches: Batches) -> BatchShape:
    """Find the shape of the batch with most positions among the first ones of a run."""
    shapes = []
    for number in range(POOLS_READ * POOL):
        batch = batches.batch(number)
        rows, length = batch.layout.positions().shape
        shapes.append(BatchShape(rows, length, batch.num_supervised))
    return max(shapes, key=lambda shape: (shape.rows * shape.length, shape.supervised))


def requirements_of(
    recipe: Recipe, config: ModelConfig, shape: BatchShape, processes: int, device: str
) -> Requirements:
    """Work out what a recipe needs.

    Args:
        recipe: the run, its length in steps.
        config: of the model.
        shape: of the largest batch.
        processes: that share the model.
        device: ``cuda`` or ``cpu``; some operations keep other things on either.

    Raises:
        RecipeError: so many processes cannot hold the recipe's copies of the weights.
    """
    share, rest = divmod(processes, recipe.parallel.replicas)
    if rest:
        raise RecipeError(f"parallel.replicas is {recipe.parallel.replicas}: it must divide {processes} processes.")
    with torch.device("meta"):
        model = BlockDiffusionLM(config)
    item = getattr(torch, recipe.train.dtype).itemsize
    activations = saved_bytes(config, shape, item, device, recompute=recipe.parallel.recompute)
    activations += max(loss_bytes(config, shape), working_bytes(config, shape, item, device))
    if recipe.lora is not None:
        trained, memory = _with_adapters(recipe, recipe.lora, model, activations)
    elif processes == 1:
        trained, memory = _count(model.parameters()), _whole(recipe, model, activations, device)
    else:
        trained, memory = _count(model.parameters()), _sharded(recipe, model, activations, share, device)
    return Requirements(_count(model.parameters()), trained, recipe.train.steps, processes, shape, memory)


def _whole(recipe: Recipe, model: BlockDiffusionLM, activations: int, device: str) -> Memory:
    matrices, others = _by_optimizer(recipe, model)
    total, item = _count(model.parameters()), getattr(torch, recipe.train.dtype).itemsize
    return Memory(
        weights=4 * total,
        copies=item * total if item < 4 else 0,
        gradients=4 * total,
        optimizer=8 * _count(others) + 4 * _count(matrices),
        activations=activations,
        update=_update_bytes(matrices, others, 1, device),
    )


def _sharded(recipe: Recipe, model: BlockDiffusionLM, activations: int, share: int, device: str) -> Memory:
    """Count memory where what is kept is cut ``share`` times; what a pass gathers is not."""
    matrices, others = _by_optimizer(recipe, model)
    total, item = _count(model.parameters()), getattr(torch, recipe.train.dtype).itemsize
    layers = [_count(layer.parameters()) for layer in model.model.layers]
    kept = 0 if recipe.parallel.cpu_offload else 1
    return Memory(
        weights=kept * 4 * total // share,
        # What is outside the layers, one layer and the next; and a layer's gradient in float32.
        copies=item * (total - sum(layers) + 2 * max(layers)) + 4 * max(layers),
        gradients=kept * 4 * total // share,
        optimizer=kept * (8 * _count(others) + 4 * _count(matrices)) // share,
        activations=activations,
        update=kept * _update_bytes(matrices, others, share, device),
    )


def _with_adapters(
    recipe: Recipe, section: LoraSection, model: BlockDiffusionLM, activations: int
) -> tuple[int, Memory]:
    """Count memory with adapters: a pass adds those of stacks to their weights, by layer where it is recomputed."""
    item = getattr(torch, recipe.train.dtype).itemsize
    adapters = _adapter_parameters(model, section)
    stacks = [sum(p.numel() for p in layer.parameters() if p.ndim == 3) for layer in model.model.layers]
    together = max(stacks) if recipe.parallel.recompute else sum(stacks)
    return adapters, Memory(
        weights=item * _count(model.parameters()) + 4 * adapters,
        copies=item * together if section.feed_forward else 0,
        gradients=4 * adapters,
        optimizer=8 * adapters,
        activations=activations,
        update=4 * adapters,
    )


def device_memory(device: torch.device, processes: int) -> int:
    """Return bytes that each process on this machine may still take: all of its own GPU, or its share of the rest."""
    return available_memory(device) // (1 if device.type == "cuda" else processes)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _by_optimizer(recipe: Recipe, model: BlockDiffusionLM) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return split_parameters(model) if recipe.optimizer.muon_lr else ([], list(model.parameters()))


def _update_bytes(matrices: list[nn.Parameter], others: list[nn.Parameter], share: int, device: str) -> int:
    """Count an update: AdamW takes all parameters at once on a GPU, one at a time on a CPU; Muon all of a shape."""
    sizes = [p.numel() for p in others]
    adamw = 4 * (sum(sizes) // share if device == "cuda" else max(sizes, default=0))
    by_shape: dict[torch.Size, int] = {}
    for p in matrices:
        by_shape[p.shape[-2:]] = by_shape.get(p.shape[-2:], 0) + p.numel()
    # Directions in float32, twice; then three matrices in bfloat16, and two squares of their smaller side.
    muon = [14 * size + 4 * size * min(shape) // max(shape) for shape, size in by_shape.items()]
    return max([adamw, *muon])


def _adapter_parameters(model: BlockDiffusionLM, section: LoraSection) -> int:
    count = 0
    for name, p in model.named_parameters():
        in_attention = section.attention and ".attention." in name and p.ndim == 2
        in_feed_forward = section.feed_forward and ".mlp." in name and not name.endswith("gate.weight")
        if in_attention or in_feed_forward:
            count += section.rank * sum(p.shape[-2:]) * prod(p.shape[:-2])
    return count
