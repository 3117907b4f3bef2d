"""Checkpoints: a model from a folder, and a folder from a model; names of tensors are in :mod:`dmax.models.names`."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmax.models.config import ConfigError, ModelConfig
from dmax.models.families import DEFAULT, get_family
from dmax.models.foreign import foreign_names, foreign_quantization
from dmax.models.names import TensorNames
from dmax.models.quantized import Scheme, hold_quantized, part_of, scale_name
from dmax.models.source import (
    CONFIG_FILE,
    FLOAT_DTYPES,
    GENERATION_FILE,
    QUANTIZED_DTYPES,
    CheckpointError,
    StoredTensor,
    list_tensors,
    open_tensors,
    read_ahead,
    read_json,
    resolve,
    spelled,
)
from dmax.models.tokenizer import Tokenizer
from dmax.models.transformer import BlockDiffusionLM, routers, tie_embeddings
from dmax.models.writer import DEFAULT_SHARD_BYTES, TensorSpec, new_folder, write_config, write_tensors

__all__ = [
    "CheckpointError",
    "load_config",
    "load_model",
    "load_tokenizer",
    "resolve",
    "save_companions",
    "save_model",
]

_EXPERT_BIAS = re.compile(r".*\.mlp\.gate\.expert_bias")
_TABLE, _HEAD = "model.word_embeddings.weight", "lm_head.weight"
_ROTARY_TABLE = re.compile(r".*\.rotary_emb\.inv_freq")


def load_config(path_or_id: str | Path) -> ModelConfig:
    """Read a checkpoint's architecture; no weight is touched.

    Published configurations leave out some special-token ids. ``generation_config.json`` says which tokens end an
    answer, where it does; ids that neither file has come from the tokenizer files, or else from what the family says of
    itself.

    Raises:
        CheckpointError: there is no such checkpoint, or its ``config.json`` is not that of a model we can build.
    """
    folder = resolve(path_or_id)
    return _read_config(folder, read_json(folder / CONFIG_FILE))


def _read_config(folder: Path, values: Mapping[str, Any]) -> ModelConfig:
    values = dict(values)
    if (folder / GENERATION_FILE).exists():
        ends = read_json(folder / GENERATION_FILE).get("eos_token_id")
        values["eos_token_id"] = values.get("eos_token_id") if ends is None else ends
    try:
        family = get_family(values.get("model_type", DEFAULT))
        unsaid = [
            role
            for role in ("eos_token", "mask_token")
            if all(values.get(key) is None for key in family.keys_of(f"{role}_id"))
        ]
        tokenizer = Tokenizer.from_folder(folder) if unsaid else None
        if tokenizer is not None:
            values |= {f"{role}_id": tokenizer.special_id(role) for role in unsaid}
            if values.get("mask_token_id") is None and family.mask_token is not None:
                values["mask_token_id"] = tokenizer.pipeline.token_to_id(family.mask_token)
        config = ModelConfig.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    defaults = dict(config.decoder_defaults)
    for decoder, roles in family.decoder_tokens.items():
        options = {**_ids(roles, values, tokenizer), **defaults.get(decoder, {})}
        if options:
            defaults[decoder] = options
    return replace(config, decoder_defaults=defaults)


def _ids(roles: Mapping[str, str], values: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, int]:
    """Find the tokens that options name, by their roles: in a parsed ``config.json``, or else a tokenizer."""
    ids = {option: values.get(f"{role}_id") for option, role in roles.items()}
    if tokenizer is not None:
        ids = {option: tokenizer.special_id(roles[option]) if found is None else found for option, found in ids.items()}
    return {option: token_id for option, token_id in ids.items() if token_id is not None}


def load_tokenizer(path_or_id: str | Path) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint, or None where it ships none.

    Its special-token ids are those of ``config.json``, where there is one.

    Raises:
        CheckpointError: there is no such checkpoint, or its tokenizer files cannot be read.
    """
    folder = resolve(path_or_id)
    ids: dict[str, int] = {}
    if (folder / CONFIG_FILE).exists():
        config = load_config(folder)
        ids = {"eos_token_id": config.eos_token_id, "mask_token_id": config.mask_token_id}
    return Tokenizer.from_folder(folder, ids)


def load_model(
    path_or_id: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    *,
    mapped: bool = False,
    check: Callable[[BlockDiffusionLM, torch.dtype, torch.device], object] | None = None,
) -> BlockDiffusionLM:
    """Build the model of a checkpoint and fill it with its weights, either layout, one file or many.

    The model takes shape on the meta device and its memory is claimed once, in its final dtype and place; tensors
    then go there one at a time, straight from the mapped files.

    Args:
        path_or_id: a folder, a Hugging Face Hub id or the name of an embedded model; see :func:`resolve`.
        device: where the weights go.
        dtype: what the weights become; None keeps the dtype of the stored final norm. The routers' ``expert_bias`` is
            float32 whatever is asked.
        mapped: on a CPU, leave tensors that are stored just as the model holds them in the files, which are mapped into
            memory: nothing is read before it is used, and processes share it. The files must not be written to
            meanwhile; what the model writes stays its own.
        check: called with the model on the meta device, its dtype and its device, before a weight is read.

    Returns:
        The model in evaluation mode, its weights trainable.

    Raises:
        CheckpointError: in one sentence, what is wrong with the checkpoint; every tensor that is missing,
            unexpected or of the wrong shape is counted, and the first of each kind are named.
    """
    model, stored = inspect_checkpoint(path_or_id)
    if dtype is None:
        [(norm, _)] = TensorNames(model.config).stored("model.norm.weight", ())
        dtype = FLOAT_DTYPES[stored[norm].dtype]
    if not dtype.is_floating_point:
        raise CheckpointError(f"Weights cannot become {dtype}: choose a floating-point dtype, such as torch.bfloat16.")
    target = usable_device(device)
    if check is not None:
        check(model, dtype, target)
    model.to(dtype)
    names = TensorNames(model.config)
    in_files = _mapped(model, stored, names) if mapped and target.type == "cpu" else {}
    model.load_state_dict(in_files, strict=False, assign=True)
    materialize(model, target, dtype)
    _fill(model, {name: tensor for name, tensor in stored.items() if names.place(name).name not in in_files}, names)
    return model.eval()


def inspect_checkpoint(path_or_id: str | Path) -> tuple[BlockDiffusionLM, dict[str, StoredTensor]]:
    """Check a checkpoint by its configuration and its headers, without reading a weight.

    Returns:
        The model on the meta device (shapes, no memory), and every stored tensor by name.

    Raises:
        CheckpointError: as :func:`load_model`.
    """
    folder = resolve(path_or_id)
    values = read_json(folder / CONFIG_FILE)
    config = _read_config(folder, values)
    stored = list_tensors(folder)
    # A router that was trained with a bias chooses other experts without it: what is stored counts, not what is said.
    has_bias = any(_EXPERT_BIAS.fullmatch(name) for name in stored)
    if has_bias and "moe_router_enable_expert_bias" not in get_family(config.family).fixed:
        config = replace(config, moe_router_enable_expert_bias=True)
    with torch.device("meta"):
        model = BlockDiffusionLM(config)
        _hold_what_is_quantized(model, stored)
    check_fit(folder, values, stored, model)
    return model, stored


def _hold_what_is_quantized(model: BlockDiffusionLM, stored: Mapping[str, StoredTensor]) -> None:
    """Quantise the modules of a model on the meta device whose weights are stored with scales."""
    native, schemes, names = model.state_dict(), {}, TensorNames(model.config)
    for name, tensor in stored.items():
        target = names.place(name).name
        scales, dtype = stored.get(scale_name(name)), QUANTIZED_DTYPES.get(tensor.dtype)
        if dtype and scales and target in native and part_of(target) and target not in schemes:
            scheme = Scheme.of(dtype, tensor.shape, scales.shape)
            if scheme is not None:
                schemes[target] = scheme
    if model.config.tie_word_embeddings and _TABLE in schemes:
        schemes[_HEAD] = schemes[_TABLE]
    hold_quantized(model, schemes)


def layout_of(model: BlockDiffusionLM, merged: Container[str]) -> dict[str, tuple[int, ...]]:
    """List names and shapes of a model's tensors in a file.

    Args:
        model: on any device.
        merged: the stacks of experts that are stored as one tensor; the others are stored expert by expert.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    config, names = model.config, TensorNames(model.config)
    for name, tensor in model.state_dict().items():
        if name in (_HEAD, scale_name(_HEAD)) and config.tie_word_embeddings:
            continue
        if _EXPERT_BIAS.fullmatch(name) and not config.moe_router_enable_expert_bias:
            continue
        shapes.update(names.stored(name, tuple(tensor.shape), merged))
    return shapes


def check_fit(
    place: Path, values: Mapping[str, Any], stored: Mapping[str, StoredTensor], model: BlockDiffusionLM
) -> None:
    """Compare what is stored with what a model needs.

    Args:
        place: its folder, or its only file.
        values: its configuration.
        stored: its tensors.
        model: on the meta device.

    Raises:
        CheckpointError: with every difference at once, or what tool the checkpoint comes from.
    """
    if differences := _differences(stored, model):
        said = f"The tensors in {place} do not fit its {CONFIG_FILE if place.is_dir() else 'metadata'}. {differences}."
        raise CheckpointError(foreign_names(place, stored) or foreign_quantization(place, values, stored) or said)


def _differences(stored: Mapping[str, StoredTensor], model: BlockDiffusionLM) -> str:
    expected, places = layout_of(model, stored), TensorNames(model.config)
    quantized = {name: t.dtype for name, t in model.state_dict().items() if t.dtype in QUANTIZED_DTYPES.values()}
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected and not _is_leftover(name, expected)]
    known = {name: tensor for name, tensor in stored.items() if name in expected}
    misshapen = [
        f"{name} (is {list(tensor.shape)}, should be {list(expected[name])})"
        for name, tensor in known.items()
        if tensor.shape != expected[name] and not _spreads(name, tensor.shape, expected[name])
    ]
    not_float, not_alike = [], []
    for name, tensor in known.items():
        should_be = quantized.get(places.place(name).name)
        if should_be is None and tensor.dtype not in FLOAT_DTYPES:
            not_float.append(f"{name} (is {tensor.dtype})")
        elif should_be is not None and QUANTIZED_DTYPES.get(tensor.dtype) != should_be:
            not_alike.append(f"{name} (is {tensor.dtype})")
    return "; ".join(
        f"{len(names)} {what}: {spelled(names)}"
        for what, names in [
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", misshapen),
            ("not floating-point", not_float),
            ("not quantised as the rest of their stack", not_alike),
        ]
        if names
    )


def _spreads(name: str, stored: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Tell whether scales are stored as one for a whole weight, or as a column: ``()``, ``(1,)`` or ``(out, 1)``."""
    return name.endswith("_scale") and stored in ((), (1,), (*expected, 1))


def _is_leftover(name: str, expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Tell what some writers store and no model reads: rotary tables, and the head where it is the embedding."""
    return _ROTARY_TABLE.fullmatch(name) is not None or (name == _HEAD and name not in expected)


def usable_device(device: str | torch.device) -> torch.device:
    """Find the device of that name, and try it out.

    Raises:
        CheckpointError: this machine or this build of torch cannot use it.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # an unknown name; a build without that backend
        reason = str(error).splitlines()[0].rstrip(".")
        raise CheckpointError(f"Device {str(device)!r} cannot be used on this machine: {reason}.") from error


def materialize(model: BlockDiffusionLM, device: torch.device, dtype: torch.dtype) -> None:
    """Claim the memory of a meta-device model in its final dtype; contents are undefined, router biases zero.

    What is not on the meta device stays as it is.
    """
    assert {name for name, _ in model.named_buffers()} <= model.state_dict().keys(), "a buffer that no file fills"
    model.to(dtype)
    for router in routers(model):
        router.expert_bias = router.expert_bias.float()

    def claim(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        # A router's bias may be absent from the file where the configuration says that there is none.
        return (torch.zeros_like if tensor.ndim == 1 else torch.empty_like)(tensor, device=device)

    model._apply(claim)  # type: ignore[no-untyped-call]
    if model.config.tie_word_embeddings:
        tie_embeddings(model)  # each was given its own memory


def _mapped(model: BlockDiffusionLM, stored: Mapping[str, StoredTensor], names: TensorNames) -> dict[str, Tensor]:
    """Return the tensors that lie in the files just as a model on the meta device holds them, by the model's names."""
    targets, found = model.state_dict(), {}
    for path, in_file in _by_file(stored).items():
        places = {name: names.place(name) for name in in_file}
        alike = {
            name: place.name
            for name, place in places.items()
            if place.part is None and place.name in targets and _is_like(stored[name], targets[place.name])
        }
        if not alike:
            continue
        read_ahead(path)
        with open_tensors(path) as file:
            found.update({own: file.get_tensor(name) for name, own in alike.items()})
    return found


def _is_like(stored: StoredTensor, target: Tensor) -> bool:
    dtype = {**FLOAT_DTYPES, **QUANTIZED_DTYPES}[stored.dtype]
    return dtype == target.dtype and stored.shape == target.shape


def _by_file(names: Mapping[str, StoredTensor]) -> dict[Path, list[str]]:
    by_file: dict[Path, list[str]] = {}
    for name, tensor in names.items():
        by_file.setdefault(tensor.file, []).append(name)
    return by_file


@torch.no_grad()
def _fill(model: BlockDiffusionLM, stored: Mapping[str, StoredTensor], places: TensorNames) -> None:
    targets = model.state_dict()
    needed = layout_of(model, stored)
    for path, names in _by_file({name: tensor for name, tensor in stored.items() if name in needed}).items():
        with open_tensors(path) as file:
            for name in names:
                place = places.place(name)
                target = place.of(targets[place.name])
                tensor = file.get_tensor(name)
                target.copy_(tensor.squeeze(-1) if tensor.ndim > target.ndim else tensor)


def save_model(
    model: BlockDiffusionLM,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    merged: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint in the published form; the folder appears whole or not at all.

    Args:
        model: weights on any device; each tensor keeps its dtype.
        folder: must not exist yet, or be empty.
        tokenizer: written beside the weights where given.
        merged: store each stack of experts as one tensor instead of one tensor an expert.
        max_shard_bytes: weights beyond this many bytes are split over several files with an index.
        overwrite: replace a checkpoint that is already there.

    Raises:
        CheckpointError: the folder holds something else, or cannot be written.
    """
    tensors, places = model.state_dict(), TensorNames(model.config)

    def tensor_of(name: str) -> Tensor:
        place = places.place(name)
        return place.of(tensors[place.name])

    specs = [TensorSpec.of(name, tensor_of(name)) for name in layout_of(model, tensors if merged else ())]
    with new_folder(Path(folder), overwrite) as partial:
        write_tensors(partial, specs, tensor_of, max_shard_bytes)
        save_companions(model.config, partial, tokenizer, model.dtype)


def save_companions(
    config: ModelConfig, folder: Path, tokenizer: Tokenizer | None, dtype: torch.dtype = torch.float32
) -> None:
    """Write what makes a folder of weights a checkpoint: ``config.json`` and the tokenizer's files."""
    write_config(folder, {**config.to_dict(), "torch_dtype": str(dtype).removeprefix("torch.")})
    if tokenizer is not None:
        tokenizer.save(folder)
