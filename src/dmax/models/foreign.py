"""Checkpoints of other tools, recognised by name: what they are, and how they become loadable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dmax.models.quantized import STORED_AS

_PREFIXES = {
    "_orig_mod.": "as torch.compile names them: save the module that it wraps, `compiled._orig_mod`",
    "module.": "as DataParallel names them: save the module that it wraps, `wrapped.module`",
    "_checkpoint_wrapped_module.": "as activation checkpointing names them: save the module that it wraps",
    "_fsdp_wrapped_module.": "as FSDP names them: gather the whole state dict, and save that",
    "base_model.model.": "as PEFT names them: merge the adapter by `merge_and_unload()`, and save the result",
}
_PACKED = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_inv": "fp8",
    ".W_q": "hqq",
    ".scales": "MLX",  # after those that have such a part, too
}
"""How the names of weights end that a tool has packed."""
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_QUANTIZERS = (
    "gptq",
    "awq",
    "bitsandbytes",
    "fp8",
    "fbgemm_fp8",
    "compressed-tensors",
    "aqlm",
    "hqq",
    "quanto",
    "torchao",
)
_POINTER = b"version https://git-lfs"


def adapter_in(folder: Path) -> str | None:
    """Return what a folder is, where it holds an adapter instead of a model; None for all others."""
    if not any((folder / name).exists() for name in _ADAPTER):
        return None
    return (
        f"{folder} holds a PEFT adapter, not a model: load it on its base model with peft, merge it by "
        "`merge_and_unload()`, and save the result by `save_pretrained`."
    )


def foreign_names(folder: Path, names: Iterable[str]) -> str | None:
    """Return which wrapper stored a checkpoint, by the part of its tensors' names that is the wrapper's."""
    names = list(names)
    for prefix, reason in _PREFIXES.items():
        if names and all(name.startswith(prefix) for name in names):
            return f"The tensors in {folder} are all called {prefix}…, {reason}, or rename the tensors."
        if prefix.startswith("_") and (inside := next((name for name in names if prefix in name), None)):
            return f"Tensors in {folder} are called as {inside}, {reason}, or take {prefix} out of their names."
    first = {name.partition(".")[0] for name in names}
    if len(first) == 1 and first != {"model"}:
        return f"The tensors in {folder} are all called {first.pop()}.…: rename them to begin with model. and lm_head."
    return None


def foreign_quantization(folder: Path, values: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Return which tool quantised a checkpoint, by its configuration or else its names; None where none did.

    Args:
        folder: of the checkpoint.
        values: its ``config.json``.
        names: of its tensors.
    """
    section = values.get("quantization_config")
    method, weights = (
        section.get(key) if isinstance(section, Mapping) else None for key in ("quant_method", "weights")
    )
    if method is None:
        names = list(names)
        packed = (tool for end, tool in _PACKED.items() if any(name.endswith(end) for name in names))
        method = next(packed, None)
    if method == "dmax" and weights is not None and weights not in STORED_AS:
        return (
            f"The weights in {folder} are in the format {str(weights)[:40]!r}, of which this version knows "
            f"{', '.join(STORED_AS)}: install the newest dmax, or convert the checkpoint that they were made from."
        )
    if method in (None, "dmax"):
        return None
    is_known = str(method).lower() in _QUANTIZERS or method in _PACKED.values()
    known = str(method) if is_known else f"{str(method)[:40]!r}, which is unknown here"
    return (
        f"The weights in {folder} are quantised by {known}, whose packing is not read: take the checkpoint that they "
        "were made from, and run `dmax convert --quantize int8` on it."
    )


def is_pointer(path: Path) -> bool:
    """Return whether a file is Git LFS's stand-in for one that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
