"""A server under test: ``dmax serve`` as a process of its own, and what it counts."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

STARTING_SECONDS = 300


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]

    def resident_mib(self) -> float:
        """Read the memory of the process that is in RAM."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1024


@contextmanager
def server(model: str, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Run ``dmax serve`` with these options, ready for requests; end it as its operator would, by SIGTERM."""
    port = free_port()
    command = [sys.executable, "-m", "dmax", "serve", "--model", model, "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
    served = Served(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while process.poll() is None and not _is_ready(served.url):
            if time.monotonic() > deadline:
                raise SystemExit(f"dmax serve was not ready after {STARTING_SECONDS} seconds.")
            time.sleep(0.2)
        if process.poll() is not None:
            raise SystemExit(f"dmax serve ended with code {process.returncode}; run it by hand to see why.")
        yield served
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def counters(url: str) -> dict[str, float]:
    """Read what ``/metrics`` tells, labelled series left out."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return {name: float(value) for name, value in re.findall(r"^(dmax_\w+) (\S+)$", text, re.MULTILINE)}


def wait_until_idle(url: str, seconds: float = 120) -> bool:
    """Wait, and tell whether no request waits, runs or holds memory within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = counters(url)
        if now["dmax_running"] == now["dmax_queue"] == now["dmax_pages_held"] == 0:
            return True
        time.sleep(0.1)
    return False
