"""Bad input: one sentence on stderr, exit code 2, nothing written, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from dmax import LLM
from dmax.cli._common.errors import resumable

Refusal = Callable[..., str]


@pytest.fixture(autouse=True)
def _no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here is refused before a token is decoded."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("decoding began")

    monkeypatch.setattr(LLM, "generate", fail)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--decoder", "sof-paralel"], ["sof-paralel", "did you mean 'soft-parallel'", "hierarchical"]),
        (["--threshold", "1.5"], ["--threshold is 1.5", "0", "1"]),
        (["--acceptance-threshold", "-0.1"], ["--acceptance-threshold is -0.1"]),
        (["--threshold", "nan"], ["threshold is nan"]),
        (["--threshold", "high"], ["--threshold", "number"]),
        (["--decoder", "fixed-steps", "--threshold", "0.5"], ["fixed-steps", "no option 'threshold'", "steps"]),
        (["--decoder", "threshold", "--editing-threshold", "0.5"], ["no option 'editing_threshold'"]),
        (["--decoder-option", "sift=1"], ["no option 'sift'", "did you mean 'soft'"]),
        (["--decoder-option", "soft"], ["NAME=VALUE"]),
        (["--decoder-option", "soft=perhaps"], ["soft is 'perhaps'"]),
        (["--decoder-option", "top_k=65"], ["top_k is 65", "at most 64"]),
        (["--decoder-option", "name=x"], ["no option 'name'"]),
        (["--decoder", "fixed-steps", "--decoder-option", f"steps={10**30}"], ["steps is", "at most"]),
        (["--stop", "a \udcff"], ["stop", "valid Unicode"]),
        (["--dtype", "bfloat"], ["'bfloat'", "bfloat16"]),
        (["--dtype", "int8"], ["'int8'", "float32, bfloat16, float16"]),
        (["--device", "cdua"], ["'cdua'", "Did you mean 'cuda'"]),
        (["--device", "cuda:x"], ["'cuda:x'", "cuda:0"]),
        (["--gen-length", "0"], ["--gen-length is 0"]),
        (["--block-length", "0"], ["--block-length is 0"]),
        (["--temperature", "-1"], ["--temperature is -1"]),
        (["--seed", "-1"], ["--seed is -1"]),
        (["--stop", ""], ["stop"]),
        (["--treshold", "0.5"], ["--treshold", "--threshold"]),
        (["--batch-size", "4"], ["--batch-size", "--input"]),
        (["--output", "answers.jsonl"], ["--output", "--input"]),
        (["--prompt-ids", "[1]"], ["PROMPT and --prompt-ids"]),
        (["--input", "prompts.jsonl"], ["PROMPT and --input"]),
        (["w8"], ["unexpected extra argument", "into quotes", 'dmax generate "…"']),
        (["--gen-length", "5000"], ["1 token,", "--gen-length 5000", "64"]),
    ],
)
def test_options_that_make_no_sense(refusal: Refusal, checkpoints: Any, arguments: list[str], parts: list[str]) -> None:
    message = refusal("generate", "w7", "--model", checkpoints.raw, *arguments)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("prompt_ids", "part"),
    [
        ("[1, 2", "not valid JSON"),
        ("7", "list of whole numbers"),
        ("[1.5]", "list of whole numbers"),
        ("[true]", "list of whole numbers"),
        ('["a"]', "list of whole numbers"),
        ("[48]", "the prompt has token id 48; this model's ids are 0 to 47"),
        ("[-1]", "token id -1"),
        ("[" * 100_000, "not valid JSON"),
        (json.dumps([7] * 49), "49 tokens"),
    ],
)
def test_prompt_ids(refusal: Refusal, checkpoints: Any, prompt_ids: str, part: str) -> None:
    message = refusal("generate", "--model", checkpoints.bare, "--gen-length", 16, "--prompt-ids", prompt_ids)
    assert part in message


@pytest.mark.parametrize("stdin", ["", "\n", "  \n\n"])
def test_an_empty_prompt(refusal: Refusal, checkpoints: Any, stdin: str) -> None:
    assert "empty" in refusal("generate", "--model", checkpoints.raw, stdin=stdin)
    assert "empty" in refusal("generate", stdin.rstrip("\n"), "--model", checkpoints.raw)


def test_a_prompt_that_is_not_text(refusal: Refusal, checkpoints: Any) -> None:
    assert "UTF-8" in refusal("generate", "--model", checkpoints.raw, stdin=b"\xff\xfe")
    assert "Unicode" in refusal("generate", "w7 \udcff", "--model", checkpoints.raw)


def test_text_for_a_model_without_a_tokenizer(refusal: Refusal, checkpoints: Any) -> None:
    assert "no tokenizer" in refusal("generate", "w7", "--model", checkpoints.bare)
    assert "no tokenizer" in refusal("chat", "--model", checkpoints.bare)
    assert "no chat template" in refusal("chat", "--model", checkpoints.raw)


def test_a_gpu_that_is_not_there(refusal: Refusal, checkpoints: Any) -> None:
    assert "'cuda:99'" in refusal("generate", "w7", "--model", checkpoints.raw, "--device", "cuda:99")


def _damaged(checkpoints: Any, tmp_path: Path, damage: Callable[[Path], object]) -> Path:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in checkpoints.raw.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    return folder


@pytest.mark.parametrize("command", [("generate", "w7", "--model"), ("chat", "--model")])
@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "an autoregressive model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"), "model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
    ],
)
def test_a_damaged_checkpoint(
    refusal: Refusal,
    checkpoints: Any,
    tmp_path: Path,
    command: tuple[str, ...],
    damage: Callable[[Path], object],
    part: str,
) -> None:
    assert part in refusal(*command, _damaged(checkpoints, tmp_path, damage))


def test_a_missing_checkpoint(refusal: Refusal, tmp_path: Path) -> None:
    for command in (("generate", "w7", "--model"), ("info",), ("chat", "--model")):
        assert "nowhere" in refusal(*command, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "prompt_and_file",
    [("w7", "--trace"), ("--input", "{prompts}", "--output"), ("--input", "{prompts}", "--trace")],
)
def test_an_output_that_cannot_be_written_is_found_before_any_work(
    refusal: Refusal,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt_and_file: tuple[str, ...],
) -> None:
    prompts = write_lines({"prompt": "w7"})
    given = [part.format(prompts=prompts) for part in prompt_and_file]
    arguments = ("generate", "--model", tmp_path / "no-model", *given)
    assert "no folder" in refusal(*arguments, tmp_path / "nowhere" / "file")
    assert "is a folder" in refusal(*arguments, tmp_path)
    monkeypatch.setattr("os.access", lambda _, mode: not mode & os.W_OK)
    assert "permission" in refusal(*arguments, tmp_path / "file")
    assert list(tmp_path.iterdir()) == [prompts]  # and no sentence was about the model that is not there


def test_an_unknown_command_names_the_nearest(refusal: Refusal) -> None:
    message = refusal("generat", "w7")
    assert "'generate'" in message
    assert "quotes" not in message


def test_words_without_quotes_are_recognised_where_a_prompt_may_stand(refusal: Refusal) -> None:
    assert "into quotes" in refusal("How", "many", "apples")
    assert "into quotes" in refusal("what", "is", "2", "plus", "2")  # which nearly is "chat"
    assert "once the conversation has begun" in refusal("chat", "what", "is")
    assert "into quotes" in refusal("visualize", "How", "many", "-o", "replay.html")
    assert "quotes" not in refusal("info", "nano", "nano-base")


def test_a_truncated_checkpoint_in_a_process_of_its_own(checkpoints: Any, tmp_path: Path) -> None:
    def truncate(folder: Path) -> None:
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])

    folder = _damaged(checkpoints, tmp_path, truncate)
    result = subprocess.run(
        [sys.executable, "-m", "dmax", "generate", "--model", str(folder), "w7"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "model.safetensors" in result.stderr


def test_an_interruption_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, resumable(tmp_path):
        raise KeyboardInterrupt
    assert end.value.exit_code == 130
    assert capsys.readouterr().err == f"Stopped; the same command goes on with what is in {tmp_path}.\n"
