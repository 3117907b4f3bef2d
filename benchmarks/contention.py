"""Tokens per second beside other processes, bound to one core, and alone: what active waiting costs.

Answers prompts with an embedded model, one at a time, in processes that start one after the other: alone, beside one
and two processes that never rest, bound to one core with default settings, and alone with one thread. Rates are medians
over rounds, in each of which every situation has its turn. Aimed at: beside one busy process on two cores at least 0.45
of the quiet rate, beside two at least 0.3, bound to one core at least 0.8 of one thread.

`--spin` tries other times that threads wait actively before they sleep (dmax.kernels.cpu.library.SPIN_MICROSECONDS).

    python benchmarks/contention.py [--model M] [--seconds S] [--rounds N] [--no-compile] [--spin µs …] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from run_record import compile_first, describe_model, describe_run, parse_arguments, report

from dmax import LLM

WORK = """
import sys, time
from functools import partial
from dmax.machine import wait_little
wait_little()
from dmax.engine.backends import cpu
if sys.argv[3] != "default":
    cpu.set_team = partial(cpu.set_team, spin_microseconds=float(sys.argv[3]))
from dmax import LLM
llm = LLM(sys.argv[1])
prompt = LLM.chat_prompt("A box holds 12 eggs. How many eggs are in 7 boxes?")
llm.generate(prompt)
began, tokens = time.perf_counter(), 0
while time.perf_counter() - began < float(sys.argv[2]):
    tokens += llm.generate(prompt)[0].num_tokens
print(tokens / (time.perf_counter() - began))
"""
SITUATIONS: dict[str, tuple[int, bool, bool]] = {
    "alone": (0, False, False),
    "beside one": (1, False, False),
    "beside two": (2, False, False),
    "bound to one core": (0, True, False),
    "one thread": (0, False, True),
}
"""Busy processes, whether the process is bound to one core, whether it has one thread."""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Have processes beside that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rate(situation: str, model: str, seconds: float, spin: str) -> float:
    """Tokens per second in a situation."""
    others, is_bound, is_single = SITUATIONS[situation]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if is_single:
        environment["OMP_NUM_THREADS"] = "1"
    core = min(os.sched_getaffinity(0))
    with busy(others):
        done = subprocess.run(
            [sys.executable, "-c", WORK, model, str(seconds), spin], env=environment, check=True, capture_output=True,
            text=True, preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if is_bound else None,
        )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave out what `dmax compile` does")
    parser.add_argument("--spin", nargs="+", default=["default"], metavar="µs")
    arguments = parse_arguments(parser)
    model = LLM(arguments.model).model
    if not arguments.no_compile:
        compile_first(model)
    rates: dict[str, dict[str, list[float]]] = {spin: {name: [] for name in SITUATIONS} for spin in arguments.spin}
    for number in range(arguments.rounds):
        for spin, by_situation in rates.items():
            for name, found in by_situation.items():
                found.append(rate(name, arguments.model, arguments.seconds, spin))
                print(f"round {number + 1}  spin {spin:8}  {name:18} {found[-1]:8,.0f} tokens/s", flush=True)
    result = {
        "by_spin": {spin: _summary(found) for spin, found in rates.items()}, "seconds": arguments.seconds,
        **describe_run(), "model": describe_model(arguments.model, model),
    }  # fmt: skip
    report(result, arguments.json)


def _summary(found: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    return {
        "tokens_per_second": medians,
        "runs": found,
        "beside_one_share": medians["beside one"] / medians["alone"],
        "beside_two_share": medians["beside two"] / medians["alone"],
        "bound_share_of_one_thread": medians["bound to one core"] / medians["one thread"],
    }


if __name__ == "__main__":
    main()
