"""Two replicas on Ray Serve: what is asked is answered, also while a replica is killed or all are replaced.

pip install '.[dev,ray]' && pytest -m slow tests/integration/serving/test_ray.py
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import httpx
import pytest

from dmax import LLM, GenerationParams

pytest.importorskip("ray")

import ray
from ray import serve
from websockets.sync.client import connect

from dmax.serving.ray_app import MODEL, app
from dmax.serving.settings import SettingsError

pytestmark = pytest.mark.slow
APP = f"dmax-{os.getpid()}"  # part of the replicas' process titles, which must be those of this test
SETTINGS = {
    "model_name": "tiny",
    "device": "cpu",
    "block_length": 8,
    "max_batch_size": 6,
    "max_queue": 12,
    "kv_memory": "16M",
    "min_replicas": 2,
    "max_replicas": 2,
    "num_cpus": 0.5,
    "timeout": 120,
}
LENGTH = 300


@pytest.fixture(scope="module")
def settings(checkpoint: Path) -> dict[str, Any]:
    return {**SETTINGS, "model": str(checkpoint)}


@pytest.fixture(scope="module")
def client(settings: dict[str, Any]) -> Iterator[httpx.Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    cores = SETTINGS["max_replicas"] * SETTINGS["num_cpus"]  # the front has to do without one
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, runtime_env=one_thread)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app(settings), name=APP)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            yield http
    finally:
        serve.shutdown()
        ray.shutdown()


def body(number: int, **fields: Any) -> dict[str, Any]:
    content = f"w{7 + number % 30} w{9 + number % 20}"
    return {
        "messages": [{"role": "user", "content": content}],
        "decoder": "fixed-steps",
        "max_tokens": LENGTH,
        "temperature": 1.0,
        "seed": number,
        **fields,
    }


def expected(llm: LLM, number: int) -> str | None:
    request = body(number)
    params = GenerationParams(
        decoder="fixed-steps", gen_length=LENGTH, block_length=8, temperature=1.0, seed=request["seed"]
    )
    return llm.generate(request["messages"], params)[0].text


def ask(client: httpx.Client, number: int) -> str:
    reply = client.post("/v1/chat/completions", json=body(number))
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def stream(client: httpx.Client, number: int, begun: Event | Barrier | None = None) -> str:
    """The text of a streamed answer; ``begun`` hears of the first piece."""
    pieces, last = [], ""
    with client.stream("POST", "/v1/chat/completions", json=body(number, stream=True)) as reply:
        assert reply.status_code == 200
        for line in filter(None, reply.iter_lines()):
            last = line.removeprefix("data: ")
            if last == "[DONE]":
                break
            event = json.loads(last)
            assert "error" not in event, event
            pieces.append(event["choices"][0]["delta"].get("content", ""))
            if pieces[-1] and begun is not None:
                begun.wait(60) if isinstance(begun, Barrier) else begun.set()
                begun = None
    assert last == "[DONE]"
    return "".join(pieces)


def running() -> list[int]:
    """Requests in each replica's engine."""
    return [stats.running for stats in serve.get_deployment_handle(MODEL, APP).broadcast("stats").results()]


def replica_processes() -> list[int]:
    title = f"ray::ServeReplica:{APP}:{MODEL}".encode()
    found = []
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
            if command_line.read_bytes().startswith(title):
                found.append(int(command_line.parent.name))
    return found


def until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_replicas_give_the_answers_of_one(client: httpx.Client, llm: LLM) -> None:
    assert len(replica_processes()) == 2
    with ThreadPoolExecutor(6) as pool:
        whole = list(pool.map(lambda number: ask(client, number), range(6)))
        streamed = list(pool.map(lambda number: stream(client, number), range(6)))
    assert whole == streamed == [expected(llm, number) for number in range(6)]


def test_a_killed_replica_loses_no_request(client: httpx.Client, llm: LLM) -> None:
    under_way = Barrier(7)  # six streams have begun, and the kill
    with ThreadPoolExecutor(10) as pool:
        streams = [pool.submit(stream, client, number, under_way) for number in range(6)]
        under_way.wait(60)
        wholes = [pool.submit(ask, client, number) for number in range(6, 10)]
        assert min(running()) > 0, "or the kill would hit nobody"
        os.kill(replica_processes()[0], signal.SIGKILL)
        texts = [answer.result() for answer in (*streams, *wholes)]
    assert texts == [expected(llm, number) for number in range(10)]
    until(lambda: len(replica_processes()) == 2)
    assert ask(client, 3) == texts[3]


def test_a_rolling_update_loses_no_request(client: httpx.Client, llm: LLM, settings: dict[str, Any]) -> None:
    before, over = set(replica_processes()), Event()

    def keep_asking(worker: int) -> dict[int, str]:
        texts = {}
        for number in range(worker, 10_000, 4):
            texts[number % 40] = (ask if number % 2 else stream)(client, number % 40)
            if over.is_set():
                break
        return texts

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(keep_asking, worker) for worker in range(4)]
        try:
            serve.run(app({**settings, "prefill_tokens": 256}), name=APP)
            until(lambda: not before & set(replica_processes()))
        finally:
            over.set()
        texts = {number: text for worker in workers for number, text in worker.result().items()}
    assert len(replica_processes()) == 2
    assert texts == {number: expected(llm, number) for number in texts}


def test_a_client_that_vanishes_frees_its_row(client: httpx.Client) -> None:
    for number in range(10):
        with client.stream("POST", "/v1/chat/completions", json=body(number, stream=True)) as reply:
            next(reply.iter_lines())
    until(lambda: sum(running()) == 0)


def test_it_is_ready_while_a_replica_takes_requests(client: httpx.Client, llm: LLM) -> None:
    def status() -> int:
        return client.get("/ready").status_code

    until(lambda: len(replica_processes()) == 2 and status() == 200)
    for process_id in replica_processes():
        os.kill(process_id, signal.SIGKILL)
    until(lambda: status() == 503)
    assert client.get("/health").status_code == 200, "the front is there"
    until(lambda: len(replica_processes()) == 2 and status() == 200, seconds=120)
    assert ask(client, 1) == expected(llm, 1)


def test_overload_is_429_and_recovers(client: httpx.Client, llm: LLM) -> None:
    with ThreadPoolExecutor(60) as pool:
        asked = [pool.submit(client.post, "/v1/chat/completions", json=body(number)) for number in range(60)]
        replies = [reply.result() for reply in asked]
    assert {reply.status_code for reply in replies} == {200, 429}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "queue_full"
    assert ask(client, 1) == expected(llm, 1)


def test_refusals_and_traces_are_those_of_one_server(client: httpx.Client, llm: LLM) -> None:
    refusal = client.post("/v1/chat/completions", json=body(1, decoder="soft-paralel"))
    assert refusal.status_code == 400
    assert "soft-parallel" in refusal.json()["error"]["message"]
    address = str(client.base_url).replace("http://", "ws://").rstrip("/") + "/v1/trace"
    with connect(address) as socket:
        socket.send(json.dumps(body(2)))
        messages = [json.loads(socket.recv(60))]
        while messages[-1]["type"] != "end":
            messages.append(json.loads(socket.recv(60)))
    assert messages[-1]["text"] == expected(llm, 2)
    assert [m["pass_number"] for m in messages[1:-1]] == list(range(1, messages[-1]["passes"] + 1))
    gauges = client.get("/metrics").text
    assert "dmax_pages_held 0.0" in gauges
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"max_replica": 3}, "max_replicas"), ({"max_queue": "many"}, "max_queue"), ({"kv_memory": "lots"}, "512M")],
)
def test_settings_that_are_wrong_are_named(settings: dict[str, Any], fields: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        app({**settings, **fields})
