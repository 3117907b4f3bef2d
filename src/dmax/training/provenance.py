"""Where a run was trained: one line for every time that it was started or resumed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from dmax.training.distributed import world_size


def record_start(output: Path, step: int) -> None:
    """Append to ``output / "starts.jsonl"`` when, where and with what a run goes on from a step.

    Args:
        output: folder of the run.
        step: optimiser steps taken before.
    """
    line = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "dmax": version("dmax-llm"),
        "git_commit": _commit(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    output.mkdir(parents=True, exist_ok=True)
    with (output / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, or None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
