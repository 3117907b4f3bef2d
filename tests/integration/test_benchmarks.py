"""What the scripts of ``benchmarks/`` promise those who read their JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def result_of(script: str, out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(FOLDER / script), *arguments, "--threads", "1", "--json", str(out)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_throughput_tells_its_runs_and_their_share_of_the_peak(tmp_path: Path) -> None:
    arguments = ("--concurrency", "1", "2", "--prompts", "2", "--gen-length", "32")
    result = result_of("throughput.py", tmp_path / "result.json", *arguments)
    assert [run["concurrency"] for run in result["runs"]] == [1, 2]
    for run in result["runs"]:
        assert run["tokens_per_second"] > 0
        assert 0 < run["decoded"] < run["positions"] - run["prefilled"] < run["attended"]
        reached = sum(run["flops"].values()) / run["seconds"]
        assert run["share_of_matmul_peak"] == pytest.approx(reached / result["matmul_peak_flops"])
