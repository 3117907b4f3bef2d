"""What the machine reaches at best, measured: a large copy and a large matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_COPY_BYTES = {"cuda": 4 * 2**30, "cpu": 2**28}
_MATMUL_SIZE = {"cuda": 8192, "cpu": 2048}


def copy_bandwidth(device: torch.device, repeats: int = 10) -> float:
    """Measure bytes per second of a large copy within the device's memory, read and written bytes both counted."""
    size = _COPY_BYTES.get(device.type, 2**28)
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / best_seconds(lambda: target.copy_(source), device, repeats)


def matmul_peak(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Measure floating-point operations per second of a large square matrix product."""
    size = _MATMUL_SIZE.get(device.type, 2048)
    generator = torch.Generator(device).manual_seed(0)
    left, right = torch.randn(2, size, size, device=device, generator=generator).to(dtype)
    out = torch.empty_like(left)
    return 2 * size**3 / best_seconds(lambda: torch.mm(left, right, out=out), device, repeats)


def int8_peak(repeats: int = 10) -> float:
    """Measure operations per second of a large square product of whole numbers on a CPU."""
    size = _MATMUL_SIZE["cpu"]
    left, right = torch.ones(2, size, size, dtype=torch.int8)
    return 2 * size**3 / best_seconds(lambda: torch._int_mm(left, right), torch.device("cpu"), repeats)


def best_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Time several runs, after one that is not counted, and return the shortest; on a GPU by its own clock."""
    work()
    times: list[float] = []
    for _ in range(repeats):
        if device.type == "cuda":
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            started.record()
            work()
            ended.record()
            ended.synchronize()
            times.append(started.elapsed_time(ended) / 1000)
        else:
            before = time.perf_counter()
            work()
            times.append(time.perf_counter() - before)
    return min(times)
