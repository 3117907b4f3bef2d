"""What the scripts of ``benchmarks/`` promise those who read their JSON."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmax.models import BlockDiffusionLM, save_model
from dmax.models.transformer import initialize

pytest.importorskip("httpx")

from dmax.decoding.registry import BUILT_IN

FOLDER = Path(__file__).parents[2] / "benchmarks"


def result_of(script: str, out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(FOLDER / script), *arguments, "--threads", "1", "--json", str(out)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture
def reliability(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module whose servers and users are not there: every check holds at once."""
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("reliability")
    run = {"users": 1, "requests": 1, "failures": {}}
    monkeypatch.setattr(script, "server", lambda *_: nullcontext(SimpleNamespace(url="http://nowhere")))
    monkeypatch.setattr(script, "load", lambda *_: run)
    monkeypatch.setattr(script.httpx, "post", lambda *_, **__: None)
    for check in ("overload", "vanishing_clients", "failing_request", "sigterm", "killed_replica"):
        monkeypatch.setattr(script, check, lambda *_: {"holds": True})
    return script


@pytest.mark.parametrize("ray", [True, False])
def test_reliability_tells_what_was_left_out(
    reliability: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, ray: bool
) -> None:
    out = tmp_path / "result.json"
    monkeypatch.setattr(reliability, "find_spec", lambda _: object() if ray else None)
    monkeypatch.setattr(sys, "argv", ["reliability.py", "--json", str(out)])
    with pytest.raises(SystemExit) as end:
        reliability.main()
    result = json.loads(out.read_text(encoding="utf-8"))
    assert end.value.code == 0
    assert result["broken"] == []
    assert ("killed_replica" in result) is ray
    assert list(result["left_out"]) == ([] if ray else ["killed_replica"])
    assert ("left out: killed_replica, because ray is not installed" in capsys.readouterr().err) is not ray


@pytest.mark.slow
def test_throughput_tells_its_runs_and_their_share_of_the_peak(tmp_path: Path) -> None:
    arguments = ("--concurrency", "1", "2", "--prompts", "2", "--gen-length", "32", "--plain")
    result = result_of("throughput.py", tmp_path / "result.json", *arguments)
    assert [run["concurrency"] for run in result["runs"]] == [1, 2]
    for run in result["runs"]:
        assert run["tokens_per_second"] > 0
        assert 0 < run["decoded"] < run["positions"] - run["prefilled"] < run["attended"]
        reached = sum(run["flops"].values()) / run["seconds"]
        assert run["share_of_matmul_peak"] == pytest.approx(reached / result["matmul_peak_flops"])


@pytest.fixture
def smollm2(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("smollm2")


def test_smollm2_grades_and_counts_answers(smollm2: Any) -> None:
    asked: list[str] = []

    def ask(question: str) -> Any:
        asked.append(question)
        return smollm2.Answer("so #### 6", 30, 10, 2.0) if "3" in question else smollm2.Answer("#### 7", 10, 10, 3.0)

    rows = [{"question": f"{n} times 2", "answer": str(2 * n)} for n in (3, 4)]
    record = smollm2.measure("it", ask, {"everyday": rows}, seed=0)
    assert asked == ["3 times 2", "3 times 2", "4 times 2"]
    point = record["everyday"]
    assert (point["problems"], point["accuracy"], point["tpf"], point["tpf_pooled"]) == (2, 0.5, 2.0, 2.0)
    assert (point["tokens_per_second"], point["mean_tokens"]) == (8.0, 20.0)
    assert (
        smollm2.to_markdown([record], ["everyday"])
        .splitlines()[2]
        .startswith("| it | 50.0 % [0.0, 100.0] | 2.00 | 8.0 |")
    )


@pytest.mark.slow
def test_smollm2_measures_what_the_chain_leaves(
    smollm2: Any, tmp_path: Path, tiny_config: Any, word_tokenizer: Any, chat_template: str
) -> None:
    model = initialize(BlockDiffusionLM(tiny_config(moe=False)), torch.Generator().manual_seed(0))
    for folder, _ in smollm2.STAGES.values():
        save_model(model, tmp_path / folder, tokenizer=word_tokenizer(chat_template))
    rows = tmp_path / "gsm8k.jsonl"
    rows.write_text(json.dumps({"question": "w3 w4", "answer": "#### 5"}) + "\n", encoding="utf-8")
    arguments = ("--runs", str(tmp_path), "--gsm8k", str(rows), "--problems", "1")
    result = result_of("smollm2.py", tmp_path / "result.json", *arguments)
    assert [row["name"] for row in result["rows"]] == list(smollm2.STAGES)
    assert all(row[title]["problems"] == 1 for row in result["rows"] for title in ("gsm8k", "everyday", "gsm-symbolic"))


@pytest.mark.slow
def test_the_cost_of_a_schema_is_told_for_every_decoder(tmp_path: Path) -> None:
    result = result_of("structured.py", tmp_path / "result.json", "--batch", "2", "--turns", "1", "--plain")
    assert [cost["decoder"] for cost in result["passes"]] == list(BUILT_IN)
    for cost in result["passes"]:
        assert 0 < cost["walk_seconds_per_pass"] < cost["schema_seconds_per_pass"]
        assert 1 <= cost["positions_asked_per_pass_and_sequence"] <= 32
    assert [one["vocabulary"] for one in result["questions"]] == [1536, 32768, 157184]
    assert all(one["microseconds_per_question"] > 0 for one in result["questions"])


@pytest.mark.slow
@pytest.mark.skipif("DMAX_DATA" not in os.environ, reason="DMAX_DATA names no folder of the public data sets")
def test_reference_answers_of_the_public_data_are_right_and_corrupted_ones_wrong(tmp_path: Path) -> None:
    """Takes an hour and more. The script fails where a verdict is not the one expected."""
    result = result_of("reference_answers.py", tmp_path / "result.json", "--data", os.environ["DMAX_DATA"])
    for task in result["tasks"].values():
        for variant in task["variants"].values():
            assert variant["is"] == "wrong" or variant["graded_right"] == variant["answers"]


def test_the_page_beside_llama_cpp_marks_what_is_ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("llama_cpp")
    ours = {
        "positions": 4, "pass_ms": {"median": 50.0}, "share_of_bound": 0.5,
        "tokens_per_second_by_tpf": {"1": 20.0, "3": 60.0},
    }  # fmt: skip
    row = {"llama.cpp": {"tokens_per_second": 30.0}, "dmax": [ours]}
    result = {
        "threads": 2, "context": 1024, "dtype": "bfloat16", "hardware": {"processor": "a processor"},
        "shapes": {"sdar-1.7b": {"formats": {"int4": row}}},
    }  # fmt: skip
    page = tmp_path / "cpu.md"
    page.write_text(f"before\n{script._BEGIN}\nold\n{script._END}\nbehind\n", encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", page)
    script.fill_page(result)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nbehind\n") and "old" not in text
    assert "| sdar-1.7b | 4 | 30.0 | 4 | 50 ms | 50% | 20.0 | **60.0** | – | 1.5 |" in text
    script.fill_page(result)
    assert page.read_text(encoding="utf-8") == text
    assert script._BEGIN in (FOLDER.parent / "docs" / "results" / "cpu.md").read_text(encoding="utf-8")
