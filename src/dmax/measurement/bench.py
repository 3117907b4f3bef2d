"""``dmax bench``: what one pass costs, beside what the machine could do."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dmax.engine.backends import backend_name
from dmax.engine.requirements import widens
from dmax.measurement.costs import Cost, count_pass, stored_bytes, uniform_experts
from dmax.measurement.passes import PassDriver, Step
from dmax.measurement.peaks import copy_bandwidth, int8_peak, matmul_peak
from dmax.measurement.shapes import MeasurementError
from dmax.measurement.split import split_passes, touched_experts
from dmax.models.quantized import STORED_AS
from dmax.models.transformer import BlockDiffusionLM

_WARM_UP = 8
"""Passes of every kind that run before anything is timed: buffers, kernels and graphs are made in them."""


@dataclass(frozen=True)
class BenchOptions:
    """What is timed."""

    batch: int = 1
    context: int = 1024
    positions: int | None = None
    """A block if not given."""
    repeats: int = 50
    """Passes timed."""
    tpf: float = 6.0
    """Tokens per forward at which a rate is given."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise MeasurementError(f"repeats is {self.repeats}; a median and a spread need at least 2.")
        if not self.tpf > 0:
            raise MeasurementError(f"tpf is {self.tpf}; it must be above 0.")


def bench(model: BlockDiffusionLM, options: BenchOptions) -> dict[str, Any]:
    """Time passes of a model, split one, count its bytes and operations, and measure the machine's peaks.

    Returns:
        Plain values; times in milliseconds, rates per second.

    Raises:
        MeasurementError: there are no such passes.
    """
    driver = PassDriver(
        model, batch=options.batch, context=options.context, positions=options.positions, seed=options.seed
    )
    driver.run(_WARM_UP)
    steps = driver.run(options.repeats)
    seconds = statistics.median(_seconds(step) for step in steps)
    touched = touched_experts(driver)
    split = split_passes(driver, max(options.repeats // 2, 2))
    cost = count_pass(model.config, driver.shape, model.dtype.itemsize, touched, stored_bytes(model))
    return {
        "pass_ms": _spread([_seconds(step) for step in steps]),
        "host_pass_ms": _spread([step.seconds for step in steps]),
        "tokens_per_second": options.batch * options.tpf / seconds,
        **asdict(options),
        "positions": driver.shape.positions,
        "split_ms": {part: 1000 * taken for part, taken in split.items()},
        "split_pass_ms": 1000 * sum(split.values()),
        "touched_experts": touched,
        "touched_experts_if_uniform": uniform_experts(model.config, options.batch * driver.shape.positions),
        **_shares(model, cost, seconds),
    }


def describe_model(name: str, model: BlockDiffusionLM) -> dict[str, Any]:
    """Say which model ran, how large, where, in which dtype, and by which backend of the engine."""
    backend = backend_name(model.device, model.dtype)
    return {
        "name": name,
        "parameters": _count_parameters(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "backend": backend,
        "compiled_steps": backend == "cpu-compiled",
        "widens_weights": widens(model, model.device),
    }


def _count_parameters(model: BlockDiffusionLM) -> int:
    """Count weights, each once; of two in a byte, both."""
    found = {
        tensor.data_ptr(): tensor.numel() * (2 if tensor.dtype == STORED_AS["int4"] else 1)
        for name, tensor in model.state_dict().items()
        if not name.endswith(("_scale", "expert_bias"))
    }
    return sum(found.values())


def is_quantized(model: BlockDiffusionLM) -> bool:
    """Tell whether any of a model's weights are in 8 or 4 bits."""
    return any(tensor.dtype in STORED_AS.values() for tensor in model.state_dict().values())


def _seconds(step: Step) -> float:
    return step.seconds if step.device_seconds is None else step.device_seconds


def _spread(seconds: list[float]) -> dict[str, float]:
    lower, median, upper = (1000 * value for value in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {
        "median": median, "quartile_1": lower, "quartile_3": upper,
        "min": 1000 * min(seconds), "max": 1000 * max(seconds),
    }  # fmt: skip


def _shares(model: BlockDiffusionLM, cost: Cost, seconds: float) -> dict[str, Any]:
    """Count bytes and operations of the pass, and which share of the machine's peaks it reaches with them."""
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    bandwidth = copy_bandwidth(model.device)
    whole = model.device.type == "cpu" and is_quantized(model)
    peak = int8_peak() if whole else matmul_peak(model.device, model.dtype)
    bound = max(cost.total_bytes / bandwidth, cost.total_flops / peak)
    return {
        "bytes": {**cost.bytes, "total": cost.total_bytes},
        "flops": {**cost.flops, "total": cost.total_flops},
        "copy_bytes_per_second": bandwidth,
        "matmul_flops_per_second": peak,
        "peak_is_of": "int8" if whole else str(model.dtype).removeprefix("torch."),
        "bound_ms": 1000 * bound,
        "share_of_bound": bound / seconds,
        "bytes_per_second": cost.total_bytes / seconds,
        "flops_per_second": cost.total_flops / seconds,
        "share_of_copy_bandwidth": cost.total_bytes / seconds / bandwidth,
        "share_of_matmul_peak": cost.total_flops / seconds / peak,
    }
