"""``dmax convert`` and ``dmax train``: arguments reach the work, and bad ones a sentence."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import Result

from dmax import load_model
from dmax.evaluation.validation import validator


def test_converting_there_and_back_keeps_every_bit(
    invoke: Callable[..., Result], checkpoints: Any, tmp_path: Path
) -> None:
    merged, separate = tmp_path / "merged", tmp_path / "separate"
    result = invoke("convert", checkpoints.chat, merged, "--layout", "merged")
    assert (result.exit_code, result.stdout) == (0, f"{merged}\n")
    assert invoke("convert", merged, separate, "--layout", "separate").exit_code == 0
    before, after = load_model(checkpoints.chat).state_dict(), load_model(separate).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (separate / "tokenizer.json").exists()


def test_quantising_says_what_it_costs(invoke: Callable[..., Result], checkpoints: Any, tmp_path: Path) -> None:
    result = invoke("convert", checkpoints.chat, tmp_path / "small", "--quantize", "int8", "--parts", "dense")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'small'}\n")
    model = load_model(tmp_path / "small")
    lines = result.stderr.splitlines()
    assert len(lines) == model.config.num_hidden_layers
    assert all("dense" in line and line.endswith("%") for line in lines)
    assert model.model.layers[0].attention.dense.weight.dtype == torch.int8


def test_4_bits_with_embeddings_in_8_and_a_report_of_every_weight(
    invoke: Callable[..., Result], tmp_path: Path
) -> None:
    report = tmp_path / "errors.json"
    four = ("--quantize", "int4", "--group", 32, "--embeddings", "int8", "--errors", report)
    result = invoke("convert", "nano", tmp_path / "small", *four)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[-1].split()[:2] == ["embeddings", "relative"]
    model = load_model(tmp_path / "small")
    assert (
        model.lm_head.weight.dtype == torch.int8 and model.model.layers[0].attention.dense.weight.dtype == torch.uint8
    )
    weights = json.loads(report.read_text())["weights"]
    assert {weight["name"] for weight in weights[-2:]} == {"lm_head.weight", "model.word_embeddings.weight"}
    assert all(0 < weight["relative_error"] < 0.12 for weight in weights)
    answer = invoke("generate", "1 + 1", "--model", tmp_path / "small", "--gen-length", 32)
    assert answer.exit_code == 0, answer.stderr


def test_where_no_terminal_is_a_line_now_and_then_says_how_far_it_is(
    invoke: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmax.cli._common.progress.EVERY", 0.0)
    result = invoke("convert", "nano", tmp_path / "merged", "--layout", "merged")
    lines = result.stderr.splitlines()
    assert len(lines) > 2
    assert all(re.fullmatch(r"Converting: [\d.]+ of 0\.0 GiB, about \d+ s left", line) for line in lines)
    monkeypatch.setattr("dmax.cli._common.progress.EVERY", 600.0)
    assert invoke("convert", "nano", tmp_path / "again", "--layout", "merged").stderr == ""


def test_stopping_a_conversion_says_that_it_goes_on(
    invoke: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("dmax.models.convert.write_index", _interrupted)
        result = invoke("convert", "nano", tmp_path / "merged", "--layout", "merged")
    assert result.exit_code == 130 and "goes on" in result.stderr and not (tmp_path / "merged").exists()
    monkeypatch.setattr("dmax.models.convert.write_targets", lambda **_: pytest.fail("it was done already"))
    assert invoke("convert", "nano", tmp_path / "merged", "--layout", "merged").exit_code == 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_convert_refuses(refusal: Callable[..., str], checkpoints: Any, tmp_path: Path) -> None:
    assert "'merged'" in refusal("convert", checkpoints.chat, tmp_path / "a", "--layout", "merge")
    assert "nowhere" in refusal("convert", tmp_path / "nowhere", tmp_path / "a", "--layout", "merged")
    assert "--layout" in refusal("convert", checkpoints.chat, tmp_path / "a")
    assert "'int3'" in refusal("convert", checkpoints.chat, tmp_path / "a", "--quantize", "int3")
    assert "choose 32 or 64" in refusal(
        "convert", checkpoints.chat, tmp_path / "a", "--quantize", "int4", "--group", 48
    )
    assert "'fp8'" in refusal("convert", checkpoints.chat, tmp_path / "a", "--embeddings", "fp8")
    assert "is for int4" in refusal(
        "convert", checkpoints.chat, tmp_path / "a", "--quantize", "int8", "--method", "search"
    )
    assert "'router'" in refusal("convert", checkpoints.chat, tmp_path / "a", "--quantize", "fp8", "--parts", "router")
    (tmp_path / "mine").write_text("keep", encoding="utf-8")
    assert "not empty" in refusal("convert", checkpoints.chat, tmp_path, "--layout", "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for training; gives the list of calls it was given."""
    calls: list[tuple[Any, ...]] = []
    module = ModuleType("dmax.training.run")

    def run_recipe(*arguments: Any) -> Path:
        calls.append(arguments)
        return Path("run/model")

    def plan_recipe(*arguments: Any) -> tuple[Any, torch.device, int]:
        from dmax.training.activations import BatchShape
        from dmax.training.requirements import Memory, Requirements

        calls.append(arguments)
        memory = Memory(weights=2**30, copies=0, gradients=2**30, optimizer=2**31, activations=2**30, update=0)
        available = 2**33 if arguments[3] is None else int(arguments[3] * 2**30)
        return Requirements(1000, 1000, 7, arguments[2], BatchShape(2, 64, 50), memory), torch.device("cpu"), available

    module.run_recipe = run_recipe  # type: ignore[attr-defined]
    module.plan_recipe = plan_recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dmax.training.run", module)
    return calls


def test_train_hands_over_its_arguments(invoke: Callable[..., Result], training: list[tuple[Any, ...]]) -> None:
    assert invoke("train", "a.yaml").stdout == "run/model\n"
    assert invoke("train", "a.yaml", "--output", "run", "--resume").exit_code == 0
    assert invoke("train", "a.yaml", "--data", "openai/gsm8k=rows.jsonl", "--ignore-memory").exit_code == 0
    assert training == [
        (Path("a.yaml"), None, False, validator, {}, False),
        (Path("a.yaml"), Path("run"), True, validator, {}, False),
        (Path("a.yaml"), None, False, validator, {"openai/gsm8k": "rows.jsonl"}, True),
    ]


def test_a_dry_run_says_what_a_run_needs_and_trains_nothing(
    invoke: Callable[..., Result], training: list[tuple[Any, ...]]
) -> None:
    result = invoke("train", "a.yaml", "--dry-run", "--processes", 4)
    assert result.exit_code == 0
    needed = next(line for line in result.stdout.splitlines() if line.startswith("needed of a device"))
    assert needed.split()[-2:] == ["5.00", "GiB"]
    assert "2 rows of 64 positions, 50 with logits" in result.stdout
    assert training == [(Path("a.yaml"), None, 4, None, {})]


def test_rows_are_shown_with_what_is_trained_on(
    invoke: Callable[..., Result], training: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def show_rows(*arguments: Any) -> list[list[tuple[str, bool]]]:
        training.append(arguments)
        return [[("<|user|>", False), ("2", False), ("\n4", True), ("<|endoftext|>", True)]]

    monkeypatch.setattr(sys.modules["dmax.training.run"], "show_rows", show_rows, raising=False)
    result = invoke("train", "a.yaml", "--show-rows", 1, "--data", "x=y")
    assert result.stdout.splitlines() == [
        "row 1: 4 tokens, 2 supervised",
        "  context    <|user|>·2",
        "  supervised \\n4·<|endoftext|>",
    ]
    assert training == [(Path("a.yaml"), 1, None, {"x": "y"})]


def test_a_dry_run_refuses_what_cannot_fit(invoke: Callable[..., Result], training: list[tuple[Any, ...]]) -> None:
    result = invoke("train", "a.yaml", "--dry-run", "--device-memory", 4)
    assert result.exit_code == 2
    assert "Each process of the run needs 5.0 GiB of memory" in result.stderr
    assert "this machine has 4.0 GiB available: use more processes" in result.stderr
    assert len(training) == 1


def test_train_without_its_extra(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dmax.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "yaml", None)
    message = refusal("train", "a.yaml")
    assert "yaml is not installed" in message
    assert "dmax-llm[train]" in message


def test_a_recipe_that_is_not_there(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "absent.yaml" in refusal("train", tmp_path / "absent.yaml", "--output", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_stopping_a_run_says_how_to_go_on(
    invoke: Callable[..., Result], training: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["dmax.training.run"], "run_recipe", _interrupted)
    result = invoke("train", "a.yaml")
    assert result.exit_code == 130
    assert "--resume" in result.stderr
