"""Training on several processes, with PyTorch's own engine: FSDP2 over the processes that ``torchrun`` starts.

A run that ``torchrun`` did not start is one process, whose model stays whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from dmax.models.transformer import BlockDiffusionLM
from dmax.training.recipe import ParallelSection
from dmax.training.section import RecipeError

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: one of them may be reading weights or answering validation problems."""


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that ``torchrun`` describes in the environment, for the length of a run."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Checkpoints are written from the CPU's memory, in the background: that needs a CPU backend on GPUs too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Count the processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Replace a tensor, in place, by its sum over the processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def passes_of_a_process(accumulation: int) -> int:
    """Tell how many of a step's forward passes each process runs.

    Raises:
        RecipeError: they cannot be shared out evenly.
    """
    passes, rest = divmod(accumulation, world_size())
    if rest:
        raise RecipeError(
            f"train.accumulation is {accumulation} forward passes a step, which {world_size()} processes cannot share "
            "evenly: choose a multiple of the number of processes, with fewer train.rows to keep the batch."
        )
    return passes


def shard(
    root: nn.Module, layers: Sequence[nn.Module], settings: ParallelSection, dtype: torch.dtype, device: torch.device
) -> None:
    """Cut every parameter of ``root`` over the processes, a layer at a time and the rest together (FSDP2).

    Parameters and gradients keep their own dtype; the copies that a forward and backward pass gather are ``dtype``.

    Args:
        root: whose forward uses all parameters; may be on the meta device.
        layers: parts of it that are gathered by themselves.
        settings: copies of the weights, and whether they wait in the CPU's memory.
        dtype: of the computation.
        device: of the computation.

    Raises:
        RecipeError: the processes cannot hold that many copies of equal size.
    """
    share, rest = divmod(world_size(), settings.replicas)
    if rest:
        raise RecipeError(
            f"parallel.replicas is {settings.replicas}, which does not divide the {world_size()} processes: "
            "choose a divisor."
        )
    mesh = init_device_mesh(device.type, (settings.replicas, share), mesh_dim_names=("replicate", "shard"))
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if settings.cpu_offload else OffloadPolicy()
    for module in (*layers, root):
        # The root, too, lets go of its weights after a forward: a rollout is not followed by a backward pass.
        fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=True)


def scatter_weights(model: nn.Module, whole: nn.Module | None) -> None:
    """Fill a sharded model with the weights of a whole one, which only the first process has."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, {} if whole is None else whole.state_dict(), options=options)


def gather_weights(model: BlockDiffusionLM) -> BlockDiffusionLM | None:
    """Gather a whole copy of a sharded model in the first process's CPU memory; None in the others."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if rank():
        return None
    with torch.device("meta"):
        whole = BlockDiffusionLM(model.config)
    whole.load_state_dict(state, assign=True)
    return whole.eval()
