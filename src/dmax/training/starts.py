"""Where a run was trained: one line for every time that it was started or resumed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from dmax.environment import describe_process
from dmax.training.distributed import world_size


def record_start(output: Path, step: int) -> None:
    """Append to ``output / "starts.jsonl"`` when, where and with what a run goes on from a step.

    Args:
        output: folder of the run.
        step: optimiser steps taken before.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"step": step, "time": now, "processes": world_size(), **describe_process()}
    output.mkdir(parents=True, exist_ok=True)
    with (output / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
