"""What every benchmark writes beside its figures, so that a figure can be judged and a run repeated."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from dmax import BlockDiffusionLM
from dmax.environment import describe_process
from dmax.kernels.cpu.library import CompileError, compile_kernels
from dmax.measurement.bench import describe_model

__all__ = ["compile_first", "describe_model", "describe_run", "parse_arguments", "report"]


def describe_run() -> dict[str, Any]:
    """Return the command, the machine, the versions and the commit of this process."""
    arguments = [_without_place(argument) for argument in sys.argv]
    return {"command": " ".join([Path(sys.executable).name, *arguments]), **describe_process()}


def _without_place(argument: str) -> str:
    """Keep only the last part of a path outside the checkout: it says nothing to others."""
    path = Path(argument)
    return f"…/{path.name}" if path.is_absolute() or ".." in path.parts else argument


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with the common options added; set the number of threads."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice if left out")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments


def compile_first(model: BlockDiffusionLM) -> None:
    """Do what ``dmax compile`` does, so that passes on a CPU are timed as users who care for time run them."""
    if model.device.type != "cpu":
        return
    try:
        compile_kernels()
    except CompileError as error:
        print(f"Without compiled kernels: {error}", flush=True)


def report(result: dict[str, Any], path: Path | None) -> None:
    """Print a result, and write it where a path is given."""
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
