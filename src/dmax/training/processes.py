"""Data parallelism over the processes that ``torchrun`` starts; a run started alone is a group of one.

Every process holds the whole model. Losses and gradients are means over the processes' equal shares of a step, so a
run on n processes takes the steps of one process that accumulates n times as many forward passes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group ``torchrun`` describes in the environment, for the length of a run."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        dist.barrier()


def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over the processes: one exchange for all of them."""
    if world_size() == 1:
        return
    members = list(tensors)
    flat = torch.cat([member.flatten() for member in members])
    dist.all_reduce(flat)
    flat /= world_size()
    for member, mean in zip(members, flat.split([member.numel() for member in members]), strict=True):
        member.copy_(mean.view_as(member))
