"""What a model is, from its configuration and the headers of its files; no weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dmax.cli._common.session import AUTO, pick_device
from dmax.engine.backends import backend_name
from dmax.engine.requirements import Workload, formats_needed
from dmax.models import BlockDiffusionLM, ModelConfig, Tokenizer, load_config, load_tokenizer, resolve
from dmax.models.memory import available_memory
from dmax.models.names import is_expert, is_stack
from dmax.models.source import INDEX_FILE, WEIGHTS_FILE, list_tensors, read_json
from dmax.models.transformer import expert_stacks

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def describe(name: str) -> dict[str, Any]:
    """Return everything ``dmax info`` shows, as plain values; sizes in bytes.

    Raises:
        CheckpointError: there is no such checkpoint, the Hub cannot give its configuration, or its configuration,
            tokenizer or weights are damaged.
    """
    folder = resolve(name, weights=False)
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    with torch.device("meta"):
        model = BlockDiffusionLM(config)
    total, active = _count(model)
    return {
        "architecture": _architecture(config),
        "parameters": {"total": total, "active": active},
        "weight_bytes": {dtype: total * size for dtype, size in _BYTES.items()},
        "cache_bytes_per_token": {dtype: _cache_values(config) * size for dtype, size in _BYTES.items()},
        "special_tokens": _special_tokens(config, tokenizer),
        "tokenizer": None
        if tokenizer is None
        else {"vocab_size": tokenizer.vocab_size, "chat_template": tokenizer.chat_template is not None},
        "decoder_defaults": config.decoder_defaults,
        "backend": _backend(),
        "weights": _weights(folder),
        "memory": _memory(config),
    }


def _memory(config: ModelConfig) -> dict[str, Any]:
    """Count bytes that are there, and that one sequence needs: in each dtype, and converted in each format."""
    device = torch.device(pick_device(AUTO))
    narrow, load = torch.bfloat16, Workload()
    needed = {"bfloat16": formats_needed(config, narrow, device, load)}
    if device.type == "cpu":
        needed = {"float32": formats_needed(config, torch.float32, device, load), **needed}
    own = {dtype: sizes.pop(None) for dtype, sizes in needed.items()}
    return {
        "available": available_memory(device),
        "needed": {**own, **next(iter(needed.values()))},
    }


def _backend() -> str:
    """Tell what would compute the passes on this machine, by default."""
    device = torch.device(pick_device(AUTO))
    return backend_name(device, torch.float32 if device.type == "cpu" else torch.bfloat16)


def _architecture(config: ModelConfig) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "family": config.family,
        "kind": "dense" if config.num_experts is None else "mixture of experts",
        "block_length": config.block_length,
        "layers": config.num_hidden_layers,
        "dense_layers": sum(not config.is_moe_layer(index) for index in range(config.num_hidden_layers)),
        "hidden_size": config.hidden_size,
        "dense_width": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rotary_dim": config.rotary_dim,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "vocab_size": config.vocab_size,
        "context": config.max_position_embeddings,
        "tied_embeddings": config.tie_word_embeddings,
        "decoder": config.default_decoder,
        "shifted_logits": config.shift_logits,
    }
    if config.num_experts is not None:
        facts["experts"] = {
            "count": config.num_experts,
            "per_token": config.num_experts_per_tok,
            "shared": config.num_shared_experts or 0,
            "width": config.moe_intermediate_size,
            "groups": config.n_group,
            "groups_per_token": config.topk_group,
            "per_block": config.expert_capacity or None,
        }
    return facts


def _count(model: BlockDiffusionLM) -> tuple[int, int]:
    """Count parameters in all, and those active for one token: all but the routed experts it is not sent to."""
    config = model.config
    total = sum(parameter.numel() for parameter in model.parameters())
    routed = sum(parameter.numel() for experts in expert_stacks(model) for parameter in experts.parameters())
    idle = routed - routed * config.num_experts_per_tok // config.num_experts if config.num_experts else 0
    return total, total - idle


def _cache_values(config: ModelConfig) -> int:
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def _special_tokens(config: ModelConfig, tokenizer: Tokenizer | None) -> dict[str, dict[str, Any]]:
    ids = {"mask": config.mask_token_id, "eos": config.eos_token_id, "pad": config.pad_token_id}
    ids |= {f"eos_{number}": token_id for number, token_id in enumerate(config.further_eos_token_ids, 2)}
    texts = {} if tokenizer is None else {role: tokenizer.pipeline.id_to_token(i) for role, i in ids.items()}
    return {role: {"id": token_id, "text": texts.get(role)} for role, token_id in ids.items()}


def _weights(folder: Path) -> dict[str, Any] | None:
    """Tell how the weights are stored; None where there are none.

    Where only the index of the weights is there, as for a model on the Hub, it tells what it can.
    """
    if not (folder / WEIGHTS_FILE).exists():
        if not (folder / INDEX_FILE).exists():
            return None
        index = read_json(folder / INDEX_FILE)
        weight_map = index.get("weight_map", {})
        shards = set(weight_map.values())
        if not any((folder / shard).exists() for shard in shards):
            size = index.get("metadata", {}).get("total_size")
            return {"layout": _layout(weight_map), "dtypes": None, "files": len(shards), "bytes": size, "here": False}
    stored = list_tensors(folder)
    files = {tensor.file for tensor in stored.values()}
    return {
        "layout": _layout(stored),
        "dtypes": sorted({tensor.dtype for tensor in stored.values()}),
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "here": True,
    }


def _layout(names: Iterable[str]) -> str:
    names = list(names)
    if any(is_stack(name) for name in names):
        return "merged experts"
    return "separate experts" if any(is_expert(name) for name in names) else "dense"
