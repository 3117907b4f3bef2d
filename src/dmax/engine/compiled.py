"""What the passes of a model on a CPU have compiled ahead of time (:mod:`dmax.kernels.ahead`).

:func:`compile_steps` does the work, in a minute or so, and puts the libraries into a folder of the user's cache.
:func:`attach` takes what is in that folder, if anything is: nothing is ever compiled while someone waits for an answer.
The folder's name tells everything that a library depends on, so none is taken for a model, a PyTorch, a processor or a
version of the functions that it was not made for.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

from dmax.decoding import mixing, prediction, soft_parallel
from dmax.decoding.chains import rule_chains
from dmax.kernels import ahead
from dmax.kernels.ahead import Chain, CompileError, Library, compile_chain, load_library, require_compiler
from dmax.kernels.cpu import attention as cpu_attention
from dmax.kernels.cpu import experts as cpu_experts
from dmax.kernels.cpu import layers as cpu_layers
from dmax.kernels.cpu import library as cpu_library
from dmax.kernels.cpu import rule as cpu_rule
from dmax.kernels.cpu.attention import CpuAttention
from dmax.kernels.cpu.experts import CpuExperts
from dmax.kernels.cpu.layers import CpuLayers, LayersSize
from dmax.kernels.cpu.rule import CpuDecide, CpuRead, CpuSoften
from dmax.kernels.steps import Step
from dmax.models import attention, layers, moe
from dmax.models.chains import model_chains, model_steps
from dmax.models.config import ModelConfig
from dmax.models.llada2 import LLaDA2

DTYPES = (torch.float32, torch.bfloat16)
_DEFINE_CHAINS = (ahead, layers, attention, moe, prediction, soft_parallel, mixing)
_KERNELS = "kernels.so"
_CPU_LISTING = Path("/proc/cpuinfo")


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
    require_compiler()
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        _compile_kernels(making / _KERNELS)
        in_kernels = _in_kernels(config, dtype, making / _KERNELS)
        if "experts" in in_kernels:
            in_kernels["weigh"] = in_kernels["experts"]  # which weighs them itself
        chains = [chain for chain in _chains(config, dtype) if chain.name not in in_kernels]
        for done, chain in enumerate(chains, 1):
            compile_chain(chain, making / f"{chain.name}.pt2")
            if progress is not None:
                progress(done, len(chains))
        try:
            making.rename(folder)
        except OSError:
            if not folder.is_dir():  # if it is, somebody else was quicker
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def attach(model: LLaDA2) -> bool:
    """Let passes of a model on a CPU use what is compiled for its shape, dtype and machine; say whether anything is."""
    if model.device.type != "cpu" or model.dtype not in DTYPES:
        return False
    folder = steps_folder(model.config, model.dtype)
    libraries: dict[str, Callable[[], Library]] = {
        path.stem: partial(load_library, path) for path in (folder.glob("*.pt2") if folder.is_dir() else ())
    }
    libraries |= _in_kernels(model.config, model.dtype, folder / _KERNELS)
    loaded: dict[str, Library] = {}
    for step in _steps(model):
        if step.name in libraries and step.filled != model.dtype:
            if step.name not in loaded:
                loaded[step.name] = libraries[step.name]()
            step.fill(loaded[step.name], model.dtype)
    return bool(libraries)


def load_attention(model: LLaDA2) -> CpuAttention | None:
    """The attention that is compiled for a model on a CPU, its dtype and machine; None where there is none."""
    path = _kernels(model) if cpu_attention.serves(model.config.head_dim, model.dtype) else None
    return None if path is None else CpuAttention(path, model.dtype)


def load_layers(model: LLaDA2, size: LayersSize) -> CpuLayers | None:
    """What runs all layers of a model in one call; None where there is none."""
    path = _kernels(model) if cpu_layers.serves(size, model.dtype) else None
    return None if path is None else CpuLayers(path, model.dtype)


def load_readout(model: LLaDA2) -> CpuRead | None:
    """What runs head and rule of a model in one call; None where there is none."""
    config = model.config
    path = _kernels(model) if cpu_rule.reads(config.vocab_size, config.hidden_size, model.dtype) else None
    return None if path is None else CpuRead(path, model.dtype, config.mask_token_id)


def _kernels(model: LLaDA2) -> Path | None:
    """The library of kernels that is compiled for a model on a CPU; None where there is none."""
    if model.device.type != "cpu":
        return None
    path = steps_folder(model.config, model.dtype) / _KERNELS
    return path if path.is_file() else None


def attached(model: LLaDA2) -> bool:
    """Whether passes of a model use compiled steps."""
    return any(step.filled for step in model_steps(model))


def detach(model: LLaDA2) -> None:
    """Let passes of a model, and of those like it, run every operation by itself again."""
    for step in _steps(model):
        step.clear()


def steps_folder(config: ModelConfig, dtype: torch.dtype) -> Path:
    """Where the libraries for this model, dtype and machine are or would be."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # never raises, unlike Path.home
    return Path(folder) / "dmax" / "compiled" / _digest(config, dtype)


@cache
def _digest(config: ModelConfig, dtype: torch.dtype) -> str:
    """Tells everything that a library depends on; nothing of it changes while a process runs."""
    depends_on = {
        "functions": [inspect.getsource(module) for module in _DEFINE_CHAINS],
        "kernels": cpu_library.source(),
        "shapes": [
            (chain.name, [list(example.shape) for example in chain.examples]) for chain in _chains(config, dtype)
        ],
        "mask": config.mask_token_id,
        "norm": config.rms_norm_eps,
        "rotary": config.rope_theta,
        "routing": moe.RoutingRule.of(config)._asdict(),
        "dtype": str(dtype),
        "torch": torch.__version__,
        "processor": _processor(),
    }
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]


def _compile_kernels(path: Path) -> None:
    """Compile the kernels; a compiler that cannot do that can still compile the steps."""
    try:
        cpu_library.compile_library(path)
    except CompileError as error:
        warnings.warn(f"{error}; passes go on with PyTorch's own operations", stacklevel=3)


def _in_kernels(config: ModelConfig, dtype: torch.dtype, path: Path) -> dict[str, Callable[[], Library]]:
    """The steps for which the library of kernels has functions, if it could be compiled."""
    if not path.is_file():
        return {}
    mask_token_id, width = config.mask_token_id, config.moe_intermediate_size
    steps: dict[str, Callable[[], Library]] = {"decide": partial(CpuDecide, path, dtype, mask_token_id)}
    if cpu_rule.softens(config.hidden_size, dtype):
        steps["soften"] = partial(CpuSoften, path, dtype, mask_token_id)
    if config.num_experts is not None and width is not None:
        shared_width = width * (config.num_shared_experts or 0)
        if cpu_experts.serves(config.hidden_size, width, shared_width, dtype):
            steps["experts"] = partial(CpuExperts, path, dtype)
    return steps


def _processor() -> str:
    """What a library compiled for the processor at hand may use of it."""
    listing = _CPU_LISTING.read_text(encoding="utf-8") if _CPU_LISTING.is_file() else ""
    flags = next((line for line in listing.splitlines() if line.startswith(("flags", "Features"))), "")
    return torch.backends.cpu.get_cpu_capability() + flags.partition(":")[2]


def _chains(config: ModelConfig, dtype: torch.dtype) -> list[Chain]:
    rules = rule_chains(config.vocab_size, config.hidden_size, config.mask_token_id, dtype)
    return [*model_chains(config, dtype), *rules]


def _steps(model: LLaDA2) -> list[Step]:
    table_VD = model.model.word_embeddings.weight
    mask_token_id = model.config.mask_token_id
    rules = (
        prediction.STEPS.at(model.config.vocab_size, mask_token_id, model.dtype),
        soft_parallel.STEPS.at(model.config.vocab_size, mask_token_id, model.dtype),
        mixing.STEPS.at(table_VD.shape, mask_token_id, model.dtype),
    )
    return [*model_steps(model), *rules]
