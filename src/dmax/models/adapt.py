"""Make a block-diffusion checkpoint of an autoregressive one: its weights, and a mask token; no model is built.

Adapted with shifted logits and decoded by blocks of one, it is the autoregressive model (algorithm.md#shifted-logits).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import tokenizers
import torch

from dmax.models.autoregressive import AutoregressiveSource, FolderSource
from dmax.models.checkpoint import check_fit, layout_of, save_companions
from dmax.models.config import ConfigError, ModelConfig
from dmax.models.families import adapted_family
from dmax.models.names import TensorNames
from dmax.models.rewriting import write_at
from dmax.models.source import FLOAT_DTYPES, CheckpointError, StoredTensor
from dmax.models.tokenizer import Tokenizer
from dmax.models.transformer import BlockDiffusionLM
from dmax.models.unfinished import Progress, Telling, check_space, unfinished_folder
from dmax.models.writer import DTYPE_NAMES, FilePlan, TensorSpec, plan_files, write_index

_TASK = 2**22
"""Numbers in memory at a time."""
_SHARD_BYTES = 2**30
_RESERVED = re.compile(r"reserved|unused", re.IGNORECASE)
_BY_TOKEN = ("model.word_embeddings.weight", "lm_head.weight")
"""The tensors with a row a token."""


@dataclass(frozen=True)
class Adapted:
    """What an autoregressive model became."""

    config: ModelConfig
    mask_token: str
    new_rows: int
    """By which the embedding table grew."""


def adapt_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    shifted: bool = True,
    block_length: int = 1,
    mask_token: str | None = None,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = _SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Adapted:
    """Write an autoregressive checkpoint (Qwen2, Qwen3, Llama) as one of block diffusion.

    Some rows of a weight are in memory at a time. The mask token is the one asked for, or else the tokenizer's own, a
    reserved one, or a new one in a row that the tokenizer leaves free, or in one row more. Its row becomes the mean of
    all others. Chat template and ends of answers are kept.

    Args:
        source: a folder or Hugging Face Hub id (safetensors), or a GGUF file, which is dequantised.
        destination: must not exist yet, or be empty; it appears whole or not at all. Where an earlier call with the
            same arguments was interrupted, this one goes on from the files that it completed.
        shifted: whether tokens are read one position before their own, as in the source; training has to teach
            reading them at their own otherwise.
        block_length: what a decode takes that names none, until training writes its own.
        mask_token: text of a special token, or of a new one.
        tokenizer: in place of the source's.
        dtype: of the weights; as stored if None, float32 where a GGUF file is quantised.
        max_shard_bytes: weights beyond this many bytes are split over several files with an index.
        overwrite: replace a checkpoint that is already at the destination.
        progress: called as bytes are written.

    Raises:
        CheckpointError: the source is no whole checkpoint of those kinds, or has no tokenizer; the destination is
            taken or cannot be written.
    """
    with _open(source) as opened:
        tokenizer = tokenizer or opened.tokenizer()
        if tokenizer is None:
            raise CheckpointError(
                f"{opened.place} has no tokenizer.json: write one there by `AutoTokenizer.from_pretrained(…)"
                ".save_pretrained(…)` of transformers, or name a folder that has it (--tokenizer)."
            )
        config, tokenizer = _adapted(opened, tokenizer, shifted, block_length, mask_token)
        with torch.device("meta"):
            model = BlockDiffusionLM(config)
        names = TensorNames(config)
        by_token = {name for name in opened.stored if names.place(name).name in _BY_TOKEN}
        new_rows = config.vocab_size - opened.values["vocab_size"]
        grown = {name: _grown(opened.stored[name], new_rows) for name in by_token}
        check_fit(opened.place, opened.values, {**opened.stored, **grown}, model)
        written_as = None if dtype is None else DTYPE_NAMES[dtype]
        specs = [
            TensorSpec(name, shape, written_as or opened.stored[name].dtype)
            for name, shape in layout_of(model, ()).items()
        ]
        plans = plan_files([[spec] for spec in specs], max_shard_bytes)
        files = sorted({tensor.file for tensor in opened.stored.values()})
        identity = {
            "files": [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
            "config": config.to_dict(), "dtype": written_as, "max_shard_bytes": max_shard_bytes,
            "tokenizer": tokenizer.pipeline.to_str(),
        }  # fmt: skip
        with unfinished_folder(Path(destination), identity, overwrite) as unfinished:
            check_space(unfinished.path, sum(plan.num_bytes for plan in plans if unfinished.finished(plan) is None))
            told = Telling(plans, progress)
            for plan in plans:
                if unfinished.finished(plan) is None:
                    fill = partial(
                        _write, plan=plan, source=opened, by_token=by_token, mask_id=config.mask_token_id,
                        written=told.add,
                    )  # fmt: skip
                    unfinished.write(plan, fill)
                else:
                    told.add(sum(spec.num_bytes for spec in plan.specs))
            write_index(unfinished.path, plans)
            norm = next(spec for spec in specs if names.place(spec.name).name == "model.norm.weight")
            save_companions(config, unfinished.path, tokenizer, FLOAT_DTYPES[norm.dtype])
        return Adapted(config, tokenizer.settings["mask_token"], new_rows)


@contextmanager
def _open(source: str | Path) -> Iterator[AutoregressiveSource]:
    if str(source).endswith(".gguf"):
        from dmax.models.gguf_source import GgufSource  # here, because few have the package

        yield GgufSource(Path(source).expanduser())
    else:
        with FolderSource.opened(source) as folder:
            yield folder


def _adapted(
    source: AutoregressiveSource, tokenizer: Tokenizer, shifted: bool, block_length: int, mask_token: str | None
) -> tuple[ModelConfig, Tokenizer]:
    """Return configuration and tokenizer of what a source becomes."""
    values = source.values
    try:
        family = adapted_family(values.get("model_type"), shifted)
        if type(values.get("vocab_size")) is not int:
            raise ConfigError("config.json lacks vocab_size.")
        ends = values.get("eos_token_id")
        if ends is None:
            ends = tokenizer.special_id("eos_token")
        taken = ends if isinstance(ends, list) else [ends]
        tokenizer, mask_id = _with_mask(tokenizer, mask_token, family.mask_token or "<|mask|>", taken)
        said = {
            "mask_token_id": mask_id, "eos_token_id": ends, "block_length": block_length, "shift_logits": shifted,
            "vocab_size": max(values["vocab_size"], mask_id + 1),
        }  # fmt: skip
        said = {family.keys_of(name)[0]: value for name, value in said.items()}
        return ModelConfig.from_dict({**values, **said, "model_type": family.model_type}), tokenizer
    except ConfigError as error:
        raise CheckpointError(f"{source.place}: {error}") from error


def _with_mask(tokenizer: Tokenizer, wanted: str | None, new: str, ends: list[Any]) -> tuple[Tokenizer, int]:
    """Return a tokenizer that has a mask token, and its id."""
    pipeline = tokenizers.Tokenizer.from_str(tokenizer.pipeline.to_str())
    special = {token.content: index for index, token in pipeline.get_added_tokens_decoder().items() if token.special}
    own_id = tokenizer.special_id("mask_token")
    own = None if own_id is None else pipeline.id_to_token(own_id)
    reserved = (text for text, _ in sorted(special.items(), key=lambda item: item[1]) if _RESERVED.search(text))
    text = wanted or own or next(reserved, new)
    if text not in special and pipeline.token_to_id(text) is not None:
        raise CheckpointError(f"Mask token {text!r} is an ordinary token: choose a special one, or a new name.")
    pipeline.add_special_tokens([text])
    mask_id = pipeline.token_to_id(text)
    assert mask_id is not None
    if mask_id in ends:
        raise CheckpointError(f"Mask token {text!r} ends answers: choose another special token, or a new name.")
    return Tokenizer(pipeline, {**tokenizer.settings, "mask_token": text}, tokenizer.chat_template), mask_id


def _grown(tensor: StoredTensor, new_rows: int) -> StoredTensor:
    """Describe a tensor with a row a token as it will be."""
    return replace(tensor, shape=(tensor.shape[0] + new_rows, *tensor.shape[1:]))


def _write(
    descriptor: int, plan: FilePlan, source: AutoregressiveSource, by_token: set[str], mask_id: int,
    written: Callable[[int], None],
) -> bool:  # fmt: skip
    """Write all tensors of a file; return that they are there."""
    for spec in plan.specs:
        start, dtype, rows = plan.starts[spec.name], FLOAT_DTYPES[spec.dtype], source.stored[spec.name].shape[0]
        total, step = torch.zeros(spec.shape[1:], dtype=torch.float64), max(1, _TASK // prod(spec.shape[1:]))
        for first in range(0, rows, step):
            some = source.read(spec.name, first, min(first + step, rows))
            if spec.name in by_token:
                total += some.double().sum(0)
            written(write_at(descriptor, start, some.to(dtype), first))
        if spec.name in by_token:
            mean = (total / rows)[None].to(dtype)
            write_at(descriptor, start, mean, mask_id)
            for row in range(rows, spec.shape[0]):
                written(write_at(descriptor, start, mean, row))
    return True
