"""What this process may use of the machine: main memory and processors, as control groups (containers) allow.

Control groups are read in both versions, and those around one count too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class _Group(NamedTuple):
    folder: Path
    version: int


def system_memory(proc: Path | None = None, cgroups: Path | None = None) -> int:
    """Return the bytes of main memory that this process may still take.

    That is what the system calls available, or less where a control group limits it. Pages of files that can be read
    again count as available in both.

    Args:
        proc: where the system tells of processes.
        cgroups: where it tells of control groups.
    """
    proc = proc or PROC
    numbers = _numbers(proc / "meminfo")
    if "MemAvailable" in numbers:
        available = 1024 * numbers["MemAvailable"]
    else:  # macOS: what there is in all
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, int(min([available, *map(_left, _groups("memory", proc, cgroups or CGROUPS))])))


def processors(proc: Path | None = None, cgroups: Path | None = None) -> int:
    """Return how many processors this process may keep busy: those it is bound to, or its control group's quota.

    A part of a processor counts as one.

    Args:
        proc: where the system tells of processes.
        cgroups: where it tells of control groups.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = map(_quota, _groups("cpu", proc or PROC, cgroups or CGROUPS))
    return max(1, ceil(min([bound, *quotas])))


def multiplies_bfloat16(proc: Path | None = None) -> bool:
    """Tell whether the processor has instructions for products in bfloat16; yes where the system does not say.

    Args:
        proc: where the system tells of processors.
    """
    lines = _text((proc or PROC) / "cpuinfo").splitlines()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "").partition(":")[2].split()
    return not features or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features)


def wait_little() -> None:
    """Let the threads that share PyTorch's loops sleep after some ten microseconds of waiting, unless told otherwise.

    They would wait actively for milliseconds, in which, beside other processes, they keep one another from running. It
    has to be said before torch is imported.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _groups(controller: str, proc: Path, cgroups: Path) -> Iterator[_Group]:
    """Yield the groups that this process is in, and those around them; in a container a path may be one outside it."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        root, version = (cgroups, 2) if number == "0" else (cgroups / controller, 1)
        inside = root / path.strip("/")
        for folder in (inside, *inside.parents) if inside.is_dir() else (root,):
            yield _Group(folder, version)
            if folder == root:
                break


def _left(group: _Group) -> float:
    """Return the bytes that a group leaves, its pages of files not counted as used."""
    folder, is_new = group.folder, group.version == 2
    names = ("memory.max", "memory.current") if is_new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    most, used = (_text(folder / name).strip() for name in names)
    if not (most.isdecimal() and used.isdecimal()):
        return float("inf")
    statistics, prefix = _numbers(folder / "memory.stat"), "" if is_new else "total_"
    files = sum(statistics.get(f"{prefix}{name}", 0) for name in ("active_file", "inactive_file"))
    return int(most) - int(used) + files


def _quota(group: _Group) -> float:
    """Return how many processors a group may keep busy."""
    if group.version == 2:
        words = _text(group.folder / "cpu.max").split()
    else:
        words = [_text(group.folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(words) == 2 and all(map(str.isdecimal, words)) and int(words[1]):
        return int(words[0]) / int(words[1])
    return float("inf")  # "max", or -1


def _numbers(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    found = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in found if len(words) > 1 and words[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
