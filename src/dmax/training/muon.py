"""Muon over stacks of matrices: the update of ``torch.optim.Muon``, all matrices of one shape at once.

``torch.optim.Muon`` (torch 2.13) refuses the 3-D stacks that experts are kept in and
orthogonalises matrices one after another. That is why this file stays: the nano model has 376 matrices in 61
parameters, whose kernel launches would take a GPU as long as the forward and backward passes do. On one CPU core,
where launches cost nothing, both take the same time (0.35 s and 0.32 s a step).

A parameter may be cut over processes. Each keeps the momentum of its part; stacks are cut between matrices, others are
put together for the update.

Shape suffixes: N matrices, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7


class StackedMuon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz iteration (https://kellerjordan.github.io/posts/muon).

    Args:
        params: of two dimensions, or of three: a stack whose matrices are updated each by itself.
        lr: step of a matrix; scaled by sqrt(max(1, R / C)).
        weight_decay: decoupled, as AdamW's.
        momentum: of the Nesterov momentum.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        if any(p.ndim not in (2, 3) for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon updates matrices and stacks of matrices: give it 2-D and 3-D parameters only.")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient once."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape[-2:], []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters whose matrices have one shape."""
        directions = [self._direction(parameter, group["momentum"]) for parameter in parameters]
        orthogonal_NRC = orthogonalize(torch.cat(directions))
        rows, columns = parameters[0].shape[-2:]
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        parts = orthogonal_NRC.split([direction.shape[0] for direction in directions])
        for parameter, part in zip(parameters, parts, strict=True):
            here = _here(parameter)
            here.mul_(1 - group["lr"] * group["weight_decay"])
            here.add_(_own_part(part, parameter), alpha=-rate)

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Compute Nesterov momentum of the whole matrices that this process updates a part of: ``(N, R, C)``."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        gradient = _here(parameter.grad)
        moment = _here(state["momentum_buffer"]).lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(moment, momentum)
        if direction.ndim == 3:
            return direction
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            cut = DTensor.from_local(
                direction, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
            )
            direction = cut.full_tensor()
        return direction[None]


def _here(tensor: Tensor) -> Tensor:
    """Return this process's part, sharing the tensor's memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _own_part(update_NRC: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return what of an update applies to this process's part of the parameter."""
    if parameter.ndim == 3:
        return update_NRC
    if not isinstance(parameter, DTensor):
        return update_NRC[0]
    mesh = parameter.device_mesh
    whole = DTensor.from_local(update_NRC[0], mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=parameter.placements).to_local()


def orthogonalize(matrices_NRC: Tensor) -> Tensor:
    """Drive the singular values of each matrix to about one: ``(N, R, C)`` -> the same shape, bfloat16."""
    x = matrices_NRC.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.transpose(-2, -1)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(-2, -1)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.transpose(-2, -1) if tall else x
