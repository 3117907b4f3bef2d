"""Tiny checkpoints on disk, and the command line run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from typer.testing import CliRunner, Result

from dmax.cli import app
from dmax.models import LLaDA2, ModelConfig, Tokenizer, save_model
from dmax.models.llada2 import initialize

VOCABULARY = {"<pad>": 0, "<mask>": 1, "<eos>": 2, **{f"w{token_id}": token_id for token_id in range(3, 48)}}
TEMPLATE = "{% for m in messages %}{{ 'w3' if m.role == 'user' else 'w4' }} {{ m.content }} {% endfor %}w5"
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


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small lose more to the threads' meetings than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    config = ModelConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        num_shared_experts=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        mask_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = initialize(LLaDA2(config), torch.Generator().manual_seed(0))
    root = tmp_path_factory.mktemp("checkpoints")
    save_model(model, root / "chat", tokenizer=_tokenizer(TEMPLATE))
    save_model(model, root / "raw", tokenizer=_tokenizer(None))
    save_model(model, root / "bare")
    return Checkpoints(root / "chat", root / "raw", root / "bare")


def _tokenizer(template: str | None) -> Tokenizer:
    pipeline = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="<pad>"))
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    pipeline.add_special_tokens(["<pad>", "<mask>", "<eos>"])
    return Tokenizer(pipeline, {"eos_token": "<eos>", "mask_token": "<mask>"}, template)


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
