"""Optimisers: Muon for the matrices inside the layers, AdamW for everything else."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.distributed.tensor import DTensor

from dmax.models.moe import Experts
from dmax.training.muon import StackedMuon
from dmax.training.section import Section, Share


class OptimizerSection(Section):
    """Muon for the matrices of the layers where ``muon_lr`` is above 0, AdamW for the rest."""

    adamw_lr: float = Field(default=2e-6, gt=0)
    muon_lr: float = Field(default=0.0, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    warmup: Annotated[int, Field(ge=0)] | Share = 0
    """Steps of linear warm-up: a whole number, or a share of the run such as 0.03."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: Share = 0.3
    router_bias_rate: float = Field(default=0.0, ge=0)
    """Step by which a router's expert bias moves against an expert's overload; 0 freezes it."""

    def warmup_steps(self, steps: int) -> int:
        """Count the steps of warm-up in a run of ``steps``."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * steps)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split parameters: for Muon (2-D and stacked expert matrices of the layers) and for AdamW (the rest)."""
    experts = {id(p) for m in model.modules() if isinstance(m, Experts) for p in m.parameters()}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim == 2 and ".layers." in name and not name.endswith("gate.weight")
        (matrices if is_matrix or id(parameter) in experts else others).append(parameter)
    return matrices, others


class Optimizer:
    """The optimisers of one run behind one step; ``muon_lr=0`` leaves AdamW alone with all parameters."""

    def __init__(
        self,
        model: nn.Module,
        *,
        adamw_lr: float,
        muon_lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        clip_norm: float,
    ) -> None:
        self.all_parameters = [p for p in model.parameters() if p.requires_grad]
        self.clip_norm = clip_norm
        matrices, others = split_parameters(model) if muon_lr else ([], self.all_parameters)
        self.optimizers: list[torch.optim.Optimizer] = []
        if others:  # adapters may be matrices of the layers alone
            self.optimizers.append(torch.optim.AdamW(others, lr=adamw_lr, betas=betas, weight_decay=weight_decay))
        if matrices:
            self.optimizers.append(StackedMuon(matrices, lr=muon_lr, weight_decay=weight_decay))
        self.peak_lrs = [o.param_groups[0]["lr"] for o in self.optimizers]

    def clip(self) -> float:
        """Scale the gradient down to the clipping norm; returns its norm before."""
        norm = nn.utils.clip_grad_norm_(self.all_parameters, self.clip_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def step(self, lr_factor: float) -> None:
        """Update every parameter at ``lr_factor`` times its peak rate, then clear the gradient."""
        for optimizer, peak in zip(self.optimizers, self.peak_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = peak * lr_factor
            optimizer.step()
        for parameter in self.all_parameters:
            parameter.grad = None


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: str, decay: float) -> float:
    """Return the share of the peak learning rate at ``step`` (counted from 0).

    Args:
        step: the step about to be taken.
        steps: steps of the whole run.
        warmup: steps of linear warm-up.
        schedule: ``cosine`` to zero, or ``wsd``: constant, then linear to zero.
        decay: share of the run that ``wsd`` spends on the way down.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    decay_steps = int(steps * decay)
    return 1.0 if step < steps - decay_steps else (steps - step) / max(1, decay_steps)
