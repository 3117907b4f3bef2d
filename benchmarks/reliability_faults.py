"""Faults for ``reliability.py``: each lets something go wrong, and tells whether everybody else noticed nothing.

``holds`` in what a function returns is whether its claim was met; the rest are the figures behind it.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from served import counters, free_port, server, wait_until_idle

from dmax.problems import problem

QUESTIONS = 8
SLOW = {"decoder": "fixed-steps", "max_tokens": 160}  # a pass a token: long enough to be caught in the middle

_FAILING_DECODER = """
from dmax.decoding import SoftParallelDecoder

class Failing(SoftParallelDecoder):
    def step(self, *arguments, **keywords):
        raise RuntimeError("this decoder fails on purpose")
"""
_FAILING_METADATA = "Metadata-Version: 2.1\nName: failing-decoder\nVersion: 1\n"
_FAILING_ENTRY = "[dmax.decoders]\nfailing = failing_decoder:Failing\n"


def _ask(url: str, index: int, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": problem("test", index)["question"]}]
    return httpx.post(f"{url}/v1/chat/completions", json={"messages": messages, **SLOW, **fields}, timeout=600)


def _text(reply: httpx.Response) -> str | None:
    return reply.json()["choices"][0]["message"]["content"] if reply.status_code == 200 else None


def _read_to_some_text(reply: httpx.Response) -> None:
    """Read a stream, whose first event comes before any pass, until a block has come."""
    for line in reply.iter_lines():
        if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
            return
    raise SystemExit("a stream ended without any text, so nobody could vanish in the middle of it.")


def vanishing_clients(model: str, times: int) -> dict[str, Any]:
    """Check that clients which leave in the middle of a stream free what they held."""
    with server(model) as served:
        expected = _text(_ask(served.url, 0))
        for index in range(times):
            messages = [{"role": "user", "content": problem("test", index)["question"]}]
            body = {"messages": messages, **SLOW, "stream": True}
            with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=120) as reply:
                _read_to_some_text(reply)
        idle = wait_until_idle(served.url)
        same = _text(_ask(served.url, 0)) == expected is not None
    return {"clients": times, "idle_afterwards": idle, "answers_as_before": same, "holds": idle and same}


def failing_request(model: str) -> dict[str, Any]:
    """Check that a request whose decoder raises is told so, and those decoded beside it get their answers."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        (package / "failing_decoder.py").write_text(_FAILING_DECODER, encoding="utf-8")
        (package / "failing_decoder-1.dist-info").mkdir()
        (package / "failing_decoder-1.dist-info" / "METADATA").write_text(_FAILING_METADATA, encoding="utf-8")
        (package / "failing_decoder-1.dist-info" / "entry_points.txt").write_text(_FAILING_ENTRY, encoding="utf-8")
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        with server(model, environment={"PYTHONPATH": path}) as served, ThreadPoolExecutor(QUESTIONS) as pool:
            expected = [_text(_ask(served.url, index)) for index in range(QUESTIONS)]
            others = [pool.submit(_ask, served.url, index) for index in range(QUESTIONS)]
            _until_running(served.url, QUESTIONS)
            status = _ask(served.url, 0, decoder="failing").status_code
            same = [_text(reply.result()) for reply in others] == expected
            idle = wait_until_idle(served.url)
    holds = status == 500 and same and None not in expected and idle
    return {"status": status, "others": QUESTIONS, "others_as_alone": same, "holds": holds}


def sigterm(model: str) -> dict[str, Any]:
    """Check that a server that is told to stop finishes what it has."""
    with server(model) as served, ThreadPoolExecutor(QUESTIONS) as pool:
        expected = [_text(_ask(served.url, index)) for index in range(QUESTIONS)]
        answers = [pool.submit(_ask, served.url, index) for index in range(QUESTIONS)]
        _until_running(served.url, QUESTIONS)
        served.process.send_signal(signal.SIGTERM)
        same = [_text(answer.result()) for answer in answers] == expected
        code = served.process.wait(timeout=120)
    clean = code in (0, -signal.SIGTERM)
    holds = same and None not in expected and clean
    return {"under_way": QUESTIONS, "finished_right": same, "exit_code": code, "holds": holds}


def killed_replica(model: str, load: Callable[[str], dict[str, Any]], after: float) -> dict[str, Any]:
    """Put two replicas on Ray Serve under load, and kill one after so many seconds."""
    with _two_replicas(model) as (url, application):
        expected = [_text(_ask(url, index)) for index in range(QUESTIONS)]
        killed: list[int] = []
        timer = threading.Timer(after, lambda: killed.append(_kill_one(application)))
        timer.start()
        result = load(url)
        timer.join()
        same = [_text(_ask(url, index)) for index in range(QUESTIONS)] == expected
    holds = bool(killed) and result["requests"] > 0 and not result["failures"] and same and None not in expected
    return {**result, "killed": len(killed), "answers_as_before": same, "holds": holds}


@contextmanager
def _two_replicas(model: str) -> Iterator[tuple[str, str]]:
    import ray
    from ray import serve

    from dmax.serving.ray_app import app

    port, name = free_port(), f"reliability-{os.getpid()}"
    one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=one_thread)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        # A folder means the same to every process only as an absolute path.
        place = str(Path(model).resolve()) if Path(model).is_dir() else model
        serve.run(app({"model": place, "min_replicas": 2, "max_replicas": 2, "num_cpus": 0.5}), name=name)
        yield f"http://127.0.0.1:{port}", name
    finally:
        serve.shutdown()
        ray.shutdown()


def _kill_one(application: str) -> int:
    """Kill a replica of the model without warning; its process id."""
    title = f"ray::ServeReplica:{application}:model".encode()
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
            if command_line.read_bytes().startswith(title):
                process_id = int(command_line.parent.name)
                os.kill(process_id, signal.SIGKILL)
                return process_id
    raise SystemExit(f"no replica of {application} runs.")


def _until_running(url: str, requests: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while counters(url)["dmax_running"] < requests:
        if time.monotonic() > deadline:
            raise SystemExit(f"{requests} requests did not run together within {seconds:g} seconds.")
        time.sleep(0.02)
