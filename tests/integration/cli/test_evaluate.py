"""``dmax eval`` and ``dmax sweep`` as a user runs them, on a tiny model and a few rows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("math_verify")

from dmax.evaluation.tasks import get_task

SETTINGS = ("--gen-length", "16", "--block-length", "8")
ROWS = [{"question": f"w{3 + i} w7", "answer": f"w9\n#### {i}"} for i in range(10)]


@pytest.fixture
def rows(write_lines: Callable[..., Path]) -> Path:
    return write_lines(*ROWS, name="rows.jsonl")


def arguments(checkpoints: Any, rows: Path, out: Path, *more: object) -> list[object]:
    return [
        "--model",
        getattr(checkpoints, "chat", checkpoints),
        "--tasks",
        "gsm8k",
        "--data",
        rows,
        "--out",
        out,
        *SETTINGS,
        *more,
    ]


def served_by(monkeypatch: pytest.MonkeyPatch, handle: Callable[[Any], Any]) -> None:
    """Answer every request with a function instead of a server."""
    httpx = pytest.importorskip("httpx")
    client, transport = httpx.AsyncClient, httpx.MockTransport(handle)
    monkeypatch.setattr(httpx, "AsyncClient", lambda **fields: client(**{**fields, "transport": transport}))


def samples(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "samples-gsm8k.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "wall_share")} for line in lines]


def test_an_evaluation_leaves_everything_needed_to_run_it_again(
    invoke: Callable[..., Any], checkpoints: Any, rows: Path, tmp_path: Path
) -> None:
    result = invoke("eval", *arguments(checkpoints, rows, tmp_path / "run", "--threshold", 0.3, "--batch-size", 4))
    assert result.exit_code == 0
    assert "gsm8k" in result.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["model"]["hash"].startswith("sha256:")
    assert results["model"]["dtype"] == "float32"
    assert (results["decoder"], results["params"]["threshold"]) == ("soft-parallel", 0.3)
    assert results["params"]["acceptance_threshold"] == 0.9, "defaults are stated"
    task = results["tasks"]["gsm8k"]
    assert (task["metrics"]["n"], task["gen_length"], task["metrics"]["batch_size"]) == (10, 16, 4)
    assert task["data"]["rows"] == 10
    written = samples(tmp_path / "run")
    assert [sample["index"] for sample in written] == list(range(10))
    assert written[0]["prompt"] == "w3 w7\nLet's think step by step"


def test_the_batch_changes_nothing(invoke: Callable[..., Any], checkpoints: Any, rows: Path, tmp_path: Path) -> None:
    for size in (1, 4):
        invoke("eval", *arguments(checkpoints, rows, tmp_path / str(size), "--batch-size", size))
    assert samples(tmp_path / "1") == samples(tmp_path / "4")


def test_a_killed_evaluation_goes_on_and_ends_the_same(
    invoke: Callable[..., Any], checkpoints: Any, rows: Path, tmp_path: Path
) -> None:
    invoke("eval", *arguments(checkpoints, rows, tmp_path / "whole", "--batch-size", 1))
    broken = tmp_path / "broken"
    command = [str(a) for a in arguments(checkpoints, rows, broken, "--batch-size", 1)]
    process = subprocess.Popen(
        [sys.executable, "-c", "from dmax.cli import main; main()", "eval", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    file = broken / "samples-gsm8k.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and file.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline
        if process.poll() is not None:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    result = invoke("eval", *arguments(checkpoints, rows, broken, "--batch-size", 1))
    assert result.exit_code == 0
    assert samples(broken) == samples(tmp_path / "whole")


def test_processes_at_the_same_time_share_the_rows(
    invoke: Callable[..., Any], checkpoints: Any, rows: Path, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    invoke("eval", *arguments(checkpoints, rows, alone, "--batch-size", 2))
    command = [sys.executable, "-m", "dmax", "eval"]
    command += [str(a) for a in arguments(checkpoints, rows, shared, "--batch-size", 2)]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert samples(shared) == samples(alone)
    files = sorted(path.name for path in shared.iterdir())
    assert files == ["results.json", "samples-gsm8k.jsonl", "sessions.jsonl", "settings.json"]
    task = json.loads((shared / "results.json").read_text())["tasks"]["gsm8k"]
    assert task["metrics"]["n"] == 10
    assert task["metrics"]["batch_size"] == 4


def test_bad_input_is_one_sentence(refusal: Callable[..., str], checkpoints: Any, rows: Path, tmp_path: Path) -> None:
    assert "Did you mean 'gsm8k'" in refusal("eval", "--tasks", "gsm8", "--model", checkpoints.chat)
    assert "--limit is 0" in refusal("eval", *arguments(checkpoints, rows, tmp_path / "x", "--limit", 0))
    assert "must say which" in refusal("eval", "--tasks", "gsm8k,asdiv", "--data", rows)
    rows.write_text(rows.read_text() + '{"question": "w3"}\n')
    assert "line 11" in refusal("eval", *arguments(checkpoints, rows, tmp_path / "y"))
    assert not (tmp_path / "y").exists()


def test_bad_rows_are_left_out_on_request_and_named(
    invoke: Callable[..., Any], checkpoints: Any, rows: Path, tmp_path: Path
) -> None:
    rows.write_text("not json\n" + rows.read_text())
    result = invoke("eval", *arguments(checkpoints, rows, tmp_path / "run", "--skip-bad"))
    assert result.exit_code == 0
    assert "line 1" in result.stderr
    assert len(samples(tmp_path / "run")) == 10
    [left_out] = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]["gsm8k"]["data"]["left_out"]
    assert "line 1" in left_out
    assert "left out 1 row that could not be read" in invoke("report", tmp_path / "run").stdout


def test_another_run_is_not_mixed_in(
    invoke: Callable[..., Any], refusal: Callable[..., str], checkpoints: Any, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    invoke("eval", *arguments(checkpoints, rows, out, "--limit", 2))
    assert "another params" in refusal("eval", *arguments(checkpoints, rows, out, "--limit", 2, "--threshold", 0.1))
    assert "another tasks" in refusal("eval", *arguments(checkpoints, rows, out, "--limit", 3))


def test_a_prompt_that_does_not_fit_is_a_recorded_failure(
    invoke: Callable[..., Any], checkpoints: Any, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    rows = write_lines({"question": "w3 " * 60, "answer": "#### 1"}, *ROWS[:2], name="long.jsonl")
    result = invoke("eval", *arguments(checkpoints, rows, tmp_path / "run"))
    assert result.exit_code == 0
    first, *others = samples(tmp_path / "run")
    assert "maximum context length is" in first["error"]
    assert "gsm8k: 1 of 3 answers failed and count as wrong (the same command asks again); the first: " in result.stderr
    assert not any(other["error"] for other in others)
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]["gsm8k"]["metrics"]
    assert (metrics["n"], metrics["failed"]) == (3, 1)


def test_a_server_is_asked_with_every_decoding_option(
    invoke: Callable[..., Any], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = pytest.importorskip("dmax.serving.protocol")
    httpx = pytest.importorskip("httpx")
    bodies = []

    def handle(request: Any) -> Any:
        if request.method == "POST":
            bodies.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [{"message": {"content": "#### 0"}, "finish_reason": "stop"}]})

    served_by(monkeypatch, handle)
    given = {
        "decoder": "soft-parallel",
        "threshold": 0.0,
        "acceptance_threshold": 0.8,
        "low_threshold": 0.2,
        "editing_threshold": 0.7,
        "buffer_size": 3,
        "add_threshold": 0.3,
        "stable_threshold": 0.6,
        "semi_threshold": 0.8,
        "block_length": 32,
        "stop": "w9",
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    result = invoke(
        "eval", "--base-url", "http://server/v1", "--tasks", "gsm8k", "--data", rows, "--limit", 1,
        "--out", tmp_path / "run", "--gen-length", 16, *options, "--decoder-option", "soft=false",
    )  # fmt: skip
    assert result.exit_code == 0
    [probe, body] = bodies
    assert probe == {**body, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    assert set(given) <= body.keys(), "a value that is the default here need not be the server's"
    params = (
        protocol.request_models().chat.model_validate(body).params(default_length=1, default_block_length=1, seed=0)
    )
    assert {name: getattr(params, name) for name in given} == {**given, "stop": ("w9",)}
    assert params.decoder_options == {"soft": False}
    stated = json.loads((tmp_path / "run" / "results.json").read_text())["params"]
    assert stated["semi_threshold"] == 0.8


def test_a_task_is_described(invoke: Callable[..., Any]) -> None:
    text = invoke("eval", "--describe", "gsm8k").stdout
    assert "Let's think step by step" in text
    assert f"gsm8k, version {get_task('gsm8k').version}" in text


def test_a_sweep_goes_on_point_by_point_and_is_reported(
    invoke: Callable[..., Any], refusal: Callable[..., str], checkpoints: Any, rows: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "sweep"
    over = ["--over", "threshold=0.9,0.3", "--over", "soft-parallel=0.5"]
    result = invoke("sweep", *arguments(checkpoints, rows, out, "--limit", 4, *over))
    assert result.exit_code == 0
    assert "AUP" in result.stdout
    points = sorted(path.parent.name for path in out.glob("*/results.json"))
    assert len(points) == 3
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/results.json")}
    further = ["--over", "hierarchical=0.9", "--over", "fixed-steps"]
    more = invoke("sweep", *arguments(checkpoints, rows, out, "--limit", 4, *over, *further))
    assert more.exit_code == 0
    assert len(list(out.glob("*/results.json"))) == 5, "what has no threshold is one point"
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "finished points are kept"
    for name in ("accuracy-tpf", "accuracy-tps"):
        assert (out / f"{name}.png").stat().st_size > 10_000
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    report = invoke("report", *(out / name for name in points))
    assert report.exit_code == 0
    assert report.stdout.count("| ") > 10
    other = arguments(checkpoints, rows, out, "--limit", 4, "--over", "soft-parallel=0.5")
    assert "another --acceptance-threshold" in refusal("sweep", *other, "--acceptance-threshold", 0.5)
    assert "another --buffer-size" in refusal("sweep", *other, "--buffer-size", 2)
    assert "another decoder_option" in refusal("sweep", *other, "--decoder-option", "soft=false")
    assert "is no threshold" in refusal("sweep", *arguments(checkpoints, rows, out, "--over", "threshold=high"))
    assert "no option 'threshold'" in refusal("sweep", *arguments(checkpoints, rows, out, "--over", "fixed-steps=0.9"))


def test_stored_answers_are_graded_again_without_a_model(
    invoke: Callable[..., Any], checkpoints: Any, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert invoke("eval", *arguments(checkpoints, rows, folder)).exit_code == 0
    file = folder / "samples-gsm8k.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["text"] = "so \\boxed{3.}"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = invoke("eval", *arguments("no such model", rows, folder), "--regrade")
    assert result.exit_code == 0, result.output
    assert samples(folder)[3]["correct"]
    assert samples(folder)[3]["reason"] == "number 3 (box: '3.')"
    assert json.loads((folder / "results.json").read_text())["tasks"]["gsm8k"]["metrics"]["accuracy"] >= 0.1


def test_several_samples_need_a_temperature(
    invoke: Callable[..., Any], checkpoints: Any, rows: Path, tmp_path: Path
) -> None:
    refused = invoke("eval", *arguments(checkpoints, rows, tmp_path / "a", "--samples", 2))
    assert refused.exit_code != 0
    assert "--temperature above 0" in refused.stderr
    drawn = invoke("eval", *arguments(checkpoints, rows, tmp_path / "b", "--samples", 2, "--temperature", 0.8))
    assert drawn.exit_code == 0
    assert "pass@1" in drawn.stderr and "pass@2" in drawn.stderr
    assert len(samples(tmp_path / "b")) == 20


def test_a_server_that_dies_ends_the_run_and_its_rows_are_asked_again(
    invoke: Callable[..., Any], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx = pytest.importorskip("httpx")
    monkeypatch.setattr("dmax.evaluation.remote._pause", lambda seconds: asyncio.sleep(0))
    alive, asked = [True], []

    def handle(request: Any) -> Any:
        if request.method == "POST":
            asked.append(json.loads(request.content)["messages"][0]["content"])
            if not alive[0] and asked[-1] != "Hello":
                raise httpx.ConnectError("connection refused")
        return httpx.Response(200, json={"choices": [{"message": {"content": "#### 0"}, "finish_reason": "stop"}]})

    served_by(monkeypatch, handle)
    command = ["eval", "--base-url", "http://server/v1", "--tasks", "gsm8k", "--data", rows, "--out", tmp_path / "run"]
    alive[0] = False
    died = invoke(*command)
    assert died.exit_code != 0
    assert "in a row failed" in died.stderr
    assert not (tmp_path / "run" / "results.json").exists()
    alive[0] = True
    asked.clear()
    assert invoke(*command).exit_code == 0
    assert len(asked) == 11, "all ten, and the question before the run"
    assert all(sample["error"] is None for sample in samples(tmp_path / "run"))


def test_a_run_without_any_answer_does_not_pass_for_one(
    invoke: Callable[..., Any], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx = pytest.importorskip("httpx")

    def handle(request: Any) -> Any:
        greeting = b"Hello" in request.content
        return httpx.Response(200, json={"choices": [{"message": {"content": "x"}}] if greeting else []})

    served_by(monkeypatch, handle)
    told = invoke(
        "eval", "--base-url", "http://server/v1", "--tasks", "gsm8k", "--data", rows, "--limit", 3,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert told.exit_code == 1
    assert "3 of 3 answers failed" in told.stderr


@pytest.mark.parametrize("name", ["eval", "sweep"])
def test_a_missing_layer_is_told_before_the_first_program_and_none_is_refused(
    name: str, invoke: Callable[..., Any], checkpoints: Any, write_lines: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from dmax.evaluation.sandbox import available_isolation
    from dmax.evaluation.tasks import get_task

    bare = replace(available_isolation(), file_system="open", missing=("No Landlock (too old): files are open.",))
    for place in ("isolation.available_isolation", "available_isolation"):
        monkeypatch.setattr(f"dmax.evaluation.sandbox.{place}", lambda: bare)
    data = write_lines(dict(get_task("humaneval").example), name="humaneval.jsonl")
    command = [
        name, "--model", checkpoints.chat, "--tasks", "humaneval", "--data", data, *SETTINGS,
        "--out", tmp_path / "run", *(["--over", "threshold=0.5"] if name == "sweep" else []),
    ]  # fmt: skip
    refused = invoke(*command)
    assert refused.exit_code != 0
    assert "--unprotected" in refused.stderr
    allowed = invoke(*command, "--unprotected")
    assert allowed.exit_code == 0
    assert "No Landlock (too old)" in allowed.stderr
