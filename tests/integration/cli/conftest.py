"""Tiny checkpoints on disk, and the command line run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from dmax.cli import app
from dmax.models import BlockDiffusionLM, ModelConfig, Tokenizer, save_model
from dmax.models.transformer import initialize

SHORT = ("--gen-length", "16", "--block-length", "8")


@dataclass(frozen=True)
class Checkpoints:
    """One set of random weights, three times."""

    chat: Path
    """With a tokenizer and a chat template."""
    raw: Path
    """With a tokenizer only."""
    bare: Path
    """Without either."""


@pytest.fixture(scope="session")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: Callable[..., ModelConfig],
    word_tokenizer: Callable[[str | None], Tokenizer],
    chat_template: str,
) -> Checkpoints:
    config = tiny_config(moe=True, max_position_embeddings=64)
    model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(0))
    root = tmp_path_factory.mktemp("checkpoints")
    save_model(model, root / "chat", tokenizer=word_tokenizer(chat_template))
    save_model(model, root / "raw", tokenizer=word_tokenizer(None))
    save_model(model, root / "bare")
    return Checkpoints(root / "chat", root / "raw", root / "bare")


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Arguments of ``dmax`` -> what it printed and its exit code; an exception that escapes fails the test."""

    def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
        runner = CliRunner(env={"FORCE_COLOR": None, "NO_COLOR": "1", "COLUMNS": "100"})
        return runner.invoke(app, [str(argument) for argument in arguments], input=stdin, catch_exceptions=False)

    return run


@pytest.fixture
def generate(invoke: Callable[..., Result]) -> Callable[..., Result]:
    """As ``invoke``, for ``dmax generate`` with answers of at most two blocks."""

    def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
        return invoke("generate", *SHORT, *arguments, stdin=stdin)

    return run


@pytest.fixture
def refusal(invoke: Callable[..., Result]) -> Callable[..., str]:
    """Arguments of ``dmax`` that it must refuse -> the one sentence that says why."""

    def run(*arguments: object, stdin: str | bytes | None = None) -> str:
        result = invoke(*arguments, stdin=stdin)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("Error: ").rstrip("\n")

    return run


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Lines, as text or as values for JSON -> a file of them."""

    def write(*lines: str | dict[str, Any], name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def read_lines() -> Callable[[Path], list[dict[str, Any]]]:
    """A file of JSON objects -> the objects, without the fields that measure time."""

    def read(path: Path) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{key: value for key, value in record.items() if key not in ("seconds", "tps")} for record in records]

    return read
