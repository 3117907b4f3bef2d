"""The examples run as their first lines say, and print what they are about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generate() -> None:
    printed = run("generate.py")
    assert "#### 126" in printed
    assert "tokens per forward" in printed
    assert "pass  1: block 1" in printed


def test_add_decoder() -> None:
    printed = run("add_decoder.py")
    assert "promoted: [True, True, False, False]" in printed
    assert "width 4, " in printed


def test_finetune_oput(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    run("finetune_oput.py", "--steps", "2", "--output", str(tmp_path / "run"))
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_serve_and_call() -> None:
    pytest.importorskip("openai")
    printed = run("serve_and_call.py")
    assert "#### 126" in printed
    assert "together: [16, 32," in printed


def test_structured() -> None:
    pytest.importorskip("llguidance")
    printed = run("structured.py")
    assert "\n  126\n" in printed
    assert "\n  490\n" in printed
    assert "dict_keys(['city', 'days'])" in printed


def test_every_example_is_run_here() -> None:
    tested = {name.removeprefix("test_") + ".py" for name in globals() if name.startswith("test_")}
    assert {path.name for path in EXAMPLES.glob("*.py")} <= tested
