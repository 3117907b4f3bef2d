"""Does a server's memory stay flat? Thousands of requests of every kind, and the process's size meanwhile.

    python benchmarks/serving_memory.py [--model M] [--requests 5000] [--json FILE]

Whole answers, streams, clients that leave, and requests that are refused, eight at a time. The first fifth warms up:
pools are allocated and caches fill. Over the rest a line is fitted to the size of the process.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from statistics import linear_regression
from typing import Any

import httpx
from run_record import describe_run, parse_arguments, report
from served import Served, server, wait_until_idle

from dmax.problems import problem

CONCURRENCY = 8
SAMPLES = 50
FLAT_KIB = 1.0
"""Growth per request that still counts as flat; a leak of one answer's text and tokens is several times that."""


def ask(client: httpx.Client, number: int) -> int:
    """Send one request, of a kind that its number decides; return the status."""
    body: dict[str, Any] = {"prompt": problem("test", number)["question"], "max_tokens": 1 + number % 24}
    match number % 4:
        case 0:
            return client.post("/v1/completions", json=body).status_code
        case 1:
            return client.post("/v1/completions", json={**body, "stream": True}).status_code
        case 2:
            with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
                next(reply.iter_bytes())
                return reply.status_code
        case _:
            return client.post("/v1/completions", json={**body, "treshold": 0.5}).status_code


def sample(served: Served, requests: int, first: int) -> tuple[list[tuple[int, float]], set[int]]:
    """Read the size of the process after each share of the requests, and the statuses there were."""
    step = max(1, requests // SAMPLES)
    sizes, statuses = [], set()
    with httpx.Client(base_url=served.url, timeout=120) as client, ThreadPoolExecutor(CONCURRENCY) as pool:
        for done in range(0, requests, step):
            numbers = range(first + done, first + min(done + step, requests))
            statuses |= set(pool.map(lambda number: ask(client, number), numbers))
            sizes.append((done + len(numbers), served.resident_mib()))
    return sizes, statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--requests", type=int, default=5000)
    arguments = parse_arguments(parser)
    with server(arguments.model) as served:
        sizes, statuses = sample(served, arguments.requests, arguments.seed)
        idle = wait_until_idle(served.url)
    settled = [entry for entry in sizes if entry[0] > arguments.requests / 5]
    slope = linear_regression(*zip(*settled, strict=True)).slope * 1024
    holds = slope < FLAT_KIB and statuses == {200, 400} and idle
    result = {
        "holds": holds,
        "growth_kib_per_request": slope,
        "growth_mib_after_warm_up": settled[-1][1] - settled[0][1],
        "statuses": sorted(statuses),
        "idle_afterwards": idle,
        "resident_mib": sizes,
        "settings": {"model": arguments.model, "requests": arguments.requests, "seed": arguments.seed},
        **describe_run(),
    }
    report(result, arguments.json)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
