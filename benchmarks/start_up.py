"""How long a first answer takes from the start of the process: `dmax generate`, again and again.

Times are from starting the process to the first character of its output, which is there when the whole answer is, and
to its end. The first run, which reads everything from the disk, is not counted.

    python benchmarks/start_up.py [--model M] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from run_record import compile_first, describe_model, describe_run, parse_arguments, report

from dmax import LLM
from dmax.problems import problem


def start(model: str, question: str) -> tuple[float, float]:
    """Time the first character, and the end, in seconds."""
    command = [sys.executable, "-m", "dmax", "generate", "--model", model, question]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    if not first or process.returncode:
        raise SystemExit(f"dmax generate failed with status {process.returncode}.")
    return seconds, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="an embedded model or a folder")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--plain", action="store_true", help="do not compile first what `dmax compile` does")
    arguments = parse_arguments(parser)
    model = LLM(arguments.model, dtype=torch.float32).model
    if not arguments.plain:
        compile_first(model)
    question = problem("test", 0, arguments.seed)["question"]
    first, whole = zip(*[start(arguments.model, question) for _ in range(arguments.repeats + 1)][1:], strict=True)
    result: dict[str, Any] = {
        "seconds_to_first_output": statistics.median(first), "seconds_to_first_output_most": max(first),
        "seconds_to_end": statistics.median(whole), "repeats": arguments.repeats, "seed": arguments.seed,
        **describe_run(), "model": describe_model(arguments.model, model),
    }  # fmt: skip
    report(result, arguments.json)


if __name__ == "__main__":
    main()
