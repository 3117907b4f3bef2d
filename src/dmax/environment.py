"""What results files and runs state about the process that made them: versions, commit and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "safetensors", "tokenizers", "numpy", "reasoning-gym", "math-verify", "datasets")
_CPU_LISTING = Path("/proc/cpuinfo")


def describe_process() -> dict[str, Any]:
    """Return ``dmax`` (version), ``git_commit`` (None outside a checkout), ``versions`` and ``hardware``."""
    return {
        "dmax": _version("dmax-llm"),
        "git_commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in _PACKAGES if (found := _version(name)) is not None},
        },
        "hardware": describe_hardware(),
    }


def describe_hardware() -> dict[str, Any]:
    """Describe processor, cores this process may use, torch's threads, memory in GiB, accelerator and system."""
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": None if pages is None else round(pages * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def git_commit() -> str | None:
    """Return the commit of the source tree that runs, ``-dirty`` where files differ; None where it is installed."""
    here = Path(__file__).resolve()
    try:
        _git(here, "ls-files", "--error-unmatch", here.name)
        return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _git(here: Path, *arguments: str) -> str:
    run = subprocess.run(
        ["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10, check=True
    )  # fmt: skip
    return run.stdout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    if _CPU_LISTING.exists():
        for line in _CPU_LISTING.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
