"""Every start of a run leaves a line that says when, where and with what it went on."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dmax.training.starts import record_start


def test_every_start_leaves_a_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    record_start(run, 0)
    record_start(run, 40)
    first, second = map(json.loads, (run / "starts.jsonl").read_text(encoding="utf-8").splitlines())
    assert (first["step"], second["step"], second["processes"]) == (0, 40, 1)
    assert first["time"] <= second["time"]
    assert second["versions"]["torch"] == torch.__version__
    assert {"processor", "cores", "threads", "memory_gib", "accelerator"} <= second["hardware"].keys()
    assert {"dmax", "git_commit"} <= second.keys()
