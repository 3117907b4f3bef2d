"""How much memory is there, and the refusal of what does not fit into it.

What a process may still take is what the system calls available, or less where a control group limits it, as in a
container. Pages of files that can be read again count as available in both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import torch

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class DoesNotFit(ValueError):
    """What would take more memory than there is."""


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return system_memory()


def system_memory(proc: Path | None = None, cgroups: Path | None = None) -> int:
    """Return the bytes of main memory that this process may still take.

    Args:
        proc: where the system tells of processes.
        cgroups: where it tells of control groups.
    """
    proc, cgroups = proc or _PROC, cgroups or _CGROUPS
    return max(0, min([_available(proc), *_left_in_groups(proc, cgroups)]))


def _available(proc: Path) -> int:
    numbers = _numbers(proc / "meminfo")
    if "MemAvailable" in numbers:
        return 1024 * numbers["MemAvailable"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS: what there is in all


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield what each control group that this process is in has left, for both versions of control groups."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _left(cgroups, path, "memory.max", "memory.current", ("active_file", "inactive_file"))
        elif "memory" in controllers.split(","):
            files = "memory.limit_in_bytes", "memory.usage_in_bytes"
            yield from _left(cgroups / "memory", path, *files, ("total_active_file", "total_inactive_file"))


def _left(root: Path, path: str, limit: str, usage: str, files: tuple[str, ...]) -> Iterator[int]:
    """Yield what a group and those around it have left; inside a container the path may be one outside of it."""
    inside = root / path.strip("/")
    for group in (inside, *inside.parents) if inside.is_dir() else (root,):
        most, used = _text(group / limit).strip(), _text(group / usage).strip()
        if most.isdecimal() and used.isdecimal():
            statistics = _numbers(group / "memory.stat")
            yield int(most) - int(used) + sum(statistics.get(name, 0) for name in files)
        if group == root:
            return


def _numbers(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    found = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in found if len(words) > 1 and words[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


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
