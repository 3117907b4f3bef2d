"""The small steps between the matmuls of a pass, compiled ahead of time for the CPU at hand.

A pass over a block of a small model is hundreds of operations of a few microseconds, most of which PyTorch spends on
getting to them. AOTInductor turns the chains between two matmuls into one call each. The functions it compiles are
those that the model runs anyway, so there is no second definition of anything; what differs is rounding, since a
compiled chain rounds once where separate operations round in between.

:func:`compile_steps` does the work, in a minute or so, and puts the libraries into a folder of the user's cache.
:func:`attach` gives a model what is in that folder, if anything is: nothing is ever compiled while someone waits for an
answer. The folder's name tells everything that a library depends on, so none is taken for a model, a PyTorch, a
processor or a version of these functions that it was not made for.

Shape suffixes: N positions, D hidden, J heads that turn, C head channels, R rotary channels, E experts, W gate and up
outputs.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmax.models import attention, layers, moe
from dmax.models.config import ModelConfig
from dmax.models.llada2 import LLaDA2
from dmax.models.steps import Step

DTYPES = (torch.float32, torch.bfloat16)
_LIKELY = 32
"""Positions that a library is tuned for; it takes any number from 2."""


class CompileError(ValueError):
    """Steps cannot be compiled here; the message says what is missing."""


@dataclass(frozen=True)
class _Chain:
    """A function to compile, with tensors like those it will be given."""

    name: str
    function: Callable[..., Any]
    examples: tuple[Tensor, ...]
    per_position: tuple[bool, ...]
    """Which of the tensors have a row a position."""


def compile_steps(
    config: ModelConfig, dtype: torch.dtype, progress: Callable[[int, int], object] | None = None
) -> Path:
    """Compile what :func:`attach` will find, and return the folder it lies in; a folder that is there is left alone.

    Args:
        config: of the model; models of the same shape share a folder.
        dtype: of the weights, float32 or bfloat16.
        progress: told after every step how many of how many are compiled.

    Raises:
        CompileError: there is no C++ compiler, or the dtype is another one.
        OSError: the cache cannot be written.
    """
    if dtype not in DTYPES:
        raise CompileError(f"the steps cannot be compiled for {dtype}; take float32 or bfloat16.")
    folder = steps_folder(config, dtype)
    if folder.is_dir():
        return folder
    _require_compiler()
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        chains = list(_chains(config, dtype))
        for done, chain in enumerate(chains, 1):
            _compile(chain, making / f"{chain.name}.pt2")
            if progress is not None:
                progress(done, len(chains))
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def attach(model: LLaDA2) -> bool:
    """Give a model on a CPU the steps compiled for its shape, dtype and machine; say whether there are any."""
    if model.device.type != "cpu" or model.dtype not in DTYPES:
        return False
    folder = steps_folder(model.config, model.dtype)
    libraries = {path.stem: path for path in folder.glob("*.pt2")} if folder.is_dir() else {}
    loaded: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {}
    for step in _steps(model):
        if step.name in libraries and step.filled != model.dtype:
            if step.name not in loaded:
                loaded[step.name] = _load(libraries[step.name])
            step.fill(loaded[step.name], model.dtype)
    return bool(libraries)


def attached(model: nn.Module) -> bool:
    """Whether a model has compiled steps."""
    return any(step.filled for step in _steps(model))


def detach(model: nn.Module) -> None:
    """Let a model run every operation by itself again."""
    for step in _steps(model):
        step.clear()


def steps_folder(config: ModelConfig, dtype: torch.dtype) -> Path:
    """Where the libraries for this model, dtype and machine are or would be."""
    depends_on = {
        "functions": [inspect.getsource(module) for module in (layers, attention, moe, sys.modules[__name__])],
        "shapes": [[list(example.shape) for example in chain.examples] for chain in _chains(config, dtype)],
        "norm": config.rms_norm_eps,
        "routing": moe.routing_rule(config),
        "dtype": str(dtype),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    digest = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dmax" / "compiled" / digest


def _steps(model: nn.Module) -> Iterator[Step]:
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Step))


def _chains(config: ModelConfig, dtype: torch.dtype) -> Iterator[_Chain]:
    """Everything that can be compiled for a model."""
    eps, hidden = config.rms_norm_eps, config.hidden_size
    x_ND, weight_D = torch.zeros(_LIKELY, hidden, dtype=dtype), torch.ones(hidden, dtype=dtype)
    yield _Chain("norm", partial(layers.rms_norm, eps=eps), (x_ND, weight_D), (True, False))
    yield _Chain(
        "norm_of_sum", partial(layers.add_rms_norm, eps=eps), (x_ND, torch.zeros_like(x_ND), weight_D),
        (True, True, False),
    )  # fmt: skip

    heads, kv_heads, channels = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    heads_NJC = torch.zeros(_LIKELY, heads + kv_heads, channels, dtype=dtype)
    weight_C, angles_NR = torch.ones(channels, dtype=dtype), torch.zeros(_LIKELY, config.rotary_dim)
    yield _Chain(
        "turn", partial(attention.normalize_and_rotate, num_heads=heads, eps=eps),
        (heads_NJC, weight_C, weight_C.clone(), angles_NR, torch.zeros_like(angles_NR)),
        (True, False, False, True, True),
    )  # fmt: skip

    if any(not config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)):
        gate_up_NW = torch.zeros(_LIKELY, 2 * config.intermediate_size, dtype=dtype)
        yield _Chain("gate", layers.gate, (gate_up_NW,), (True,))
    if config.num_experts is None or config.moe_intermediate_size is None:
        return
    experts = config.num_experts
    width = config.moe_intermediate_size

    def route(x_ND: Tensor, router_ED: Tensor, bias_E: Tensor) -> Tensor:
        chosen = moe.choose_experts(x_ND, router_ED, bias_E, **moe.routing_rule(config))
        return moe.expert_weights(*chosen, experts)

    router_ED, bias_E = torch.zeros(experts, hidden, dtype=dtype), torch.zeros(experts)
    yield _Chain("route", route, (x_ND, router_ED, bias_E), (True, False, False))
    gate_up_NX = torch.zeros(_LIKELY, 2 * (experts + (config.num_shared_experts or 0)) * width, dtype=dtype)
    yield _Chain(
        "weigh", partial(moe.gate_and_weigh, width=width), (gate_up_NX, torch.zeros(_LIKELY, experts)), (True, True)
    )


class _Module(nn.Module):
    """A function as a module, which is what can be exported."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self._function(*tensors)


def _compile(chain: _Chain, path: Path) -> None:
    positions = torch.export.Dim("positions", min=2)
    shapes = tuple({0: positions} if per_position else None for per_position in chain.per_position)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own parts about each other
        exported = torch.export.export(_Module(chain.function), chain.examples, dynamic_shapes=(shapes,))
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(path), inductor_configs={"cpp.dynamic_threads": True}
        )


def _load(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    # What torch._inductor.aoti_load_package wraps; the wrapper imports the compiler, which takes a second and a half.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    return loader.boxed_run


def _require_compiler() -> None:
    wanted = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if not any(shutil.which(name) for name in wanted):
        raise CompileError("there is no C++ compiler here; install g++ or clang++, or name one in CXX.")
