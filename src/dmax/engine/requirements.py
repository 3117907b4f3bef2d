"""What answering with a model needs of a device's memory, worked out from shapes before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from dmax.engine.backends.packed import MOST_WEIGHTS
from dmax.engine.kv_cache import page_bytes
from dmax.engine.scheduler import IDLE_PREFILL_TOKENS
from dmax.kernels.cpu.library import compiled_kernels
from dmax.kernels.cpu.quantized import reads
from dmax.models.checkpoint import load_config
from dmax.models.config import ModelConfig
from dmax.models.convert import Quantization
from dmax.models.memory import available_memory, gib, refuse
from dmax.models.names import is_stack
from dmax.models.quantized import STORED_AS, hold_quantized
from dmax.models.source import CONFIG_FILE, EMBEDDED_MODELS, CheckpointError, read_json, resolve
from dmax.models.transformer import BlockDiffusionLM

_FLOAT = 4
FORMATS: dict[str, Quantization] = {
    "int8": Quantization("int8"),
    "int4": Quantization("int4"),
    "int4 --embeddings int8": Quantization("int4", embeddings="int8"),
}
"""What a user may convert to, as the command line has it, the most exact first."""


@dataclass(frozen=True)
class Workload:
    """What a model is to answer at a time."""

    sequences: int = 1
    positions: int = 4096
    """Of each, prompt and answer."""
    cache: int | None = None
    """Bytes of the KV cache, where they are given; else it holds all sequences."""
    block_positions: int = 64
    """Positions of a sequence that have logits in a pass."""


def memory_needed(model: BlockDiffusionLM, dtype: torch.dtype, device: torch.device, load: Workload) -> dict[str, int]:
    """Add up the bytes that answering needs, by what they are for.

    Args:
        model: on the meta device.
        dtype: of activations, and of weights that are not quantised.
        device: where it is to run.
        load: what it is to answer.
    """
    config = model.config
    sizes = {
        name: (tensor.numel(), tensor.dtype.itemsize if tensor.dtype != torch.float32 else dtype.itemsize)
        for name, tensor in model.state_dict().items()
        if not (config.tie_word_embeddings and name.startswith("lm_head."))
    }
    positions = min(load.positions, config.max_position_embeddings)
    cache = page_bytes(config, positions, dtype) * load.sequences if load.cache is None else load.cache
    return {
        "weights": sum(count * item for count, item in sizes.values()),
        "packed copies": _packed(model, dtype) if device.type == "cpu" else 0,
        "KV cache": cache,
        "working memory": _working(config, dtype, load) + _widened(model, dtype, device),
    }


class _Matrix(NamedTuple):
    """A matrix that is multiplied with, or a stack of them."""

    name: str
    numbers: int
    dtype: torch.dtype
    outputs: int
    row_bytes: int

    @property
    def is_quantized(self) -> bool:
        return self.dtype in STORED_AS.values()


def _matrices(model: BlockDiffusionLM) -> list[_Matrix]:
    return [
        _Matrix(
            name, tensor.numel() * (2 if tensor.dtype == STORED_AS["int4"] else 1), tensor.dtype, *tensor.shape[-2:]
        )
        for name, tensor in model.state_dict().items()
        if tensor.ndim > 1 and not name.endswith(("_scale", "word_embeddings.weight"))
    ]


def _packed(model: BlockDiffusionLM, dtype: torch.dtype) -> int:
    """Count the copies of small weights that a CPU multiplies with."""
    return sum(each.numbers * dtype.itemsize for each in _matrices(model) if each.numbers <= MOST_WEIGHTS)


def widens(model: BlockDiffusionLM, device: torch.device) -> bool:
    """Tell whether a device has no kernel for some quantised weights, so that every pass widens them.

    A CPU has more of them once `dmax compile` has been run.
    """
    return any(_is_widened(each, model.dtype, device) for each in _matrices(model))


def _is_widened(matrix: _Matrix, dtype: torch.dtype, device: torch.device) -> bool:
    if device.type != "cpu":
        return matrix.dtype == STORED_AS["int4"]
    if not matrix.is_quantized or matrix.numbers <= MOST_WEIGHTS:
        return False
    if compiled_kernels(dtype) is not None:
        return not reads(matrix.dtype, matrix.row_bytes, matrix.outputs)
    return matrix.dtype != STORED_AS["int8"] or is_stack(matrix.name)


def _widened(model: BlockDiffusionLM, dtype: torch.dtype, device: torch.device) -> int:
    """Find the largest weights that are widened, by way of float32; on a CPU gates, ups and downs of one expert."""
    largest = 0
    for each in _matrices(model):
        if _is_widened(each, dtype, device):
            of_expert = 3 * each.numbers // (model.config.num_experts or 1)
            largest = max(largest, of_expert if device.type == "cpu" and is_stack(each.name) else each.numbers)
    return largest * (_FLOAT + dtype.itemsize)


def _working(config: ModelConfig, dtype: torch.dtype, load: Workload) -> int:
    """Count activations of the largest pass: a prompt's chunk, or the logits of all blocks and what is made of them."""
    per_token = config.num_experts_per_tok if config.num_experts else 0
    width = max(config.intermediate_size, per_token * ((config.moe_intermediate_size or 0) + config.hidden_size))
    heads = config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    stored = min(IDLE_PREFILL_TOKENS, load.sequences * load.positions)
    chunk = stored * dtype.itemsize * (3 * width + heads + 4 * config.hidden_size)
    logits = load.sequences * load.block_positions * config.vocab_size * (dtype.itemsize + 2 * _FLOAT)
    return max(chunk, logits)


def formats_needed(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, load: Workload
) -> dict[str | None, int]:
    """Return the bytes that a model needs unquantised (None), and in each format that it can be converted to."""
    found: dict[str | None, int] = {None: sum(memory_needed(_by_shape(config), dtype, device, load).values())}
    for name, quantization in FORMATS.items():
        model = _by_shape(config)
        try:
            schemes = {at: quantization.scheme_of(at, tuple(tensor.shape)) for at, tensor in model.state_dict().items()}
        except CheckpointError:  # of a width that the format has no groups for
            continue
        hold_quantized(model, {at: scheme for at, scheme in schemes.items() if scheme is not None})
        found[name] = sum(memory_needed(model, dtype, device, load).values())
    return found


def _by_shape(config: ModelConfig) -> BlockDiffusionLM:
    with torch.device("meta"):
        return BlockDiffusionLM(config)


def check_memory(
    model: BlockDiffusionLM, dtype: torch.dtype, device: torch.device, *, name: str, load: Workload
) -> None:
    """Refuse to load a model that does not fit.

    Args:
        model: on the meta device.
        dtype: what it is to compute in.
        device: where.
        name: of the model, as the user gave it.
        load: what it is to answer.

    Raises:
        DoesNotFit: with what would fit.
    """
    needed, available = memory_needed(model, dtype, device, load), available_memory(device)
    if sum(needed.values()) > available:
        refuse(name, needed, available, device, _mends(name, model, dtype, device, load, available))


def check_before_fetching(
    name: str | Path, dtype: torch.dtype | None, device: torch.device, load: Workload
) -> None:  # fmt: skip
    """Refuse a model of the Hub that cannot fit by its configuration; one that is here is left to :func:`check_memory`.

    Raises:
        DoesNotFit: with what would fit.
        CheckpointError: there is no such model.
    """
    if str(name) in EMBEDDED_MODELS or Path(name).expanduser().exists():
        return
    folder = resolve(name, weights=False)
    values = read_json(folder / CONFIG_FILE)
    if "quantization_config" in values or any(folder.glob("model*.safetensors")):
        return
    stored = getattr(torch, str(values.get("torch_dtype", "bfloat16")), torch.bfloat16)
    check_memory(_by_shape(load_config(folder)), dtype or stored, device, name=str(name), load=load)


def _mends(
    name: str, model: BlockDiffusionLM, dtype: torch.dtype, device: torch.device, load: Workload, available: int
) -> str:  # fmt: skip
    options: dict[str, int] = {}
    is_quantized = any(each.is_quantized for each in _matrices(model))
    narrow = " with --dtype bfloat16"
    options[f"start it{narrow}"] = sum(memory_needed(model, torch.bfloat16, device, load).values())
    for other, flag in ((dtype, ""), (torch.bfloat16, narrow)):
        for choice, size in {} if is_quantized else formats_needed(model.config, other, device, load).items():
            if choice is not None:
                options[f"`dmax convert {name} FOLDER --quantize {choice}` and start that{flag}"] = size
    fitting = [f"{how} ({gib(size)})" for how, size in options.items() if size <= available]
    if not fitting:
        return f"the least that it takes is {gib(min(options.values()))}; use another machine or --device"
    return f"{' or '.join(fitting[:2])}; or use another --device"
