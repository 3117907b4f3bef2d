"""``dmax eval --base-url``: the same rows, graders and counts, whoever answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("math_verify")

from dmax.cli import app

ROWS = [{"question": f"w{3 + i} w7", "answer": f"w9\n#### {i}"} for i in range(6)]
SETTINGS = ("--tasks", "gsm8k", "--gen-length", "24", "--block-length", "8", "--threshold", "0.4", "--batch-size", "3")
TIMES = {"seconds", "wall_share"}


def evaluate(out: Path, *arguments: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    result = CliRunner().invoke(
        app, ["eval", *SETTINGS, "--out", str(out), *map(str, arguments)], catch_exceptions=False
    )
    assert result.exit_code == 0
    lines = (out / "samples-gsm8k.jsonl").read_text().splitlines()
    samples = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    return samples, json.loads((out / "results.json").read_text())


def test_a_served_model_is_measured_as_a_local_one(start: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    local, ours = evaluate(tmp_path / "local", "--data", rows, "--model", checkpoint)
    with start() as (_, client):
        url = f"{client.base_url}/v1".replace("//v1", "/v1")
        served, theirs = evaluate(tmp_path / "served", "--data", rows, "--model", "tiny", "--base-url", url)
    assert served == local
    for key in ("accuracy", "tpf_mean", "tpf_pooled", "nfe_mean", "revisions_per_token"):
        assert theirs["tasks"]["gsm8k"]["metrics"][key] == ours["tasks"]["gsm8k"]["metrics"][key]
    assert theirs["model"]["base_url"] == url
    assert ours["model"]["hash"].startswith("sha256:")
