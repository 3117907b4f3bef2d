"""A server under load: errors, latencies and tokens per second at growing numbers of users, and past its limits.

    python benchmarks/reliability.py [--model M] [--users 1 8 32] [--seconds 60] [--json FILE]

Starts ``dmax serve`` and lets locust's users ask word problems without pause, for so many seconds at each number of
users. Then a second server with a short queue gets far more users than it can take: only 429 may come back beside
answers, and once they are gone it must answer as before.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from run_record import add_common_options, describe_run, report

USER_FILE = Path(__file__).with_name("reliability_user.py")
PERCENTILES = ("50%", "90%", "99%")


@contextmanager
def server(model: str, *options: str) -> Iterator[str]:
    """The base URL of a running ``dmax serve``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from dmax.cli import main; main()",
        "serve",
        "--model",
        model,
        "--port",
        str(port),
    ]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None and not _is_ready(url):
            time.sleep(0.2)
        if process.poll() is not None:
            raise SystemExit(f"dmax serve ended with code {process.returncode}.")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def load(url: str, users: int, seconds: int) -> dict[str, Any]:
    """Let so many users ask for so long."""
    before = _counters(url)
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / "run"
        command = [
            sys.executable, "-m", "locust", "-f", str(USER_FILE), "--headless", "--host", url, "--csv", str(stem),
            "-u", str(users), "-r", str(users), "-t", f"{seconds}s", "--stop-timeout", "120", "--only-summary",
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        elapsed = time.perf_counter() - started
        rows = list(csv.DictReader((stem.parent / "run_stats.csv").open(encoding="utf-8")))
        failures = list(csv.DictReader((stem.parent / "run_failures.csv").open(encoding="utf-8")))
    after = _counters(url)
    total = next(row for row in rows if row["Name"] == "Aggregated")
    tokens = after["dmax_tokens_total"] - before["dmax_tokens_total"]
    return {
        "users": users,
        "seconds": seconds,
        "requests": int(total["Request Count"]),
        "failures": {row["Error"]: int(row["Occurrences"]) for row in failures},
        "latency_ms": {name: float(total[name]) for name in PERCENTILES},
        "tokens_per_second": tokens / elapsed,
        "tpf_pooled": tokens / max(1.0, after["dmax_nfe_total"] - before["dmax_nfe_total"]),
    }


def _counters(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^(dmax_\w+) (\S+)$", text, re.MULTILINE)}


def overload(model: str, users: int, seconds: int) -> dict[str, Any]:
    """Far more users than a short queue takes."""
    with server(model, "--max-queue", "2", "--max-batch-size", "4") as url:
        crowded = load(url, users, seconds)
        calm = load(url, 1, min(seconds, 10))
    return {"crowded": crowded, "afterwards": calm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=int, default=60)
    add_common_options(parser)
    arguments = parser.parse_args()
    with server(arguments.model) as url:
        httpx.post(f"{url}/v1/completions", json={"prompt": "warm up", "max_tokens": 32}, timeout=120)
        runs = []
        for users in arguments.users:
            runs.append(load(url, users, arguments.seconds))
            print(runs[-1], flush=True)
    result = {
        "runs": runs,
        "overload": overload(arguments.model, 32, min(arguments.seconds, 20)),
        **describe_run(),
        "model": arguments.model,
        "seed": arguments.seed,
    }
    report(result, arguments.json)


if __name__ == "__main__":
    main()
