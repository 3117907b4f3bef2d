"""``dmax bench``: what one pass costs, by part, beside what the machine could do."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dmax.cli._common.errors import CommandError, choose, user_errors
from dmax.cli._common.session import AUTO, check_placement, own_command, pick_device, status

if TYPE_CHECKING:
    from dmax.engine.requirements import Workload
    from dmax.models import BlockDiffusionLM


@dataclass(frozen=True)
class TimedModel:
    """Which model is timed, and where."""

    shape: Annotated[
        str | None,
        typer.Option(
            help="This shape with random weights: llada2-mini, llada2-flash, llada2.2-mini, sdar-1.7b, sdar-4b, "
            "sdar-8b, fast-dllm-v2-1.5b or nano."
        ),
    ] = None
    model: Annotated[str | None, typer.Option(help="Or a model: a folder, a Hugging Face id, nano or nano-base.")] = (
        None
    )
    layers: Annotated[int | None, typer.Option(help="Of the shape, only so many layers.")] = None
    weights: Annotated[
        str | None,
        typer.Option(help="Of the shape, int8 or int4 instead of the dtype; embeddings and head then are int8."),
    ] = None
    expert_capacity: Annotated[
        int | None, typer.Option(metavar="N", help="The most experts of a layer that a block may use.")
    ] = None
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU if there is one.")] = AUTO
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto: float32 on a CPU, bfloat16 elsewhere.")
    ] = AUTO

    def __post_init__(self) -> None:
        if (self.shape is None) == (self.model is None):
            raise CommandError("bench times one model: give --shape for random weights, or --model for a checkpoint.")
        if self.layers is not None and self.shape is None:
            raise CommandError("--layers cuts a shape; a model from --model is timed whole.")
        if self.weights is not None:
            choose("weights", self.weights, ("int8", "int4"))
        if self.weights is not None and self.shape is None:
            raise CommandError("--weights is for a --shape; a model from --model has its own.")
        check_placement(self.device, self.dtype)

    @property
    def name(self) -> str:
        """The shape or the model, as it was given."""
        return str(self.shape or self.model)


@dataclass(frozen=True)
class PassOptions:
    """Which passes are timed, and how many."""

    batch: Annotated[int, typer.Option(help="Sequences decoded together.")] = 1
    context: Annotated[int, typer.Option(help="Positions before the block, whole blocks.")] = 1024
    positions: Annotated[
        int | None,
        typer.Option(help="Positions a pass and sequence: a block, or two where it also stores the block before."),
    ] = None
    repeats: Annotated[int, typer.Option(help="Passes timed.")] = 50
    tpf: Annotated[float, typer.Option(help="Tokens per forward for the rate in tokens per second.")] = 6.0
    seed: Annotated[int, typer.Option(help="Seed of random weights and prompts.")] = 0


def bench(
    timed: TimedModel,
    passes: PassOptions,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Time a model that does not fit into memory.")
    ] = False,
) -> None:
    """Time one pass of the engine, split it by part, and compare it with the machine's bandwidth and matmul peak."""
    with status("Starting"), user_errors():
        from dmax.engine.requirements import Workload
        from dmax.environment import describe_process
        from dmax.measurement.bench import BenchOptions, describe_model
        from dmax.measurement.bench import bench as run

        options = BenchOptions(**vars(passes))
    with status("Timing"), user_errors():
        held = passes.context + 2 * (passes.positions or Workload.block_positions)
        model = _build(timed, passes.seed, None if ignore_memory else Workload(passes.batch, held))
        if timed.expert_capacity is not None:
            model.limit_experts(timed.expert_capacity)
        result = {
            "what": "random weights, time per pass" if timed.model is None else "time per pass",
            "model": describe_model(timed.name, model),
            "layers": model.config.num_hidden_layers,
            "weights": timed.weights,
            "expert_capacity": model.config.expert_capacity or None,
            **_without_running_out(run, model, options),
            "command": " ".join(own_command()),
            **describe_process(),
        }
    if json:
        typer.echo(json_format.dumps(result, indent=2))
    else:
        _show(result)


def _build(timed: TimedModel, seed: int, workload: Workload | None) -> BlockDiffusionLM:
    """Make the model; where there is a workload, only if it fits with that into memory."""
    import torch

    from dmax.engine.requirements import check_memory
    from dmax.measurement.shapes import random_model
    from dmax.models import load_model
    from dmax.models.checkpoint import usable_device
    from dmax.models.convert import Quantization

    device = usable_device(pick_device(timed.device))
    dtype: torch.dtype | None = None if timed.dtype == AUTO else getattr(torch, timed.dtype)
    if dtype is None and device.type == "cpu":
        dtype = torch.float32
    check = None if workload is None else partial(check_memory, name=timed.name, load=workload)
    if timed.model is not None:
        return load_model(timed.model, device, dtype, mapped=True, check=check)
    formats = None if timed.weights is None else Quantization(timed.weights, embeddings="int8")  # type: ignore[arg-type]
    return _without_running_out(
        random_model,
        timed.shape,
        device=device,
        dtype=dtype or torch.bfloat16,
        seed=seed,
        layers=timed.layers,
        weights=formats,
        check=check,
    )


def _without_running_out(work: Any, *arguments: Any, **options: Any) -> Any:
    import torch

    try:
        return work(*arguments, **options)
    except torch.OutOfMemoryError as error:
        raise CommandError(
            "memory does not suffice; take fewer --layers, a smaller --batch or a shorter --context."
        ) from error


def _show(result: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=result["what"], title_justify="left")
    table.title_style = "bold"
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for label, value in _rows(result):
        table.add_row(label, value)
    Console().print(table)


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    model, hardware, taken = result["model"], result["hardware"], result["pass_ms"]
    place = hardware["accelerator"] if model["device"].startswith("cuda") else hardware["processor"]
    threads = "" if model["device"].startswith("cuda") else f", {hardware['threads']} threads"
    yield (
        "model",
        f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters, {result['weights'] or model['dtype']}",
    )
    yield "machine", f"{place}{threads}"
    yield "pass", f"{result['positions']} positions × {result['batch']} after {result['context']:,} of context"
    yield (
        "time",
        (
            f"{taken['median']:.2f} ms (middle half {taken['quartile_1']:.2f}–{taken['quartile_3']:.2f}, "
            f"{result['repeats']} passes)"
        ),
    )
    yield "rate", f"{result['tokens_per_second']:,.0f} tokens/s at {result['tpf']:g} tokens per forward"
    yield (
        "memory",
        (
            f"{result['bytes']['total'] / 1e9:.3g} GB, {result['share_of_copy_bandwidth']:.0%} of the measured "
            f"{result['copy_bytes_per_second'] / 1e9:,.0f} GB/s"
        ),
    )
    yield (
        "arithmetic",
        (
            f"{result['flops']['total'] / 1e9:.3g} GFLOP, {result['share_of_matmul_peak']:.0%} of the measured "
            f"{result['matmul_flops_per_second'] / 1e12:.3g} TFLOP/s in {result['peak_is_of']}"
        ),
    )
    yield "bound", f"{result['bound_ms']:.2f} ms, the larger of both; {result['share_of_bound']:.0%} of the time taken"
    if result["touched_experts"] is not None:
        uniform = result["touched_experts_if_uniform"]
        yield "experts", f"{result['touched_experts']:.1f} of a layer touched ({uniform:.1f} if routing were uniform)"
    parts = ", ".join(f"{part} {taken:.2f}" for part, taken in result["split_ms"].items() if taken)
    yield "split, ms", f"{parts}; passes taken apart this way took {result['split_pass_ms']:.2f}"
