"""Write docs/reference/memory.md from the shapes of the published models: ``python .ci/write_memory.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dmax.engine.requirements import Workload, formats_needed
from dmax.measurement.shapes import SHAPES
from dmax.models.config import ModelConfig
from dmax.models.memory import gib

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "memory.md"
_CPU, _GPU = torch.device("cpu"), torch.device("cuda")
_SHARE = 0.9
"""Of a machine's memory that is taken to be free for a model."""
_HEAD = """# Memory

Made by `python .ci/write_memory.py` from shapes and from what the code claims; a test fails where the two differ.

What answering needs is worked out from the configuration and the headers of the files before a weight is read: weights,
the copies of small weights that a CPU multiplies with, the KV cache and the working memory of a pass. What is there is
the memory that the system calls available, or less where a control group (a container) limits it, and on a GPU what is
free. A command that needs more is refused in one sentence that names what would fit; `--ignore-memory` tries all the
same. `dmax info MODEL` tells what a model needs here.
"""
_NEEDED = """
## What a model needs

One sequence of 4,096 positions. On a CPU quantised models compute in float32, on a GPU in bfloat16.
"""
_FITS = """
## Which model fits which machine

The most exact format that fits into nine tenths of the memory; `+` quantises embeddings and head, too
(`--embeddings int8`).
"""


def page() -> str:
    """Return the page as the code has it."""
    return _HEAD + _NEEDED + "\n" + _needed() + _FITS + "\n" + _fits()


def _formats(config: ModelConfig, device: torch.device) -> dict[str, int]:
    """Bytes by the name of a format, the most exact first."""
    narrow = formats_needed(config, torch.bfloat16, device, Workload())
    if device.type == "cpu":
        wide = formats_needed(config, torch.float32, device, Workload())
        found = {"float32": wide.pop(None), "bfloat16": narrow[None], **wide}
    else:
        found = {"bfloat16": narrow.pop(None), **narrow}
    return {str(name).replace(" --embeddings int8", "+"): size for name, size in found.items()}


def _needed() -> str:
    columns = ["float32", "bfloat16", "int8", "int4", "int4+"]
    rows = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for device, where in ((_CPU, "a CPU"), (_GPU, "a GPU")):
        for name, config in SHAPES.items():
            sizes = _formats(config, device)
            cells = " | ".join(gib(sizes[column]) if column in sizes else "" for column in columns)
            rows.append(f"| {name} on {where} | {cells} |")
    return "\n".join(rows) + "\n"


def _fits() -> str:
    rows = [f"| | {' | '.join(SHAPES)} |", "|---" * (len(SHAPES) + 1) + "|"]
    machines: list[tuple[torch.device, Callable[[int], str], tuple[int, ...]]] = [
        (_CPU, "main memory of {} GiB".format, (8, 12, 16, 24, 32, 64, 128)),
        (_GPU, "GPU with {} GiB".format, (12, 16, 24, 48, 80, 141)),
    ]
    for device, label, sizes in machines:
        needed = [_formats(config, device) for config in SHAPES.values()]
        for size in sizes:
            room = _SHARE * size * 2**30
            cells = [next((name for name, taken in each.items() if taken <= room), "no") for each in needed]
            rows.append(f"| {label(size)} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
