"""What converting a checkpoint of real size takes: memory of its own, and time beside copying the files.

Writes a checkpoint of a published shape with random weights in the published layout, unless `--source` names one, then
copies its files and converts them, each time with cold files: what is read has been dropped from the page cache, and
what is written is on the disk at the end. Of each conversion it keeps the peak of anonymous memory, the time and its
ratio to copying; of each quantised result how long two starts take, and what of its weights a process has to itself.
The disk has to hold the checkpoint twice.

    python benchmarks/convert_memory.py FOLDER [--source FOLDER] [--shape S] [--layers N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from run_record import describe_run, parse_arguments, report

from dmax.measurement.shapes import SHAPES
from dmax.models.checkpoint import layout_of, save_companions
from dmax.models.config import ModelConfig
from dmax.models.transformer import BlockDiffusionLM
from dmax.models.writer import TensorSpec, write_tensors

CONVERSIONS = {
    "merged": ["--layout", "merged"],
    "int8": ["--quantize", "int8"],
    "fp8": ["--quantize", "fp8"],
    "int4": ["--quantize", "int4"],
    "int4, embeddings int8": ["--quantize", "int4", "--embeddings", "int8"],
}
START = """
import json, re, sys, time
from pathlib import Path
import torch
from dmax import load_model

def own():
    return 1024 * int(re.search(r"^Anonymous:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text(), re.M)[1])

before, began = own(), time.perf_counter()
model = load_model(sys.argv[1], dtype=torch.bfloat16, mapped=True)
print(json.dumps({"seconds": time.perf_counter() - began, "own_bytes": own() - before}))
"""


def write_checkpoint(folder: Path, config: ModelConfig, seed: int) -> None:
    """Write random weights of a shape; they repeat from one pool, so that it takes about as long as the disk needs."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.empty(2**25, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    with torch.device("meta"):
        shapes = layout_of(BlockDiffusionLM(config), ())
    at = 0

    def draw(name: str) -> torch.Tensor:
        nonlocal at
        count = torch.Size(shapes[name]).numel()
        at = (at + 1_037_389) % max(1, pool.numel() - count)
        return pool.repeat(-(-count // pool.numel()) + 1)[:count].view(shapes[name]) if count > pool.numel() else (
            pool[at : at + count].view(shapes[name])
        )  # fmt: skip

    folder.mkdir(parents=True)
    write_tensors(folder, [TensorSpec(name, shape, "BF16") for name, shape in shapes.items()], draw, 2 * 2**30)
    save_companions(config, folder, None, torch.bfloat16)


def drop(folder: Path) -> None:
    """Let the system forget a folder's files, which are on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_seconds(source: Path, target: Path) -> float:
    """Time copying all files of a folder until they are on the disk."""
    drop(source)
    began = time.perf_counter()
    target.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
    taken = time.perf_counter() - began
    shutil.rmtree(target)
    return taken


def convert(source: Path, target: Path, flags: list[str]) -> dict[str, Any]:
    """Convert in a process of its own, and watch its anonymous memory."""
    drop(source)
    command = [sys.executable, "-m", "dmax", "convert", str(source), str(target), *flags]
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            peak = max(peak, 1024 * int(found[1]) if found else 0)
            time.sleep(0.02)
        assert process.stderr is not None
        said = process.stderr.read()
    if process.returncode:
        raise SystemExit(said)
    size = sum(path.stat().st_size for path in target.iterdir())
    return {"seconds": time.perf_counter() - began, "peak_anonymous_bytes": peak, "bytes": size}


def start(folder: Path) -> dict[str, float]:
    """Load a checkpoint in a process of its own."""
    done = subprocess.run([sys.executable, "-c", START, str(folder)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where files are written and deleted")
    parser.add_argument("--source", type=Path, help="a checkpoint in place of one with random weights")
    parser.add_argument("--shape", default="llada2-mini", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="of the shape, only so many")
    parser.add_argument("--only", nargs="+", choices=CONVERSIONS, default=list(CONVERSIONS))
    arguments = parse_arguments(parser)
    config = SHAPES[arguments.shape]
    config = replace(config, num_hidden_layers=arguments.layers or config.num_hidden_layers)
    source, target = arguments.source or arguments.folder / "source", arguments.folder / "target"
    if arguments.source is None:
        write_checkpoint(source, config, arguments.seed)
    result: dict[str, Any] = {
        "shape": arguments.shape, "layers": config.num_hidden_layers,
        "bytes": sum(path.stat().st_size for path in source.iterdir()), "conversions": {}, **describe_run(),
    }  # fmt: skip
    for name in arguments.only:
        copying = copy_seconds(source, target)
        found = convert(source, target, CONVERSIONS[name])
        found |= {"copy_seconds": copying, "times_copying": found["seconds"] / copying}
        drop(target)
        result["conversions"][name] = found | {"starts": [start(target), start(target)]}
        shutil.rmtree(target)
        print(name, json.dumps(result["conversions"][name]), flush=True)
    if arguments.source is None:
        shutil.rmtree(source)
    report(result, arguments.json)


if __name__ == "__main__":
    main()
