"""Which backend computes for a model, by its device and dtype. Chosen once, when an engine is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dmax import kernels
from dmax.engine.backends.base import Backend
from dmax.kernels.cpu.library import compiled_kernels
from dmax.models.transformer import BlockDiffusionLM


def backend_name(device: torch.device, dtype: torch.dtype) -> str:
    """Tell which backend :func:`choose_backend` takes for a model on such a device, by its name."""
    if device.type == "cpu":
        return "cpu" if compiled_kernels(dtype) is None else "cpu-compiled"
    return "cuda" if kernels.usable(device, dtype) else "torch"


def choose_backend(model: BlockDiffusionLM, idle: Backend | None = None, *, eager: bool = False) -> Backend:
    """Choose the backend for the device and dtype of a model in eval mode.

    Args:
        model: what is to be run.
        idle: one that was chosen for it before and that no engine uses; it is taken again if it is of the right kind.
        eager: whether modules are called one by one where a recording of them, a CUDA graph, would be replayed.
    """
    kind = _kind(model, eager)
    return idle if idle is not None and type(idle) is kind else kind(model)


def _kind(model: BlockDiffusionLM, eager: bool) -> Callable[[BlockDiffusionLM], Backend]:
    if model.device.type == "cpu":
        from dmax.engine.backends.cpu import CpuBackend

        return CpuBackend
    if kernels.usable(model.device, model.dtype):
        from dmax.engine.backends.cuda import CudaBackend  # here, because it imports Triton

        return partial(CudaBackend, graphs=False) if eager else CudaBackend
    from dmax.engine.backends.torch import TorchBackend

    return TorchBackend
