"""What does not fit is refused within seconds, in one sentence; on a machine, and in a container, of little memory."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from dmax import machine

SMALL = 2**20
RECIPE = """
name: small
seed: 1
model: {config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
  num_key_value_heads: 1, head_dim: 16, max_position_embeddings: 512}}
tokenizer: {vocab_size: 512, problems: 50}
data: [{source: arithmetic}]
objective: {kind: oput, block_length: 32, mask_ratio: 0.75, rollout: greedy, form: joint}
train: {steps: 1, rows: 2, context: 512}
"""


@pytest.fixture(params=["machine", "container"], autouse=True)
def _little_memory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine, or a control group on a larger one, with a MiB left."""
    root = tmp_path_factory.mktemp("system")
    (root / "proc" / "self").mkdir(parents=True)
    (root / "cgroup").mkdir()
    is_group = request.param == "container"
    (root / "proc" / "meminfo").write_text(f"MemAvailable: {(2**40 if is_group else SMALL) // 1024} kB\n")
    (root / "proc" / "self" / "cgroup").write_text("0::/\n")
    if is_group:
        for name, value in (("max", 2**30), ("current", 2**30 - SMALL)):
            (root / "cgroup" / f"memory.{name}").write_text(f"{value}\n")
    monkeypatch.setattr(machine, "PROC", root / "proc")
    monkeypatch.setattr(machine, "CGROUPS", root / "cgroup")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "w3", "--model"),
        ("chat", "--model"),
        ("serve", "--port", "0", "--model"),
        ("bench", "--device", "cpu", "--model"),
        ("visualize", "w3", "--output", "x.html", "--model"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_model_that_does_not_fit_is_refused(
    arguments: tuple[str, ...], refusal: Callable[..., str], checkpoints: Any
) -> None:
    began = time.monotonic()
    message = refusal(*arguments, checkpoints.chat)
    assert time.monotonic() - began < 30
    said = re.fullmatch(
        r"(\S+) needs [\d.]+ [MG]iB of memory \(.*\), and this machine has 1 MiB available: "
        r".*--device.*--ignore-memory\.",
        message,
    )
    assert said is not None and said[1] == str(checkpoints.chat)


def test_evaluation_is_refused(refusal: Callable[..., str], checkpoints: Any) -> None:
    message = refusal("eval", "--model", checkpoints.chat, "--tasks", "gsm-symbolic", "--limit", 2)
    assert "this machine has 1 MiB available" in message


def test_a_shape_is_refused(refusal: Callable[..., str]) -> None:
    message = refusal("bench", "--shape", "llada2-mini", "--device", "cpu")
    assert message.startswith("llada2-mini needs 6")
    assert "the least that it takes is" in message


def test_the_user_may_know_better(generate: Callable[..., Result], checkpoints: Any) -> None:
    result = generate("w3", "--model", checkpoints.chat, "--ignore-memory", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["num_tokens"] > 0


def test_training_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    message = refusal("train", recipe, "--output", tmp_path / "run")
    assert message.startswith("Each process of the run needs") and "has 1 MiB available: use more" in message
    assert not (tmp_path / "run" / "model").exists()


def test_a_conversion_is_refused(refusal: Callable[..., str], checkpoints: Any, tmp_path: Path) -> None:
    message = refusal("convert", checkpoints.chat, tmp_path / "out", "--quantize", "int8")
    assert message.startswith("Converting needs") and "this machine has 1 MiB available" in message
    assert list(tmp_path.iterdir()) == []
