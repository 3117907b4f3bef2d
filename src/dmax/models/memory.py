"""The memory of a device, and the refusal of what does not fit into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import torch

from dmax.machine import system_memory


class DoesNotFit(ValueError):
    """What would take more memory than there is."""


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return system_memory()


def refuse(
    what: str, needed: Mapping[str, int], available: int, device: torch.device, mends: str
) -> NoReturn:  # fmt: skip
    """Say in one sentence that something needs more memory than there is.

    Args:
        what: begins the sentence.
        needed: bytes, by what they are for.
        available: bytes that are there.
        device: where.
        mends: what could be done.

    Raises:
        DoesNotFit: always.
    """
    parts = ", ".join(f"{name} {gib(size)}" for name, size in needed.items() if size >= 2**20)
    where = "this machine" if device.type == "cpu" else str(device)
    raise DoesNotFit(
        f"{what} needs {gib(sum(needed.values()))} of memory ({parts}), and {where} has {gib(available)} available: "
        f"{mends}, or try all the same with --ignore-memory."
    )


def gib(size: int) -> str:
    """Write bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.0f} MiB"
