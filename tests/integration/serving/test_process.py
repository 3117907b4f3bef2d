"""``dmax serve`` as a process of its own: clients that vanish, and the end by signal."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

Start = Callable[..., Any]
SLOW = {"messages": [{"role": "user", "content": "w7 w8"}], "decoder": "fixed-steps", "max_tokens": 200}


def _gauge(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def _wait_for(client: httpx.Client, name: str, value: float) -> None:
    deadline = time.monotonic() + 60
    while _gauge(client, name) != value:
        assert time.monotonic() < deadline, f"{name} is {_gauge(client, name)}"
        time.sleep(0.02)


def _read_to_some_text(reply: httpx.Response) -> None:
    """Until the stream, whose first event comes before any pass, has a block's text."""
    for line in reply.iter_lines():
        if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
            return
    raise AssertionError("the stream ended without any text")


def test_clients_that_vanish_free_their_rows_and_are_in_the_log(start: Start, log: Path) -> None:
    with start("--max-batch-size", "2") as (_, client):
        for _ in range(20):
            with client.stream("POST", "/v1/chat/completions", json={**SLOW, "stream": True}) as reply:
                _read_to_some_text(reply)
        for _ in range(5):
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=SLOW, timeout=0.02)
        _wait_for(client, "dmax_running", 0)
        _wait_for(client, "dmax_queue", 0)
        _wait_for(client, "dmax_pages_held", 0)
        assert client.post("/v1/chat/completions", json={**SLOW, "max_tokens": 8}).status_code == 200
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    statuses = [line["status"] for line in lines if line["path"] == "/v1/chat/completions"]
    assert statuses == [499] * 25 + [200]
    assert [line["error_code"] for line in lines if line["status"] == 499] == ["client_closed"] * 25


def test_sigterm_lets_running_answers_finish(start: Start) -> None:
    with start() as (process, client), ThreadPoolExecutor(4) as pool:
        expected = client.post("/v1/chat/completions", json=SLOW).json()["choices"][0]["message"]
        answers = [pool.submit(client.post, "/v1/chat/completions", json=SLOW) for _ in range(4)]
        _wait_for(client, "dmax_running", 4)
        process.send_signal(signal.SIGTERM)
        replies = [answer.result() for answer in answers]
        assert [reply.status_code for reply in replies] == [200] * 4
        assert all(reply.json()["choices"][0]["message"] == expected for reply in replies)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            client.get("/ready")


def test_sigterm_lets_running_traces_finish(start: Start) -> None:
    with start() as (process, client):
        address = f"ws://127.0.0.1:{client.base_url.port}/v1/trace"
        with connect(address) as running, connect(address):
            running.send(json.dumps(SLOW))
            assert json.loads(running.recv(60))["type"] == "start"
            assert json.loads(running.recv(60))["type"] == "pass"
            process.send_signal(signal.SIGTERM)
            kinds = []
            while "end" not in kinds:
                kinds.append(json.loads(running.recv(60))["type"])
            assert kinds.count("pass") > 1
            with pytest.raises(ConnectionClosed):
                running.recv(60)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def test_a_client_that_stalls_does_not_hold_up_the_end_for_ever(start: Start) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with start("--drain-timeout", "0.5") as (process, client):
        stalled = socket.create_connection(("127.0.0.1", client.base_url.port or 0))
        with stalled:
            stalled.sendall(head)
            assert client.get("/health").status_code == 200, "by then the server has read the head"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_memory_stays_flat(start: Start) -> None:
    """The short form of ``benchmarks/serving_memory.py``."""

    def resident_kib(process: subprocess.Popen[bytes]) -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))

    def many(client: httpx.Client, requests: int) -> None:
        for number in range(requests):
            body = {
                **SLOW,
                "max_tokens": 4,
                "stream": number % 2 == 0,
                "decoder": ["threshold", "none"][number % 3 == 0],
            }
            assert client.post("/v1/chat/completions", json=body).status_code == (400 if number % 3 == 0 else 200)

    with start() as (process, client):
        many(client, 300)
        before = resident_kib(process)
        many(client, 600)
        assert resident_kib(process) - before < 600 * 10


def test_the_log_is_json_without_prompts(start: Start, log: Path) -> None:
    with start() as (process, client):
        client.post("/v1/chat/completions", json={**SLOW, "max_tokens": 8})
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    text = log.read_text(encoding="utf-8")
    assert '"path": "/v1/chat/completions", "status": 200' in text
    assert '"nfe"' in text
    assert "w7" not in text


def _refusal(checkpoint: Path, *options: str) -> str:
    """The one line that ``dmax serve`` ends with."""
    command = [sys.executable, "-c", "from dmax.cli import main; main()", "serve", "--model", str(checkpoint)]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 2
    [line] = result.stderr.strip().splitlines()
    return line


def test_a_port_in_use_is_one_sentence(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "give another --port" in _refusal(checkpoint, "--port", str(taken.getsockname()[1]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--api-key", ""], "API key"),
        (["--max-queue", "0"], "--max-queue"),
        (["--drain-timeout", "0"], "--drain-timeout"),
        (["--timeout", "nan"], "--timeout"),
        (["--block-length", "129"], "raise --max-positions-in-flight to at least --block-length"),
        (["--max-positions-in-flight", "0"], "--max-positions-in-flight"),
    ],
)
def test_settings_that_make_no_sense_are_refused(checkpoint: Path, options: list[str], named: str) -> None:
    assert named in _refusal(checkpoint, "--port", "0", *options)
