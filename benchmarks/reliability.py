"""A server under load and under faults: does everybody who asks get the right answer, and how fast?

    pip install '.[serve,load,ray]'
    python benchmarks/reliability.py [--model M] [--users 1 8 32] [--seconds 60] [--json FILE]

**Load**: locust's users ask word problems without pause, for so many seconds at each number of users. **Overload**: a
server with a short queue gets far more users than it can take: only 429 may come back beside answers, and once they are
gone it must answer as before. **Faults**, see ``reliability_faults.py``. Ends with code 1 where anything did not hold;
``broken`` in the result names it. What could not be checked here, such as replicas on Ray Serve without ray, is named
with the reason in ``left_out``, and broken by nothing.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
from reliability_faults import failing_request, killed_replica, sigterm, vanishing_clients
from run_record import describe_run, parse_arguments, report
from served import counters, server

USER_FILE = Path(__file__).with_name("reliability_user.py")
PERCENTILES = ("50%", "90%", "99%")
OVERLOAD_USERS = 32


def load(url: str, users: int, seconds: int, seed: int) -> dict[str, Any]:
    """Let so many users ask for so long."""
    before = counters(url)
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / "run"
        command = [
            sys.executable, "-m", "locust", "-f", str(USER_FILE), "--headless", "--host", url, "--csv", str(stem),
            "-u", str(users), "-r", str(users), "-t", f"{seconds}s", "--stop-timeout", "120", "--only-summary",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "DMAX_SEED": str(seed)}
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if not stem.with_name("run_stats.csv").exists():
            raise SystemExit(f"locust did not run:\n{run.stderr[-2000:]}")
        rows = list(csv.DictReader(stem.with_name("run_stats.csv").open(encoding="utf-8")))
        failures = list(csv.DictReader(stem.with_name("run_failures.csv").open(encoding="utf-8")))
    after = counters(url)
    total = next(row for row in rows if row["Name"] == "Aggregated")
    tokens = after["dmax_tokens_total"] - before["dmax_tokens_total"]
    requests, per_second = int(total["Request Count"]), float(total["Requests/s"])
    return {
        "users": users,
        "seconds": seconds,
        "requests": requests,
        "failures": {_reason(row["Error"]): int(row["Occurrences"]) for row in failures},
        "latency_ms": {name: float(total[name]) for name in PERCENTILES} if requests else None,
        "requests_per_second": per_second,
        "tokens_per_second": tokens * per_second / requests if requests else 0.0,
        "tpf_pooled": tokens / max(1.0, after["dmax_nfe_total"] - before["dmax_nfe_total"]),
    }


def _reason(error: str) -> str:
    """Return what a user gave as the reason of a failure, without the exception that locust puts around it."""
    wrapped = re.fullmatch(r"CatchResponseError\((['\"])(.*)\1\)", error, re.DOTALL)
    return wrapped[2] if wrapped else error


def overload(model: str, seconds: int, seed: int) -> dict[str, Any]:
    """Send far more users than a short queue takes, then one."""
    with server(model, "--max-queue", "2", "--max-batch-size", "4") as served:
        crowded = load(served.url, OVERLOAD_USERS, seconds, seed)
        calm = load(served.url, 1, seconds, seed)
    answered = crowded["requests"] - sum(crowded["failures"].values())
    return {
        "crowded": crowded,
        "afterwards": calm,
        "holds": set(crowded["failures"]) == {"429"} and answered > 0 and calm["requests"] > 0 and not calm["failures"],
    }


def not_possible_here() -> dict[str, str]:
    """List the checks that are left out, each with the reason."""
    if find_spec("ray") is None:
        return {"killed_replica": "ray is not installed: pip install 'dmax-llm[ray]'"}
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--vanishing", type=int, default=100, help="clients that leave in the middle of a stream")
    arguments = parse_arguments(parser)
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    model, seconds, seed = arguments.model, arguments.seconds, arguments.seed
    runs = []
    with server(model) as served:
        httpx.post(f"{served.url}/v1/completions", json={"prompt": "warm up", "max_tokens": 32}, timeout=120)
        for users in arguments.users:
            runs.append(load(served.url, users, seconds, seed))
            print(runs[-1], flush=True)
    checks = {
        "overload": overload(model, min(seconds, 20), seed),
        "vanishing_clients": vanishing_clients(model, arguments.vanishing),
        "failing_request": failing_request(model),
        "sigterm": sigterm(model),
    }
    left_out = not_possible_here()
    if "killed_replica" not in left_out:
        checks["killed_replica"] = killed_replica(model, lambda url: load(url, 8, seconds, seed), seconds / 2)
    broken = [f"{run['users']} users" for run in runs if run["failures"] or not run["requests"]]
    broken += [name for name, check in checks.items() if not check["holds"]]
    settings = {"model": model, "seconds": seconds, "seed": seed}
    result = {"broken": broken, "left_out": left_out, "runs": runs, **checks, "settings": settings, **describe_run()}
    report(result, arguments.json)
    for name, reason in left_out.items():
        print(f"left out: {name}, because {reason}", file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
