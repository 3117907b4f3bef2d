"""The model's GPU kernels, timed: which tiles are best for the experts, and how near they come to the memory's speed.

For every dtype of the weights and every number of tokens, all candidate tiles of the two expert matmuls are timed in a
CUDA graph (the first with the second fixed, then the second with the best first); then the experts as a whole, with the
best tiles, with those of `dmax.kernels.tiles` and by the model's plain PyTorch path. Routing is random, with another
draw in each call of a graph, and weights are larger than any cache. Bandwidth counts the weights of the experts that
were touched, each once. Weights are random: the figures are times, nothing else.

    python benchmarks/tune_kernels.py [--shape mini|flash|nano] [--tokens 32 ...] [--dtypes bf16 ...] [--json FILE]

Candidates are compiled by several processes first (`--compilers`).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from run_record import describe_run, report
from torch import Tensor

from dmax.kernels.experts import Stack, run_experts
from dmax.kernels.norm import add_rms_norm, rms_norm
from dmax.kernels.rotary import normalize_and_rotate
from dmax.kernels.routing import Routing, route, routing_of
from dmax.kernels.tiles import Tile, tiles_for

DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
SHARED_MEMORY = 227 * 1024
Tiles = tuple[Tile, Tile]


@dataclass(frozen=True)
class Shape:
    """The sparse feed-forward of a model."""

    hidden: int
    width: int
    experts: int
    per_token: int
    groups: int
    groups_kept: int
    heads: int
    kv_heads: int
    channels: int


SHAPES = {
    "mini": Shape(2048, 512, 256, 8, 8, 4, 16, 4, 128),
    "flash": Shape(4096, 1024, 256, 8, 8, 4, 32, 4, 128),
    "nano": Shape(256, 96, 8, 2, 4, 2, 4, 2, 64),
}


def random_stack(shape: Shape, experts: int, dtype: torch.dtype) -> Stack:
    def weights(*size: int) -> Tensor:
        if dtype == torch.int8:
            return torch.randint(-127, 128, size, dtype=dtype, device="cuda")
        stack = torch.empty(size, dtype=dtype, device="cuda")
        for part in stack:
            part.copy_(torch.randn(size[1:], device="cuda") * 0.02)
        return stack

    stack = Stack(
        weights(experts, shape.width, shape.hidden),
        weights(experts, shape.width, shape.hidden),
        weights(experts, shape.hidden, shape.width),
    )
    if dtype == torch.bfloat16:
        return stack
    scales = (torch.full(tensor.shape[:2], 0.01, device="cuda") for tensor in (stack.gate, stack.up, stack.down))
    return Stack(stack.gate, stack.up, stack.down, *scales)


def candidates(dtype: torch.dtype, tokens: int, place: int) -> list[Tile]:
    """List tiles for a matmul whose loads under way fill neither too little nor too much memory."""
    found = []
    rows = (16,) if tokens <= 128 else (16, 32) if tokens <= 512 else (32, 64)
    widths, matrices = ((32, 64), 2) if place == 0 else ((32, 64, 128), 1)
    for block_m, block_w, block_k, warps, stages, tokens_first in itertools.product(
        rows, widths, (64, 128, 256), (4, 8), (3, 4), (True, False)
    ):
        step_bytes = block_k * (matrices * block_w * dtype.itemsize + block_m * 2)
        fits = (stages - 1) * step_bytes >= 32 * 1024 and stages * step_bytes < SHARED_MEMORY
        if fits and (warps == 4 or block_w >= 64):
            found.append(Tile(block_m, block_w, block_k, warps, stages, tokens_first))
    return found


def compile_tiles(shape: Shape, dtype: torch.dtype, tokens: int, place: int, tiles: Sequence[Tile]) -> None:
    """Compile (into Triton's cache on disk) by launching over experts without tokens; memory is not even filled."""

    def empty(experts: int) -> Stack:
        sizes = ((shape.width, shape.hidden), (shape.width, shape.hidden), (shape.hidden, shape.width))
        stacks = [torch.empty(experts, *size, dtype=dtype, device="cuda") for size in sizes]
        scales = [None] * 3 if dtype == torch.bfloat16 else [torch.empty(t.shape[:2], device="cuda") for t in stacks]
        return Stack(*stacks, *scales)

    routed, shared = empty(shape.experts), empty(1)
    x = torch.zeros(tokens, shape.hidden, device="cuda", dtype=torch.bfloat16)
    nobody = Routing(
        torch.zeros(tokens, shape.per_token, dtype=torch.int32, device="cuda"),
        torch.zeros(tokens, shape.per_token, device="cuda"),
        torch.zeros(shape.experts, dtype=torch.int32, device="cuda"),
        torch.zeros(shape.experts, tokens, dtype=torch.int32, device="cuda"),
    )
    first, second = tiles_for(tokens, shape.experts, shape.per_token, dtype)
    for tile in tiles:
        try:
            run_experts(x, nobody, routed, shared, (tile, second) if place == 0 else (first, tile))
        except Exception as error:  # a tile that does not fit is no candidate; the timing run finds that out again
            print(f"{tile}: {type(error).__name__}", flush=True)
    torch.cuda.synchronize()


def time_graph(calls: Sequence[Callable[[], Any]], replays: int = 7) -> float:
    """Time one of ``calls``, captured together and replayed: median microseconds."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(replays + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / len(calls))
    return statistics.median(times[1:])


class Case:
    """One dtype and number of tokens, ready to be timed with any tiles."""

    def __init__(self, shape: Shape, dtype: torch.dtype, tokens: int, routed: Stack, shared: Stack, draws: int) -> None:
        generator = torch.Generator("cuda").manual_seed(tokens)
        self.shape, self.dtype, self.tokens, self.routed, self.shared = shape, dtype, tokens, routed, shared
        x = torch.randn(draws, tokens, shape.hidden, device="cuda", generator=generator)
        self.inputs = list(x.bfloat16())
        noise = torch.rand(draws, tokens, shape.experts, device="cuda", generator=generator)
        weights = torch.rand(tokens, shape.per_token, device="cuda", generator=generator)
        self.routings = [routing_of(draw.topk(shape.per_token).indices, weights, shape.experts) for draw in noise]

    def time(self, tiles: Tiles) -> float:
        """Time the experts, all three kernels: microseconds; infinite where a tile does not fit."""
        pairs = zip(self.inputs, self.routings, strict=True)
        try:
            return time_graph([lambda x=x, r=r: run_experts(x, r, self.routed, self.shared, tiles) for x, r in pairs])
        except Exception as error:
            print(f"{tiles}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            return float("inf")

    def touched_bytes(self) -> float:
        """Count weights of the experts with at least one token, the shared one among them; mean over the draws."""
        touched = statistics.mean(int((routing.loads_E > 0).sum()) for routing in self.routings) + 1
        return touched * 3 * self.shape.width * self.shape.hidden * self.dtype.itemsize

    def tune(self) -> tuple[Tiles, list[dict[str, Any]]]:
        """Find the best pair of tiles; return it and every timing, best first."""
        default = tiles_for(self.tokens, self.shape.experts, self.shape.per_token, self.dtype)
        rows: list[dict[str, Any]] = []
        best = default
        for place in (0, 1):
            timed = []
            for tile in candidates(self.dtype, self.tokens, place):
                pair = (tile, best[1]) if place == 0 else (best[0], tile)
                timed.append((self.time(pair), pair))
            timed.sort(key=lambda entry: entry[0])
            rows += [{"place": place, "us": us, "tile": asdict(pair[place])} for us, pair in timed[:8]]
            best = timed[0][1]
        return best, rows


def plain_path(case: Case, routed: Stack) -> float | None:
    """Time the model's own PyTorch experts (without the shared one), bfloat16: microseconds; None if not capturable."""
    from dmax.models.moe import Experts

    with torch.device("meta"):
        experts = Experts(case.shape.experts, case.shape.hidden, case.shape.width).requires_grad_(False)
    for name, stack in zip(("gate_proj", "up_proj", "down_proj"), (routed.gate, routed.up, routed.down), strict=True):
        setattr(experts, name, torch.nn.Parameter(stack, requires_grad=False))
    calls = [
        lambda x=x, r=r: experts(x, r.experts_NA.long(), r.weights_NA)
        for x, r in zip(case.inputs, case.routings, strict=True)
    ]
    try:
        return time_graph(calls)
    except RuntimeError as error:
        print(f"plain path: {str(error).splitlines()[0]}", flush=True)
        return None


def copy_bandwidth() -> float:
    """Measure bytes per second read and written by a device copy of 2 GiB."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (time_graph([lambda: target.copy_(source)] * 3) * 1e-6)


def time_small_kernels(shape: Shape, tokens: int) -> dict[str, float]:
    """Time the other kernels of a layer: microseconds."""

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device="cuda", dtype=torch.bfloat16)

    x, y = normal(tokens, shape.hidden), normal(tokens, shape.hidden)
    norm_weight, head_weight = normal(shape.hidden), normal(shape.channels)
    router, bias = normal(shape.experts, shape.hidden), torch.zeros(shape.experts, device="cuda")
    qkv = normal(tokens, shape.heads + 2 * shape.kv_heads, shape.channels)
    angles = torch.rand(tokens, shape.channels // 2, device="cuda")
    rule = {
        "experts_per_token": shape.per_token, "num_groups": shape.groups, "groups_kept": shape.groups_kept,
        "scale": 2.5,
    }  # fmt: skip
    calls: dict[str, Callable[[], Any]] = {
        "router": lambda: route(x, router, bias, **rule),
        "rms_norm": lambda: rms_norm(x, norm_weight, 1e-6),
        "add_rms_norm": lambda: add_rms_norm(x, y, norm_weight, 1e-6),
        "norm_and_rotary": lambda: normalize_and_rotate(
            qkv, head_weight, head_weight, angles, angles, shape.heads, 1e-6
        ),
    }
    return {name: time_graph([call] * 50) for name, call in calls.items()}


def compile_all(shape: Shape, dtypes: Sequence[str], tokens: Sequence[int], compilers: int) -> None:
    jobs = []
    for name, place in itertools.product(dtypes, (0, 1)):
        tiles = sorted({tile for count in tokens for tile in candidates(DTYPES[name], count, place)}, key=repr)
        jobs += [(shape, DTYPES[name], tokens[0], place, tiles[part::compilers]) for part in range(compilers)]
    with ProcessPoolExecutor(compilers, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(compile_tiles, *job) for job in jobs if job[-1]]:
            done.result()


def measure(shape: Shape, dtypes: Sequence[str], tokens: Sequence[int], draws: int) -> dict[str, Any]:
    copy = copy_bandwidth()
    result: dict[str, Any] = {"copy_bytes_per_second": copy, "cases": [], "small_kernels_us": {}}
    for name in dtypes:
        routed, shared = (random_stack(shape, count, DTYPES[name]) for count in (shape.experts, 1))
        for count in tokens:
            case = Case(shape, DTYPES[name], count, routed, shared, draws)
            default = tiles_for(count, shape.experts, shape.per_token, DTYPES[name])
            best, rows = case.tune()
            us = case.time(best)
            entry = {
                "dtype": name, "tokens": count, "us": us, "default_us": case.time(default),
                "touched_bytes": case.touched_bytes(), "share_of_copy": case.touched_bytes() / (us * 1e-6) / copy,
                "best": [asdict(tile) for tile in best], "timings": rows,
                "plain_us": plain_path(case, routed) if name == "bf16" else None,
            }  # fmt: skip
            result["cases"].append(entry)
            print(f"{name} {count}: {us:.1f} us, {entry['share_of_copy']:.0%} of copy", flush=True)
        del routed, shared
    result["small_kernels_us"] = {str(count): time_small_kernels(shape, count) for count in tokens}
    return result


def table(result: dict[str, Any]) -> str:
    lines = [f"copy {result['copy_bytes_per_second'] / 1e12:.2f} TB/s"]
    for case in result["cases"]:
        tiles = ["{block_m}x{block_w}x{block_k} w{warps} s{stages} {tokens_first:d}".format(**t) for t in case["best"]]
        plain = "" if case["plain_us"] is None else f"  plain {case['plain_us']:7.1f}"
        lines.append(
            f"{case['dtype']:5} {case['tokens']:5} tokens  {case['us']:7.1f} us  {case['share_of_copy']:4.0%} of copy  "
            f"default {case['default_us']:7.1f}{plain}   {tiles[0]} | {tiles[1]}"
        )
    for count, times in result["small_kernels_us"].items():
        lines.append(f"{count:>5} tokens  " + "  ".join(f"{name} {us:.1f} us" for name, us in times.items()))
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 64, 256, 1024])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--draws", type=int, default=8, help="routings, and calls of a graph")
    parser.add_argument("--compilers", type=int, default=min(14, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    compile_all(shape, arguments.dtypes, arguments.tokens, arguments.compilers)
    result = {"shape": arguments.shape, **asdict(shape)}
    result |= measure(shape, arguments.dtypes, arguments.tokens, arguments.draws)
    report({**result, **describe_run()}, arguments.json)
    print(table(result))


if __name__ == "__main__":
    main()
