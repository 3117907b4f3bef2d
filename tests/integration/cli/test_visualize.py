"""``dmax visualize``: the replay of a prompt or of a recorded trace, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from dmax import LLM, GenerationParams

Run = Callable[..., Result]
SHORT = ("--gen-length", "16", "--block-length", "8")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "out.html"


@pytest.fixture
def trace(generate: Run, checkpoints: Any, tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    assert generate("w7 w8", "--model", checkpoints.chat, "--trace", path).exit_code == 0
    return path


def runs_of(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="runs">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def test_a_prompt_is_answered_and_its_passes_are_in_the_page(invoke: Run, checkpoints: Any, page: Path) -> None:
    result = invoke("visualize", "w7 w8", "--model", checkpoints.chat, *SHORT, "-o", page)
    assert (result.exit_code, result.stdout) == (0, "")
    assert str(page) in result.stderr.replace("\n", "")
    llm = LLM(checkpoints.chat)
    [expected] = llm.generate(llm.chat_prompt("w7 w8"), GenerationParams(gen_length=16, block_length=8, trace=True))
    [run] = runs_of(page)
    assert run["prompt"] == "w7 w8"
    assert run["text"] == expected.text
    assert run["trace"] == expected.to_dict()["trace"]
    assert {run["pieces"][str(token)] for record in run["trace"] for token in record["tokens"]} <= vocabulary()
    assert (run["mask_token_id"], run["eos_token_ids"]) == (1, [2])


def vocabulary() -> set[str]:
    return {"<pad>", "<mask>", "<eos>", *(f"w{token_id}" for token_id in range(3, 48))}


def test_decoders_are_compared_on_the_same_prompt(invoke: Run, checkpoints: Any, page: Path) -> None:
    compare = ("--compare", "threshold=0.7", "--compare", "fixed-steps")
    options = ("--threshold", "0.3", "--acceptance-threshold", "0.8", *compare)
    assert invoke("visualize", "w7", "--model", checkpoints.chat, *SHORT, *options, "-o", page).exit_code == 0
    runs = runs_of(page)
    assert [run["decoder"] for run in runs] == ["soft-parallel", "threshold", "fixed-steps"]
    assert [run["params"].get("threshold") for run in runs] == [0.3, 0.7, None]
    assert len({str(run["prompt_ids"]) for run in runs}) == 1
    assert {run["params"]["gen_length"] for run in runs} == {16}


def test_a_model_without_a_tokenizer_shows_ids(invoke: Run, checkpoints: Any, page: Path) -> None:
    result = invoke("visualize", "--prompt-ids", "[7, 8]", "--model", checkpoints.bare, *SHORT, "-o", page)
    assert result.exit_code == 0
    [run] = runs_of(page)
    assert (run["prompt"], run["pieces"], run["text"]) == ("7 8", {}, None)


def test_a_trace_becomes_the_page_of_its_prompt(invoke: Run, checkpoints: Any, trace: Path, page: Path) -> None:
    assert invoke("visualize", "--from", trace, "-o", page).exit_code == 0
    [recorded] = runs_of(page)
    assert invoke("visualize", "w7 w8", "--model", checkpoints.chat, *SHORT, "-o", page).exit_code == 0
    [fresh] = runs_of(page)
    for run in (recorded, fresh):
        for measured in ("seconds", "tps", "prompt"):
            del run[measured]
    assert recorded == fresh


def test_traces_of_batches_and_of_several_files(
    invoke: Run, generate: Run, checkpoints: Any, trace: Path, page: Path, write_lines: Callable[..., Path]
) -> None:
    batch = trace.with_name("batch.jsonl")
    prompts = write_lines({"prompt": "w9"}, {"prompt": "w7 w8"})
    assert generate("--input", prompts, "--trace", batch, "--model", checkpoints.chat).exit_code == 0
    assert invoke("visualize", "--from", trace, "--from", batch, "-o", page).exit_code == 0
    assert len(runs_of(page)) == 3


def test_a_trace_whose_model_has_moved_needs_another_name(
    invoke: Run, refusal: Callable[..., str], checkpoints: Any, trace: Path, page: Path
) -> None:
    record = json.loads(trace.read_text())
    trace.write_text(json.dumps({**record, "model": "elsewhere"}))
    assert "--model" in refusal("visualize", "--from", trace, "-o", page)
    assert not page.exists()
    assert invoke("visualize", "--from", trace, "--model", checkpoints.chat, "-o", page).exit_code == 0
    assert runs_of(page)[0]["pieces"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("w7", "--compare", "thresold"), "thresold"),
        (("w7", "--compare", "threshold=high"), "DECODER=THRESHOLD"),
        (("w7", "--compare", "threshold=1.5"), "from 0 to 1"),
        (("w7", "--compare", "threshold=nan"), "from 0 to 1"),
        (("w7", "--compare", "fixed-steps=0.5"), "has no option"),
        (("w7", "--threshold", "2"), "from 0 to 1"),
        (("w7", "--prompt-ids", "[1]"), "give one of them"),
        ((" ",), "empty"),
        (("w7", "--gen-length", "4000"), "context"),
    ],
)
def test_bad_requests_are_refused_and_write_nothing(
    refusal: Callable[..., str], checkpoints: Any, page: Path, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in refusal("visualize", "--model", checkpoints.chat, "-o", page, *arguments)
    assert not page.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("w7",), "PROMPT"),
        (("--prompt-ids", "[1]"), "--prompt-ids"),
        (("--compare", "threshold"), "--compare"),
        (("--threshold", "0.5"), "decoding options"),
    ],
)
def test_a_trace_is_replayed_as_it_is(
    refusal: Callable[..., str], trace: Path, page: Path, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in refusal("visualize", "--from", trace, "-o", page, *arguments)
    assert not page.exists()


@pytest.mark.parametrize("text", ["", "\n", "{}", "no", "[1]", '{"trace": []}', '{"trace": [{"tokens": [1]}]}', "\xff"])
def test_files_that_hold_no_trace_are_refused(
    refusal: Callable[..., str], tmp_path: Path, page: Path, text: str
) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text, encoding="latin-1")
    assert str(path) in refusal("visualize", "--from", path, "-o", page)
    assert not page.exists()


def test_a_page_that_cannot_be_written_is_refused_before_anything_else(
    refusal: Callable[..., str], trace: Path, tmp_path: Path
) -> None:
    assert "no folder" in refusal("visualize", "w7", "--model", "nowhere", "-o", tmp_path / "none" / "out.html")
    assert "same file" in refusal("visualize", "--from", trace, "-o", trace)
    assert "No such file" in refusal("visualize", "--from", tmp_path / "none.jsonl", "-o", tmp_path / "out.html")
